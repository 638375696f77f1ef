import { transformJSONSchema } from "@anthropic-ai/sdk/lib/transform-json-schema";
import type {
  ContentBlockParam,
  DocumentBlockParam,
  ImageBlockParam,
  MessageCreateParamsStreaming,
  MessageParam,
  OutputConfig,
  TextBlockParam,
  ThinkingConfigParam,
  Tool,
  ToolChoice as AnthropicToolChoice,
} from "@anthropic-ai/sdk/resources/messages";
import {
  type ChatMessage,
  type ContentPart,
  type FileSource,
  type SamplingSettings,
  type ToolDefinition,
  allowedTools,
} from "../domain/conversation.ts";
import { asObject, parseJson } from "./json-value.ts";
import type { ModelLimits } from "./model-limits.ts";
import type { ModelRequest } from "./model-provider.ts";
import { type Refuse, refuseFor } from "./provider-failure.ts";

type Content = TextBlockParam | ImageBlockParam | DocumentBlockParam;

/** The tool whose input is the answer of a call that wants any JSON object: the API has no mode for it. */
export const jsonAnswerTool = "answer_as_json_object";

/**
 * The call as a Messages body. What the API cannot do is refused by name; an image's `detail` is a hint that it has no word for.
 * @throws {ModelCallError} `refused`
 */
export function toAnthropicRequest(provider: string, request: ModelRequest, limits: ModelLimits | undefined): MessageCreateParamsStreaming {
  const { model, settings } = request;
  const refuse = refuseFor(provider, request);
  refuseUnknown(settings, refuse);
  const maxTokens = settings.maxTokens ?? limits?.maxOutputTokens;
  if (maxTokens === undefined) throw refuse("max_tokens", "it must be given for a model without a configured maximum");
  const system = toSystem(request.messages, refuse);
  const thinking = toThinking(request, maxTokens, refuse);
  const outputConfig = toOutputConfig(model, settings, refuse);
  const tools = offeredTools(request, refuse);
  const toolChoice = toToolChoice(settings, tools, refuse);
  const serviceTier = toServiceTier(settings, refuse);
  return {
    model,
    max_tokens: maxTokens,
    stream: true,
    messages: toMessages(request.messages, refuse),
    ...(system === undefined ? {} : { system }),
    ...(tools.length === 0 ? {} : { tools: [...tools] }),
    ...(toolChoice === undefined ? {} : { tool_choice: toolChoice }),
    ...sampling(settings),
    ...(settings.stop === undefined || settings.stop.length === 0 ? {} : { stop_sequences: [...settings.stop] }),
    ...(thinking === undefined ? {} : { thinking }),
    ...(outputConfig === undefined ? {} : { output_config: outputConfig }),
    ...(serviceTier === undefined ? {} : { service_tier: serviceTier }),
    ...(settings.safetyIdentifier === undefined ? {} : { metadata: { user_id: settings.safetyIdentifier } }),
    // Its cache goes by the prompt itself and wants to be asked for.
    ...(settings.promptCacheKey === undefined && settings.promptCacheRetention === undefined
      ? {}
      : { cache_control: { type: "ephemeral" } }),
  };
}

function refuseUnknown(settings: SamplingSettings, refuse: Refuse): void {
  if (settings.seed !== undefined) throw refuse("seed", "it has no seeds");
  // Zero is what leaving them out means, so it is honoured; and so is a bias of nothing.
  if (settings.presencePenalty) throw refuse("presence_penalty", "it has no penalties");
  if (settings.frequencyPenalty) throw refuse("frequency_penalty", "it has no penalties");
  if (Object.keys(settings.logitBias ?? {}).length > 0) throw refuse("logit_bias", "it has no biases");
  if (settings.logprobs === true) throw refuse("logprobs", "it tells no probabilities");
  if (settings.verbosity !== undefined) throw refuse("verbosity", "it has no such setting");
  if (settings.prediction !== undefined) throw refuse("prediction", "it takes no predicted output");
  if (settings.webSearch !== undefined) throw refuse("web_search_options", "it has no model that always searches");
  if (settings.promptCacheRetention === "24h") throw refuse("prompt_cache_retention", "its cache holds for minutes");
  if (settings.promptCacheOptions !== undefined) throw refuse("prompt_cache_options", "its cache has no such options");
}

