import { createHash } from "node:crypto";
import { type AuditEntry, type ChainHead, type ChainState, genesis, systemChain } from "../domain/audit.ts";
import type { SignedAnchor } from "../domain/audit-anchor.ts";
import { parseTenantId, systemOwner, type Owner } from "../domain/tenant.ts";
import { type RecordedKey, listAnchoredChains, readAnchors, readAuditKeys } from "../storage/audit-anchor-repository.ts";
import { listChains, readChain, readChainHead } from "../storage/audit-repository.ts";
import type { Database } from "../storage/database.ts";
import { AnchorCheck, type AnchorKeys, type Fault, checkSignatures, firstFault, linkFault, placeOf } from "./anchor-check.ts";
import type { AnchorKeeper } from "./anchor-keeper.ts";
import { offlineFault } from "./audit-chain.ts";
import { auditFilePath, lineOf, readLines } from "./audit-file.ts";
import { keyIdOf, publicKeyOfSpki } from "./audit-signing-key.ts";

/** `seq`: of the first entry of the chain that is not what it was. */
export type Finding = { readonly chain: string; readonly seq: number; readonly what: string };

export type Verification = {
  readonly ok: boolean;
  readonly chains: number;
  readonly entries: number;
  readonly anchors: number;
  /** The first bad entry of each chain. */
  readonly findings: readonly Finding[];
  /** What could not be compared, or is weaker than it could be. */
  readonly notes: readonly string[];
};

export type VerifyDeps = {
  readonly database: Pick<Database, "withControl">;
  readonly home: string;
  /** Brings the file up to date. @returns the last entry of each chain that it must hold now */
  readonly flush: () => Promise<ReadonlyMap<string, number>>;
  /** Asks a chain's workflow. @throws when Temporal cannot be asked */
  readonly stateOf: (owner: Owner) => Promise<ChainState | undefined>;
  readonly anchors: Pick<AnchorKeeper, "keyId" | "places" | "flush">;
};

export type VerifyOptions = {
  /** Entries before the newest own anchor of each chain that is older than this are taken to be right. */
  readonly sinceMs?: number | undefined;
};

/** A page is checked in one go, and nobody else of the process gets on meanwhile: some 10 ms. */
const entriesAtOnce = 250;
const chainsAtOnce = 8;
/** A change between its commit and its workflow's next step makes the two differ for a moment. */
const settleAttempts = 20;
const settleMs = 100;

/**
 * Compares every chain's entries with their hashes, the chain's end, `audit.jsonl`, the end that its workflow remembers, and the
 * signed anchors of the database and of every place. Of an entry 16 bytes are held at once, whatever the length of a chain.
 */
