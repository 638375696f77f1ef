import { type AuditEntry, type ChainHead, type ChainState, genesis, hashOfEntry, systemChain } from "../domain/audit.ts";
import { parseTenantId, systemOwner, type Owner } from "../domain/tenant.ts";
import { listChains, readChain, readChainHead } from "../storage/audit-repository.ts";
import type { Database } from "../storage/database.ts";
import { offlineFault } from "./audit-chain.ts";
import { auditFilePath, lineOf, readLines } from "./audit-file.ts";

/** `seq`: of the first entry of the chain that is not what it was. */
export type Finding = { readonly chain: string; readonly seq: number; readonly what: string };

export type Verification = {
  readonly ok: boolean;
  readonly chains: number;
  readonly entries: number;
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
};

const entriesAtOnce = 1_000;
const chainsAtOnce = 8;
/** A change between its commit and its workflow's next step makes the two differ for a moment. */
const settleAttempts = 20;
const settleMs = 100;

/** Compares every chain's entries with their hashes, the chain's end, `audit.jsonl` and the end that its workflow remembers. */
export async function verifyAudit({ database, home, flush, stateOf }: VerifyDeps): Promise<Verification> {
  const notes: string[] = [];
  const findings: Finding[] = [];
  const written = await flush().catch((error: unknown) => {
    notes.push(`audit.jsonl could not be brought up to date: ${String(error)}`);
    return new Map<string, number>();
  });
  const { lines, findings: unreadable } = await readFile(home);
  findings.push(...unreadable);
  const inDatabase = await database.withControl(async (tx) => await listChains(tx), { readOnly: true });
  const chains = [...new Set([...inDatabase, ...lines.keys()])].toSorted();
  let count = 0;
  const counted = { unreachable: 0, absent: 0 };

  const verifyChain = async (chain: string): Promise<void> => {
    const entries = await readWholeChain(database, chain);
    count += entries.length;
    const end = await database.withControl(async (tx) => await readChainHead(tx, chain), { readOnly: true });
    const faults = [entriesFault(entries), endFault(entries, end), fileFault(entries, lines.get(chain) ?? [], written.get(chain) ?? 0)];
    try {
      const live = await compareWithWorkflow(database, { chain, entries, stateOf });
      faults.push(live.fault);
      if (live.state === undefined) counted.absent++;
      if (live.state !== undefined && live.state.adoptedSeq > 0) {
        notes.push(`${chain}: the workflow took entry ${live.state.adoptedSeq} from the database and vouches for what follows it`);
      }
      if (live.state?.broken !== undefined) notes.push(`${chain}: the workflow refuses changes: ${live.state.broken}`);
    } catch {
      counted.unreachable++;
    }
    const first = faults.flatMap((fault) => (fault === undefined ? [] : [fault])).toSorted((a, b) => a.seq - b.seq)[0];
    if (first !== undefined) findings.push({ chain, ...first });
  };
  for (let next = 0; next < chains.length; next += chainsAtOnce)
    await Promise.all(chains.slice(next, next + chainsAtOnce).map(verifyChain));

  if (counted.unreachable > 0)
    notes.push(`${counted.unreachable} chains could not be compared with their workflows: Temporal or its workers do not answer`);
  if (counted.absent > 0) notes.push(`${counted.absent} chains have no workflow to compare with`);
  notes.push("There are no signed anchors yet: a rewrite of entries, file and workflow together would not be found.");
  return {
    ok: findings.length === 0,
    chains: chains.length,
    entries: count,
    findings: findings.toSorted((a, b) => (a.chain < b.chain ? -1 : 1)),
    notes,
  };
}

type Fault = Omit<Finding, "chain">;

async function readFile(home: string): Promise<{ readonly lines: ReadonlyMap<string, string[]>; readonly findings: readonly Finding[] }> {
  const lines = new Map<string, string[]>();
  const findings: Finding[] = [];
  for await (const { number, text, chain } of readLines(auditFilePath(home))) {
    if (chain === undefined) {
      if (findings.length === 0)
        findings.push({ chain: "audit.jsonl", seq: number, what: `line ${number} of audit.jsonl is not an entry` });
      continue;
    }
    const known = lines.get(chain);
    if (known === undefined) lines.set(chain, [text]);
    else known.push(text);
  }
  return { lines, findings };
}

