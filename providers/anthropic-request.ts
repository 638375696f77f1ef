import type {
  ContentBlockParam,
  ImageBlockParam,
  MessageCreateParamsStreaming,
  MessageParam,
  OutputConfig,
  TextBlockParam,
  Tool,
  ToolChoice as AnthropicToolChoice,
} from "@anthropic-ai/sdk/resources/messages";
import type { ChatMessage, ContentPart, SamplingSettings, ToolDefinition } from "../domain/conversation.ts";
import { asObject, parseJson } from "./json-value.ts";
import type { ModelLimits } from "./model-limits.ts";
import type { ModelRequest } from "./model-provider.ts";
import { unsupportedSetting } from "./provider-failure.ts";

/**
 * The call as a Messages body. What the API cannot do is refused by name; an image's `detail` is a hint that it has no word for.
 * @throws {ModelCallError} `refused`
 */
export function toAnthropicRequest(provider: string, request: ModelRequest, limits: ModelLimits | undefined): MessageCreateParamsStreaming {
  const { model, settings, tools } = request;
  const refuse = (parameter: string, why: string) => unsupportedSetting(provider, parameter, why);
  if (settings.seed !== undefined) throw refuse("seed", "it has no seeds");
  // Zero is what leaving them out means, so it is honoured.
  if (settings.presencePenalty) throw refuse("presence_penalty", "it has no penalties");
  if (settings.frequencyPenalty) throw refuse("frequency_penalty", "it has no penalties");
  const maxTokens = settings.maxTokens ?? limits?.maxOutputTokens;
  if (maxTokens === undefined) throw refuse("max_tokens", "it must be given for a model without a configured maximum");
  const system = toSystem(request.messages);
  const outputConfig = toOutputConfig(settings, refuse);
  const toolChoice = toToolChoice(settings, tools, refuse);
  return {
    model,
    max_tokens: maxTokens,
    stream: true,
    messages: toMessages(request.messages, refuse),
    ...(system === undefined ? {} : { system }),
    ...(tools.length === 0 ? {} : { tools: tools.map(toTool) }),
    ...(toolChoice === undefined ? {} : { tool_choice: toolChoice }),
    ...sampling(settings),
    ...(settings.stop === undefined || settings.stop.length === 0 ? {} : { stop_sequences: [...settings.stop] }),
    ...(settings.reasoningEffort === "none" ? { thinking: { type: "disabled" } } : {}),
    ...(outputConfig === undefined ? {} : { output_config: outputConfig }),
  };
}

/** The sampling parameters that differ from the defaults, which are 1 (https://platform.claude.com/docs/en/api/migration-2026-10-21). */
const sampling = ({ temperature, topP }: SamplingSettings): object => ({
  ...(temperature === undefined || temperature === 1 ? {} : { temperature }),
  ...(topP === undefined || topP === 1 ? {} : { top_p: topP }),
});

/**
 * The API version that a call needs, undefined for the client's own. Version 2026-10-21 refuses `temperature` and `top_p` on
 * every model; 2023-06-01 lets the model decide: those before Claude 4.7 honour them, later ones refuse them by name.
 */
export const apiVersionFor = (settings: SamplingSettings): "2023-06-01" | undefined =>
  Object.keys(sampling(settings)).length === 0 ? undefined : "2023-06-01";

type Refuse = (parameter: string, why: string) => Error;

const efforts: readonly string[] = ["low", "medium", "high", "xhigh", "max"] satisfies OutputConfig["effort"][];

function toOutputConfig({ reasoningEffort, responseFormat }: SamplingSettings, refuse: Refuse): OutputConfig | undefined {
  if (reasoningEffort !== undefined && reasoningEffort !== "none" && !efforts.includes(reasoningEffort)) {
    throw refuse("reasoning_effort", `it knows none, ${efforts.join(", ")}`);
  }
  const effort =
    reasoningEffort === undefined || reasoningEffort === "none" ? {} : { effort: reasoningEffort as NonNullable<OutputConfig["effort"]> };
  const format = responseFormat === undefined || responseFormat["type"] === "text" ? {} : { format: toFormat(responseFormat, refuse) };
  const config = { ...effort, ...format };
  return Object.keys(config).length === 0 ? undefined : config;
}

function toFormat(responseFormat: Readonly<Record<string, unknown>>, refuse: Refuse): NonNullable<OutputConfig["format"]> {
  const schema = asObject(responseFormat["json_schema"])["schema"];
  if (responseFormat["type"] === "json_schema" && typeof schema === "object" && schema !== null) {
    return { type: "json_schema", schema: { ...asObject(schema) } };
  }
  throw refuse("response_format", "it knows the types text and json_schema, the latter with a schema");
}

