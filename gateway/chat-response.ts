import type { TurnId } from "../domain/turn-id.ts";
import type { TokenLogprob, ToolCall } from "../domain/conversation.ts";
import type { TurnReply } from "../domain/turn.ts";
import type { AnswerShape } from "./chat-request.ts";
import { type Usage, completionTokensOf, promptTokensOf } from "../domain/usage.ts";

/** What every object of one answer repeats. */
export type AnswerHead = { readonly turnId: TurnId; readonly model: string; readonly createdAtMs: number };

const idOf = ({ turnId }: AnswerHead): string => `chatcmpl-${turnId.slice("trn_".length)}`;
const secondsOf = ({ createdAtMs }: AnswerHead): number => Math.floor(createdAtMs / 1_000);

/**
 * Our disjoint classes as OpenAI counts them: cached inside the prompt, reasoning inside the completion. Of sound and predicted
 * text nothing is said: they are parts of classes here, and a zero would be untrue.
 */
export const toOpenAiUsage = (usage: Usage) => ({
  prompt_tokens: promptTokensOf(usage),
  completion_tokens: completionTokensOf(usage),
  total_tokens: promptTokensOf(usage) + completionTokensOf(usage),
  prompt_tokens_details: { cached_tokens: usage.cacheReadTokens },
  completion_tokens_details: { reasoning_tokens: usage.reasoningTokens },
});

const toOpenAiToolCall = ({ id, name, arguments: given, custom }: ToolCall) =>
  custom === true ? { id, type: "custom", custom: { name, input: given } } : { id, type: "function", function: { name, arguments: given } };

/** The calls that the client has to run: of deprecated functions there is one at a time. */
function callsOf({ toolCalls }: TurnReply, { withFunctions }: AnswerShape): object {
  const [first] = toolCalls;
  if (first === undefined) return {};
  return withFunctions
    ? { function_call: { name: first.name, arguments: first.arguments } }
    : { tool_calls: toolCalls.map(toOpenAiToolCall) };
}

export const finishReasonOf = ({ finishReason }: TurnReply, { withFunctions }: AnswerShape): string =>
  finishReason === "tool_calls" && withFunctions ? "function_call" : finishReason;

type Logprobs = { readonly content: readonly TokenLogprob[] | null; readonly refusal: readonly TokenLogprob[] | null };

export const toLogprobs = (content: readonly TokenLogprob[] = [], refusal: readonly TokenLogprob[] = []): Logprobs | null =>
  content.length + refusal.length === 0
    ? null
    : { content: content.length === 0 ? null : content, refusal: refusal.length === 0 ? null : refusal };

/** What the provider told of itself. */
export const providerFactsOf = ({ serviceTier, systemFingerprint }: TurnReply): object => ({
  ...(serviceTier === undefined ? {} : { service_tier: serviceTier }),
  ...(systemFingerprint === undefined ? {} : { system_fingerprint: systemFingerprint }),
});

export const toChatCompletion = (head: AnswerHead, reply: TurnReply, shape: AnswerShape) => ({
  id: idOf(head),
  object: "chat.completion",
  created: secondsOf(head),
  model: reply.model,
  choices: [
    {
      index: 0,
      message: {
        role: "assistant",
        content: reply.content,
        refusal: reply.refusal ?? null,
        ...callsOf(reply, shape),
        annotations: reply.annotations ?? [],
      },
      logprobs: toLogprobs(reply.logprobs, reply.refusalLogprobs),
      finish_reason: finishReasonOf(reply, shape),
    },
  ],
  usage: toOpenAiUsage(reply.usage),
  ...providerFactsOf(reply),
  ...(shape.metadata === undefined ? {} : { metadata: shape.metadata }),
});

/** What one chunk of a stream brings. */
export type ChunkNews = {
  readonly delta?: {
    readonly role?: "assistant";
    readonly content?: string;
    readonly refusal?: string;
    readonly tool_calls?: readonly object[];
    readonly function_call?: object;
    readonly annotations?: readonly object[];
  };
  readonly logprobs?: Logprobs | null;
  readonly finishReason?: string;
  /** Beside the choices. */
  readonly more?: object;
};

export const toChunk = (
  head: AnswerHead,
  { includeUsage }: Pick<AnswerShape, "includeUsage">,
  { delta = {}, logprobs = null, finishReason, more = {} }: ChunkNews,
) => ({
  id: idOf(head),
  object: "chat.completion.chunk",
  created: secondsOf(head),
  model: head.model,
  choices: [{ index: 0, delta, logprobs, finish_reason: finishReason ?? null }],
  ...(includeUsage ? { usage: null } : {}),
  ...more,
});

export const toUsageChunk = (head: AnswerHead, reply: TurnReply) => ({
  id: idOf(head),
  object: "chat.completion.chunk",
  created: secondsOf(head),
  model: head.model,
  choices: [],
  usage: toOpenAiUsage(reply.usage),
  ...providerFactsOf(reply),
});
