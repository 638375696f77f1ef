import { z } from "zod";
import { AppError } from "../domain/app-error.ts";
import type { SamplingSettings, ToolDefinition } from "../domain/conversation.ts";
import { refusal, schemaRefusal, toTools } from "./chat-tools.ts";
import { inputItem } from "./responses-items.ts";
import { parseField } from "./parse-field.ts";
import { knownFields, metadata } from "./request-fields.ts";
import { strictSchemaFault } from "./strict-schema.ts";

/** Fields of OpenAI's Responses that are refused by name rather than ignored (contract §3), and why. */
const unsupported: Readonly<Record<string, string>> = {
  access_programs: "There are none here.",
  context_management: "Use truncation or a session.",
  image: "Answers are text here.",
  max_tool_calls: "It counts calls of hosted tools, which there are none of here.",
  moderation: "Ask /v1/moderations.",
  prompt: "No prompts are kept here: send instructions and input.",
};

const text = z.string();
const toolName = z.string().regex(/^[A-Za-z0-9_-]{1,64}$/);
const clientTools: ReadonlySet<unknown> = new Set(["function", "custom", "allowed_tools"]);

const tool = z.discriminatedUnion("type", [
  z.strictObject({
    type: z.literal("function"),
    name: toolName,
    description: text.nullish(),
    parameters: z.record(text, z.unknown()).nullish(),
    strict: z.boolean().nullish(),
  }),
  z.strictObject({
    type: z.literal("custom"),
    name: toolName,
    description: text.nullish(),
    format: z
      .discriminatedUnion("type", [
        z.strictObject({ type: z.literal("text") }),
        z.strictObject({ type: z.literal("grammar"), syntax: z.enum(["lark", "regex"]), definition: text.min(1) }),
      ])
      .optional(),
  }),
]);
const namedTool = z.strictObject({ type: z.enum(["function", "custom"]), name: text });
const toolChoice = z.union([
  z.enum(["auto", "none", "required"]),
  namedTool,
  z.strictObject({ type: z.literal("allowed_tools"), mode: z.enum(["auto", "required"]), tools: z.array(namedTool).min(1).max(128) }),
]);

const format = z.discriminatedUnion("type", [
  z.strictObject({ type: z.literal("text") }),
  z.strictObject({ type: z.literal("json_object") }),
  z.strictObject({
    type: z.literal("json_schema"),
    name: toolName,
    description: text.nullish(),
    schema: z.record(text, z.unknown()),
    strict: z.boolean().nullish(),
  }),
]);

/** What may be asked for beside the answer; the others belong to hosted tools. Reasoning comes back encrypted from no provider here. */
const includable = z.enum(["message.output_text.logprobs", "message.input_image.image_url", "reasoning.encrypted_content"]);

const conversationId = text.min(1).max(128);

const fields = {
  model: text.min(1).max(256),
  input: z.union([text, z.array(z.unknown()).min(1).max(10_000)]).nullish(),
  instructions: text.nullish(),
  previous_response_id: text.min(1).max(128).nullish(),
  conversation: z.union([conversationId, z.strictObject({ id: conversationId })]).nullish(),
  store: z.boolean().nullish(),
  background: z.boolean().nullish(),
  stream: z.boolean().nullish(),
  stream_options: z.strictObject({ include_obfuscation: z.boolean().nullish() }).nullish(),
  include: z.array(includable).nullish(),
  max_output_tokens: z.int().min(1).nullish(),
  temperature: z.number().min(0).max(2).nullish(),
  top_p: z.number().min(0).max(1).nullish(),
  presence_penalty: z.number().min(-2).max(2).nullish(),
  frequency_penalty: z.number().min(-2).max(2).nullish(),
  top_logprobs: z.int().min(0).max(20).nullish(),
  truncation: z.enum(["auto", "disabled"]).nullish(),
  parallel_tool_calls: z.boolean().nullish(),
  tools: z.array(tool).max(128).nullish(),
  tool_choice: toolChoice.nullish(),
  text: z.strictObject({ format: format.nullish(), verbosity: z.enum(["low", "medium", "high"]).nullish() }).nullish(),
  reasoning: z
    .strictObject({
      effort: text.max(32).nullish(),
      summary: z.null("No summaries of reasoning are made here.").optional(),
      generate_summary: z.null("No summaries of reasoning are made here.").optional(),
    })
    .nullish(),
  service_tier: z.enum(["auto", "default", "flex", "scale", "priority", "fast"]).nullish(),
  prompt_cache_key: text.max(512).nullish(),
  prompt_cache_retention: z.enum(["in_memory", "24h"]).nullish(),
  prompt_cache_options: z.strictObject({ mode: z.enum(["implicit", "explicit"]).optional(), ttl: z.literal("30m").optional() }).nullish(),
  safety_identifier: text.max(512).nullish(),
  user: text.max(256).nullish(),
  metadata,
};
const responseBody = z.object(fields);
type ResponseBody = z.infer<typeof responseBody>;
/** The same for the API's description, which is not afraid of many faults. */
export const describedResponseBody = z.object({ ...fields, input: z.union([text, z.array(inputItem)]).nullish() });

