import type { ChainHead } from "../domain/audit.ts";
import type { SignedAnchor } from "../domain/audit-anchor.ts";
import type { ControlTx } from "./database.ts";

type AnchorRow = { chain: string; seq: bigint; hash: string; run: string | null; ts: Date; key_id: string; signature: string };

const columns = "chain, seq, hash, run, ts, key_id, signature";

const toAnchor = ({ chain, seq, hash, run, ts, key_id, signature }: AnchorRow): SignedAnchor => ({
  chain,
  seq: Number(seq),
  hash,
  run,
  ts: ts.toISOString(),
  key: key_id,
  signature,
});

export async function storeAnchor(tx: ControlTx, { chain, seq, hash, run, ts, key, signature }: SignedAnchor): Promise<void> {
  await tx.execute(`insert into control.audit_anchor (${columns}) values ($1, $2, $3, $4, $5, $6, $7)`, [
    chain,
    seq,
    hash,
    run,
    ts,
    key,
    signature,
  ]);
}

/** A chain's anchors by any key, by entry. */
export async function readAnchors(tx: ControlTx, chain: string): Promise<readonly SignedAnchor[]> {
  const rows = await tx.query<AnchorRow>(`select ${columns} from control.audit_anchor where chain = $1 order by seq, ts`, [chain]);
  return rows.map(toAnchor);
}

/** All anchors of a key, by chain and entry. */
export async function readAnchorsOfKey(tx: ControlTx, key: string): Promise<readonly SignedAnchor[]> {
  const rows = await tx.query<AnchorRow>(`select ${columns} from control.audit_anchor where key_id = $1 order by chain, seq, ts`, [key]);
  return rows.map(toAnchor);
}

/** The newest anchor of each chain by this key. */
export async function readNewestAnchors(tx: ControlTx, key: string): Promise<readonly SignedAnchor[]> {
  const rows = await tx.query<AnchorRow>(
    `select distinct on (chain) ${columns} from control.audit_anchor where key_id = $1 order by chain, seq desc, ts desc`,
    [key],
  );
  return rows.map(toAnchor);
}

/** Anchors of all chains by any key, behind `after`. */
export async function listAnchors(
  tx: ControlTx,
  after: Pick<SignedAnchor, "key" | "chain" | "seq" | "ts"> | undefined,
  limit: number,
): Promise<readonly SignedAnchor[]> {
  const rows = await tx.query<AnchorRow>(
    `select ${columns} from control.audit_anchor where $1::text is null or (key_id, chain, seq, ts) > ($1, $2, $3, $4)
     order by key_id, chain, seq, ts limit $5`,
    [after?.key ?? null, after?.chain ?? null, after?.seq ?? null, after?.ts ?? null, limit],
  );
  return rows.map(toAnchor);
}

export async function listAnchoredChains(tx: ControlTx): Promise<readonly string[]> {
  return (await tx.query<{ chain: string }>("select distinct chain from control.audit_anchor order by chain")).map(({ chain }) => chain);
}

export type RecordedKey = { readonly id: string; readonly publicKey: Buffer };

export async function readAuditKeys(tx: ControlTx): Promise<readonly RecordedKey[]> {
  const rows = await tx.query<{ id: string; public_key: Buffer }>("select id, public_key from control.audit_key order by created_at, id");
  return rows.map(({ id, public_key }) => ({ id, publicKey: public_key }));
}

export type RunningHead = ChainHead & { readonly chain: string; readonly run: string | null };

/** Where every chain ends, with the run that wrote its last entry. */
export async function readRunningHeads(tx: ControlTx): Promise<readonly RunningHead[]> {
  const rows = await tx.query<{ chain: string; seq: bigint; hash: string; run_id: string | null }>(
    `select head.chain, head.seq, head.hash, entry.run_id from control.chain_head head
     left join control.audit_entry entry on entry.chain = head.chain and entry.seq = head.seq where head.seq > 0 order by head.chain`,
  );
  return rows.map(({ chain, seq, hash, run_id }) => ({ chain, seq: Number(seq), hash, run: run_id }));
}
