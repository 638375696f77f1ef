import { z } from "zod";
import type { ChatMessage, SamplingSettings, ToolDefinition } from "../domain/conversation.ts";
import { chatMessage, toChatMessages, toText } from "./chat-messages.ts";
import { refusal, schemaRefusal, toTools, toolFields } from "./chat-tools.ts";
import { parseField } from "./parse-field.ts";
import { knownFields, metadata, unsupportedField } from "./request-fields.ts";
import { strictSchemaFault } from "./strict-schema.ts";

/** Fields of OpenAI's Chat Completions that are refused by name rather than ignored (contract §3), and why. */
const unsupported: Readonly<Record<string, string>> = {
  audio: "Answers are text here.",
  moderation: "Ask /v1/moderations.",
};

const text = z.string();
const textParts = z.array(z.object({ type: z.literal("text"), text })).min(1);

const fields = {
  model: text.min(1).max(256),
  messages: z.array(z.unknown()).min(1),
  stream: z.boolean().nullish(),
  stream_options: z.strictObject({ include_usage: z.boolean().nullish(), include_obfuscation: z.boolean().nullish() }).nullish(),
  max_tokens: z.int().min(1).nullish(),
  max_completion_tokens: z.int().min(1).nullish(),
  temperature: z.number().min(0).max(2).nullish(),
  top_p: z.number().min(0).max(1).nullish(),
  presence_penalty: z.number().min(-2).max(2).nullish(),
  frequency_penalty: z.number().min(-2).max(2).nullish(),
  logit_bias: z.record(z.string().regex(/^\d{1,9}$/), z.number().min(-100).max(100)).nullish(),
  logprobs: z.boolean().nullish(),
  top_logprobs: z.int().min(0).max(20).nullish(),
  stop: z.union([text, z.array(text).min(1).max(4)]).nullish(),
  seed: z.int().nullish(),
  n: z.literal(1, "Only n = 1 is supported.").nullish(),
  reasoning_effort: text.max(32).nullish(),
  verbosity: z.enum(["low", "medium", "high"]).nullish(),
  prediction: z.strictObject({ type: z.literal("content"), content: z.union([text, textParts]) }).nullish(),
  modalities: z
    .array(z.enum(["text", "audio"]))
    .min(1)
    .max(2)
    .nullish(),
  service_tier: z.enum(["auto", "default", "flex", "scale", "priority", "fast"]).nullish(),
  store: z.boolean().nullish(),
  prompt_cache_key: text.max(512).nullish(),
  prompt_cache_retention: z.enum(["in_memory", "24h"]).nullish(),
  prompt_cache_options: z.strictObject({ mode: z.enum(["implicit", "explicit"]).optional(), ttl: z.literal("30m").optional() }).nullish(),
  safety_identifier: text.max(512).nullish(),
  web_search_options: z
    .strictObject({ search_context_size: z.enum(["low", "medium", "high"]).optional(), user_location: z.looseObject({}).nullish() })
    .nullish(),
  response_format: z
    .discriminatedUnion("type", [
      z.strictObject({ type: z.literal("text") }),
      z.strictObject({ type: z.literal("json_object") }),
      z.strictObject({
        type: z.literal("json_schema"),
        json_schema: z.strictObject({
          name: z.string().regex(/^[A-Za-z0-9_-]{1,64}$/),
          description: text.nullish(),
          schema: z.record(text, z.unknown()).nullish(),
          strict: z.boolean().nullish(),
        }),
      }),
    ])
    .nullish(),
  ...toolFields,
  user: text.max(256).nullish(),
  metadata,
};
const chatBody = z.object(fields);
type ChatBody = z.infer<typeof chatBody>;
/** The same for the API's description, which is not afraid of many faults. */
export const describedChatBody = z.object({ ...fields, messages: z.array(chatMessage).min(1) });