async function readWholeChain(database: VerifyDeps["database"], chain: string): Promise<readonly AuditEntry[]> {
  const entries: AuditEntry[] = [];
  for (;;) {
    const more = await database.withControl(async (tx) => await readChain(tx, chain, entries.at(-1)?.seq ?? 0, entriesAtOnce), {
      readOnly: true,
    });
    entries.push(...more);
    if (more.length < entriesAtOnce) return entries;
  }
}

function entriesFault(entries: readonly AuditEntry[]): Fault | undefined {
  let head: ChainHead = genesis;
  for (const { hash, ...fields } of entries) {
    const seq = head.seq + 1;
    if (fields.seq !== seq) return { seq, what: `entry ${seq} is missing` };
    if (hashOfEntry(fields) !== hash) return { seq, what: `entry ${seq} has another hash than its content` };
    if (fields.prev !== head.hash) return { seq, what: `entry ${seq} does not follow entry ${seq - 1}` };
    head = { seq, hash };
  }
  return undefined;
}

/** The head may be ahead of entries that were read before a change, never behind them or another at the same place. */
function endFault(entries: readonly AuditEntry[], end: ChainHead | undefined): Fault | undefined {
  const last = entries.at(-1);
  if (end === undefined) return last === undefined ? undefined : { seq: last.seq, what: "the chain's end is not recorded" };
  if (end.seq < (last?.seq ?? 0)) return { seq: end.seq + 1, what: `the chain ends at entry ${end.seq}, and there are entries behind it` };
  if (last !== undefined && end.seq === last.seq && end.hash !== last.hash)
    return { seq: last.seq, what: `entry ${last.seq} is not the chain's end` };
  return undefined;
}

/** The file may lack what came after `writtenSeq`, the last entry that is known to be on disk; it may never differ. */
function fileFault(entries: readonly AuditEntry[], lines: readonly string[], writtenSeq: number): Fault | undefined {
  for (const [index, entry] of entries.entries()) {
    const line = lines[index];
    if (line === undefined) {
      return entry.seq > writtenSeq ? undefined : { seq: entry.seq, what: `entry ${entry.seq} is not in audit.jsonl` };
    }
    if (line !== lineOf(entry)) return { seq: entry.seq, what: `audit.jsonl says something else at entry ${entry.seq}` };
  }
  const extra = lines.length - entries.length;
  return extra > 0 ? { seq: entries.length + 1, what: `audit.jsonl has ${extra} entries that the database lacks` } : undefined;
}

type Comparison = { readonly state: ChainState | undefined; readonly fault: Fault | undefined };

async function compareWithWorkflow(
  database: VerifyDeps["database"],
  { chain, entries, stateOf }: { readonly chain: string; readonly entries: readonly AuditEntry[]; readonly stateOf: VerifyDeps["stateOf"] },
): Promise<Comparison> {
  let known = entries;
  for (let attempt = 1; ; attempt++) {
    const state = await stateOf(chain === systemChain ? systemOwner : parseTenantId(chain));
    const fault = state?.head === undefined ? undefined : workflowFault(known, state.head);
    if (
      fault === undefined ||
      attempt === settleAttempts ||
      known.some(({ seq, hash }) => seq === state?.head?.seq && hash !== state.head.hash)
    )
      return { state, fault };
    await new Promise((resolve) => setTimeout(resolve, settleMs));
    known = await readWholeChain(database, chain);
  }
}

function workflowFault(entries: readonly AuditEntry[], head: ChainHead): Fault | undefined {
  const last = entries.at(-1)?.seq ?? 0;
  if (head.seq > last) return { seq: last + 1, what: `the workflow wrote entries up to ${head.seq}, the database ends at ${last}` };
  if (head.seq === 0) return undefined;
  const own = entries.find(({ seq }) => seq === head.seq);
  if (own?.hash !== head.hash)
    return { seq: head.seq, what: `entry ${head.seq} is not the one that the workflow wrote: the chain was rewritten at or before it` };
  const fault = offlineFault(entries.slice(entries.indexOf(own) + 1), head);
  return fault === undefined ? undefined : { seq: head.seq + 1, what: fault };
}