export async function verifyAudit(deps: VerifyDeps, { sinceMs }: VerifyOptions = {}): Promise<Verification> {
  const { database, home, flush, anchors } = deps;
  const notes: string[] = [];
  const findings: Finding[] = [];
  const written = await flush().catch((error: unknown) => {
    notes.push(`audit.jsonl could not be brought up to date: ${String(error)}`);
    return new Map<string, number>();
  });
  const file = await readFile(home);
  findings.push(...file.findings);
  await anchors.flush().catch((error: unknown) => notes.push(`anchors could not be brought up to date: ${String(error)}`));
  const evidence = await readEvidence(deps);
  findings.push(...evidence.findings);
  notes.push(...evidence.notes);
  const recorded = await database.withControl(async (tx) => [...(await listChains(tx)), ...(await listAnchoredChains(tx))], {
    readOnly: true,
  });
  const chains = [...new Set([...recorded, ...file.lines.keys(), ...evidence.placed.keys()])].toSorted();
  const counted = { entries: 0, anchors: 0, unreachable: 0, absent: 0, unanchored: 0, behind: 0 };

  const verifyChain = async (chain: string): Promise<void> => {
    const { sound, faults } = await anchorsOf(deps, evidence, chain);
    const own = sound.filter(({ key }) => key === anchors.keyId);
    const start = sinceMs === undefined ? undefined : own.findLast(({ ts }) => Date.parse(ts) <= sinceMs);
    counted.anchors += sound.length;
    const pass = new ChainPass(start, file.lines.get(chain), written.get(chain) ?? 0);
    const check = new AnchorCheck({
      anchors: sound,
      isTrusted: (key) => key === anchors.keyId,
      provenSeq: start === undefined ? 0 : start.seq - 1,
    });
    const signers: string[] = [];
    for await (const entries of pagesOf(database, chain, pass.seq)) {
      counted.entries += entries.length;
      for (const entry of entries) {
        pass.meet(entry);
        check.meet(entry);
        if (chain === systemChain && entry.action === "audit-key.create" && entry.outcome === "applied") signers.push(entry.target);
      }
    }
    check.end(pass.seq);
    const end = await database.withControl(async (tx) => await readChainHead(tx, chain), { readOnly: true });
    const found = [...faults, ...pass.faults(), endFault(pass, end), check.fault];
    if (chain === systemChain && start === undefined)
      found.push(await signerFault(deps, { signers, recorded: evidence.recordedKeys, lastSeq: pass.seq }));
    if (own.length === 0) counted.unanchored++;
    else counted.behind += Math.max(0, pass.seq - (own.at(-1)?.seq ?? 0));
    try {
      const live = await compareWithWorkflow(deps, chain, pass.seq);
      found.push(live.fault);
      if (live.state === undefined) counted.absent++;
      if (live.state !== undefined && live.state.adoptedSeq > 0) {
        notes.push(`${chain}: the workflow took entry ${live.state.adoptedSeq} from the database and vouches for what follows it`);
      }
      if (live.state?.broken !== undefined) notes.push(`${chain}: the workflow refuses changes: ${live.state.broken}`);
    } catch {
      counted.unreachable++;
    }
    const first = firstFault(found);
    if (first !== undefined) findings.push({ chain, ...first });
  };
  for (let next = 0; next < chains.length; next += chainsAtOnce)
    await Promise.all(chains.slice(next, next + chainsAtOnce).map(verifyChain));

  if (counted.unreachable > 0)
    notes.push(`${counted.unreachable} chains could not be compared with their workflows: Temporal or its workers do not answer`);
  if (counted.absent > 0)
    notes.push(`${counted.absent} chains have no workflow to compare with: none has run, or its history's retention is over`);
  if (counted.unanchored > 0)
    notes.push(`${counted.unanchored} chains have no signed anchor yet: a rewrite of all of such a chain's records would not be found`);
  if (counted.behind > 0) notes.push(`${counted.behind} entries stand behind their chain's last anchor`);
  return {
    ok: findings.length === 0,
    chains: chains.length,
    entries: counted.entries,
    anchors: counted.anchors,
    findings: findings.toSorted((a, b) => (a.chain < b.chain ? -1 : 1)),
    notes,
  };
}

type Evidence = {
  readonly keys: AnchorKeys;
  readonly recordedKeys: readonly RecordedKey[];
  /** What each place holds, by chain. */
  readonly placed: ReadonlyMap<string, ReadonlyMap<string, readonly SignedAnchor[]>>;
  /** Names of the places that could be read. */
  readonly readable: readonly string[];
  readonly findings: readonly Finding[];
  readonly notes: readonly string[];
};

/** The name under which what concerns no chain is told. */
const anchorsName = "anchors";

async function readEvidence({ database, anchors }: VerifyDeps): Promise<Evidence> {
  const findings: Finding[] = [];
  const notes: string[] = [];
  const recordedKeys = await database.withControl(async (tx) => await readAuditKeys(tx), { readOnly: true });
  const keys = new Map(
    recordedKeys.flatMap(({ id, publicKey }) => {
      const key = publicKeyOfSpki(publicKey);
      if (key !== undefined && keyIdOf(key) === id) return [[id, key] as const];
      findings.push({ chain: anchorsName, seq: 0, what: `the public key recorded as ${id.slice(0, 16)} is another one` });
      return [];
    }),
  );
  if (!keys.has(anchors.keyId))
    findings.push({ chain: anchorsName, seq: 0, what: `this gateway's key ${anchors.keyId.slice(0, 16)} is not recorded any more` });
  const others = keys.size - (keys.has(anchors.keyId) ? 1 : 0);
  if (others > 0) notes.push(`${others} other keys signed anchors too: "openclaw audit list --action audit-key.create" tells since when`);
  const placed = new Map<string, Map<string, SignedAnchor[]>>();
  const readable: string[] = [];
  for (const place of anchors.places) {
    try {
      const { anchors: list, faults } = await place.list();
      readable.push(place.name);
      findings.push(...faults.map((what) => ({ chain: anchorsName, seq: 0, what })));
      for (const anchor of list) {
        const places = placed.get(anchor.chain) ?? new Map<string, SignedAnchor[]>();
        placed.set(anchor.chain, places);
        places.set(place.name, [...(places.get(place.name) ?? []), anchor]);
      }
    } catch (error) {
      notes.push(`the anchors in ${place.name} could not be read: ${String(error)}`);
    }
  }
  return { keys, recordedKeys, placed, readable, findings, notes };
}

