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

/**
 * Keeps a process alive for `forMs` more, or makes its row, and reads the others that live: one statement, for it is said every second.
 * @returns the others by id, and whether the own row had expired or was not there, so that what the process held may be others' now
 */
export async function renewProcess(
  tx: ControlTx,
  { id, role, host, machine, pid, startedAtTicks, homeId }: ProcessFacts,
  { forMs, isDraining }: { readonly forMs: number; readonly isDraining: boolean },
): Promise<{ readonly others: readonly LiveProcess[]; readonly hadLapsed: boolean }> {
  const [answer] = await tx.query<{ others: readonly LiveProcess[]; hadLapsed: boolean }>(
    `WITH before AS (
       SELECT expires_at > clock_timestamp() AS live FROM control.process WHERE id = $1 FOR UPDATE
     ), renewed AS (
       INSERT INTO control.process (id, role, host, machine, pid, started_at_ticks, home_id, draining, expires_at)
       VALUES ($1, $2, $3, $4, $5, $6, $7, $8, clock_timestamp() + $9::float8 * interval '1 ms')
       ON CONFLICT (id) DO UPDATE SET draining = excluded.draining, expires_at = excluded.expires_at
     )
     SELECT NOT coalesce((SELECT live FROM before), false) AS "hadLapsed", coalesce((
       SELECT jsonb_agg(jsonb_build_object('id', id, 'role', role, 'host', host, 'machine', machine, 'pid', pid,
         'startedAtTicks', started_at_ticks, 'homeId', home_id, 'isDraining', draining) ORDER BY id)
       FROM control.process WHERE expires_at > clock_timestamp() AND id <> $1), '[]') AS others`,
    [id, role, host, machine, pid, startedAtTicks, homeId, isDraining, forMs],
  );
  if (answer === undefined) throw new Error("a select without a from answered no row");
  return answer;
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
