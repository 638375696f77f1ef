import type { FastifyReply } from "fastify";
import { AppError, type StoredError, fromStoredError, toStoredError } from "../domain/app-error.ts";
import type { FinishedTurn } from "../domain/turn.ts";
import { padding } from "./chat-stream.ts";
import { createEventStream } from "./event-stream.ts";
import { type OutputItem, callItem, messageItem, outputOf } from "./responses-items.ts";
import { type ResponseView, toResponse } from "./responses-object.ts";
import { type CallPiece, type Piece, createCalls, createVoice } from "./streamed-answer.ts";
import type { RunningTurn } from "./turn-service.ts";

export type ResponseStreaming = {
  readonly view: ResponseView;
  /** The response once its turn has ended. */
  readonly ended: (finished: FinishedTurn) => Promise<ResponseView>;
  readonly obfuscate: boolean;
  /** Runs of the tenant's own tools are shown, too, as events of our own. */
  readonly withTools: boolean;
};

type Sent = { readonly id: string; readonly outputIndex: number };

/**
 * Streams a turn as the typed events of the Responses API. Nothing is sent before the turn's first event, so that one that fails early
 * is an ordinary error answer; the last event follows once the turn's row is committed. A caller that leaves changes nothing, and one
 * that reads slowly gets fewer and larger deltas. Resolves when everything has been taken, or the caller has left.
 */