/** A chain's anchors of the database and of all places, and where they differ. */
async function anchorsOf({ database, anchors }: VerifyDeps, evidence: Evidence, chain: string) {
  const stored = await database.withControl(async (tx) => await readAnchors(tx, chain), { readOnly: true });
  const places = evidence.placed.get(chain);
  const faults: Fault[] = [];
  const known = new Map(stored.map((anchor) => [anchor.signature, anchor]));
  for (const [place, placed] of places ?? []) {
    for (const anchor of placed) {
      if (known.has(anchor.signature)) continue;
      known.set(anchor.signature, anchor);
      faults.push({ ...placeOf(anchor), what: `the anchor of entry ${anchor.seq} that ${place} holds was removed from the database` });
    }
  }
  for (const place of evidence.readable) {
    const signatures = new Set(places?.get(place)?.map(({ signature }) => signature));
    const gone = stored.find(({ key, signature }) => key === anchors.keyId && !signatures.has(signature));
    if (gone !== undefined) faults.push({ ...placeOf(gone), what: `the anchor of entry ${gone.seq} was removed from ${place}` });
  }
  const { sound, faults: unsound } = checkSignatures([...known.values()], evidence.keys);
  return { sound, faults: [...faults, ...unsound] };
}

/** Keys are recorded by entries: a key without one was brought in by somebody else. @param signers by the entries that were read since `recorded` was */
async function signerFault(
  { database }: VerifyDeps,
  {
    signers,
    recorded,
    lastSeq,
  }: { readonly signers: readonly string[]; readonly recorded: readonly RecordedKey[]; readonly lastSeq: number },
): Promise<Fault | undefined> {
  const stranger = recorded.find(({ id }) => !signers.includes(id));
  if (stranger !== undefined) return { seq: lastSeq + 1, what: `the signing key ${stranger.id.slice(0, 16)} has no entry` };
  const now = await database.withControl(async (tx) => await readAuditKeys(tx), { readOnly: true });
  const lost = signers.find((signer) => !now.some(({ id }) => id === signer));
  return lost === undefined ? undefined : { seq: lastSeq + 1, what: `the signing key ${lost.slice(0, 16)} is not recorded any more` };
}

/** Bytes of a line's SHA-256 that are held: enough that nobody finds another line with them. */
const digestBytes = 16;
const digestOf = (line: string): Buffer => createHash("sha256").update(line).digest().subarray(0, digestBytes);

/** Digests of a chain's lines, in the order of the file. */
class LineDigests {
  count = 0;
  #bytes = Buffer.alloc(64 * digestBytes);

