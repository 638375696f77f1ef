import { mkdirSync, readFileSync, renameSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/**
 * What earlier runs found in order. Each part is believed only while the files it names are unchanged, so a run with nothing to do
 * looks at a few files and starts no process.
 * @typedef {{ readonly path: string, readonly mtimeMs: number, readonly sizeBytes: number }} FileMark
 * @typedef {{ lockfileHash?: string, node?: FileMark, temporal?: FileMark & { readonly named: string }, bubblewrap?: FileMark }} StampParts
 */

export class Stamp {
  #file;
  #directory;
  #before;
  /** @type {StampParts} */
  parts;

  /** @param {string} root the checkout */
  constructor(root) {
    this.#directory = join(root, "node_modules");
    this.#file = join(this.#directory, ".openclaw-setup.json"); // goes away with node_modules, as it should
    this.parts = read(this.#file);
    this.#before = JSON.stringify(this.parts);
  }

  /** A stamp that cannot be written (read-only image) only costs time. */
  save() {
    const text = JSON.stringify(this.parts);
    if (text === this.#before) return;
    try {
      mkdirSync(this.#directory, { recursive: true });
      writeFileSync(`${this.#file}.${process.pid}`, text);
      renameSync(`${this.#file}.${process.pid}`, this.#file);
    } catch {}
  }
}

/** @param {string} file @returns {StampParts} */
function read(file) {
  try {
    return JSON.parse(readFileSync(file, "utf8"));
  } catch {
    return {};
  }
}

/** @param {string} path @returns {FileMark | undefined} */
export function markOf(path) {
  try {
    const { mtimeMs, size } = statSync(path);
    return { path, mtimeMs, sizeBytes: size };
  } catch {
    return undefined;
  }
}

/** @param {FileMark | undefined} mark */
export function isUnchanged(mark) {
  if (mark === undefined) return false;
  const now = markOf(mark.path);
  return now !== undefined && now.mtimeMs === mark.mtimeMs && now.sizeBytes === mark.sizeBytes;
}
