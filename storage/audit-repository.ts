import type { AuditEntry, ChainHead, ChangeOutcome } from "../domain/audit.ts";
import type { ControlTx } from "./database.ts";

/** The channel that tells the relays that a chain has grown. */
export const auditChannel = "openclaw_audit";

type EntryRow = {
  chain: string;
  seq: bigint;
  ts: Date;
  actor_type: AuditEntry["actor"]["type"];
  actor_id: string;
  action: string;
  tenant: string | null;
  target: string;
  outcome: AuditEntry["outcome"];
  request_id: string;
  workflow_id: string;
  prev: string;
  hash: string;
};

const columns = "chain, seq, ts, actor_type, actor_id, action, tenant, target, outcome, request_id, workflow_id, prev, hash";

const toEntry = (row: EntryRow): AuditEntry => ({
  chain: row.chain,
  seq: Number(row.seq),
  ts: row.ts.toISOString(),
  actor: { type: row.actor_type, id: row.actor_id },
  action: row.action,
  tenant: row.tenant,
  target: row.target,
  outcome: row.outcome,
  request_id: row.request_id,
  workflow_id: row.workflow_id,
  prev: row.prev,
  hash: row.hash,
});

/** Locks the chain's end until the transaction ends: of all that append, one at a time gets on. */
export async function lockChainHead(tx: ControlTx, chain: string, start: ChainHead): Promise<ChainHead & { readonly closed: boolean }> {
  await tx.execute("insert into control.chain_head (chain, seq, hash) values ($1, $2, $3) on conflict (chain) do nothing", [
    chain,
    start.seq,
    start.hash,
  ]);
  const [row] = await tx.query<{ seq: bigint; hash: string; closed: boolean }>(
    "select seq, hash, closed from control.chain_head where chain = $1 for update",
    [chain],
  );
  return row === undefined ? { ...start, closed: false } : { seq: Number(row.seq), hash: row.hash, closed: row.closed };
}

/** After this the chain takes no entry any more. */
export async function closeChain(tx: ControlTx, chain: string): Promise<void> {
  await tx.execute("update control.chain_head set closed = true where chain = $1", [chain]);
}

export async function readChainHead(tx: ControlTx, chain: string): Promise<ChainHead | undefined> {
  const [row] = await tx.query<{ seq: bigint; hash: string }>("select seq, hash from control.chain_head where chain = $1", [chain]);
  return row === undefined ? undefined : { seq: Number(row.seq), hash: row.hash };
}

export async function readChainHeads(tx: ControlTx): Promise<ReadonlyMap<string, ChainHead>> {
  const rows = await tx.query<{ chain: string; seq: bigint; hash: string }>("select chain, seq, hash from control.chain_head");
  return new Map(rows.map(({ chain, seq, hash }) => [chain, { seq: Number(seq), hash }]));
}

export async function appendEntry(
  tx: ControlTx,
  entry: AuditEntry,
  { opId, answer, runId }: { opId: string; answer: ChangeOutcome; runId: string | null },
): Promise<void> {
  await tx.execute(
    `insert into control.audit_entry (${columns}, op_id, answer, run_id) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)`,
    [
      entry.chain,
      entry.seq,
      entry.ts,
      entry.actor.type,
      entry.actor.id,
      entry.action,
      entry.tenant,
      entry.target,
      entry.outcome,
      entry.request_id,
      entry.workflow_id,
      entry.prev,
      entry.hash,
      opId,
      JSON.stringify(answer),
      runId,
    ],
  );
  await tx.execute("update control.chain_head set seq = $2, hash = $3 where chain = $1", [entry.chain, entry.seq, entry.hash]);
  await tx.query("select pg_notify($1, $2)", [auditChannel, entry.chain]);
}

