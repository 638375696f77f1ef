import { createHash } from "node:crypto";
import type { FinishReason, ModelReply } from "../domain/conversation.ts";
import type { ModelDelta } from "./model-provider.ts";
import { providerFailure } from "./provider-failure.ts";

/** A piece of a tool call as servers send it: any of its fields may be missing. */
export type ToolCallPiece = {
  readonly index?: number | undefined;
  readonly id?: string | undefined;
  readonly name?: string | undefined;
  readonly arguments?: string | undefined;
};

/** Collects an answer while it streams, and turns its pieces into the port's deltas. */
export type ReplyBuilder = {
  text(piece: string): readonly ModelDelta[];
  refusal(piece: string): readonly ModelDelta[];
  /** Text that the model thought aloud: counted, not passed on. */
  reasoning(piece: string): void;
  toolCall(piece: ToolCallPiece): readonly ModelDelta[];
  hasToolCalls(): boolean;
  /** Everything generated so far, for an estimate. */
  generated(): { readonly output: string; readonly reasoning: string };
  /** @throws {ModelCallError} `garbage` for a tool call that never got a name */
  build(finishReason: FinishReason): ModelReply;
};

type Slot = { id: string; wireId: string | undefined; name: string; readonly arguments: string[]; announced: boolean };

export function createReplyBuilder(callId: string): ReplyBuilder {
  const text: string[] = [];
  const refusal: string[] = [];
  const reasoning: string[] = [];
  const slots: Slot[] = [];
  const slotOfWireIndex = new Map<number, number>();

  /** The same for the same call and position, so that a repeated call repeats it. */
  const stableId = (index: number): string => `call_${createHash("sha256").update(`${callId}:${index}`).digest("hex").slice(0, 24)}`;

  function openSlot({ index, id }: ToolCallPiece): number {
    const slot = slots.length;
    const free = id !== undefined && id !== "" && !slots.some((other) => other.id === id);
    slots.push({ id: free ? id : stableId(slot), wireId: id, name: "", arguments: [], announced: false });
    if (index !== undefined) slotOfWireIndex.set(index, slot);
    return slot;
  }

  /** Servers leave out the index, the id or both, repeat the id or invent one per piece, and give every call the index 0. */
  function slotOf(piece: ToolCallPiece): number {
    const { index, id, name } = piece;
    const startsAnother = (slot: Slot | undefined): boolean => Boolean(slot?.name && name && id && slot.wireId !== id);
    if (index !== undefined) {
      const known = slotOfWireIndex.get(index);
      return known === undefined || startsAnother(slots[known]) ? openSlot(piece) : known;
    }
    const sameId = id ? slots.findIndex((slot) => slot.wireId === id) : -1;
    if (sameId >= 0) return sameId;
    const last = slots.length - 1;
    return last < 0 || (name && slots[last]?.name) ? openSlot(piece) : last;
  }

  return {
    text(piece) {
      if (piece === "") return [];
      text.push(piece);
      return [{ type: "text", text: piece }];
    },
    refusal(piece) {
      if (piece === "") return [];
      refusal.push(piece);
      return [{ type: "refusal", text: piece }];
    },
    reasoning: (piece) => void reasoning.push(piece),
    toolCall(piece) {
      const index = slotOf(piece);
      const slot = slots[index];
      if (slot === undefined) return [];
      slot.name ||= piece.name ?? "";
      const more = piece.arguments ?? "";
      if (more !== "") slot.arguments.push(more);
      if (slot.announced) return more === "" ? [] : [{ type: "tool_call", index, arguments: more }];
      if (slot.name === "") return []; // held back: the first piece carries id and name
      slot.announced = true;
      return [{ type: "tool_call", index, id: slot.id, name: slot.name, arguments: slot.arguments.join("") }];
    },
    hasToolCalls: () => slots.length > 0,
    generated: () => ({
      output: [...text, ...refusal, ...slots.map((slot) => `${slot.name}${slot.arguments.join("")}`)].join(""),
      reasoning: reasoning.join(""),
    }),
    build(finishReason) {
      if (slots.some((slot) => slot.name === "")) throw providerFailure({ kind: "garbage", text: "A tool call came without a name." }, []);
      const content = text.join("");
      return {
        content: content === "" && (slots.length > 0 || refusal.length > 0) ? null : content,
        toolCalls: slots.map((slot) => ({ id: slot.id, name: slot.name, arguments: slot.arguments.join("") })),
        finishReason,
        ...(refusal.length === 0 ? {} : { refusal: refusal.join("") }),
      };
    },
  };
}
