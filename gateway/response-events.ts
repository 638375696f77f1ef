import type { TurnId } from "../domain/turn-id.ts";
import type { TurnReply } from "../domain/turn.ts";
import { type OutputItem, callItem, messageItem, outputOf } from "./responses-items.ts";

/** The typed events of a response, without their numbers. */

export type ResponseEvent = { readonly type: string; readonly more: object };
type Part = Extract<OutputItem, { type: "message" }>["content"][number];

export const emptyPart = (type: Part["type"]) =>
  type === "output_text" ? { type, text: "", annotations: [], logprobs: [] } : { type, refusal: "" };

/** How a whole item ends. `placeOf` tells where a part of it stands. */
export function* endOf(item: OutputItem, outputIndex: number, placeOf: (part: Part) => object): Generator<ResponseEvent, void, undefined> {
  const place = { item_id: item.id, output_index: outputIndex };
  if (item.type === "message") {
    for (const part of item.content) {
      const at = placeOf(part);
      if (part.type === "refusal") yield { type: "response.refusal.done", more: { ...at, refusal: part.refusal } };
      else {
        for (const [annotationIndex, annotation] of part.annotations.entries())
          yield { type: "response.output_text.annotation.added", more: { ...at, annotation_index: annotationIndex, annotation } };
        yield { type: "response.output_text.done", more: { ...at, text: part.text, logprobs: part.logprobs } };
      }
      yield { type: "response.content_part.done", more: { ...at, part } };
    }
  } else if (item.type === "function_call")
    yield { type: "response.function_call_arguments.done", more: { ...place, name: item.name, arguments: item.arguments } };
  else yield { type: "response.custom_tool_call_input.done", more: { ...place, input: item.input } };
  yield { type: "response.output_item.done", more: { output_index: outputIndex, item } };
}

/**
 * What a response that can be followed again is told in: its text in pieces of so many UTF-16 units, wherever the model's own pieces
 * end. So an event's number says how much has been told, and the kept response gives the same events as the running one.
 */
const unitsPerPiece = 16;

/** Where piece number `n` begins, which is never inside a surrogate pair. */
export function startOfPiece(n: number, unitAt: (offset: number) => number): number {
  const offset = n * unitsPerPiece;
  const isInPair = n > 0 && isLowSurrogate(unitAt(offset)) && isHighSurrogate(unitAt(offset - 1));
  return isInPair ? offset + 1 : offset;
}
const isHighSurrogate = (unit: number): boolean => unit >= 0xd8_00 && unit <= 0xdb_ff;
const isLowSurrogate = (unit: number): boolean => unit >= 0xdc_00 && unit <= 0xdf_ff;

/** The events of a text at the head of an answer, by their numbers: `response.created` is 0 and `response.in_progress` 1. */
export const firstItemNumber = 2;
export const firstPartNumber = 3;
export const firstPieceNumber = 4;

export const messageAdded = (turnId: TurnId): ResponseEvent => ({
  type: "response.output_item.added",
  more: { output_index: 0, item: messageItem(turnId, "in_progress", []) },
});

export const partAdded = (turnId: TurnId, contentIndex: number, type: Part["type"]): ResponseEvent => ({
  type: "response.content_part.added",
  more: { ...placeInMessage(turnId, contentIndex), part: emptyPart(type) },
});

export const textDelta = (turnId: TurnId, delta: string): ResponseEvent => ({
  type: "response.output_text.delta",
  more: { ...placeInMessage(turnId, 0), delta, logprobs: [] },
});

const placeInMessage = (turnId: TurnId, contentIndex: number) => ({
  item_id: messageItem(turnId, "in_progress", []).id,
  output_index: 0,
  content_index: contentIndex,
});

/** The events of a whole answer between `response.in_progress` and the last one. */
export function* eventsOf(turnId: TurnId, reply: TurnReply): Generator<ResponseEvent, void, undefined> {
  const items = outputOf(turnId, reply);
  for (const [outputIndex, item] of items.entries()) {
    if (item.type === "message") yield* beginningOfMessage(turnId, item.content);
    else yield* beginningOfCall(outputIndex, item);
  }
  for (const [outputIndex, item] of items.entries())
    yield* endOf(item, outputIndex, (part) =>
      placeInMessage(turnId, item.type === "message" ? item.content.findIndex(({ type }) => type === part.type) : 0),
    );
}

function* beginningOfMessage(turnId: TurnId, content: readonly Part[]): Generator<ResponseEvent, void, undefined> {
  yield messageAdded(turnId);
  for (const [contentIndex, part] of content.entries()) {
    yield partAdded(turnId, contentIndex, part.type);
    if (part.type === "output_text") for (const piece of piecesOf(part.text)) yield textDelta(turnId, piece);
    else yield { type: "response.refusal.delta", more: { ...placeInMessage(turnId, contentIndex), delta: part.refusal } };
  }
}

function* piecesOf(text: string): Generator<string, void, undefined> {
  const startOf = (n: number): number => startOfPiece(n, (offset) => text.charCodeAt(offset));
  for (let n = 0; startOf(n) < text.length; n++) yield text.slice(startOf(n), startOf(n + 1));
}

function* beginningOfCall(outputIndex: number, item: ReturnType<typeof callItem>): Generator<ResponseEvent, void, undefined> {
  const empty = item.type === "function_call" ? { arguments: "" } : { input: "" };
  yield { type: "response.output_item.added", more: { output_index: outputIndex, item: { ...item, ...empty, status: "in_progress" } } };
  const [type, delta] =
    item.type === "function_call" ? ["function_call_arguments", item.arguments] : ["custom_tool_call_input", item.input];
  if (delta !== "") yield { type: `response.${type}.delta`, more: { item_id: item.id, output_index: outputIndex, delta } };
}