export type ResponseRequest = {
  readonly model: string;
  readonly input: readonly z.infer<typeof inputItem>[];
  readonly instructions: string | undefined;
  readonly previousId: string | undefined;
  readonly conversationId: string | undefined;
  readonly tools: readonly ToolDefinition[];
  readonly settings: SamplingSettings;
  readonly store: boolean;
  readonly background: boolean;
  readonly stream: boolean;
  readonly obfuscate: boolean;
  /** What does not fit the model is dropped, oldest first. */
  readonly truncate: boolean;
  readonly user: string | undefined;
  /** What the answer repeats of the request. */
  readonly echo: Readonly<Record<string, unknown>>;
};

/**
 * Reads a Responses body. Every documented field is honoured or refused by its name.
 * @throws {AppError} `unsupported_parameter` or `invalid_request`, with `param`
 */
export function parseResponseRequest(raw: unknown): ResponseRequest {
  const given = knownFields(raw, fields, unsupported);
  refuseHostedTools(given);
  const request = parseField(responseBody, given, []);
  refuseTogether(request);
  const { tools, ...choice } = toolsOf(request);
  return {
    model: request.model,
    input:
      typeof request.input === "string" ? [{ type: "message", role: "user", content: request.input }] : toItems(request.input, "input"),
    instructions: request.instructions ?? undefined,
    previousId: request.previous_response_id ?? undefined,
    conversationId: conversationOf(request),
    tools,
    settings: { ...settingsOf(request), ...choice },
    store: request.store !== false,
    background: request.background === true,
    stream: request.stream === true,
    obfuscate: request.stream_options?.include_obfuscation === true,
    truncate: request.truncation === "auto",
    user: request.user || undefined,
    echo: echoOf(request),
  };
}

/**
 * One by one: a schema collects every fault of what it is given. A message may leave its type out.
 * @throws {AppError} `invalid_request` naming the item's field
 */
export const toItems = (items: readonly unknown[] | null | undefined, field: string): ResponseRequest["input"] =>
  (items ?? []).map((raw, place) => {
    const item = raw !== null && typeof raw === "object" && !("type" in raw) && "role" in raw ? { ...raw, type: "message" } : raw;
    return parseField(inputItem, item, [field, place]);
  });

const conversationOf = ({ conversation }: ResponseBody): string | undefined =>
  (typeof conversation === "string" ? conversation : conversation?.id) ?? undefined;

/** @throws {AppError} `unsupported_parameter` naming the tool */
function refuseHostedTools({ tools, tool_choice }: Readonly<Record<string, unknown>>): void {
  const given = [
    ...(Array.isArray(tools) ? tools.map((each: unknown, place) => ({ each, param: `tools.${place}.type` })) : []),
    { each: tool_choice, param: "tool_choice.type" },
  ];
  for (const { each, param } of given) {
    if (each === null || typeof each !== "object" || !("type" in each) || typeof each.type !== "string" || clientTools.has(each.type))
      continue;
    const message = `The tool '${each.type.slice(0, 64)}' is not hosted here: send function or custom tools.`;
    throw new AppError("unsupported_parameter", { client: { message, param } });
  }
}

/** What no field says for itself. */
function refuseTogether(request: ResponseBody): void {
  const { store, background, stream, stream_options, text: shape, input, previous_response_id, conversation } = request;
  if (background === true && store === false) throw refusal("A background response must be stored.", "background");
  if (stream_options != null && stream !== true) throw refusal("'stream_options' is only allowed when 'stream' is true.", "stream_options");
  if (conversation != null && previous_response_id != null)
    throw refusal("'conversation' and 'previous_response_id' are not allowed together.", "conversation");
  if (input == null && previous_response_id == null && conversation == null) throw refusal("There is no input.", "input");
  if (shape?.format?.type !== "json_schema" || shape.format.strict !== true) return;
  const fault = strictSchemaFault(shape.format.schema);
  if (fault !== undefined) throw schemaRefusal(fault, "text.format.schema");
}

