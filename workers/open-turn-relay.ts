import { AppError, toStoredError } from "../domain/app-error.ts";
import { statelessSessionOf } from "../domain/session-id.ts";
import { parseTenantId, type TenantId } from "../domain/tenant.ts";
import type { TurnId } from "../domain/turn-id.ts";
import type { Database } from "../storage/database.ts";
import { type OpenTurn, takeOpenTurns } from "../storage/open-turn-repository.ts";
import { claimTurn, finishTurn } from "../storage/turn-repository.ts";
import { type TenantClient, laneOfName } from "../temporal/tenant-client.ts";

export type OpenTurnRelayOptions = {
  readonly database: Database;
  readonly clientOf: (tenantId: TenantId) => TenantClient;
  readonly wake: (tenantId: TenantId) => Promise<void>;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
  /** Default 5 s. */
  readonly intervalMs?: number;
};

/** A lane that had a turn sent again so often is looked at: its workflow task may fail for ever. */
const sendsBeforeLook = 3;
/** A turn that a lane got stuck with again after so many sends is ended as failed: one poison turn must not hold up its session. */
const sendsBeforeEnd = 6;

/**
 * Sends turns that were handed in and have not ended to their lanes again: after a crash between row and hand-over, a lane that was
 * terminated, a Temporal server that was away. The lane and the turn's row make a repeat harmless.
 */
export function startOpenTurnRelay({ database, clientOf, wake, log, intervalMs = 5_000 }: OpenTurnRelayOptions): { stop(): Promise<void> } {
  let sweeping: Promise<void> = Promise.resolve();

  const sendAgain = async ({ tenantId: tenant, turnId, lane: laneName, kind, sends }: OpenTurn): Promise<void> => {
    const tenantId = parseTenantId(tenant);
    const lane = laneOfName(laneName);
    const client = clientOf(tenantId);
    await wake(tenantId);
    if (sends >= sendsBeforeLook && (await client.endStuckLane(lane))) {
      log("a lane whose workflow task kept failing was ended", { tenantId, lane: laneName });
      if (sends >= sendsBeforeEnd && (await giveUp(tenantId, turnId))) return;
    }
    await client.sendTurn(lane, { turnId, kind, sessionId: "pool" in lane ? statelessSessionOf(turnId) : lane.sessionId });
    log("an open turn was sent to its lane again", { tenantId, turnId, sends });
  };

  const giveUp = async (tenantId: TenantId, turnId: TurnId): Promise<boolean> => {
    log("a turn that its lane got stuck with again and again was given up", { tenantId, turnId });
    return await database.withTenant({ tenantId, requestId: `relay:${turnId}` }, async (tx) => {
      const turn = await claimTurn(tx, turnId);
      return turn !== undefined && (await finishTurn(tx, turn, { state: "failed", error: toStoredError(new AppError("internal")) }, []));
    });
  };

  const sweep = async (minimumAgeMs: number): Promise<void> => {
    try {
      const turns = await database.withControl(async (tx) => await takeOpenTurns(tx, minimumAgeMs));
      const outcomes = await Promise.allSettled(turns.map(sendAgain));
      for (const outcome of outcomes)
        if (outcome.status === "rejected") log("an open turn was not sent", { error: String(outcome.reason) });
    } catch (error) {
      log("open turns could not be read", { error: String(error) });
    }
  };

  // At start every open turn is one that the last process left behind; later ones get time to end by themselves.
  sweeping = sweep(0);
  const timer = setInterval(() => {
    sweeping = sweeping.then(async () => await sweep(15_000));
  }, intervalMs);
  return {
    async stop() {
      clearInterval(timer);
      await sweeping;
    },
  };
}
