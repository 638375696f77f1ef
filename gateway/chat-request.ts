import { z } from "zod";
import { AppError } from "../domain/app-error.ts";
import type { ChatMessage, ContentPart, SamplingSettings, ToolChoice, ToolDefinition } from "../domain/conversation.ts";

/** Fields of OpenAI's Chat Completions that are refused by name rather than ignored (contract §3). */
const unsupported = [
  "audio",
  "function_call",
  "functions",
  "logit_bias",
  "logprobs",
  "modalities",
  "prediction",
  "prompt_cache_key",
  "prompt_cache_retention",
  "safety_identifier",
  "service_tier",
  "store",
  "top_logprobs",
  "verbosity",
  "web_search_options",
] as const;

const text = z.string();
const textParts = z.array(z.object({ type: z.literal("text"), text }).strip());
const plainContent = z.union([text, textParts]);
const userPart = z.discriminatedUnion("type", [
  z.object({ type: z.literal("text"), text }),
  z.object({
    type: z.literal("image_url"),
    image_url: z.object({ url: z.string().max(12_000_000), detail: z.enum(["auto", "low", "high"]).optional() }),
  }),
]);
const toolCall = z.object({
  id: text.min(1),
  type: z.literal("function"),
  function: z.object({ name: text, arguments: text }),
});
const name = text.optional();

const message = z.discriminatedUnion("role", [
  z.object({ role: z.literal("system"), content: plainContent, name }),
  z.object({ role: z.literal("developer"), content: plainContent, name }),
  z.object({ role: z.literal("user"), content: z.union([text, z.array(userPart).min(1)]), name }),
  z.object({
    role: z.literal("assistant"),
    content: plainContent.nullish(),
    tool_calls: z.array(toolCall).optional(),
    refusal: text.nullish(),
    name,
  }),
  z.object({ role: z.literal("tool"), content: plainContent, tool_call_id: text.min(1) }),
]);

const tool = z.strictObject({
  type: z.literal("function"),
  function: z.strictObject({
    name: z.string().regex(/^[A-Za-z0-9_-]{1,64}$/),
    description: text.optional(),
    parameters: z.record(text, z.unknown()).optional(),
    strict: z.boolean().nullish(),
  }),
});

const fields = {
  model: text.min(1).max(256),
  messages: z.array(z.unknown()).min(1),
  stream: z.boolean().nullish(),
  stream_options: z.strictObject({ include_usage: z.boolean().optional(), include_obfuscation: z.literal(false).optional() }).nullish(),
  max_tokens: z.int().min(1).nullish(),
  max_completion_tokens: z.int().min(1).nullish(),
  temperature: z.number().min(0).max(2).nullish(),
  top_p: z.number().min(0).max(1).nullish(),
  presence_penalty: z.number().min(-2).max(2).nullish(),
  frequency_penalty: z.number().min(-2).max(2).nullish(),
  stop: z.union([text, z.array(text).min(1).max(4)]).nullish(),
  seed: z.int().nullish(),
  n: z.literal(1, "Only n = 1 is supported.").nullish(),
  reasoning_effort: text.nullish(),
  response_format: z.looseObject({ type: z.enum(["text", "json_object", "json_schema"]) }).nullish(),
  tools: z.array(tool).max(128).nullish(),
  tool_choice: z
    .union([z.enum(["auto", "none", "required"]), z.object({ type: z.literal("function"), function: z.object({ name: text }) })])
    .nullish(),
  parallel_tool_calls: z.boolean().nullish(),
  user: text.max(256).nullish(),
  metadata: z.record(text.max(64), text.max(512)).nullish(),
};
const chatBody = z.object(fields);
/** The same for the API's description, which is not afraid of many faults. */
export const describedChatBody = z.object({ ...fields, messages: z.array(message).min(1) });

export type ChatRequest = {
  readonly model: string;
  readonly messages: readonly ChatMessage[];
  readonly tools: readonly ToolDefinition[];
  readonly settings: SamplingSettings;
  readonly stream: boolean;
  readonly includeUsage: boolean;
  /** Whom the caller speaks for; the overlay may make it the session's name. */
  readonly user: string | undefined;
};

const isUnsupported = (key: string): boolean => (unsupported as readonly string[]).includes(key);

/**
 * Reads a Chat Completions body. Every documented field is honoured or refused by its name.
 * @throws {AppError} `unsupported_parameter` or `invalid_request`, with `param`
 */
