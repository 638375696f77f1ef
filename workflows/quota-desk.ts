import { ApplicationFailure, CancellationScope, condition, proxyActivities, setHandler } from "@temporalio/workflow";
import type { QuotaActivities } from "../activities/quota-activities.ts";
import { formatUsd } from "../domain/money.ts";
import {
  type QuotaLedger,
  applyRows,
  beginRecovery,
  booksOf,
  callsToCheck,
  changeLimits,
  countRequests,
  hasRecovery,
  isAhead,
  hold,
  heldOf,
  isUnlimited,
  nextDueMs,
  openLedger,
  recover,
  rollDay,
  takeBack,
  takeOrder,
} from "../domain/quota-ledger.ts";
import {
  type LedgerWire,
  type QuotaBooks,
  amountFromWire,
  amountToWire,
  answerToWire,
  booksToWire,
  callRowFromWire,
  isWellFormedOrder,
  ledgerFromWire,
  ledgerToWire,
  limitsFromWire,
  orderFromWire,
} from "../domain/quota-wire.ts";
import type { TenantQuota } from "../domain/tenant-quota.ts";
import { type LeaseResult, endLease, leaseQuota, quotaBooks, quotaCount } from "./quota-messages.ts";

const effects = {
  startToCloseTimeout: "15s",
  heartbeatTimeout: "3s",
  retry: { initialInterval: "100ms", backoffCoefficient: 2, maximumInterval: "5s" },
} as const;
const rows = proxyActivities<QuotaActivities>(effects);

/** Tenants do not all wake at the same moment of midnight. */
const dayChangeSpreadMs = 30_000;

export type QuotaDesk = {
  /** The tenant's ceilings or state changed: what holds now is read again, and what was granted under higher ceilings is taken back. */
  limitsChanged(quota: TenantQuota | undefined): void;
  /** No order is begun from now on. */
  close(): void;
  /** What the next run goes on with. */
  carry(): LedgerWire | undefined;
  /** For the status page. */
  describe(): readonly string[];
};

/**
 * The tenant's quota inside its workflow: answers orders of lease holders, takes back leases whose time is over, and asks the rows
 * about calls that nobody reports on. Everything that decides is `domain/quota-ledger.ts`.
 *
 * A tenant without any ceiling takes no leases, so nothing is counted here: its ledger is forgotten, and read from the rows again once
 * there is a ceiling.
 */
