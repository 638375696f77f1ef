import type { ErrorCode } from "../domain/app-error.ts";
import type { TurnId } from "../domain/turn-id.ts";
import type { TurnKind, TurnState } from "../domain/turn.ts";
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

/** What a trace says of a turn as a whole. */
export type TracedTurn = {
  readonly trace: string;
  readonly kind: TurnKind;
  readonly state: TurnState;
  /** Of its error. */
  readonly code: ErrorCode | undefined;
  readonly modelCalls: number;
  readonly createdAtMs: number;
  /** Undefined: it ended before it began. */
  readonly startedAtMs: number | undefined;
  /** Undefined while it runs. */
  readonly finishedAtMs: number | undefined;
};

/** Undefined for a turn that is not traced. */
export async function readTracedTurn(tx: TenantTx, turnId: TurnId): Promise<TracedTurn | undefined> {
  const msOf = (column: string): string => `(extract(epoch FROM ${column}) * 1000)::float8`;
  type Row = Omit<TracedTurn, "code" | "startedAtMs" | "finishedAtMs"> & {
    readonly code: ErrorCode | null;
    readonly startedAtMs: number | null;
    readonly finishedAtMs: number | null;
  };
  const [row] = await tx.query<Row>(
    `SELECT trace, kind, state, error->>'code' AS code,
       (SELECT count(*)::int FROM model_call WHERE turn_id = turn.id) AS "modelCalls", ${msOf("created_at")} AS "createdAtMs",
       ${msOf("started_at")} AS "startedAtMs", ${msOf("finished_at")} AS "finishedAtMs"
     FROM turn WHERE id = $1 AND trace IS NOT NULL`,
    [turnId],
  );
  if (row === undefined) return undefined;
  const { code, startedAtMs, finishedAtMs } = row;
  return { ...row, code: code ?? undefined, startedAtMs: startedAtMs ?? undefined, finishedAtMs: finishedAtMs ?? undefined };
}
