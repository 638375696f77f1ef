import type { FastifyReply } from "fastify";
import { AppError } from "../domain/app-error.ts";
import type { FinishedTurn } from "../domain/turn.ts";
import type { TurnEvent } from "../streams/token-bus.ts";
import { padding } from "./chat-stream.ts";
import { createEventStream } from "./event-stream.ts";
import {
  type ResponseEvent,
  eventsOf,
  firstItemNumber,
  firstPartNumber,
  firstPieceNumber,
  messageAdded,
  partAdded,
  startOfPiece,
  textDelta,
} from "./response-events.ts";
import { type ResponseView, storedErrorOf, toResponse } from "./responses-object.ts";
import { answerTaken } from "./slow-readers.ts";
import type { RunningTurn } from "./turn-service.ts";

export type Following = {
  readonly view: ResponseView;
  /** The response once its turn has ended. */
  readonly ended: (finished: FinishedTurn) => Promise<ResponseView>;
  /** The number of the last event that the caller has; -1 when it has none. */
  readonly startingAfter: number;
  readonly obfuscate: boolean;
  /** Runs of the tenant's own tools are shown, too, as events of our own, which have no number of their own. */
  readonly withTools: boolean;
};

/**
 * Streams a background response from any event on, while it runs and afterwards: the same events under the same numbers each time. Text
 * is told as it comes where all before it is known; what was said before anybody in this process listened comes from the row, at the
 * end, and so do refusals and calls. Resolves when everything has been taken, or the caller has left.
 */
export async function followResponse(
  reply: FastifyReply,
  turn: Pick<RunningTurn, "turnId" | "onEvent" | "finished">,
  { view, ended, startingAfter, obfuscate, withTools }: Following,
): Promise<void> {
  const { turnId } = turn;
  const stream = createEventStream(reply);
  let next = startingAfter + 1;
  const emit = (number: number, { type, more }: ResponseEvent): void => {
    if (number < next) return;
    next = number + 1;
    const padded = obfuscate && type.endsWith(".delta") ? { ...more, obfuscation: padding(JSON.stringify(more).length) } : more;
    stream.send({ type, sequence_number: number, ...padded }, type);
  };
  /** Comes last, also for a caller who has seen more of an answer than was kept of it. */
  const emitFailure = (response: ResponseView): void =>
    emit(Math.max(next, firstItemNumber), { type: "response.failed", more: { response: toResponse(response) } });

  const text = createHeldText(Math.max(0, next - firstPieceNumber));
  const tell = (): void => {
    if (!text.isHeard()) return;
    emit(firstItemNumber, messageAdded(turnId));
    emit(firstPartNumber, partAdded(turnId, 0, "output_text"));
    for (let piece = text.next(); piece !== undefined; piece = stream.isFull() ? undefined : text.next())
      emit(firstPieceNumber + piece.number, textDelta(turnId, piece.text));
  };

  const response = toResponse({ ...view, state: "running", reply: null, error: null, finishedAtMs: null });
  for (const [number, type] of ["response.created", "response.in_progress"].entries()) emit(number, { type, more: { response } });
  stream.onDrain(tell);
  turn.onEvent((event) => {
    if (event.type === "text") text.hear(event);
    if (event.type === "text" && !stream.isFull()) tell();
    if (event.type === "tool" && withTools) {
      const { id, name, summary, state } = event;
      const type = "openclaw.tool";
      stream.send({ type, sequence_number: next - 1, tool: { id, name, summary, state } }, type);
    }
  });
  try {
    const finished = await Promise.race([turn.finished, answerTaken(reply.raw)]);
    if (finished === undefined) return;
    const whole = await ended(finished);
    if (finished.state !== "done") emitFailure(whole);
    else {
      if (!text.isIn(finished.reply.content ?? ""))
        throw new AppError("provider_error", { why: "a repeated call answered otherwise than what was sent" });
      let number = firstItemNumber;
      for (const event of eventsOf(turnId, finished.reply)) {
        await stream.room();
        emit(number++, event);
      }
      const last = toResponse(whole);
      emit(number, { type: `response.${last.status}`, more: { response: last } });
    }
  } catch (error) {
    if (!stream.isOpen()) throw error;
    emitFailure({ ...view, state: "failed", error: storedErrorOf(error) });
  } finally {
    turn.onEvent(() => {});
  }
  if (stream.isOpen()) await stream.end(false);
  else void reply.type("text/event-stream; charset=utf-8").send(""); // the caller has it all
}

/** Text of an answer from a piece on, as far as it has come without a gap. */
function createHeldText(firstPiece: number) {
  let number = firstPiece;
  let isHeard = false;
  let start: number | undefined;
  let held = "";
  const unitAt = (offset: number): number => held.charCodeAt(offset - (start ?? 0));
  return {
    /** Some of the answer is text. */
    isHeard: () => isHeard,
    hear({ offset, text }: Extract<TurnEvent, { offset: number }>): void {
      isHeard = true;
      if (start === undefined && offset <= Math.max(0, startOfPiece(firstPiece, () => 0) - 1)) start = offset;
      if (start !== undefined && offset === start + held.length) held += text;
    },
    /** The next piece, once its end is known. */
    next(): { readonly number: number; readonly text: string } | undefined {
      if (start === undefined || startOfPiece(number + 1, () => 0) >= start + held.length) return undefined;
      const [from, to] = [startOfPiece(number, unitAt), startOfPiece(number + 1, unitAt)];
      return { number: number++, text: held.slice(from - start, to - start) };
    },
    /** Whether the answer is what was heard of it. */
    isIn: (whole: string): boolean => whole.startsWith(held, start),
  };
}
