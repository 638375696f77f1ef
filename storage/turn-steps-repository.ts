import type { TurnId } from "../domain/turn-id.ts";
import type { TenantTx } from "./database.ts";

/** What a turn did, and when, without any of its contents. Milliseconds since the turn was handed in; undefined: not yet. */
export type TurnStep = { readonly name: string; readonly fromMs: number; readonly toMs: number | undefined; readonly attempts: number };

/** The steps of a turn by when they began: its wait for the lane, its model calls, its tools. */
export async function readTurnSteps(tx: TenantTx, turnId: TurnId): Promise<readonly TurnStep[]> {
  const rows = await tx.query<{ name: string; from_ms: number; to_ms: number | null; attempts: number }>(
    `WITH step AS (
       SELECT 'wait' AS name, created_at AS begun, started_at AS ended, 1 AS attempts FROM turn WHERE id = $1
       UNION ALL SELECT 'model ' || model, started_at, finished_at, attempt FROM model_call WHERE turn_id = $1
       UNION ALL SELECT 'tool ' || name, started_at, finished_at, attempt FROM tool_run WHERE turn_id = $1)
     SELECT name, attempts, extract(epoch FROM begun - created_at)::float8 * 1000 AS from_ms,
       extract(epoch FROM ended - created_at)::float8 * 1000 AS to_ms
     FROM step, turn WHERE turn.id = $1 ORDER BY begun, name DESC`,
    [turnId],
  );
  return rows.map(({ name, attempts, from_ms, to_ms }) => ({
    name,
    attempts,
    fromMs: Math.round(from_ms),
    toMs: to_ms === null ? undefined : Math.round(to_ms),
  }));
}