function toToolChoice(
  { toolChoice, parallelToolCalls }: SamplingSettings,
  tools: readonly ToolDefinition[],
  refuse: Refuse,
): AnthropicToolChoice | undefined {
  if (tools.length === 0) {
    if (toolChoice !== undefined && toolChoice !== "auto" && toolChoice !== "none") throw refuse("tool_choice", "the call offers no tools");
    return undefined;
  }
  if (toolChoice === "none") return { type: "none" };
  if (toolChoice === undefined && parallelToolCalls === undefined) return undefined;
  const parallel = parallelToolCalls === undefined ? {} : { disable_parallel_tool_use: !parallelToolCalls };
  if (toolChoice === "required") return { type: "any", ...parallel };
  if (typeof toolChoice === "object") return { type: "tool", name: toolChoice.name, ...parallel };
  return { type: "auto", ...parallel };
}

const toTool = ({ name, description, parameters, strict }: ToolDefinition): Tool => ({
  name,
  input_schema: { ...parameters, type: "object" },
  ...(description === undefined ? {} : { description }),
  ...(strict === undefined ? {} : { strict }),
});

/** System and developer messages, wherever they stand: the API takes them apart from the conversation. */
function toSystem(messages: readonly ChatMessage[]): TextBlockParam[] | undefined {
  const blocks = messages.flatMap((message) =>
    (message.role === "system" || message.role === "developer") && message.content.trim() !== ""
      ? [{ type: "text" as const, text: message.content }]
      : [],
  );
  return blocks.length === 0 ? undefined : blocks;
}

/** Roles must alternate, so neighbours of one role become one message; tool answers are the user's. */
function toMessages(messages: readonly ChatMessage[], refuse: Refuse): MessageParam[] {
  const merged: { role: "user" | "assistant"; content: ContentBlockParam[] }[] = [];
  for (const message of messages) {
    if (message.role === "system" || message.role === "developer") continue;
    const role = message.role === "assistant" ? "assistant" : "user";
    const blocks = toBlocks(message, refuse);
    const last = merged.at(-1);
    if (last?.role === role) last.content.push(...blocks);
    else if (blocks.length > 0 || role === "user") merged.push({ role, content: blocks });
  }
  return merged;
}

function toBlocks(message: ChatMessage, refuse: Refuse): ContentBlockParam[] {
  switch (message.role) {
    case "system":
    case "developer":
      return []; // in `system`
    case "user": {
      const parts: readonly ContentPart[] =
        typeof message.content === "string" ? [{ type: "text", text: message.content }] : message.content;
      return parts.flatMap((part): ContentBlockParam[] => (part.type === "text" ? toText(part.text) : [toImage(part.url, refuse)]));
    }
    case "tool":
      return [{ type: "tool_result", tool_use_id: toToolUseId(message.toolCallId), content: toText(message.content) }];
    case "assistant":
      return [
        ...toText(message.content ?? ""),
        ...(message.toolCalls ?? []).map((call) => ({
          type: "tool_use" as const,
          id: toToolUseId(call.id),
          name: call.name,
          input: toInput(call.arguments),
        })),
      ];
  }
}

/** The API refuses empty text blocks. */
const toText = (text: string): TextBlockParam[] => (text === "" ? [] : [{ type: "text", text }]);

/** The ids of another provider may hold characters that this one refuses; call and answer are changed alike. */
const toToolUseId = (id: string): string => id.replace(/[^A-Za-z0-9_-]/g, "_");

/** A tool call's input must be an object; text that is none is kept as it was, for the model to see its own mistake. */
function toInput(text: string): Readonly<Record<string, unknown>> {
  if (text.trim() === "") return {};
  const value = parseJson(text);
  return typeof value === "object" && value !== null && !Array.isArray(value) ? asObject(value) : { malformed_arguments: text };
}

function toImage(url: string, refuse: Refuse): ImageBlockParam {
  if (/^https?:\/\//i.test(url)) return { type: "image", source: { type: "url", url } };
  const [, mediaType, data] = /^data:image\/(png|jpe?g|gif|webp)(?:;[^,;]+)*;base64,(.+)$/is.exec(url) ?? [];
  if (mediaType === undefined || data === undefined) {
    throw refuse("messages", "its images are https addresses or base64 data URLs of PNG, JPEG, GIF or WebP");
  }
  const kind = mediaType.toLowerCase().replace("jpg", "jpeg") as "png" | "jpeg" | "gif" | "webp";
  return { type: "image", source: { type: "base64", media_type: `image/${kind}`, data } };
}
