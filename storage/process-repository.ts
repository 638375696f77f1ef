import type { ControlTx } from "./database.ts";
import type { ProcessIdentity } from "./linux-process.ts";

/** The live processes of a database. A row counts until it expires, in the database's own time. */

export type ProcessRole = "all" | "gateway" | "worker";

/** What a process says of itself. */
export type ProcessFacts = ProcessIdentity & {
  readonly id: string;
  readonly role: ProcessRole;
  readonly host: string;
  readonly homeId: string;
};

export type LiveProcess = ProcessFacts & { readonly isDraining: boolean };

const columns = `id, role, host, machine, pid, started_at_ticks AS "startedAtTicks", home_id AS "homeId", draining AS "isDraining"`;

/** Those that have not expired, by id. */
export const readLiveProcesses = async (tx: ControlTx): Promise<readonly LiveProcess[]> =>
  await tx.query<LiveProcess>(`SELECT ${columns} FROM control.process WHERE expires_at > clock_timestamp() ORDER BY id`);

/**
 * Keeps a process alive for `forMs` more, or makes its row. Call it before reading the others in the same transaction.
 * @returns whether the row had expired, so that what the process held may be others' now; true for a new one
 */
export async function renewProcess(
  tx: ControlTx,
  { id, role, host, machine, pid, startedAtTicks, homeId }: ProcessFacts,
  { forMs, isDraining }: { readonly forMs: number; readonly isDraining: boolean },
): Promise<boolean> {
  const [before] = await tx.query<{ lapsed: boolean }>(
    "SELECT expires_at <= clock_timestamp() AS lapsed FROM control.process WHERE id = $1 FOR UPDATE",
    [id],
  );
  await tx.execute(
    `INSERT INTO control.process AS existing (id, role, host, machine, pid, started_at_ticks, home_id, draining, expires_at)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, clock_timestamp() + $9::float8 * interval '1 ms')
     ON CONFLICT (id) DO UPDATE SET draining = excluded.draining, expires_at = excluded.expires_at`,
    [id, role, host, machine, pid, startedAtTicks, homeId, isDraining, forMs],
  );
  return before?.lapsed ?? true;
}

/** Ends the time of processes that are known to be dead. */
export async function expireProcesses(tx: ControlTx, ids: readonly string[]): Promise<void> {
  await tx.execute("UPDATE control.process SET expires_at = clock_timestamp() WHERE id = any ($1) AND expires_at > clock_timestamp()", [
    ids,
  ]);
}

/** Takes a process out of the list, and those that expired a day ago and left nothing. */
export async function removeProcess(tx: ControlTx, id: string): Promise<void> {
  await tx.execute(
    `DELETE FROM control.process WHERE (id = $1 OR expires_at < now() - interval '1 day')
       AND NOT EXISTS (SELECT FROM control.placement WHERE holder = process.id)`,
    [id],
  );
}