export type ChatRequest = {
  readonly model: string;
  readonly messages: readonly ChatMessage[];
  readonly tools: readonly ToolDefinition[];
  readonly settings: SamplingSettings;
  readonly stream: boolean;
  readonly shape: AnswerShape;
  /** Whom the caller speaks for; the overlay may make it the session's name. */
  readonly user: string | undefined;
};

/** How the caller wants its answer written. */
export type AnswerShape = {
  /** In a stream's last chunk; a JSON answer always has it. */
  readonly includeUsage: boolean;
  /** Random characters hide the length of each streamed piece. */
  readonly obfuscate: boolean;
  /** The request spoke of functions, as the API did before it had tools, and so does the answer. */
  readonly withFunctions: boolean;
  /** Given back as it came. */
  readonly metadata: Readonly<Record<string, string>> | undefined;
};

/**
 * Reads a Chat Completions body. Every documented field is honoured or refused by its name.
 * @throws {AppError} `unsupported_parameter` or `invalid_request`, with `param`
 */
export function parseChatRequest(raw: unknown): ChatRequest {
  const request = parseField(chatBody, knownFields(raw, fields, unsupported), []);
  // One by one: a schema collects every fault of what it is given, and a body of many bad messages would take it a minute.
  const messages = request.messages.map((message, place) => parseField(chatMessage, message, ["messages", place]));
  refuseTogether(request);
  const { tools, ...choice } = toTools(request);
  return {
    model: request.model,
    messages: toChatMessages(messages),
    tools,
    settings: { ...settingsOf(request), ...choice },
    stream: request.stream === true,
    shape: {
      includeUsage: request.stream_options?.include_usage === true,
      obfuscate: request.stream_options?.include_obfuscation === true,
      withFunctions: request.functions != null || messages.some(({ role }) => role === "function"),
      metadata: request.metadata ?? undefined,
    },
    user: request.user || undefined,
  };
}

/** What no field says for itself: values that are not honoured, and fields that ask for one another. */
function refuseTogether({ store, modalities, logprobs, top_logprobs, stream, stream_options, response_format }: ChatBody): void {
  if (store === true) throw unsupportedField("store", "Completions are not kept: use a session, or the Responses API.");
  if (modalities?.includes("audio") === true) throw unsupportedField("modalities", "Answers are text here.");
  if (top_logprobs != null && logprobs !== true) throw refusal("'top_logprobs' is only allowed when 'logprobs' is true.", "top_logprobs");
  if (stream_options != null && stream !== true) throw refusal("'stream_options' is only allowed when 'stream' is true.", "stream_options");
  if (response_format?.type !== "json_schema") return;
  const { strict, schema } = response_format.json_schema;
  const fault = strict === true ? strictSchemaFault(schema ?? {}) : undefined;
  if (fault !== undefined) throw schemaRefusal(fault, "response_format.json_schema.schema");
}

function settingsOf(request: ChatBody): SamplingSettings {
  return {
    maxTokens: request.max_completion_tokens ?? request.max_tokens ?? undefined,
    temperature: request.temperature ?? undefined,
    topP: request.top_p ?? undefined,
    stop: request.stop == null ? undefined : [request.stop].flat(),
    seed: request.seed ?? undefined,
    presencePenalty: request.presence_penalty ?? undefined,
    frequencyPenalty: request.frequency_penalty ?? undefined,
    logitBias: request.logit_bias ?? undefined,
    logprobs: request.logprobs ?? undefined,
    topLogprobs: request.top_logprobs ?? undefined,
    reasoningEffort: request.reasoning_effort ?? undefined,
    verbosity: request.verbosity ?? undefined,
    prediction: request.prediction == null ? undefined : toText(request.prediction.content),
    serviceTier: request.service_tier ?? undefined,
    promptCacheKey: request.prompt_cache_key ?? undefined,
    promptCacheRetention: request.prompt_cache_retention ?? undefined,
    promptCacheOptions: request.prompt_cache_options ?? undefined,
    safetyIdentifier: request.safety_identifier ?? undefined,
    webSearch: request.web_search_options ?? undefined,
    responseFormat: request.response_format ?? undefined,
  };
}
