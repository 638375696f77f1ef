import { existsSync, mkdirSync, readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import type { SignedAnchor } from "../domain/audit-anchor.ts";
import { canonicalJson } from "../domain/canonical-json.ts";
import { appendLines, readTextLines } from "./audit-file.ts";
import { createPrivateFile } from "./private-file.ts";

/** Where signed anchors are kept beside the database. What holds them should be somebody else's than the database. */
export interface AnchorPlace {
  /** For people. */
  readonly name: string;
  /** Resolves when the anchor is durable. */
  put(anchor: SignedAnchor): Promise<void>;
  list(): Promise<AnchorList>;
}

/** `faults`: what is there and is no anchor, in words. */
export type AnchorList = { readonly anchors: readonly SignedAnchor[]; readonly faults: readonly string[] };

export const anchorSchema = z.strictObject({
  chain: z.string(),
  seq: z.int().positive(),
  hash: z.string(),
  run: z.string().nullable(),
  ts: z.string(),
  key: z.string().regex(/^[0-9a-f]{64}$/),
  signature: z.string(),
}) satisfies z.ZodType<SignedAnchor>;

/**
 * A directory with two files for each key, named by the key's first 16 hex: `.jsonl` with an anchor per line, and `.pem` with the
 * public key. @param signer who puts anchors here; nobody, to read only
 */
export function directoryPlace(path: string, signer?: { readonly id: string; readonly publicKey: string }): AnchorPlace {
  const fileOf = (key: string, ending: string): string => join(path, `${key.slice(0, 16)}.${ending}`);
  return {
    name: path,
    async put(anchor) {
      mkdirSync(path, { recursive: true, mode: 0o700 });
      if (signer !== undefined && !existsSync(fileOf(signer.id, "pem"))) createPrivateFile(fileOf(signer.id, "pem"), signer.publicKey);
      appendLines(fileOf(anchor.key, "jsonl"), [canonicalJson(anchor)]);
    },
    async list() {
      const anchors: SignedAnchor[] = [];
      const faults: string[] = [];
      for (const name of filesOf(path, ".jsonl")) {
        for await (const { number, text } of readTextLines(join(path, name))) {
          const anchor = parseAnchor(text);
          if (anchor === undefined) faults.push(`line ${number} of ${join(path, name)} is not an anchor`);
          else anchors.push(anchor);
        }
      }
      return { anchors, faults };
    },
  };
}

/** The public keys that a directory of anchors brings with it, as PEM. */
export const publicKeysIn = (path: string): readonly string[] =>
  filesOf(path, ".pem").map((name) => readFileSync(join(path, name), "utf8"));

const filesOf = (path: string, ending: string): readonly string[] =>
  existsSync(path)
    ? readdirSync(path)
        .filter((name) => name.endsWith(ending))
        .toSorted()
    : [];

function parseAnchor(text: string): SignedAnchor | undefined {
  try {
    return anchorSchema.safeParse(JSON.parse(text)).data;
  } catch {
    return undefined;
  }
}
