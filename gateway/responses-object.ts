import { AppError, type StoredError, toStoredError } from "../domain/app-error.ts";
import { errorCatalogue } from "../domain/error-catalogue.ts";
import { type TurnId, turnTimeMs } from "../domain/turn-id.ts";
import type { TurnReply, TurnState } from "../domain/turn.ts";
import { type Usage, completionTokensOf, promptTokensOf } from "../domain/usage.ts";
import { outputOf, responseIdOf } from "./responses-items.ts";

/** A response and how far its turn has come. */
export type ResponseView = {
  readonly turnId: TurnId;
  /** What it repeats of its request, and the model. */
  readonly head: Readonly<Record<string, unknown>>;
  readonly state: TurnState;
  readonly reply: TurnReply | null;
  readonly error: StoredError | null;
  readonly finishedAtMs: number | null;
};

type Status = "queued" | "in_progress" | "completed" | "incomplete" | "failed" | "cancelled";

const cuts: Readonly<Record<string, string>> = { length: "max_output_tokens", content_filter: "content_filter" };

/** The response as the API shows it: the same from the stream's end, the create call and a later look. */
export function toResponse({ turnId, head, state, reply, error, finishedAtMs }: ResponseView) {
  const cut = reply === null ? undefined : cuts[reply.finishReason];
  const status = reply !== null && state === "done" ? (cut === undefined ? "completed" : "incomplete") : statusOf(state);
  return {
    id: responseIdOf(turnId),
    object: "response",
    created_at: Math.floor(turnTimeMs(turnId) / 1_000),
    completed_at: status === "completed" && finishedAtMs !== null ? Math.floor(finishedAtMs / 1_000) : null,
    status,
    ...head,
    ...(reply?.serviceTier === undefined ? {} : { service_tier: reply.serviceTier }),
    model: reply?.model ?? head["model"],
    error: status === "failed" && error !== null ? toResponseError(error) : null,
    incomplete_details: cut === undefined ? null : { reason: cut },
    output: reply === null ? [] : outputOf(turnId, reply),
    usage: reply === null ? null : toUsage(reply.usage),
  };
}

function statusOf(state: TurnState): Status {
  switch (state) {
    case "queued":
      return "queued";
    case "running":
      return "in_progress";
    case "aborted":
      return "cancelled";
    default:
      return "failed";
  }
}

/** In the words of OpenAI's error codes, which are few. */
function toResponseError({ code, message }: StoredError): { readonly code: string; readonly message: string } {
  const { type, http } = errorCatalogue[code];
  if (http === 429 || code === "provider_busy") return { code: "rate_limit_exceeded", message };
  return { code: type === "invalid_request_error" ? "invalid_prompt" : "server_error", message };
}

export const storedErrorOf = (error: unknown): StoredError => toStoredError(error instanceof AppError ? error : new AppError("internal"));

const toUsage = (usage: Usage) => ({
  input_tokens: promptTokensOf(usage),
  input_tokens_details: { cached_tokens: usage.cacheReadTokens },
  output_tokens: completionTokensOf(usage),
  output_tokens_details: { reasoning_tokens: usage.reasoningTokens },
  total_tokens: promptTokensOf(usage) + completionTokensOf(usage),
});
