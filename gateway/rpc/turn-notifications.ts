import type { WebSocket } from "@fastify/websocket";
import { fromStoredError } from "../../domain/app-error.ts";
import type { SessionId } from "../../domain/session-id.ts";
import type { FinishedTurn } from "../../domain/turn.ts";
import { errorBodyOf } from "../error-edge.ts";
import type { RunningTurn } from "../turn-service.ts";

export type StartedTurn = { readonly sessionId: SessionId; readonly turn: RunningTurn };
type Notification = { readonly jsonrpc: "2.0"; readonly method: string; readonly params: Readonly<Record<string, unknown>> };

/**
 * Tells of a turn until it ends or the socket does: `chat.delta {turn_id, session_id, offset, text}` for text as it comes, each
 * following the one before, and `chat.finished {turn_id, session_id, state, text, …}` with the whole text once the row is committed.
 */
export function announceTurn({ sessionId, turn }: StartedTurn, notify: (notification: Notification) => void, socket: WebSocket): void {
  const about = { turn_id: turn.turnId, session_id: sessionId };
  let sentCharacters = 0;
  turn.onEvent((event) => {
    if (event.type !== "text" || event.offset !== sentCharacters) return; // a repeat, or behind a gap: the end has it all
    sentCharacters += event.text.length;
    notify({ jsonrpc: "2.0", method: "chat.delta", params: { ...about, offset: event.offset, text: event.text } });
  });
  const forget = (): void => turn.onEvent(() => {});
  socket.once("close", forget);
  const finish = (params: Readonly<Record<string, unknown>>): void => {
    socket.off("close", forget);
    notify({ jsonrpc: "2.0", method: "chat.finished", params: { ...about, ...params } });
  };
  turn.finished.then(
    (finished) => finish(finishedJson(finished)),
    (error: unknown) => finish(failureJson("failed", error)),
  );
}

const failureJson = (state: "failed" | "aborted", error: unknown) => ({ state, text: null, error: errorBodyOf(error).error });

function finishedJson(finished: FinishedTurn) {
  if (finished.state !== "done") return failureJson(finished.state, fromStoredError(finished.error));
  const { content, finishReason, model, usage } = finished.reply;
  return {
    state: finished.state,
    text: content,
    model,
    finish_reason: finishReason,
    usage: {
      input_tokens: usage.inputTokens,
      cache_read_tokens: usage.cacheReadTokens,
      cache_write_tokens: usage.cacheWriteTokens,
      output_tokens: usage.outputTokens,
      reasoning_tokens: usage.reasoningTokens,
    },
    error: null,
  };
}
