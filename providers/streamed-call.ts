import type { CountedUsage } from "../domain/usage.ts";
import { type AnswerItem, createAnswerParser } from "./answer-parser.ts";
import { type CallDeadline, type CallTimeouts, startDeadline } from "./call-deadline.ts";
import { ModelCallError, type ModelDelta, type ModelResult } from "./model-provider.ts";
import { providerFailure, stoppedFailure } from "./provider-failure.ts";

/** Reads one provider's answer: its wire shape, and what is known of the call at any moment. */
export type AnswerReader = {
  /** @throws {ModelCallError} for an error inside the answer, or `garbage` */
  take(item: AnswerItem): readonly ModelDelta[];
  /** The answer said that it is over: `[DONE]`, `message_stop`. */
  ended(): boolean;
  /** The reply is whole, though the answer may not be over. */
  complete(): boolean;
  /** The provider's count; where it gave none, our estimate of what was generated; undefined if there is neither. */
  usageSoFar(): CountedUsage | undefined;
  providerRequestId(): string | undefined;
  /** @throws {ModelCallError} `garbage` if the reply is not whole */
  result(): ModelResult;
};

export type StreamedCall = {
  readonly signal: AbortSignal;
  readonly timeouts: CallTimeouts;
  /** Sends the request; resolves with a 2xx answer. */
  send(signal: AbortSignal): Promise<Response>;
  readerFor(headers: Headers): AnswerReader;
  /** Turns what the SDK threw into the port's error. */
  failureOf(error: unknown): ModelCallError;
};

/** No answer is larger; a server that sends more is broken or hostile. */
const largestAnswerBytes = 64 * 1024 * 1024;

/** How long the connection of a finished answer may take to end by itself, so that it can be used again. */
const drainMs = 1_000;

type Body = {
  /** The next characters, undefined at the end. @throws {ModelCallError} */
  read(): Promise<string | undefined>;
  /** After an answer that ended, lets the connection be used again; otherwise closes it. */
  close(answerEnded: boolean): void;
};

function openBody(response: Response, deadline: CallDeadline): Body {
  const reader = response.body?.getReader();
  const decoder = new TextDecoder();
  let sizeBytes = 0;
  let atEnd = reader === undefined;
  const cancel = (): void => void reader?.cancel().catch(() => undefined);
  return {
    async read() {
      if (reader === undefined || atEnd) return undefined;
      const { value, done } = await deadline
        .within("idleMs", () => reader.read())
        .catch((): never => {
          throw providerFailure({ kind: "unreachable", text: "The connection broke in the middle of the answer." }, []);
        });
      if (done) {
        atEnd = true;
        return decoder.decode() || undefined;
      }
      sizeBytes += value.byteLength;
      if (sizeBytes > largestAnswerBytes) throw providerFailure({ kind: "garbage", text: "The answer is larger than 64 MiB." }, []);
      return decoder.decode(value, { stream: true });
    },
    close(answerEnded) {
      if (reader === undefined || atEnd) return;
      if (!answerEnded) return cancel();
      const timer = setTimeout(cancel, drainMs);
      const drain = async (): Promise<void> => {
        while (!(await reader.read()).done);
      };
      drain()
        .catch(() => undefined)
        .finally(() => clearTimeout(timer));
    },
  };
}

/** Runs one call over HTTP: sends it, streams the answer through its reader, keeps the time limits, and closes the connection. */
export async function* runStreamedCall(call: StreamedCall): AsyncGenerator<ModelDelta, ModelResult, undefined> {
  const deadline = startDeadline(call.signal, call.timeouts);
  let body: Body | undefined;
  let reader: AnswerReader | undefined;
  try {
    const response = await deadline.within("headersMs", () => call.send(deadline.signal));
    body = openBody(response, deadline);
    reader = call.readerFor(response.headers);
    const parser = createAnswerParser();
    let atEnd = false;
    while (!atEnd && !reader.ended()) {
      const text = await readUnlessComplete(body, reader, deadline);
      atEnd = text === undefined;
      for (const item of text === undefined ? parser.end() : parser.push(text)) {
        if (reader.ended()) break;
        for (const delta of reader.take(item)) {
          yield delta;
          if (deadline.stoppedBy() !== undefined) throw stoppedFailure(deadline.stoppedBy() ?? "caller");
        }
      }
    }
    if (deadline.stoppedBy() === "caller") throw stoppedFailure("caller");
    return reader.result();
  } catch (error) {
    const stoppedBy = deadline.stoppedBy();
    const failure = stoppedBy === undefined ? (error instanceof ModelCallError ? error : call.failureOf(error)) : stoppedFailure(stoppedBy);
    throw withFacts(failure, reader);
  } finally {
    deadline.end();
    body?.close(reader?.ended() ?? false);
  }
}

/** A connection that breaks or falls silent after the whole reply only costs us the provider's count. */
async function readUnlessComplete(body: Body, reader: AnswerReader, deadline: CallDeadline): Promise<string | undefined> {
  try {
    const text = await body.read();
    if (deadline.stoppedBy() !== undefined) throw stoppedFailure(deadline.stoppedBy() ?? "caller");
    return text;
  } catch (error) {
    if (reader.complete() && deadline.stoppedBy() !== "caller") return undefined;
    throw error;
  }
}

const withFacts = (failure: ModelCallError, reader: AnswerReader | undefined): ModelCallError =>
  reader === undefined
    ? failure
    : new ModelCallError(failure.kind, failure.message, {
        status: failure.status,
        unsupported: failure.unsupported,
        retryAfterMs: failure.retryAfterMs,
        usage: reader.usageSoFar(),
        providerRequestId: reader.providerRequestId(),
        cause: failure.cause,
      });