export function parseChatRequest(raw: unknown): ChatRequest {
  if (raw === null || typeof raw !== "object" || Array.isArray(raw))
    throw new AppError("invalid_request", { client: { message: "The body must be a JSON object." } });
  for (const [key, value] of Object.entries(raw)) {
    if (isUnsupported(key) && value !== null && !(key === "store" && value === false)) {
      throw new AppError("unsupported_parameter", { client: { message: `The parameter '${key}' is not supported here.`, param: key } });
    }
    if (!isUnsupported(key) && !Object.hasOwn(fields, key))
      throw refusal(`Unrecognized request argument supplied: ${key.slice(0, 64)}`, key.slice(0, 64));
  }
  const request = parse(chatBody, raw, []);
  // One by one: a schema collects every fault of what it is given, and a body of many bad messages would take it a minute.
  const messages = request.messages.map((raw_, place) => toMessage(parse(message, raw_, ["messages", place])));
  const forcesTool = request.tool_choice != null && request.tool_choice !== "auto" && request.tool_choice !== "none";
  if (forcesTool && (request.tools ?? []).length === 0)
    throw refusal("'tool_choice' is only allowed when 'tools' are specified.", "tool_choice");
  if (request.stream_options != null && request.stream !== true)
    throw refusal("'stream_options' is only allowed when 'stream' is true.", "stream_options");
  return {
    model: request.model,
    messages,
    tools: (request.tools ?? []).map(({ function: { name: toolName, description, parameters, strict } }) => ({
      name: toolName,
      description,
      parameters,
      strict: strict ?? undefined,
    })),
    settings: settingsOf(request),
    stream: request.stream === true,
    includeUsage: request.stream_options?.include_usage === true,
    user: request.user || undefined,
  };
}

/** @throws {AppError} `invalid_request` naming the deepest field at fault */
function parse<T>(schema: z.ZodType<T>, raw: unknown, prefix: readonly PropertyKey[]): T {
  const parsed = schema.safeParse(raw);
  if (parsed.success) return parsed.data;
  const issue = deepest(parsed.error.issues, prefix);
  throw refusal(`Invalid value for '${issue.path}': ${issue.message}`, issue.path);
}

function settingsOf(request: z.infer<typeof chatBody>): SamplingSettings {
  const settings: SamplingSettings = {
    maxTokens: request.max_completion_tokens ?? request.max_tokens ?? undefined,
    temperature: request.temperature ?? undefined,
    topP: request.top_p ?? undefined,
    stop: request.stop == null ? undefined : [request.stop].flat(),
    seed: request.seed ?? undefined,
    presencePenalty: request.presence_penalty ?? undefined,
    frequencyPenalty: request.frequency_penalty ?? undefined,
    reasoningEffort: request.reasoning_effort ?? undefined,
    responseFormat: request.response_format ?? undefined,
    parallelToolCalls: request.parallel_tool_calls ?? undefined,
    toolChoice: toToolChoice(request.tool_choice),
  };
  return settings;
}

const toToolChoice = (choice: z.infer<typeof chatBody>["tool_choice"]): ToolChoice | undefined =>
  choice == null ? undefined : typeof choice === "string" ? choice : { name: choice.function.name };

function toMessage(raw: z.infer<typeof message>): ChatMessage {
  switch (raw.role) {
    case "system":
    case "developer":
      return { role: raw.role, content: toText(raw.content) };
    case "user":
      return { role: "user", content: typeof raw.content === "string" ? raw.content : raw.content.map(toPart) };
    case "assistant":
      return {
        role: "assistant",
        content: raw.content == null ? null : toText(raw.content),
        toolCalls: raw.tool_calls?.map((call) => ({ id: call.id, name: call.function.name, arguments: call.function.arguments })),
      };
    case "tool":
      return { role: "tool", toolCallId: raw.tool_call_id, content: toText(raw.content) };
  }
}

const toText = (content: z.infer<typeof plainContent>): string =>
  typeof content === "string" ? content : content.map((part) => part.text).join("\n");

const toPart = (part: z.infer<typeof userPart>): ContentPart =>
  part.type === "text" ? { type: "text", text: part.text } : { type: "image", url: part.image_url.url, detail: part.image_url.detail };

const refusal = (message_: string, param: string): AppError => new AppError("invalid_request", { client: { message: message_, param } });

/** Of a union's branches the issue that reached deepest: it names what is wrong rather than that no branch fits. */
function deepest(issues: readonly z.core.$ZodIssue[], prefix: readonly PropertyKey[] = []): { path: string; message: string } {
  let found = { path: "", message: "The request is not valid." };
  let depth = -1;
  const visit = (list: readonly z.core.$ZodIssue[], before: readonly PropertyKey[]): void => {
    for (const issue of list) {
      const path = [...before, ...issue.path];
      if (path.length > depth) {
        depth = path.length;
        found = { path: path.map(String).join("."), message: issue.message };
      }
      if (issue.code === "invalid_union") for (const branch of issue.errors) visit(branch, path);
    }
  };
  visit(issues, prefix);
  return found;
}

/** In a session only what is new counts: the messages behind the last reply, and the instructions, which hold for this turn. */
export function newMessagesOf(messages: readonly ChatMessage[]): readonly ChatMessage[] {
  const lastReply = messages.findLastIndex(({ role }) => role === "assistant");
  const instructions = messages.slice(0, lastReply + 1).filter(({ role }) => role === "system" || role === "developer");
  return [...instructions, ...messages.slice(lastReply + 1)];
}