export function openQuotaDesk(carried: LedgerWire | undefined, onChange: () => void): QuotaDesk {
  let ledger: QuotaLedger | undefined = carried === undefined ? undefined : ledgerFromWire(carried);
  let limitsAreOld = carried?.limitsAreOld ?? false;
  let preparing: Promise<void> | undefined;
  let isClosed = false;
  let watched: QuotaLedger | undefined;
  let isDayFollowed = false;

  /** A workflow without a memory begins with what the rows say, after every lease was fenced. */
  const read = async (): Promise<QuotaLedger> => {
    const { limits, day, used, calls, requests } = await rows.readQuota();
    const opened = openLedger(limitsFromWire(limits), day, amountFromWire(used));
    for (const call of calls) hold(opened, { ...call, reserved: amountFromWire(call.reserved), checkedAtMs: Date.now() });
    countRequests(opened, requests, Date.now());
    return opened;
  };

  const prepare = async (): Promise<void> => {
    const known = ledger;
    limitsAreOld = false;
    try {
      if (known === undefined) {
        ledger = await read();
        return;
      }
      const limits = limitsFromWire(await rows.readLimits());
      if (known !== ledger) return;
      if (isUnlimited(known.limits) || isUnlimited(limits)) ledger = undefined;
      else changeLimits(known, limits);
    } catch (error) {
      limitsAreOld = true;
      throw error;
    }
  };

  /** The ledger under the ceilings that hold now. */
  const ready = async (): Promise<QuotaLedger> => {
    for (;;) {
      if (ledger !== undefined && !limitsAreOld) return ledger;
      preparing ??= prepare().finally(() => (preparing = undefined));
      await preparing;
    }
  };

  const isHeld = ({ holders, calls }: QuotaLedger): boolean => holders.size > 0 || calls.size > 0;

  /** Wakes once in a while as long as anything is held, and not at all when nothing is. */
  const watch = async (known: QuotaLedger): Promise<void> => {
    while (known === ledger && isHeld(known)) {
      const isOver = (): boolean => isClosed || known !== ledger;
      const sinceMs = Date.now(); // the server's timers wait for a time of day, which is far when its clock went back
      await condition(() => hasRecovery(known) || isAhead(sinceMs, Date.now()) || isOver(), Math.max(1_000, nextDueMs(known) - sinceMs));
      if (isOver()) return;
      for (const recovery of beginRecovery(known, Date.now())) {
        const { calls, requests } = await rows.recoverLease(recovery);
        recover(known, recovery, calls.map(callRowFromWire), requests, Date.now());
      }
      const callIds = callsToCheck(known, Date.now());
      if (callIds.length > 0) applyRows(known, (await rows.checkCalls({ callIds })).map(callRowFromWire), Date.now());
      onChange();
    }
  };

  /** The day changes with the first order after midnight; where none comes, this one timer shows the new day. */
  const followDay = async (): Promise<void> => {
    const spreadMs = Math.floor(Math.random() * dayChangeSpreadMs);
    while (ledger !== undefined && !isClosed && (ledger.used.tokens > 0 || ledger.used.nanoUsd > 0n || isHeld(ledger))) {
      const known = ledger;
      const resetMs = Date.parse(`${known.day}T00:00:00Z`) + 86_400_000 + spreadMs;
      await condition(() => isClosed || known !== ledger, Math.max(1, resetMs - Date.now()));
      rollDay(known, Date.now());
      onChange();
    }
  };

  const inBackground = (work: () => Promise<void>, atEnd: () => void): void => {
    CancellationScope.nonCancellable(work)
      .catch(() => {}) // the next order begins it again
      .finally(atEnd);
  };
  const follow = (): void => {
    const known = ledger;
    if (known === undefined || isClosed) return;
    if (watched !== known && isHeld(known)) {
      watched = known;
      inBackground(
        async () => await watch(known),
        () => {
          if (watched === known) watched = undefined;
        },
      );
    }
    if (isDayFollowed) return;
    isDayFollowed = true;
    inBackground(followDay, () => (isDayFollowed = false));
  };

  setHandler(
    leaseQuota,
    async (wire): Promise<LeaseResult> => {
      if (isClosed) return { state: "moved" };
      return await CancellationScope.nonCancellable(async () => {
        const isNew = !(await ready()).holders.has(wire.holder);
        if (isNew && wire.seq === 1 && !(await rows.openLease({ holder: wire.holder }))) return { state: "gone" };
        const answer = takeOrder(await ready(), orderFromWire(wire), Date.now());
        follow();
        onChange();
        return answerToWire(answer);
      });
    },
    {
      validator(wire) {
        if (!isWellFormedOrder(wire)) throw ApplicationFailure.nonRetryable("the order is malformed", "invalid_request");
      },
    },
  );
  setHandler(endLease, (holder) => {
    if (ledger !== undefined && takeBack(ledger, holder)) follow();
  });
  setHandler(quotaCount, () => {
    if (ledger === undefined || isUnlimited(ledger.limits)) return null;
    const { day, used, overshoot, holders, calls } = ledger;
    const held = amountToWire(heldOf(ledger));
    return { day, used: amountToWire(used), overshoot: amountToWire(overshoot), held, leases: holders.size, calls: calls.size };
  });
  setHandler(quotaBooks, (): QuotaBooks | null => {
    if (ledger === undefined || isUnlimited(ledger.limits)) return null;
    return { today: booksToWire(booksOf(ledger)), ...(ledger.last === undefined ? {} : { last: booksToWire(ledger.last) }) };
  });
  follow();

  return {
    limitsChanged(quota) {
      if (ledger === undefined && preparing === undefined) return;
      limitsAreOld = true;
      if (quota !== undefined && Object.values(quota).every((ceiling) => ceiling === null)) ledger = undefined;
      if (ledger === undefined) return;
      inBackground(async () => void (await ready()), follow);
    },
    close: () => void (isClosed = true),
    carry: () =>
      ledger === undefined
        ? undefined
        : { ...ledgerToWire(ledger), ...(limitsAreOld || preparing !== undefined ? { limitsAreOld: true } : {}) },
    describe() {
      if (ledger === undefined || isUnlimited(ledger.limits)) return [];
      const { day, used, overshoot, holders, calls } = ledger;
      const held = heldOf(ledger);
      return [
        `- ${day} (UTC): ${used.tokens} tokens and ${formatUsd(used.nanoUsd)} USD used` +
          (overshoot.tokens > 0 ? `, ${overshoot.tokens} tokens of it above what was reserved` : ""),
        `- held by ${holders.size} leases and ${calls.size} calls: ${held.tokens} tokens and ${formatUsd(held.nanoUsd)} USD`,
      ];
    },
  };
}
