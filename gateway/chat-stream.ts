import { randomBytes } from "node:crypto";
import type { FastifyReply } from "fastify";
import { fromStoredError } from "../domain/app-error.ts";
import type { FinishedTurn } from "../domain/turn.ts";
import type { TurnEvent } from "../streams/token-bus.ts";
import type { AnswerShape } from "./chat-request.ts";
import { type AnswerHead, type ChunkNews, finishReasonOf, providerFactsOf, toChunk, toLogprobs, toUsageChunk } from "./chat-response.ts";
import { errorBodyOf } from "./error-edge.ts";
import { createEventStream } from "./event-stream.ts";
import { type CallPiece, type Piece, createCalls, createVoice } from "./streamed-answer.ts";
import type { RunningTurn } from "./turn-service.ts";

/**
 * Streams a turn as Chat Completions chunks. Nothing is sent before the first event, so that a turn that fails early is an ordinary
 * error answer; the last chunks follow once the turn's row is committed. A caller that leaves changes nothing, and one that reads
 * slowly gets fewer and larger chunks. Resolves when everything has been taken, or the caller has left.
 */
export async function streamChat(reply: FastifyReply, turn: RunningTurn, head: AnswerHead, shape: AnswerShape): Promise<void> {
  const stream = createEventStream(reply);
  const voices = { text: createVoice(), refusal: createVoice() };
  const calls = createCalls();
  const sendChunk = (news: ChunkNews): void => {
    const chunk = toChunk(head, shape, news);
    stream.send(shape.obfuscate ? { ...chunk, obfuscation: padding(JSON.stringify(chunk).length) } : chunk);
  };
  const send = (news: ChunkNews): void => {
    if (!stream.isOpen()) sendChunk({ delta: { role: "assistant", content: "" } });
    sendChunk(news);
  };
  const say = (type: "text" | "refusal", { text, tokens }: Piece): void => {
    if (text === "" && tokens.length === 0) return;
    if (type === "text") send({ delta: { content: text }, logprobs: toLogprobs(tokens) });
    else send({ delta: { refusal: text }, logprobs: toLogprobs([], tokens) });
  };
  const call = (piece: CallPiece): void => {
    if (!shape.withFunctions) send({ delta: { tool_calls: [toolCallDelta(piece)] } });
    else if (piece.index === 0) send({ delta: { function_call: calledDelta(piece) } });
  };

  const tell = (): void => {
    say("text", voices.text.next());
    say("refusal", voices.refusal.next());
    for (const piece of calls.next()) call(piece);
  };
  stream.onDrain(tell);

  turn.onEvent((event: TurnEvent) => {
    if (event.type === "text" || event.type === "refusal") voices[event.type].hear(event);
    else if (event.type === "tool_call") calls.hear(event);
    if (!stream.isFull()) tell();
    if (event.type === "tool")
      send({ more: { openclaw: { tool: { id: event.id, name: event.name, summary: event.summary, state: event.state } } } });
  });

  let finished: FinishedTurn;
  try {
    finished = await turn.finished;
    if (finished.state !== "done") throw fromStoredError(finished.error);
    const { reply: answer } = finished;
    await stream.room();
    voices.text.hearWhole(answer.content ?? "", answer.logprobs);
    voices.refusal.hearWhole(answer.refusal ?? "", answer.refusalLogprobs);
    calls.hearWhole(answer.toolCalls);
    tell();
    if (answer.annotations !== undefined) send({ delta: { annotations: answer.annotations } });
    send({ finishReason: finishReasonOf(answer, shape), more: providerFactsOf(answer) });
    if (shape.includeUsage) stream.send(toUsageChunk(head, answer));
    await stream.end(true);
  } catch (error) {
    if (!stream.isOpen()) throw error;
    tell();
    stream.send(errorBodyOf(error));
    await stream.end(false);
  } finally {
    turn.onEvent(() => {}); // a turn that outlives its stream (a token that was rotated) has nobody to tell
  }
}

const calledDelta = ({ name, arguments: given }: CallPiece): object => ({ ...(name === undefined ? {} : { name }), arguments: given });

const toolCallDelta = ({ index, id, name, arguments: given, custom }: CallPiece): object => {
  const called = { ...(name === undefined ? {} : { name }), [custom ? "input" : "arguments"]: given };
  const kind = custom ? "custom" : "function";
  return { index, ...(id === undefined ? {} : { id, type: kind }), [kind]: called };
};

/** Lengths of chunks look alike in steps of so many characters. */
const paddedTo = 128;

export const padding = (length: number): string => {
  const missing = paddedTo - (length % paddedTo);
  return randomBytes(missing).toString("base64url").slice(0, missing);
};
