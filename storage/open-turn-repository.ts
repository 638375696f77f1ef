import type { TenantId } from "../domain/tenant.ts";
import type { TurnId } from "../domain/turn-id.ts";
import type { TurnKind } from "../domain/turn.ts";
import type { ControlTx } from "./database.ts";

/** A turn of any tenant that was handed in and has not ended. */
export type OpenTurn = {
  readonly tenantId: string;
  readonly turnId: TurnId;
  readonly lane: string;
  readonly kind: TurnKind;
  readonly sends: number;
};

const turnsPerSweep = 200;

/**
 * Takes the open turns that are due to be sent again; each is due next after 15 s, 30 s, 60 s … up to 10 minutes, so a long turn is
 * not sent again every few seconds. Safe with several sweepers.
 */
export async function takeOpenTurns(tx: ControlTx, minimumAgeMs: number): Promise<readonly OpenTurn[]> {
  return await tx.query<OpenTurn>(
    `WITH due AS (
       SELECT tenant_id, turn_id FROM control.open_turn
       WHERE created_at <= now() - $1::float8 * interval '1 ms' AND (due_at IS NULL OR due_at <= now() OR $1 = 0)
       ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED
     )
     UPDATE control.open_turn AS open SET attempts = attempts + 1, due_at = now() + least(15 * 2 ^ least(attempts, 10), 600) * interval '1 s'
     FROM due WHERE open.tenant_id = due.tenant_id AND open.turn_id = due.turn_id
     RETURNING open.tenant_id AS "tenantId", open.turn_id AS "turnId", lane, kind, attempts AS sends`,
    [minimumAgeMs, turnsPerSweep],
  );
}

/** A tenant's turns that have not ended, the oldest first. */
export async function readOpenTurns(tx: ControlTx, tenantId: TenantId): Promise<readonly Pick<OpenTurn, "turnId" | "lane">[]> {
  return await tx.query<Pick<OpenTurn, "turnId" | "lane">>(
    `SELECT turn_id AS "turnId", lane FROM control.open_turn WHERE tenant_id = $1 ORDER BY created_at LIMIT $2`,
    [tenantId, turnsPerSweep],
  );
}
