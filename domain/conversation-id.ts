import type { Branded } from "./branded.ts";
import { encodeUlid, ulidBytes } from "./ulid.ts";

/** `conv_` and a ULID: a conversation of the Responses API. */
export type ConversationId = Branded<string, "ConversationId">;

const pattern = /^conv_[0-7][0-9A-HJKMNP-TV-Z]{25}$/;

/** Undefined for what cannot be the id of a conversation. */
export const asConversationId = (raw: string): ConversationId | undefined => (pattern.test(raw) ? (raw as ConversationId) : undefined);

/** A new id; `random` holds at least 10 random bytes. */
export const mintConversationId = (nowMs: number, random: Uint8Array): ConversationId =>
  `conv_${encodeUlid(ulidBytes(nowMs, random))}` as ConversationId;
