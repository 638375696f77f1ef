import type { ClosedRun } from "../domain/history-archive.ts";
import type { ControlTx, TenantTx } from "./database.ts";

/** The archived histories of one tenant. */

export type ArchivedRun = Omit<ClosedRun, "tenantId"> & { readonly events: number; readonly sizeBytes: number };

/** Of these runs, those that are archived. */
export async function knownRuns(tx: TenantTx, runIds: readonly string[]): Promise<ReadonlySet<string>> {
  const rows = await tx.query<{ run_id: string }>("SELECT run_id FROM archived_run WHERE run_id = ANY ($1)", [runIds]);
  return new Set(rows.map(({ run_id }) => run_id));
}

/** A page of a history; one that an attempt left behind is written over. */
export async function putHistoryPage(tx: TenantTx, runId: string, n: number, bytes: Uint8Array): Promise<void> {
  await tx.execute(
    "INSERT INTO archived_run_piece (run_id, n, bytes) VALUES ($1, $2, $3) ON CONFLICT (run_id, n) DO UPDATE SET bytes = $3",
    [runId, n, bytes],
  );
}

/** Makes a run whose `pages` are stored count. @returns false when it counted before */
export async function finishArchivedRun(tx: TenantTx, run: ArchivedRun, pages: number): Promise<boolean> {
  await tx.execute("DELETE FROM archived_run_piece WHERE run_id = $1 AND n >= $2", [run.runId, pages]);
  const written = await tx.execute(
    `INSERT INTO archived_run (run_id, workflow_id, type, status, started_at, closed_at, events, size_bytes)
     VALUES ($1, $2, $3, $4, to_timestamp($5::float8 / 1000), to_timestamp($6::float8 / 1000), $7, $8) ON CONFLICT (run_id) DO NOTHING`,
    [run.runId, run.workflowId, run.type, run.status, run.startedAtMs, run.closedAtMs, run.events, run.sizeBytes],
  );
  return written === 1;
}

const columns = `run_id AS "runId", workflow_id AS "workflowId", type, status, events, size_bytes::float8 AS "sizeBytes",
  (extract(epoch FROM started_at) * 1000)::float8 AS "startedAtMs", (extract(epoch FROM closed_at) * 1000)::float8 AS "closedAtMs"`;

export type ArchivedRunsQuery = {
  readonly workflowId: string | undefined;
  /** The run behind which the list goes on. */
  readonly after: string | undefined;
  readonly limit: number;
};

/** Newest first. */
export async function listArchivedRuns(tx: TenantTx, { workflowId, after, limit }: ArchivedRunsQuery): Promise<readonly ArchivedRun[]> {
  return await tx.query<ArchivedRun>(
    `SELECT ${columns} FROM archived_run
     WHERE ($1::text IS NULL OR workflow_id = $1)
       AND ($2::text IS NULL OR (closed_at, run_id) < (SELECT closed_at, run_id FROM archived_run WHERE run_id = $2))
     ORDER BY archived_run.closed_at DESC, archived_run.run_id DESC LIMIT $3`,
    [workflowId ?? null, after ?? null, limit],
  );
}

export async function findArchivedRun(tx: TenantTx, runId: string): Promise<ArchivedRun | undefined> {
  const [row] = await tx.query<ArchivedRun>(`SELECT ${columns} FROM archived_run WHERE run_id = $1`, [runId]);
  return row;
}

export async function readHistoryPage(tx: TenantTx, runId: string, n: number): Promise<Uint8Array | undefined> {
  const [row] = await tx.query<{ bytes: Uint8Array }>("SELECT bytes FROM archived_run_piece WHERE run_id = $1 AND n = $2", [runId, n]);
  return row?.bytes;
}

/** Removes what closed longer ago, some at a time. @returns how many runs */
export async function pruneArchivedRuns(tx: TenantTx, beforeMs: number, limit: number): Promise<number> {
  const pruned = await tx.query(
    `WITH old AS (
       DELETE FROM archived_run WHERE run_id IN (SELECT run_id FROM archived_run WHERE closed_at < to_timestamp($1::float8 / 1000) LIMIT $2)
       RETURNING run_id
     ), pages AS (DELETE FROM archived_run_piece piece USING old WHERE piece.run_id = old.run_id)
     SELECT FROM old`,
    [beforeMs, limit],
  );
  return pruned.length;
}

/** Up to when closed runs are archived; undefined before the first time. */
export async function readArchiveProgress(tx: ControlTx): Promise<number | undefined> {
  const [row] = await tx.query<{ ms: number }>("SELECT (extract(epoch FROM closed_until) * 1000)::float8 AS ms FROM archive_progress");
  return row?.ms;
}

export async function storeArchiveProgress(tx: ControlTx, closedUntilMs: number): Promise<void> {
  await tx.execute(
    `INSERT INTO archive_progress (closed_until) VALUES (to_timestamp($1::float8 / 1000))
     ON CONFLICT (id) DO UPDATE SET closed_until = greatest(archive_progress.closed_until, excluded.closed_until), finished_at = now()`,
    [closedUntilMs],
  );
}
