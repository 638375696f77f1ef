import type { FastifyReply } from "fastify";
import { AppError, fromStoredError } from "../domain/app-error.ts";
import type { FinishedTurn } from "../domain/turn.ts";
import type { TurnEvent } from "../streams/token-bus.ts";
import { type AnswerHead, type ChunkDelta, toChunk, toUsageChunk } from "./chat-response.ts";
import { errorBodyOf } from "./error-edge.ts";
import { createEventStream } from "./event-stream.ts";
import type { RunningTurn } from "./turn-service.ts";

/**
 * Streams a turn as Chat Completions chunks. Nothing is sent before the first event, so that a turn that fails early is an ordinary
 * error answer; the last chunks follow once the turn's row is committed. A caller that leaves changes nothing.
 */
export async function streamChat(reply: FastifyReply, turn: RunningTurn, head: AnswerHead, includeUsage: boolean): Promise<void> {
  const stream = createEventStream(reply);
  let sentText = "";
  const sentToolCalls = new Map<number, { readonly id: string | undefined; readonly arguments: string }>();
  const send = (delta: ChunkDelta, finishReason: string | null = null, more: object = {}): void => {
    if (!stream.isOpen()) stream.send(toChunk(head, includeUsage, { role: "assistant", content: "" }));
    stream.send(toChunk(head, includeUsage, delta, finishReason, more));
  };

  turn.onEvent((event: TurnEvent) => {
    if (event.type === "text" && event.offset === sentText.length) {
      sentText += event.text;
      send({ content: event.text });
    } else if (event.type === "tool_call") {
      const sent = sentToolCalls.get(event.index);
      if (sent === undefined && event.id === undefined) return; // its beginning was lost: it is sent whole at the end
      sentToolCalls.set(event.index, { id: sent?.id ?? event.id, arguments: (sent?.arguments ?? "") + event.arguments });
      send({ tool_calls: [toolCallDelta(event)] });
    } else if (event.type === "tool")
      send({}, null, { openclaw: { tool: { id: event.id, name: event.name, summary: event.summary, state: event.state } } });
  });

  let finished: FinishedTurn;
  try {
    finished = await turn.finished;
    if (finished.state !== "done") throw fromStoredError(finished.error);
    const text = finished.reply.content ?? "";
    if (!text.startsWith(sentText)) throw new AppError("provider_error", { why: "a repeated call answered otherwise than what was sent" });
    const rest = text.slice(sentText.length);
    if (rest !== "" || !stream.isOpen()) send(rest === "" ? {} : { content: rest });
    if (finished.reply.refusal !== undefined) send({ refusal: finished.reply.refusal });
    for (const [index, { id, name, arguments: json }] of finished.reply.toolCalls.entries()) {
      const sent = sentToolCalls.get(index);
      if (sent === undefined) send({ tool_calls: [toolCallDelta({ index, id, name, arguments: json })] });
      else if (sent.id !== id || !json.startsWith(sent.arguments))
        throw new AppError("provider_error", { why: "a repeated call asked otherwise than what was sent" });
      else if (json.length > sent.arguments.length)
        send({ tool_calls: [toolCallDelta({ index, arguments: json.slice(sent.arguments.length) })] });
    }
    send({}, finished.reply.finishReason);
    if (includeUsage) stream.send(toUsageChunk(head, finished.reply.usage));
    stream.end(true);
  } catch (error) {
    if (!stream.isOpen()) throw error;
    stream.send(errorBodyOf(error));
    stream.end(false);
  } finally {
    turn.onEvent(() => {}); // a turn that outlives its stream (a token that was rotated) has nobody to tell
  }
}

const toolCallDelta = ({ index, id, name, arguments: json }: { index: number; id?: string; name?: string; arguments: string }) => ({
  index,
  ...(id === undefined ? {} : { id, type: "function" }),
  function: { ...(name === undefined ? {} : { name }), arguments: json },
});
