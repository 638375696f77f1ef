import { type KeyObject, createHash } from "node:crypto";
import type { AuditEntry, ChainHead } from "../domain/audit.ts";
import type { SignedAnchor } from "../domain/audit-anchor.ts";
import { canonicalJson } from "../domain/canonical-json.ts";
import { isSignedBy } from "./audit-signing-key.ts";

/**
 * `seq`: of the first entry that is not what it was, or, where `upTo` is given, of the first that may not be: then one from it to
 * `upTo` is not.
 */
export type Fault = { readonly seq: number; readonly upTo?: number; readonly what: string };

/** The fault that says best where a chain went wrong: one that names the entry goes before one that names a range around it. */
export function firstFault(faults: readonly (Fault | undefined)[]): Pick<Fault, "seq" | "what"> | undefined {
  const [first] = faults
    .flatMap((fault) => (fault === undefined ? [] : [fault]))
    .toSorted(
      (a, b) => (a.upTo ?? a.seq) - (b.upTo ?? b.seq) || Number(a.upTo !== undefined) - Number(b.upTo !== undefined) || a.seq - b.seq,
    );
  return first === undefined ? undefined : { seq: first.seq, what: first.what };
}

/** What is wrong with an entry (its hash is `hashOfEntry`'s, by the faster SHA-256 of Node) that stands behind `head`; a hash that is not known is not compared. */
export function linkFault(
  { hash, ...fields }: AuditEntry,
  head: { readonly seq: number; readonly hash: string | undefined },
): Fault | undefined {
  const seq = head.seq + 1;
  if (fields.seq !== seq) return { seq, what: `entry ${seq} is missing` };
  if (createHash("sha256").update(canonicalJson(fields)).digest("hex") !== hash)
    return { seq, what: `entry ${seq} has another hash than its content` };
  if (head.hash !== undefined && fields.prev !== head.hash) return { seq, what: `entry ${seq} does not follow entry ${head.seq}` };
  return undefined;
}

/** Public keys by id. */
export type AnchorKeys = ReadonlyMap<string, KeyObject>;

/** Where a fault of an anchor stands: which entry it was to cover up is not known. */
export const placeOf = ({ seq }: SignedAnchor): Pick<Fault, "seq" | "upTo"> => ({ seq, upTo: seq });

/** @returns the anchors that count, by entry, and what is wrong with the others */
export function checkSignatures(
  anchors: readonly SignedAnchor[],
  keys: AnchorKeys,
): { readonly sound: readonly SignedAnchor[]; readonly faults: readonly Fault[] } {
  const sound: SignedAnchor[] = [];
  const faults: Fault[] = [];
  for (const anchor of anchors) {
    const key = keys.get(anchor.key);
    if (key === undefined)
      faults.push({
        ...placeOf(anchor),
        what: `the anchor of entry ${anchor.seq} names key ${anchor.key.slice(0, 16)}, which is not known`,
      });
    else if (!isSignedBy(key, anchor))
      faults.push({ ...placeOf(anchor), what: `the anchor of entry ${anchor.seq} is not signed by its key ${anchor.key.slice(0, 16)}` });
    else sound.push(anchor);
  }
  return { sound: sound.toSorted((a, b) => a.seq - b.seq), faults };
}

export type AnchorCheckOptions = {
  /** Sound ones, by entry. */
  readonly anchors: readonly SignedAnchor[];
  /** The key whose signature proves what it fits. Others only tell where they do not fit: who may write may also make a key. */
  readonly isTrusted: (key: string) => boolean;
  /** Entries up to this one are taken to be right. */
  readonly provenSeq?: number;
};

/** Follows a chain's entries past what was signed of it. */
export class AnchorCheck {
  /** The first fault. */
  fault: Fault | undefined;
  #provenSeq: number;
  readonly #anchors: readonly SignedAnchor[];
  readonly #isTrusted: AnchorCheckOptions["isTrusted"];
  #next = 0;

  constructor({ anchors, isTrusted, provenSeq = 0 }: AnchorCheckOptions) {
    this.#anchors = anchors.filter(({ seq }) => seq > provenSeq);
    this.#isTrusted = isTrusted;
    this.#provenSeq = provenSeq;
  }

  meet({ seq, hash }: ChainHead): void {
    let isProven = false;
    for (let anchor = this.#anchors[this.#next]; anchor !== undefined && anchor.seq <= seq; anchor = this.#anchors[++this.#next]) {
      if (anchor.seq < seq) continue; // its entry is missing, and that is told as such
      if (anchor.hash === hash) {
        isProven ||= this.#isTrusted(anchor.key);
        continue;
      }
      const first = this.#provenSeq + 1;
      const where = first === seq ? `entry ${seq} is` : `entries ${first} to ${seq} are`;
      this.fault ??= { seq: first, upTo: seq, what: `${where} not what was signed on ${anchor.ts}: the chain was rewritten` };
    }
    if (isProven && this.fault === undefined) this.#provenSeq = seq;
  }

  /** @param lastSeq of the chain */
  end(lastSeq: number): void {
    const beyond = this.#anchors.at(-1);
    if (beyond === undefined || beyond.seq <= lastSeq) return;
    this.fault ??= { seq: lastSeq + 1, what: `entry ${beyond.seq} was signed on ${beyond.ts}, and the chain ends at ${lastSeq}` };
  }
}
