import { createHash } from "node:crypto";
import type { FinishReason, ModelReply, TokenLogprob } from "../domain/conversation.ts";
import type { ModelDelta } from "./model-provider.ts";
import { providerFailure } from "./provider-failure.ts";

/** A piece of a tool call as servers send it: any of its fields may be missing. */
export type ToolCallPiece = {
  readonly index?: number | undefined;
  readonly id?: string | undefined;
  readonly name?: string | undefined;
  readonly arguments?: string | undefined;
  readonly custom?: boolean | undefined;
};

/** What an answer says of itself beside its text. */
export type ReplyFacts = Pick<ModelReply, "serviceTier" | "systemFingerprint" | "annotations">;

/** Collects an answer while it streams, and turns its pieces into the port's deltas. */
export type ReplyBuilder = {
  text(piece: string, logprobs?: readonly TokenLogprob[]): readonly ModelDelta[];
  refusal(piece: string, logprobs?: readonly TokenLogprob[]): readonly ModelDelta[];
  /** Text that the model thought aloud: counted, not passed on. */
  reasoning(piece: string): void;
  toolCall(piece: ToolCallPiece): readonly ModelDelta[];
  hasToolCalls(): boolean;
  /** Everything generated so far, for an estimate. */
  generated(): { readonly output: string; readonly reasoning: string };
  /** @throws {ModelCallError} `garbage` for a tool call that never got a name */
  build(finishReason: FinishReason, facts?: ReplyFacts): ModelReply;
};

type Slot = {
  id: string;
  wireId: string | undefined;
  name: string;
  readonly arguments: string[];
  announced: boolean;
  readonly custom: true | undefined;
};

export function createReplyBuilder(callId: string): ReplyBuilder {
  const text = createSpeech("text");
  const refusal = createSpeech("refusal");
  const reasoning: string[] = [];
  const slots: Slot[] = [];
  const slotOfWireIndex = new Map<number, number>();

  /** The same for the same call and position, so that a repeated call repeats it. */
  const stableId = (index: number): string => `call_${createHash("sha256").update(`${callId}:${index}`).digest("hex").slice(0, 24)}`;

  function openSlot({ index, id, custom }: ToolCallPiece): number {
    const slot = slots.length;
    const free = id !== undefined && id !== "" && !slots.some((other) => other.id === id);
    slots.push({
      id: free ? id : stableId(slot),
      wireId: id,
      name: "",
      arguments: [],
      announced: false,
      custom: custom === true || undefined,
    });
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
    text: text.say,
    refusal: refusal.say,
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
      return [{ type: "tool_call", index, ...toolCallOf(slot) }];
    },
    hasToolCalls: () => slots.length > 0,
    generated: () => ({
      output: [text.said(), refusal.said(), ...slots.map((slot) => `${slot.name}${slot.arguments.join("")}`)].join(""),
      reasoning: reasoning.join(""),
    }),
    build(finishReason, facts = {}) {
      if (slots.some((slot) => slot.name === "")) throw providerFailure({ kind: "garbage", text: "A tool call came without a name." }, []);
      const content = text.said();
      return {
        content: content === "" && (slots.length > 0 || refusal.said() !== "") ? null : content,
        toolCalls: slots.map(toolCallOf),
        finishReason,
        ...(refusal.said() === "" ? {} : { refusal: refusal.said() }),
        ...(text.logprobs.length === 0 ? {} : { logprobs: text.logprobs }),
        ...(refusal.logprobs.length === 0 ? {} : { refusalLogprobs: refusal.logprobs }),
        ...Object.fromEntries(Object.entries(facts).filter(([, fact]) => fact !== undefined)),
      };
    },
  };
}

const toolCallOf = ({ id, name, arguments: pieces, custom }: Slot) => ({
  id,
  name,
  arguments: pieces.join(""),
  ...(custom === undefined ? {} : { custom }),
});

/** What the model says in one voice, piece by piece. */
function createSpeech(type: "text" | "refusal") {
  const pieces: string[] = [];
  const logprobs: TokenLogprob[] = [];
  return {
    logprobs,
    said: () => pieces.join(""),
    say(piece: string, tokens: readonly TokenLogprob[] = []): readonly ModelDelta[] {
      if (piece === "" && tokens.length === 0) return [];
      pieces.push(piece);
      logprobs.push(...tokens);
      return [{ type, text: piece, ...(tokens.length === 0 ? {} : { logprobs: tokens }) }];
    },
  };
}