function toServiceTier({ serviceTier }: SamplingSettings, refuse: Refuse): "auto" | "standard_only" | undefined {
  if (serviceTier === undefined || serviceTier === "auto") return serviceTier;
  if (serviceTier === "default") return "standard_only";
  throw refuse("service_tier", "it knows auto and default");
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

type Effort = NonNullable<OutputConfig["effort"]>;

/** OpenAI's efforts in Anthropic's words, and in tokens for models that are given a budget to think. */
const efforts: Readonly<Record<string, { readonly effort: Effort; readonly budgetTokens: number }>> = {
  minimal: { effort: "low", budgetTokens: 1_024 },
  low: { effort: "low", budgetTokens: 2_048 },
  medium: { effort: "medium", budgetTokens: 8_192 },
  high: { effort: "high", budgetTokens: 16_384 },
  xhigh: { effort: "xhigh", budgetTokens: 32_768 },
  max: { effort: "max", budgetTokens: 65_536 },
};
/** Fewer are refused. */
const leastBudgetTokens = 1_024;

/** Models before Claude 4.6 think within a budget of tokens; later ones decide, guided by the effort (platform.claude.com, thinking). */
const hasThinkingBudget = (model: string): boolean => /^claude-(?:3-7-|(?:opus|sonnet|haiku)-4-(?:[0-5](?:-|$)|20\d{6}))/.test(model);

function toThinking(
  { model, messages, settings: { reasoningEffort } }: ModelRequest,
  maxTokens: number,
  refuse: Refuse,
): ThinkingConfigParam | undefined {
  if (reasoningEffort === undefined) return undefined;
  if (reasoningEffort === "none") return { type: "disabled" };
  const known = Object.hasOwn(efforts, reasoningEffort) ? efforts[reasoningEffort] : undefined;
  if (known === undefined) throw refuse("reasoning_effort", `it knows none, ${Object.keys(efforts).join(", ")}`);
  if (!hasThinkingBudget(model)) return { type: "adaptive" };
  // Between a tool's call and its answer such a model wants its own thoughts back, which Chat Completions do not carry.
  if (messages.at(-1)?.role === "tool") return undefined;
  const budget = Math.min(known.budgetTokens, maxTokens - 1);
  if (budget < leastBudgetTokens) throw refuse("reasoning_effort", `thinking needs more than ${leastBudgetTokens} max_tokens`);
  return { type: "enabled", budget_tokens: budget };
}

function toOutputConfig(model: string, { reasoningEffort, responseFormat }: SamplingSettings, refuse: Refuse): OutputConfig | undefined {
  const effort = hasThinkingBudget(model) ? undefined : efforts[reasoningEffort ?? "none"]?.effort;
  const format = responseFormat?.["type"] === "json_schema" ? toFormat(responseFormat, refuse) : undefined;
  if (effort === undefined && format === undefined) return undefined;
  return { ...(effort === undefined ? {} : { effort }), ...(format === undefined ? {} : { format }) };
}

/** Its schemas are always strict, and know fewer words: those that it does not know become part of the descriptions. */
function toFormat(responseFormat: Readonly<Record<string, unknown>>, refuse: Refuse): NonNullable<OutputConfig["format"]> {
  const schema = asObject(responseFormat["json_schema"])["schema"];
  if (typeof schema !== "object" || schema === null) throw refuse("response_format", "its json_schema needs a schema");
  try {
    return { type: "json_schema", schema: transformJSONSchema({ ...schema }) };
  } catch (error) {
    throw refuse("response_format", error instanceof Error ? error.message : "its schema is not understood");
  }
}

/** The tools that the choice leaves, and the one that takes a JSON answer. */
function offeredTools({ tools, settings }: ModelRequest, refuse: Refuse): readonly Tool[] {
  if (tools.some(({ custom }) => custom !== undefined)) throw refuse("tools", "it has no custom tools");
  const offered = allowedTools(tools, settings.toolChoice).map(toTool);
  if (settings.responseFormat?.["type"] !== "json_object") return offered;
  const answer = {
    name: jsonAnswerTool,
    description: "Gives your whole answer as one JSON object.",
    input_schema: { type: "object" as const },
  };
  return settings.toolChoice === "none" ? [answer] : [...offered, answer];
}

function toToolChoice(
  { toolChoice, parallelToolCalls, responseFormat }: SamplingSettings,
  tools: readonly Tool[],
  refuse: Refuse,
): AnthropicToolChoice | undefined {
  const wish = typeof toolChoice === "object" && "allowed" in toolChoice ? toolChoice.mode : (toolChoice ?? "auto");
  if (tools.length === 0) {
    if (wish !== "auto" && wish !== "none") throw refuse("tool_choice", "the call offers no tools");
    return undefined;
  }
  const wantsJson = responseFormat?.["type"] === "json_object";
  const parallel = parallelToolCalls === undefined ? {} : { disable_parallel_tool_use: !parallelToolCalls };
  if (typeof wish === "object") return { type: "tool", name: wish.name, ...parallel };
  if (wish === "required" || wantsJson) return { type: "any", ...parallel };
  if (wish === "none") return { type: "none" };
  return toolChoice === undefined && parallelToolCalls === undefined ? undefined : { type: "auto", ...parallel };
}

const toTool = ({ name, description, parameters, strict }: ToolDefinition): Tool => ({
  name,
  input_schema: { ...parameters, type: "object" },
  ...(description === undefined ? {} : { description }),
  ...(strict === undefined ? {} : { strict }),
});

/** System and developer messages, wherever they stand: the API takes them apart from the conversation. */
function toSystem(messages: readonly ChatMessage[], refuse: Refuse): TextBlockParam[] | undefined {
  if (messages.some((message) => "name" in message && message.name !== undefined)) throw refuse("name", "its messages have no names");
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
    case "user":
      return toContents(message.content, refuse);
    case "tool":
      return [{ type: "tool_result", tool_use_id: toToolUseId(message.toolCallId), content: toContents(message.content, refuse) }];
    case "assistant":
      return [
        ...toText(message.content ?? ""),
        ...toText(message.refusal ?? ""),
        ...(message.toolCalls ?? []).map((call) => ({
          type: "tool_use" as const,
          id: toToolUseId(call.id),
          name: call.name,
          input: toInput(call.arguments),
        })),
      ];
  }
}

