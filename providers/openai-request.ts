import type {
  ChatCompletionContentPart,
  ChatCompletionCreateParamsStreaming,
  ChatCompletionMessageParam,
  ChatCompletionMessageToolCall,
  ChatCompletionTool,
} from "openai/resources/chat/completions";
import {
  type ChatMessage,
  type ContentPart,
  type CustomToolFormat,
  type FileSource,
  type ToolCall,
  type ToolChoice,
  type ToolDefinition,
  allowedTools,
} from "../domain/conversation.ts";
import type { ModelRequest } from "./model-provider.ts";
import { type Refuse, refuseFor } from "./provider-failure.ts";

/** OpenAI itself, or a server that speaks an older or smaller form of its Chat Completions. */
export type OpenAiKind = "openai" | "openai-compatible";

/**
 * The call as a Chat Completions body. Every setting that is given is sent; what a server cannot do, it refuses itself.
 * @throws {ModelCallError} `refused`
 */
export function toOpenAiRequest(provider: string, kind: OpenAiKind, request: ModelRequest): ChatCompletionCreateParamsStreaming {
  const { model, messages, settings } = request;
  const refuse = refuseFor(provider, request);
  const given = <T>(name: string, value: T | undefined): object => (value === undefined ? {} : { [name]: value });
  // Compatible servers do not know a choice among some of the tools: they are offered those only.
  const isAllowedHere = kind === "openai";
  const tools = isAllowedHere ? request.tools : allowedTools(request.tools, settings.toolChoice);
  return {
    model,
    messages: messages.map((message) => toOpenAiMessage(kind, message, refuse)),
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
    ...given("logit_bias", settings.logitBias),
    ...given("logprobs", settings.logprobs),
    ...given("top_logprobs", settings.topLogprobs),
    ...given("reasoning_effort", settings.reasoningEffort),
    ...given("verbosity", settings.verbosity),
    ...given("prediction", settings.prediction === undefined ? undefined : { type: "content", content: settings.prediction }),
    ...given("service_tier", settings.serviceTier),
    ...given("prompt_cache_key", settings.promptCacheKey),
    ...given("prompt_cache_retention", settings.promptCacheRetention),
    ...given("prompt_cache_options", settings.promptCacheOptions),
    ...given("safety_identifier", settings.safetyIdentifier),
    ...given("web_search_options", settings.webSearch),
    ...given("response_format", settings.responseFormat),
    ...given("parallel_tool_calls", settings.parallelToolCalls),
    ...given("tool_choice", toOpenAiToolChoice(settings.toolChoice, request.tools, isAllowedHere)),
  };
}

function toOpenAiToolChoice(
  choice: ToolChoice | undefined,
  tools: readonly ToolDefinition[],
  isAllowedHere: boolean,
): object | string | undefined {
  const named = (name: string) =>
    tools.find((tool) => tool.name === name)?.custom === undefined
      ? { type: "function", function: { name } }
      : { type: "custom", custom: { name } };
  if (typeof choice !== "object") return choice;
  if ("name" in choice) return named(choice.name);
  if (!isAllowedHere) return choice.mode;
  return { type: "allowed_tools", allowed_tools: { mode: choice.mode, tools: choice.allowed.map(named) } };
}

const toOpenAiTool = ({ name, description, parameters, strict, custom }: ToolDefinition): ChatCompletionTool => {
  const described = { name, ...(description === undefined ? {} : { description }) };
  if (custom !== undefined) return { type: "custom", custom: { ...described, format: toOpenAiFormat(custom) } };
  return {
    type: "function",
    function: {
      ...described,
      ...(parameters === undefined ? {} : { parameters: { ...parameters } }),
      ...(strict === undefined ? {} : { strict }),
    },
  };
};

const toOpenAiFormat = (format: CustomToolFormat) =>
  format.type === "text" ? { type: format.type } : { type: format.type, grammar: { syntax: format.syntax, definition: format.definition } };

function toOpenAiMessage(kind: OpenAiKind, message: ChatMessage, refuse: Refuse): ChatCompletionMessageParam {
  const name = "name" in message && message.name !== undefined ? { name: message.name } : {};
  switch (message.role) {
    case "system":
    case "developer":
      // Compatible servers' chat templates do not know the newer role.
      return { role: kind === "openai" ? message.role : "system", content: message.content, ...name };
    case "user": {
      return { role: "user", content: toOpenAiContent(message.content, refuse), ...name };
    }
    case "tool":
      // The API itself knows texts here; servers that take more are given it, and the others refuse it.
      return { role: "tool", tool_call_id: message.toolCallId, content: toOpenAiContent(message.content, refuse) as string };
    case "assistant": {
      const calls = message.toolCalls ?? [];
      const refusal = message.refusal === undefined ? {} : { refusal: message.refusal };
      if (calls.length === 0) return { role: "assistant", content: message.content ?? "", ...refusal, ...name };
      return { role: "assistant", content: message.content, tool_calls: calls.map(toOpenAiToolCall), ...refusal, ...name };
    }
  }
}

const toOpenAiToolCall = (call: ToolCall): ChatCompletionMessageToolCall =>
  call.custom === true
    ? { id: call.id, type: "custom", custom: { name: call.name, input: call.arguments } }
    : { id: call.id, type: "function", function: { name: call.name, arguments: call.arguments } };

const toOpenAiContent = (content: string | readonly ContentPart[], refuse: Refuse): string | ChatCompletionContentPart[] =>
  typeof content === "string" ? content : content.map((part) => toOpenAiPart(part, refuse));

function toOpenAiPart(part: ContentPart, refuse: Refuse): ChatCompletionContentPart {
  switch (part.type) {
    case "text":
      return { type: "text", text: part.text };
    case "image":
      return { type: "image_url", image_url: { url: part.url, ...(part.detail === undefined ? {} : { detail: part.detail }) } };
    case "audio":
      return { type: "input_audio", input_audio: { data: part.data, format: part.format } };
    case "file":
      return {
        type: "file",
        file: { file_data: inlineFile(part.file, refuse), ...(part.name === undefined ? {} : { filename: part.name }) },
      };
  }
}

/** An id of ours means nothing to the provider, and Chat Completions take no addresses. */
function inlineFile(file: FileSource, refuse: Refuse): string {
  if ("data" in file) return file.data;
  throw refuse("file", "Chat Completions take a file as file_data only");
}
