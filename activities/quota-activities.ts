import type { HolderId, QuotaLimits, RowFate, UtcDay } from "../domain/quota-ledger.ts";
import {
  type AmountWire,
  type FateWire,
  type LimitsWire,
  type RecoveredCallWire,
  amountToWire,
  limitsToWire,
} from "../domain/quota-wire.ts";
import type { TenantId } from "../domain/tenant.ts";
import type { CallId } from "../domain/turn-id.ts";
import type { Database } from "../storage/database.ts";
import {
  countRecentTurns,
  countUnreportedTurns,
  fenceAllLeases,
  fenceLease,
  insertLease,
  readCallFates,
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
  readonly calls: readonly { readonly callId: CallId; readonly reserved: AmountWire }[];
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
        calls: open.map(({ callId, reserved }) => ({ callId, reserved: amountToWire(reserved) })),
      };
    });
  },

  /** Lets a lease open calls and turns. */
  async openLease({ holder }: { readonly holder: HolderId }): Promise<void> {
    await asActivity(async (context) => await database.withTenant(context, async (tx) => await insertLease(tx, holder)));
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
  }): Promise<{ readonly calls: readonly RecoveredCallWire[]; readonly requests: number }> {
    return await asActivity(
      async (context) =>
        await database.withTenant(context, async (tx) => {
          await fenceLease(tx, holder);
          const calls = [...(await readUnreportedCalls(tx, holder, afterBatch)), ...(await readCallFates(tx, callIds))];
          return {
            calls: calls.map(({ fate, ...call }) => ({ ...call, fate: fateToWire(fate) })),
            requests: await countUnreportedTurns(tx, holder, afterBatch),
          };
        }),
    );
  },

  /** What became of calls that nobody has reported on. */
  async checkCalls({
    callIds,
  }: {
    readonly callIds: readonly CallId[];
  }): Promise<readonly { readonly callId: CallId; readonly fate: FateWire }[]> {
    return await asActivity(
      async (context) =>
        await database.withTenant(
          context,
          async (tx) => (await readCallFates(tx, callIds)).map(({ callId, fate }) => ({ callId, fate: fateToWire(fate) })),
          { readOnly: true },
        ),
    );
  },
});

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