const toContents = (content: string | readonly ContentPart[], refuse: Refuse): Content[] =>
  typeof content === "string" ? toText(content) : content.flatMap((part) => toContent(part, refuse));

function toContent(part: ContentPart, refuse: Refuse): Content[] {
  switch (part.type) {
    case "text":
      return toText(part.text);
    case "image":
      return [toImage(part.url, refuse)];
    case "audio":
      throw refuse("input_audio", "it takes no audio");
    case "file":
      return [{ type: "document", source: toDocument(part.file, refuse), ...(part.name === undefined ? {} : { title: part.name }) }];
  }
}

/** It reads PDF and plain text. */
function toDocument(file: FileSource, refuse: Refuse): DocumentBlockParam["source"] {
  if ("url" in file) return { type: "url", url: file.url };
  if ("id" in file) throw refuse("file_id", "it is no file of the provider's");
  const [, mediaType, inDataUrl] = /^data:([^;,]*)(?:;[^,;]+)*;base64,(.*)$/is.exec(file.data) ?? [];
  const data = inDataUrl ?? file.data;
  const isPdf = mediaType === undefined ? data.startsWith("JVBERi") : mediaType.toLowerCase() === "application/pdf"; // "%PDF-"
  if (isPdf) return { type: "base64", media_type: "application/pdf", data };
  if (mediaType?.toLowerCase().startsWith("text/") === true) {
    return { type: "text", media_type: "text/plain", data: Buffer.from(data, "base64").toString("utf8") };
  }
  throw refuse("file", "its files are PDF, or text in a data URL");
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