/** The tools in the words of Chat Completions, which are the same but for their nesting. */
function toolsOf({ tools, tool_choice: choice, parallel_tool_calls }: ResponseBody): ReturnType<typeof toTools> {
  for (const [place, given] of (tools ?? []).entries()) {
    const fault =
      given.type === "function" && given.strict === true
        ? strictSchemaFault(given.parameters ?? { type: "object", additionalProperties: false })
        : undefined;
    if (fault !== undefined) throw schemaRefusal(fault, `tools.${place}.parameters`);
  }
  const nested = ({ type, name }: z.infer<typeof namedTool>) =>
    type === "custom" ? { type, custom: { name } } : { type, function: { name } };
  return toTools({
    tools: tools?.map((given) => {
      if (given.type === "function") {
        const { type, ...definition } = given;
        return { type, function: definition };
      }
      const { type, format: wanted, ...definition } = given;
      if (wanted?.type !== "grammar") return { type, custom: definition };
      const { type: kind, ...grammar } = wanted;
      return { type, custom: { ...definition, format: { type: kind, grammar } } };
    }),
    tool_choice:
      typeof choice !== "object" || choice === null
        ? choice
        : choice.type === "allowed_tools"
          ? { type: choice.type, allowed_tools: { mode: choice.mode, tools: choice.tools.map(nested) } }
          : nested(choice),
    parallel_tool_calls,
  });
}

function settingsOf(request: ResponseBody): SamplingSettings {
  const wanted = request.text?.format;
  const withLogprobs = request.include?.includes("message.output_text.logprobs") === true || (request.top_logprobs ?? 0) > 0;
  return {
    maxTokens: request.max_output_tokens ?? undefined,
    temperature: request.temperature ?? undefined,
    topP: request.top_p ?? undefined,
    presencePenalty: request.presence_penalty ?? undefined,
    frequencyPenalty: request.frequency_penalty ?? undefined,
    logprobs: withLogprobs || undefined,
    topLogprobs: withLogprobs ? (request.top_logprobs ?? undefined) : undefined,
    reasoningEffort: request.reasoning?.effort ?? undefined,
    verbosity: request.text?.verbosity ?? undefined,
    serviceTier: request.service_tier ?? undefined,
    promptCacheKey: request.prompt_cache_key ?? undefined,
    promptCacheRetention: request.prompt_cache_retention ?? undefined,
    promptCacheOptions: request.prompt_cache_options ?? undefined,
    safetyIdentifier: request.safety_identifier ?? undefined,
    responseFormat: wanted?.type === "json_schema" ? chatFormatOf(wanted) : (wanted ?? undefined),
  };
}

const chatFormatOf = ({ type, ...schema }: Extract<z.infer<typeof format>, { type: "json_schema" }>) => ({ type, json_schema: schema });

const echoOf = (request: ResponseBody): Readonly<Record<string, unknown>> => ({
  ...(request.conversation == null ? {} : { conversation: { id: conversationOf(request) } }),
  instructions: request.instructions ?? null,
  previous_response_id: request.previous_response_id ?? null,
  max_output_tokens: request.max_output_tokens ?? null,
  max_tool_calls: null,
  temperature: request.temperature ?? 1,
  top_p: request.top_p ?? 1,
  presence_penalty: request.presence_penalty ?? 0,
  frequency_penalty: request.frequency_penalty ?? 0,
  top_logprobs: request.top_logprobs ?? 0,
  truncation: request.truncation ?? "disabled",
  parallel_tool_calls: request.parallel_tool_calls ?? true,
  tools: (request.tools ?? []).map((given) =>
    given.type === "function"
      ? { ...given, description: given.description ?? null, parameters: given.parameters ?? null, strict: given.strict ?? null }
      : given,
  ),
  tool_choice: request.tool_choice ?? "auto",
  text: {
    format: request.text?.format ?? { type: "text" },
    ...(request.text?.verbosity == null ? {} : { verbosity: request.text.verbosity }),
  },
  reasoning: { effort: request.reasoning?.effort ?? null, summary: null },
  store: request.store !== false,
  background: request.background === true,
  service_tier: request.service_tier ?? "default",
  metadata: request.metadata ?? {},
  safety_identifier: request.safety_identifier ?? null,
  prompt_cache_key: request.prompt_cache_key ?? null,
  user: request.user ?? null,
});
