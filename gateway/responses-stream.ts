import type { FastifyReply } from "fastify";
import { AppError, type StoredError, fromStoredError, toStoredError } from "../domain/app-error.ts";
import type { TokenLogprob, ToolCall } from "../domain/conversation.ts";
import type { FinishedTurn } from "../domain/turn.ts";
import { padding } from "./chat-stream.ts";
import { createEventStream } from "./event-stream.ts";
import { type OutputItem, callItem, messageItem, outputOf } from "./responses-items.ts";
import { type ResponseView, toResponse } from "./responses-object.ts";
import { createVoice } from "./streamed-answer.ts";
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
type SentCall = Sent & { readonly call: ToolCall };

/**
 * Streams a turn as the typed events of the Responses API. Nothing is sent before the turn's first event, so that one that fails early
 * is an ordinary error answer; the last event follows once the turn's row is committed. A caller that leaves changes nothing.
 */
export async function streamResponse(reply: FastifyReply, turn: RunningTurn, streaming: ResponseStreaming): Promise<void> {
  const { turnId } = turn;
  const stream = createEventStream(reply);
  const voices = { text: createVoice(), refusal: createVoice() };
  const calls = new Map<number, SentCall>();
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
  const say = (type: "text" | "refusal", { text, tokens }: { readonly text: string; readonly tokens: readonly TokenLogprob[] }): void => {
    if (text === "" && tokens.length === 0) return;
    const place = placeOf(type);
    if (type === "text") sendDelta("response.output_text.delta", { ...place, delta: text, logprobs: tokens });
    else sendDelta("response.refusal.delta", { ...place, delta: text });
  };
  const ask = (index: number, piece: ToolCall): void => {
    const before = calls.get(index);
    const sent = before ?? {
      ...add(callItem(turnId, index, { ...piece, arguments: "" }, "in_progress")),
      call: { ...piece, arguments: "" },
    };
    const call = { ...sent.call, arguments: sent.call.arguments + piece.arguments };
    calls.set(index, { ...sent, call });
    if (piece.arguments !== "")
      sendDelta(`response.${voiceOf(call)}.delta`, { item_id: sent.id, output_index: sent.outputIndex, delta: piece.arguments });
  };

  turn.onEvent((event) => {
    if (event.type === "text" || event.type === "refusal") say(event.type, voices[event.type].hear(event));
    else if (event.type === "tool_call") {
      const { call } = calls.get(event.index) ?? {};
      const { id = call?.id, name = call?.name, custom = call?.custom, arguments: given } = event;
      if (id === undefined || name === undefined) return; // its beginning was lost: it is sent whole at the end
      ask(event.index, { id, name, arguments: given, custom });
    } else if (event.type === "tool" && streaming.withTools) {
      const { id, name, summary, state } = event;
      send("openclaw.tool", { tool: { id, name, summary, state } });
    }
  });

  /** What the deltas left out, and then the end of each item. @throws {AppError} `provider_error` where the whole is not what was begun */
  const complete = (answer: Extract<FinishedTurn, { state: "done" }>["reply"]): void => {
    say("text", voices.text.restOf(answer.content ?? "", answer.logprobs));
    say("refusal", voices.refusal.restOf(answer.refusal ?? "", answer.refusalLogprobs));
    for (const [index, asked] of answer.toolCalls.entries()) {
      const sent = calls.get(index)?.call ?? { ...asked, arguments: "" };
      if (sent.id !== asked.id || !asked.arguments.startsWith(sent.arguments))
        throw new AppError("provider_error", { why: "a repeated call asked otherwise than what was sent" });
      ask(index, { ...asked, arguments: asked.arguments.slice(sent.arguments.length) });
    }
    const items = outputOf(turnId, answer);
    for (const item of items)
      if (item.type === "message") for (const part of item.content) placeOf(part.type === "refusal" ? "refusal" : "text");
    const placed = items.map((item) => ({ item, outputIndex: indexOf(item) }));
    for (const { item, outputIndex } of placed.toSorted((one, other) => one.outputIndex - other.outputIndex)) end(item, outputIndex);
  };
  const indexOf = ({ id }: OutputItem): number =>
    message?.id === id ? message.outputIndex : ([...calls.values()].find((call) => call.id === id)?.outputIndex ?? 0);
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
      complete(finished.reply);
      const response = toResponse(await streaming.ended(finished));
      send(`response.${response.status}`, { response });
    }
    stream.end(false);
  } catch (error) {
    if (!stream.isOpen()) throw error;
    send("response.failed", { response: toResponse({ ...streaming.view, state: "failed", error: storedErrorOf(error) }) });
    stream.end(false);
  } finally {
    turn.onEvent(() => {}); // a turn that outlives its stream (a token that was rotated) has nobody to tell
  }
}

const voiceOf = ({ custom }: ToolCall): string => (custom === true ? "custom_tool_call_input" : "function_call_arguments");

const storedErrorOf = (error: unknown): StoredError => toStoredError(error instanceof AppError ? error : new AppError("internal"));
