import type {
  EasyInputMessage,
  ResponseCreateParamsStreaming,
  ResponseFormatTextConfig,
  ResponseInputContent,
  ResponseInputItem,
  Tool,
} from "openai/resources/responses/responses";
import type { ChatMessage, ContentPart, SamplingSettings, ToolCall, ToolChoice, ToolDefinition } from "../domain/conversation.ts";
import { asObject, asText } from "./json-value.ts";
import type { ModelRequest } from "./model-provider.ts";
import { type Refuse, refuseFor } from "./provider-failure.ts";

/**
 * The call as a Responses body. Nothing is kept at the provider: every call brings its whole conversation. What the API cannot do
 * is refused by name.
 * @throws {ModelCallError} `refused`
 */
export function toResponsesRequest(provider: string, request: ModelRequest): ResponseCreateParamsStreaming {
  const { model, messages, tools, settings } = request;
  const refuse = refuseFor(provider, request);
  refuseUnknown(settings, refuse);
  const given = <T>(name: string, value: T | undefined): object => (value === undefined ? {} : { [name]: value });
  const { responseFormat, reasoningEffort, verbosity } = settings;
  const calls = messages.flatMap((message) => (message.role === "assistant" ? (message.toolCalls ?? []) : []));
  const customCalls = new Set(calls.filter(({ custom }) => custom === true).map(({ id }) => id));
  const text = {
    ...given("format", responseFormat === undefined ? undefined : toFormat(responseFormat, refuse)),
    ...given("verbosity", verbosity),
  };
  return {
    model,
    input: messages.flatMap((message) => toItems(message, customCalls, refuse)),
    stream: true,
    store: false,
    ...given("tools", tools.length === 0 ? undefined : tools.map(toTool)),
    ...given("max_output_tokens", settings.maxTokens),
    ...given("temperature", settings.temperature),
    ...given("top_p", settings.topP),
    ...given("reasoning", reasoningEffort === undefined ? undefined : { effort: reasoningEffort }),
    ...given("text", Object.keys(text).length === 0 ? undefined : text),
    ...given("parallel_tool_calls", settings.parallelToolCalls),
    ...given("tool_choice", toToolChoice(settings.toolChoice, tools)),
    ...given("include", settings.logprobs === true ? ["message.output_text.logprobs"] : undefined),
    ...given("top_logprobs", settings.topLogprobs),
    ...given("service_tier", settings.serviceTier),
    ...given("prompt_cache_key", settings.promptCacheKey),
    ...given("prompt_cache_retention", settings.promptCacheRetention),
    ...given("prompt_cache_options", settings.promptCacheOptions),
    ...given("safety_identifier", settings.safetyIdentifier),
  };
}

function refuseUnknown(settings: SamplingSettings, refuse: Refuse): void {
  if (settings.seed !== undefined) throw refuse("seed", "the Responses API has no seeds");
  if (settings.stop !== undefined && settings.stop.length > 0) throw refuse("stop", "the Responses API has no stop sequences");
  // Zero is what leaving them out means, so it is honoured; and so is a bias of nothing.
  if (settings.presencePenalty) throw refuse("presence_penalty", "the Responses API has no penalties");
  if (settings.frequencyPenalty) throw refuse("frequency_penalty", "the Responses API has no penalties");
  if (Object.keys(settings.logitBias ?? {}).length > 0) throw refuse("logit_bias", "the Responses API has no biases");
  if (settings.prediction !== undefined) throw refuse("prediction", "the Responses API takes no predicted output");
  // Its search is a tool that the provider charges by the call, which no rate card prices.
  if (settings.webSearch !== undefined) throw refuse("web_search_options", "it is for models of Chat Completions that always search");
}

function toToolChoice(choice: ToolChoice | undefined, tools: readonly ToolDefinition[]): object | string | undefined {
  const named = (name: string) => ({ type: tools.find((tool) => tool.name === name)?.custom === undefined ? "function" : "custom", name });
  if (typeof choice !== "object") return choice;
  return "name" in choice ? named(choice.name) : { type: "allowed_tools", mode: choice.mode, tools: choice.allowed.map(named) };
}

/** Chat Completions nests a schema under `json_schema`; here its fields stand beside the type. */
function toFormat(format: NonNullable<SamplingSettings["responseFormat"]>, refuse: Refuse): ResponseFormatTextConfig {
  const { type } = format;
  if (type === "text" || type === "json_object") return { type };
  const { name, schema, description, strict } = asObject(format["json_schema"]);
  if (type === "json_schema" && asText(name) !== undefined && typeof schema === "object" && schema !== null) {
    return {
      type,
      name: String(name),
      schema: { ...asObject(schema) },
      ...(typeof description === "string" ? { description } : {}),
      ...(typeof strict === "boolean" ? { strict } : {}),
    };
  }
  throw refuse("response_format", "it knows the types text, json_object and json_schema, the latter with a name and a schema");
}

/** Strict unless it is told otherwise, the other way round than Chat Completions. */
const toTool = ({ name, description, parameters, strict = false, custom }: ToolDefinition): Tool => {
  const described = { name, ...(description === undefined ? {} : { description }) };
  return custom === undefined
    ? { type: "function", ...described, parameters: parameters === undefined ? null : { ...parameters }, strict }
    : { type: "custom", ...described, format: custom };
};

function toItems(message: ChatMessage, customCalls: ReadonlySet<string>, refuse: Refuse): ResponseInputItem[] {
  if ("name" in message && message.name !== undefined) throw refuse("name", "messages of the Responses API have no names");
  switch (message.role) {
    case "system":
    case "developer":
      return [{ role: message.role, content: message.content }];
    case "user": {
      return [{ role: "user", content: toContent(message.content, refuse) }];
    }
    case "tool": {
      const type = customCalls.has(message.toolCallId) ? "custom_tool_call_output" : "function_call_output";
      return [{ type, call_id: message.toolCallId, output: toContent(message.content, refuse) }];
    }
    case "assistant": {
      const words = [message.content ?? "", message.refusal ?? ""].filter((text) => text !== "").join("\n");
      const said: EasyInputMessage[] = words === "" ? [] : [{ role: "assistant", content: words }];
      return [...said, ...(message.toolCalls ?? []).map(toCallItem)];
    }
  }
}

const toCallItem = ({ id, name, arguments: given, custom }: ToolCall): ResponseInputItem =>
  custom === true
    ? { type: "custom_tool_call", call_id: id, name, input: given }
    : { type: "function_call", call_id: id, name, arguments: given };

const toContent = (content: string | readonly ContentPart[], refuse: Refuse): string | ResponseInputContent[] =>
  typeof content === "string" ? content : content.map((part) => toPart(part, refuse));

function toPart(part: ContentPart, refuse: Refuse): ResponseInputContent {
  switch (part.type) {
    case "text":
      return { type: "input_text", text: part.text };
    case "image":
      return { type: "input_image", image_url: part.url, detail: part.detail ?? "auto" };
    case "audio":
      throw refuse("input_audio", "the Responses API takes no audio");
    case "file": {
      const { file, name } = part;
      if ("id" in file) throw refuse("file_id", "it is no file of the provider's");
      const named = name === undefined ? {} : { filename: name };
      return { type: "input_file", ...named, ...("data" in file ? { file_data: file.data } : { file_url: file.url }) };
    }
  }
}