export async function streamResponse(reply: FastifyReply, turn: RunningTurn, streaming: ResponseStreaming): Promise<void> {
  const { turnId } = turn;
  const stream = createEventStream(reply);
  const voices = { text: createVoice(), refusal: createVoice() };
  const calls = createCalls();
  const sentCalls = new Map<number, Sent & { readonly voice: string }>();
  let message: (Sent & { readonly parts: ("text" | "refusal")[] }) | undefined;
  let sequenceNumber = 0;
  let outputLength = 0;

  const sendOne = (type: string, more: object): void => stream.send({ type, sequence_number: sequenceNumber++, ...more }, type);
  const send = (type: string, more: object): void => {
    if (!stream.isOpen()) {
      const response = toResponse({ ...streaming.view, state: "running" });
      sendOne("response.created", { response });
      sendOne("response.in_progress", { response });
    }
    sendOne(type, more);
  };
  const sendDelta = (type: string, more: object): void =>
    send(type, streaming.obfuscate ? { ...more, obfuscation: padding(JSON.stringify(more).length) } : more);
  const add = (item: OutputItem): Sent => {
    const sent = { id: item.id, outputIndex: outputLength++ };
    send("response.output_item.added", { output_index: sent.outputIndex, item });
    return sent;
  };
  /** Where a part of the message stands, which begins with it. */
  const placeOf = (type: "text" | "refusal"): object => {
    message ??= { ...add(messageItem(turnId, "in_progress", [])), parts: [] };
    const place = { item_id: message.id, output_index: message.outputIndex };
    if (!message.parts.includes(type)) {
      message.parts.push(type);
      const part = type === "text" ? { type: "output_text", text: "", annotations: [], logprobs: [] } : { type, refusal: "" };
      send("response.content_part.added", { ...place, content_index: message.parts.length - 1, part });
    }
    return { ...place, content_index: message.parts.indexOf(type) };
  };
  const say = (type: "text" | "refusal", { text, tokens }: Piece): void => {
    if (text === "" && tokens.length === 0) return;
    const place = placeOf(type);
    if (type === "text") sendDelta("response.output_text.delta", { ...place, delta: text, logprobs: tokens });
    else sendDelta("response.refusal.delta", { ...place, delta: text });
  };
  const ask = ({ index, id, name, arguments: given, custom }: CallPiece): void => {
    if (id !== undefined && name !== undefined)
      sentCalls.set(index, {
        ...add(callItem(turnId, index, { id, name, custom: custom || undefined, arguments: "" }, "in_progress")),
        voice: voiceOf(custom),
      });
    const sent = sentCalls.get(index);
    if (sent !== undefined && given !== "")
      sendDelta(`response.${sent.voice}.delta`, { item_id: sent.id, output_index: sent.outputIndex, delta: given });
  };
  const tell = (): void => {
    say("text", voices.text.next());
    say("refusal", voices.refusal.next());
    for (const piece of calls.next()) ask(piece);
  };
  stream.onDrain(tell);

  turn.onEvent((event) => {
    if (event.type === "text" || event.type === "refusal") voices[event.type].hear(event);
    else if (event.type === "tool_call") calls.hear(event);
    if (!stream.isFull()) tell();
    if (event.type === "tool" && streaming.withTools) {
      const { id, name, summary, state } = event;
      send("openclaw.tool", { tool: { id, name, summary, state } });
    }
  });

  /** What the deltas left out, and then the end of each item. @throws {AppError} `provider_error` where the whole is not what was begun */
  const complete = async (answer: Extract<FinishedTurn, { state: "done" }>["reply"]): Promise<void> => {
    voices.text.hearWhole(answer.content ?? "", answer.logprobs);
    voices.refusal.hearWhole(answer.refusal ?? "", answer.refusalLogprobs);
    calls.hearWhole(answer.toolCalls);
    await stream.room();
    tell();
    const items = outputOf(turnId, answer);
    for (const item of items)
      if (item.type === "message") for (const part of item.content) placeOf(part.type === "refusal" ? "refusal" : "text");
    const placed = items.map((item) => ({ item, outputIndex: indexOf(item) }));
    for (const { item, outputIndex } of placed.toSorted((one, other) => one.outputIndex - other.outputIndex)) {
      await stream.room();
      end(item, outputIndex);
    }
    await stream.room();
  };
  const indexOf = ({ id }: OutputItem): number =>
    message?.id === id ? message.outputIndex : ([...sentCalls.values()].find((call) => call.id === id)?.outputIndex ?? 0);
  const end = (item: OutputItem, outputIndex: number): void => {
    const place = { item_id: item.id, output_index: outputIndex };
    if (item.type === "message") {
      for (const part of item.content) {
        const at = placeOf(part.type === "refusal" ? "refusal" : "text");
        if (part.type === "refusal") send("response.refusal.done", { ...at, refusal: part.refusal });
        else {
          for (const [annotationIndex, annotation] of part.annotations.entries())
            send("response.output_text.annotation.added", { ...at, annotation_index: annotationIndex, annotation });
          send("response.output_text.done", { ...at, text: part.text, logprobs: part.logprobs });
        }
        send("response.content_part.done", { ...at, part });
      }
    } else if (item.type === "function_call")
      send("response.function_call_arguments.done", { ...place, name: item.name, arguments: item.arguments });
    else send("response.custom_tool_call_input.done", { ...place, input: item.input });
    send("response.output_item.done", { output_index: outputIndex, item });
  };

  try {
    const finished = await turn.finished;
    if (finished.state === "aborted" && stream.isOpen()) {
      send("response.failed", { response: toResponse(await streaming.ended(finished)) });
    } else {
      if (finished.state !== "done") throw fromStoredError(finished.error);
      await complete(finished.reply);
      const response = toResponse(await streaming.ended(finished));
      send(`response.${response.status}`, { response });
    }
    await stream.end(false);
  } catch (error) {
    if (!stream.isOpen()) throw error;
    tell();
    send("response.failed", { response: toResponse({ ...streaming.view, state: "failed", error: storedErrorOf(error) }) });
    await stream.end(false);
  } finally {
    turn.onEvent(() => {}); // a turn that outlives its stream (a token that was rotated) has nobody to tell
  }
}

const voiceOf = (custom: boolean): string => (custom ? "custom_tool_call_input" : "function_call_arguments");

const storedErrorOf = (error: unknown): StoredError => toStoredError(error instanceof AppError ? error : new AppError("internal"));
