import type {
  ChatCompletionCreateParamsStreaming,
  ChatCompletionMessageParam,
  ChatCompletionTool,
} from "openai/resources/chat/completions";
import type { ChatMessage, ContentPart, ToolChoice, ToolDefinition } from "../domain/conversation.ts";
import type { ModelRequest } from "./model-provider.ts";

/** OpenAI itself, or a server that speaks an older or smaller form of its Chat Completions. */
export type OpenAiKind = "openai" | "openai-compatible";

/** The call as a Chat Completions body. Every setting that is given is sent; what a server cannot do, it refuses itself. */
export function toOpenAiRequest(kind: OpenAiKind, { model, messages, tools, settings }: ModelRequest): ChatCompletionCreateParamsStreaming {
  const given = <T>(name: string, value: T | undefined): object => (value === undefined ? {} : { [name]: value });
  return {
    model,
    messages: messages.map((message) => toOpenAiMessage(kind, message)),
    stream: true,
    stream_options: { include_usage: true },
    ...given("tools", tools.length === 0 ? undefined : tools.map(toOpenAiTool)),
    ...given(kind === "openai" ? "max_completion_tokens" : "max_tokens", settings.maxTokens),
    ...given("temperature", settings.temperature),
    ...given("top_p", settings.topP),
    ...given("stop", settings.stop?.length === 0 ? undefined : settings.stop),
    ...given("seed", settings.seed),
    ...given("presence_penalty", settings.presencePenalty),
    ...given("frequency_penalty", settings.frequencyPenalty),
    ...given("reasoning_effort", settings.reasoningEffort),
    ...given("response_format", settings.responseFormat),
    ...given("parallel_tool_calls", settings.parallelToolCalls),
    ...given("tool_choice", settings.toolChoice === undefined ? undefined : toOpenAiToolChoice(settings.toolChoice)),
  };
}

const toOpenAiToolChoice = (choice: ToolChoice): object | string =>
  typeof choice === "string" ? choice : { type: "function", function: { name: choice.name } };

const toOpenAiTool = ({ name, description, parameters, strict }: ToolDefinition): ChatCompletionTool => ({
  type: "function",
  function: {
    name,
    ...(description === undefined ? {} : { description }),
    ...(parameters === undefined ? {} : { parameters: { ...parameters } }),
    ...(strict === undefined ? {} : { strict }),
  },
});

function toOpenAiMessage(kind: OpenAiKind, message: ChatMessage): ChatCompletionMessageParam {
  switch (message.role) {
    case "system":
    case "developer":
      // Compatible servers' chat templates do not know the newer role.
      return { role: kind === "openai" ? message.role : "system", content: message.content };
    case "user":
      return { role: "user", content: typeof message.content === "string" ? message.content : message.content.map(toOpenAiPart) };
    case "tool":
      return { role: "tool", tool_call_id: message.toolCallId, content: message.content };
    case "assistant": {
      const calls = message.toolCalls ?? [];
      if (calls.length === 0) return { role: "assistant", content: message.content ?? "" };
      return {
        role: "assistant",
        content: message.content,
        tool_calls: calls.map((call) => ({ id: call.id, type: "function", function: { name: call.name, arguments: call.arguments } })),
      };
    }
  }
}

const toOpenAiPart = (part: ContentPart) =>
  part.type === "text"
    ? { type: "text" as const, text: part.text }
    : { type: "image_url" as const, image_url: { url: part.url, ...(part.detail === undefined ? {} : { detail: part.detail }) } };
