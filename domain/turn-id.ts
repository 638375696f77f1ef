import { AppError } from "./app-error.ts";
import type { Branded } from "./branded.ts";
import { encodeUlid, ulidBytes, ulidTimeMs } from "./ulid.ts";

/** `trn_` and a ULID: names one user input up to its final reply. */
export type TurnId = Branded<string, "TurnId">;

/** `<turn id>.<step>`: the key of one model call in the journal and in the usage ledger. */
export type CallId = Branded<string, "CallId">;

const turnIdPattern = /^trn_[0-7][0-9A-HJKMNP-TV-Z]{25}$/;

/** @throws {AppError} `invalid_request` unless `raw` is `trn_` and a ULID. */
export function parseTurnId(raw: string): TurnId {
  if (!turnIdPattern.test(raw))
    throw new AppError("invalid_request", { client: { message: "The turn id is malformed.", param: "turn_id" } });
  return raw as TurnId;
}

/** A new turn id; `random` holds at least 10 random bytes. */
export const mintTurnId = (nowMs: number, random: Uint8Array): TurnId => `trn_${encodeUlid(ulidBytes(nowMs, random))}` as TurnId;

/** The turn id that a repeat gets again: derived from a digest of at least 16 bytes over tenant, account and key. */
export const deriveTurnId = (digest: Uint8Array): TurnId => `trn_${encodeUlid(digest.subarray(0, 16))}` as TurnId;

export const callIdOf = (turnId: TurnId, step: number): CallId => `${turnId}.${step}` as CallId;

/** When the turn id was minted, in epoch milliseconds. */
export const turnTimeMs = (turnId: TurnId): number => ulidTimeMs(turnId.slice("trn_".length));
