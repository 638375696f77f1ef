import {
  closeSync,
  createReadStream,
  existsSync,
  fsyncSync,
  ftruncateSync,
  openSync,
  readSync,
  statfsSync,
  fstatSync,
  writeSync,
} from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { AuditEntry } from "../domain/audit.ts";
import { canonicalJson } from "../domain/canonical-json.ts";

/** `<home>/audit.jsonl`: one entry per line in its RFC 8785 form, chains mixed, each chain in order. */
export const auditFilePath = (home: string): string => join(home, "audit.jsonl");

/** The name by which the database knows how far a home's file is. */
export const auditFileName = (home: string): string => `${hostname()}:${auditFilePath(home)}`;

export const lineOf = (entry: AuditEntry): string => canonicalJson(entry);

/** Appends lines and waits for the disk. A line that a crash cut short is removed first. */
export function appendLines(path: string, lines: readonly string[]): void {
  const file = openSync(path, "a+", 0o600);
  try {
    dropUnfinishedLine(file);
    writeSync(file, lines.map((line) => `${line}\n`).join(""));
    fsyncSync(file);
  } finally {
    closeSync(file);
  }
}

function dropUnfinishedLine(file: number): void {
  const { size } = fstatSync(file);
  const last = Buffer.alloc(1);
  let end = size;
  for (; end > 0; end--) {
    readSync(file, last, 0, 1, end - 1);
    if (last[0] === 0x0a) break;
  }
  if (end < size) ftruncateSync(file, end);
}

export type FileLine = { readonly number: number; readonly text: string; readonly chain: string | undefined; readonly seq: number };

/** Every line with the place that it says it has; one that cannot be read has no chain. */
export async function* readLines(path: string): AsyncGenerator<FileLine> {
  for await (const line of readTextLines(path)) yield { ...line, ...placeOf(line.text) };
}

/** The lines of a file that may not exist. */
export async function* readTextLines(path: string): AsyncGenerator<{ readonly number: number; readonly text: string }> {
  if (!existsSync(path)) return;
  let number = 0;
  for await (const text of createInterface({ input: createReadStream(path), crlfDelay: Infinity })) yield { number: ++number, text };
}

function placeOf(text: string): { readonly chain: string | undefined; readonly seq: number } {
  try {
    const { chain, seq } = JSON.parse(text) as { chain?: unknown; seq?: unknown };
    if (typeof chain === "string" && typeof seq === "number") return { chain, seq };
  } catch {
    // told by the missing chain
  }
  return { chain: undefined, seq: 0 };
}

/** Bytes that are free where the file is. */
export function freeBytes(home: string): number {
  const { bavail, bsize } = statfsSync(home);
  return bavail * bsize;
}
