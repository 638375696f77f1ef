import type { TurnId } from "../domain/turn-id.ts";
import type { ToolCall } from "../domain/conversation.ts";
import type { TurnReply } from "../domain/turn.ts";
import { type Usage, completionTokensOf, promptTokensOf } from "../domain/usage.ts";

/** What every object of one answer repeats. */
export type AnswerHead = { readonly turnId: TurnId; readonly model: string; readonly createdAtMs: number };

const idOf = ({ turnId }: AnswerHead): string => `chatcmpl-${turnId.slice("trn_".length)}`;
const secondsOf = ({ createdAtMs }: AnswerHead): number => Math.floor(createdAtMs / 1_000);

/** Our disjoint classes as OpenAI counts them: cached inside the prompt, reasoning inside the completion. */
export const toOpenAiUsage = (usage: Usage) => ({
  prompt_tokens: promptTokensOf(usage),
  completion_tokens: completionTokensOf(usage),
  total_tokens: promptTokensOf(usage) + completionTokensOf(usage),
  prompt_tokens_details: { cached_tokens: usage.cacheReadTokens, audio_tokens: 0 },
  completion_tokens_details: {
    reasoning_tokens: usage.reasoningTokens,
    audio_tokens: 0,
    accepted_prediction_tokens: 0,
    rejected_prediction_tokens: 0,
  },
});

const toOpenAiToolCall = ({ id, name, arguments: json }: ToolCall) => ({ id, type: "function", function: { name, arguments: json } });

export const toChatCompletion = (head: AnswerHead, reply: TurnReply) => ({
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
        ...(reply.toolCalls.length === 0 ? {} : { tool_calls: reply.toolCalls.map(toOpenAiToolCall) }),
      },
      logprobs: null,
      finish_reason: reply.finishReason,
    },
  ],
  usage: toOpenAiUsage(reply.usage),
});

export type ChunkDelta = {
  readonly role?: "assistant";
  readonly content?: string;
  readonly refusal?: string;
  readonly tool_calls?: readonly Record<string, unknown>[];
};

export const toChunk = (
  head: AnswerHead,
  includeUsage: boolean,
  delta: ChunkDelta,
  finishReason: string | null = null,
  more: object = {},
) => ({
  id: idOf(head),
  object: "chat.completion.chunk",
  created: secondsOf(head),
  model: head.model,
  choices: [{ index: 0, delta, logprobs: null, finish_reason: finishReason }],
  ...(includeUsage ? { usage: null } : {}),
  ...more,
});

export const toUsageChunk = (head: AnswerHead, usage: Usage) => ({
  id: idOf(head),
  object: "chat.completion.chunk",
  created: secondsOf(head),
  model: head.model,
  choices: [],
  usage: toOpenAiUsage(usage),
});