  push(line: string): void {
    if ((this.count + 1) * digestBytes > this.#bytes.length) this.#bytes = Buffer.concat([this.#bytes, Buffer.alloc(this.#bytes.length)]);
    digestOf(line).copy(this.#bytes, this.count++ * digestBytes);
  }

  /** @param index from 0 */
  isAt(index: number, line: string): boolean {
    return this.#bytes.subarray(index * digestBytes, (index + 1) * digestBytes).equals(digestOf(line));
  }
}

async function readFile(
  home: string,
): Promise<{ readonly lines: ReadonlyMap<string, LineDigests>; readonly findings: readonly Finding[] }> {
  const lines = new Map<string, LineDigests>();
  const findings: Finding[] = [];
  for await (const { number, text, chain } of readLines(auditFilePath(home))) {
    if (chain === undefined) {
      if (findings.length === 0)
        findings.push({ chain: "audit.jsonl", seq: number, what: `line ${number} of audit.jsonl is not an entry` });
      continue;
    }
    const known = lines.get(chain) ?? new LineDigests();
    lines.set(chain, known);
    known.push(text);
  }
  return { lines, findings };
}

async function* pagesOf(database: VerifyDeps["database"], chain: string, afterSeq: number): AsyncGenerator<readonly AuditEntry[]> {
  for (let seq = afterSeq; ;) {
    const page = await database.withControl(async (tx) => await readChain(tx, chain, seq, entriesAtOnce), { readOnly: true });
    if (page.length > 0) yield page;
    if (page.length < entriesAtOnce) return;
    seq = page.at(-1)?.seq ?? seq;
  }
}

/** One chain's entries in order, against their hashes and the file's lines. */
class ChainPass {
  /** Of the last entry that was met. */
  seq: number;
  hash: string | undefined;
  #entriesFault: Fault | undefined;
  #fileFault: Fault | undefined;
  readonly #lines: LineDigests | undefined;
  readonly #writtenSeq: number;

  /**
   * @param start what is known of the chain; undefined: from its first entry on
   * @param writtenSeq the last entry that is known to be on disk: the file may lack what came after it, it may never differ
   */
  constructor(start: SignedAnchor | undefined, lines: LineDigests | undefined, writtenSeq: number) {
    this.seq = start === undefined ? 0 : start.seq - 1;
    this.hash = start === undefined ? genesis.hash : undefined; // the hash before the start is not known, the one at it is: signed
    this.#lines = lines;
    this.#writtenSeq = writtenSeq;
  }

  meet(entry: AuditEntry): void {
    this.#entriesFault ??= linkFault(entry, this);
    this.#fileFault ??= this.#lineFault(entry);
    this.seq = entry.seq;
    this.hash = entry.hash;
  }

  faults(): readonly (Fault | undefined)[] {
    const extra = (this.#lines?.count ?? 0) - this.seq;
    const surplus = extra > 0 ? { seq: this.seq + 1, what: `audit.jsonl has ${extra} entries that the database lacks` } : undefined;
    return [this.#entriesFault, this.#fileFault ?? surplus];
  }

  #lineFault(entry: AuditEntry): Fault | undefined {
    const { seq } = entry;
    if (seq > (this.#lines?.count ?? 0)) return seq > this.#writtenSeq ? undefined : { seq, what: `entry ${seq} is not in audit.jsonl` };
    return this.#lines?.isAt(seq - 1, lineOf(entry)) === true
      ? undefined
      : { seq, what: `audit.jsonl says something else at entry ${seq}` };
  }
}

/** The head may be ahead of entries that were read before a change, never behind them or another at the same place. */
function endFault({ seq, hash }: ChainPass, end: ChainHead | undefined): Fault | undefined {
  if (end === undefined) return seq === 0 ? undefined : { seq, what: "the chain's end is not recorded" };
  if (end.seq < seq) return { seq: end.seq + 1, what: `the chain ends at entry ${end.seq}, and there are entries behind it` };
  if (end.seq === seq && seq > 0 && hash !== undefined && end.hash !== hash) return { seq, what: `entry ${seq} is not the chain's end` };
  return undefined;
}

type Comparison = { readonly state: ChainState | undefined; readonly fault: Fault | undefined };

async function compareWithWorkflow({ database, stateOf }: VerifyDeps, chain: string, lastSeq: number): Promise<Comparison> {
  for (let attempt = 1; ; attempt++) {
    const state = await stateOf(chain === systemChain ? systemOwner : parseTenantId(chain));
    const head = state?.head;
    if (head === undefined) return { state, fault: undefined };
    const tail = await database.withControl(async (tx) => await readChain(tx, chain, Math.max(0, head.seq - 1), entriesAtOnce), {
      readOnly: true,
    });
    const own = tail.find(({ seq }) => seq === head.seq);
    const fault = workflowFault(head, tail, lastSeq);
    const isAnother = own !== undefined && own.hash !== head.hash;
    if (fault === undefined || isAnother || attempt === settleAttempts) return { state, fault };
    await new Promise((resolve) => setTimeout(resolve, settleMs));
  }
}

/** @param tail entries from the workflow's end on @param lastSeq of the chain when it was read */
function workflowFault(head: ChainHead, tail: readonly AuditEntry[], lastSeq: number): Fault | undefined {
  if (head.seq === 0) return undefined;
  const [own, ...later] = tail;
  if (own === undefined) {
    const end = Math.min(lastSeq, head.seq - 1);
    return { seq: end + 1, what: `the workflow wrote entries up to ${head.seq}, the database ends at ${end}` };
  }
  if (own.seq !== head.seq || own.hash !== head.hash)
    return {
      seq: head.seq,
      upTo: head.seq,
      what: `entry ${head.seq} is not the one that the workflow wrote: the chain was rewritten at or before it`,
    };
  const fault = offlineFault(later, head);
  return fault === undefined ? undefined : { seq: head.seq + 1, what: fault };
}
