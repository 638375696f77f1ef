import type { CallRow, HolderId, QuotaLimits, ReservationId, RowFate, UtcDay } from "../domain/quota-ledger.ts";
import { type AmountWire, type FateWire, type LimitsWire, type CallRowWire, amountToWire, limitsToWire } from "../domain/quota-wire.ts";
import type { TenantId } from "../domain/tenant.ts";
import type { CallId } from "../domain/turn-id.ts";
import type { Database } from "../storage/database.ts";
import {
  countRecentTurns,
  countUnreportedTurns,
  fenceAllLeases,
  fenceLease,
  insertLease,
  readCallRows,
  readDay,
  readUnreportedCalls,
} from "../storage/quota-repository.ts";
import { asActivity } from "./activity-context.ts";

export type QuotaActivityDeps = {
  readonly database: Pick<Database, "withTenant">;
  readonly limitsOf: (tenantId: TenantId) => Promise<QuotaLimits>;
};

export type DayWire = {
  readonly limits: LimitsWire;
  readonly day: UtcDay;
  readonly used: AmountWire;
  readonly calls: readonly (ReservationId & { readonly reserved: AmountWire })[];
  /** Let in during the last minute by leases that stood. */
  readonly requests: number;
};

/** What the quota desk of a tenant's workflow asks the rows. Each is safe to repeat. */
export const createQuotaActivities = ({ database, limitsOf }: QuotaActivityDeps) => ({
  async readLimits(): Promise<LimitsWire> {
    return await asActivity(async ({ tenantId }) => limitsToWire(await limitsOf(tenantId)));
  },

  /** The day so far, after every lease was fenced: for a desk that knows none. */
  async readQuota(): Promise<DayWire> {
    return await asActivity(async (context) => {
      const limits = limitsToWire(await limitsOf(context.tenantId));
      const { day, used, open, requests } = await database.withTenant(context, async (tx) => {
        const requests = await countRecentTurns(tx, await fenceAllLeases(tx));
        return { ...(await readDay(tx)), requests };
      });
      return {
        limits,
        requests,
        day,
        used: amountToWire(used),
        calls: open.map((call) => ({ ...call, reserved: amountToWire(call.reserved) })),
      };
    });
  },

  /** Lets a lease open calls and turns. @returns false for one that was taken back before */
  async openLease({ holder }: { readonly holder: HolderId }): Promise<boolean> {
    return await asActivity(async (context) => await database.withTenant(context, async (tx) => await insertLease(tx, holder)));
  },

  /** Fences the lease first, then reads what it did and never reported. */
  async recoverLease({
    holder,
    afterBatch,
    callIds,
  }: {
    readonly holder: HolderId;
    readonly afterBatch: number;
    readonly callIds: readonly CallId[];
  }): Promise<{ readonly calls: readonly CallRowWire[]; readonly requests: number }> {
    return await asActivity(
      async (context) =>
        await database.withTenant(context, async (tx) => {
          await fenceLease(tx, holder);
          const calls = [...(await readUnreportedCalls(tx, holder, afterBatch)), ...(await readCallRows(tx, callIds))];
          return {
            calls: calls.map(callRowToWire),
            requests: await countUnreportedTurns(tx, holder, afterBatch),
          };
        }),
    );
  },

  /** What became of calls that nobody has reported on. */
  async checkCalls({ callIds }: { readonly callIds: readonly CallId[] }): Promise<readonly CallRowWire[]> {
    return await asActivity(
      async (context) =>
        await database.withTenant(context, async (tx) => (await readCallRows(tx, callIds)).map(callRowToWire), { readOnly: true }),
    );
  },
});

const callRowToWire = (row: CallRow): CallRowWire => {
  const { callId, holder, batch, day } = row;
  return { callId, holder, batch, day, fate: fateToWire(row) };
};

const fateToWire = (fate: RowFate): FateWire => {
  switch (fate.state) {
    case "started":
      return { state: "started", reserved: amountToWire(fate.reserved) };
    case "done":
      return { state: "done", reserved: amountToWire(fate.reserved), actual: amountToWire(fate.actual) };
    case "void":
    case "missing":
      return { state: fate.state };
  }
};

export type QuotaActivities = ReturnType<typeof createQuotaActivities>;