/** The newest entry of an operation that was recorded within `memoryMs`. */
export async function findOperation(
  tx: ControlTx,
  chain: string,
  opId: string,
  memoryMs: number,
): Promise<{ readonly entry: AuditEntry; readonly answer: ChangeOutcome } | undefined> {
  const [row] = await tx.query<EntryRow & { answer: ChangeOutcome }>(
    `select ${columns}, answer from control.audit_entry
     where chain = $1 and op_id = $2 and recorded_at > now() - $3::float8 * interval '1 ms' order by seq desc limit 1`,
    [chain, opId, memoryMs],
  );
  return row === undefined ? undefined : { entry: toEntry(row), answer: row.answer };
}

/** A chain's entries behind `afterSeq`, in order. */
export async function readChain(tx: ControlTx, chain: string, afterSeq: number, limit: number): Promise<readonly AuditEntry[]> {
  const rows = await tx.query<EntryRow>(`select ${columns} from control.audit_entry where chain = $1 and seq > $2 order by seq limit $3`, [
    chain,
    afterSeq,
    limit,
  ]);
  return rows.map(toEntry);
}

export type EntryFilter = {
  readonly tenant?: string | undefined;
  readonly sinceMs?: number | undefined;
  readonly action?: string | undefined;
  /** Behind this one. */
  readonly after?: Pick<AuditEntry, "ts" | "chain" | "seq"> | undefined;
  readonly limit: number;
};

/** Entries of all chains by time. */
export async function listEntries(tx: ControlTx, { tenant, sinceMs, action, after, limit }: EntryFilter): Promise<readonly AuditEntry[]> {
  const rows = await tx.query<EntryRow>(
    `select ${columns} from control.audit_entry
     where ($1::text is null or tenant = $1) and ($3::text is null or action = $3)
       and ts >= greatest($2::timestamptz, $4::timestamptz, '-infinity')
       and ($4::timestamptz is null or (ts, chain, seq) > ($4, $5, $6))
     order by ts, chain, seq limit $7`,
    [
      tenant ?? null,
      sinceMs === undefined ? null : new Date(sinceMs),
      action ?? null,
      after?.ts ?? null,
      after?.chain ?? null,
      after?.seq ?? null,
      limit,
    ],
  );
  return rows.map(toEntry);
}

/** Chains that have an entry or an end. */
export async function listChains(tx: ControlTx): Promise<readonly string[]> {
  const rows = await tx.query<{ chain: string }>(
    "select chain from control.chain_head where seq > 0 union select distinct chain from control.audit_entry order by chain",
  );
  return rows.map(({ chain }) => chain);
}

/** How far the file of a home is known to be on disk, by chain. */
export async function readFilePositions(tx: ControlTx, file: string): Promise<ReadonlyMap<string, number>> {
  const rows = await tx.query<{ chain: string; seq: bigint }>("select chain, seq from control.audit_file where file = $1", [file]);
  return new Map(rows.map(({ chain, seq }) => [chain, Number(seq)]));
}

export async function storeFilePositions(tx: ControlTx, file: string, positions: ReadonlyMap<string, number>): Promise<void> {
  await tx.execute(
    `insert into control.audit_file as known (file, chain, seq) select $1, * from unnest($2::text[], $3::bigint[])
     on conflict (file, chain) do update set seq = greatest(known.seq, excluded.seq)`,
    [file, [...positions.keys()], [...positions.values()]],
  );
}

/** Remembers which request an Idempotency-Key stands for. @returns whether it is this one. */
export async function claimAdminKey(tx: ControlTx, opId: string, fingerprint: string, memoryMs: number): Promise<boolean> {
  await tx.execute("delete from control.admin_idempotency where created_at <= now() - $1::float8 * interval '1 ms'", [memoryMs]);
  await tx.execute("insert into control.admin_idempotency (op_id, fingerprint) values ($1, $2) on conflict (op_id) do nothing", [
    opId,
    fingerprint,
  ]);
  const [row] = await tx.query<{ fingerprint: string }>("select fingerprint from control.admin_idempotency where op_id = $1", [opId]);
  return row?.fingerprint === fingerprint;
}
