import type { Branded } from "./branded.ts";
import { encodeUlid, ulidBytes } from "./ulid.ts";

/** `file-` and a ULID: ids sort as the files were made. */
export type FileId = Branded<string, "FileId">;

const pattern = /^file-[0-7][0-9A-HJKMNP-TV-Z]{25}$/;

/** Undefined for what cannot be the id of a file. */
export const asFileId = (raw: string): FileId | undefined => (pattern.test(raw) ? (raw as FileId) : undefined);

/** A new id; `random` holds at least 10 random bytes. */
export const mintFileId = (nowMs: number, random: Uint8Array): FileId => `file-${encodeUlid(ulidBytes(nowMs, random))}` as FileId;
