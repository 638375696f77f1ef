import { ApplicationFailure, CancellationScope, condition, proxyActivities, setHandler } from "@temporalio/workflow";
import type { QuotaActivities } from "../activities/quota-activities.ts";
import {
  type HolderId,
  type QuotaLedger,
  applyFate,
  beginRecovery,
  callsToCheck,
  nextDueMs,
  openLedger,
  recover,
  takeOrder,
} from "../domain/quota-ledger.ts";
import {
  type LedgerWire,
  amountFromWire,
  answerToWire,
  fateFromWire,
  ledgerFromWire,
  ledgerToWire,
  limitsFromWire,
  orderFromWire,
  recoveredFromWire,
} from "../domain/quota-wire.ts";
import { type LeaseResult, endLease, leaseQuota } from "./quota-messages.ts";

const effects = {
  startToCloseTimeout: "15s",
  heartbeatTimeout: "3s",
  retry: { initialInterval: "100ms", backoffCoefficient: 2, maximumInterval: "5s" },
} as const;
const rows = proxyActivities<QuotaActivities>(effects);

export type QuotaDesk = {
  /** Limits may have changed: they are read again before the next order. */
  limitsChanged(): void;
  /** No order is begun from now on. */
  close(): void;
  /** What the next run goes on with. */
  carry(): LedgerWire | undefined;
};

/**
 * The tenant's quota inside its workflow: answers orders of lease holders, takes back leases whose time is over, and asks the rows
 * about calls that nobody reports on. Everything that decides is `domain/quota-ledger.ts`.
 */
export function openQuotaDesk(carried: LedgerWire | undefined): QuotaDesk {
  let ledger: QuotaLedger | undefined = carried === undefined ? undefined : ledgerFromWire(carried);
  let opening: Promise<QuotaLedger> | undefined;
  let isClosed = false;
  let isWatched = false;
  let limitsAreOld = false;
  const goodbyes = new Set<HolderId>();

  /** A workflow without a memory begins with what the rows say, after every lease was fenced. */
  const read = async (): Promise<QuotaLedger> => {
    const { limits, day, used, calls } = await rows.readQuota();
    const opened = openLedger(limitsFromWire(limits), day, amountFromWire(used));
    for (const { callId, reserved } of calls)
      opened.calls.set(callId, { reserved: amountFromWire(reserved), holder: "", checkedAtMs: Date.now() });
    return opened;
  };
  const open = async (): Promise<QuotaLedger> => {
    opening ??= read();
    try {
      return (ledger ??= await opening);
    } finally {
      opening = undefined;
    }
  };

  const readLimits = async (known: QuotaLedger): Promise<void> => {
    if (!limitsAreOld) return;
    limitsAreOld = false;
    known.limits = limitsFromWire(await rows.readLimits());
  };

  const isHeld = (known: QuotaLedger): boolean => known.holders.size > 0 || known.calls.size > 0;

  /** Wakes once in a while as long as anything is held, and not at all when nothing is. */
  const watch = async (known: QuotaLedger): Promise<void> => {
    if (isWatched) return;
    isWatched = true;
    while (isHeld(known)) {
      await condition(() => goodbyes.size > 0 || isClosed, Math.max(1_000, nextDueMs(known) - Date.now()));
      if (isClosed) break;
      const nowMs = Date.now();
      for (const recovery of beginRecovery(known, (id, untilMs) => untilMs <= nowMs || goodbyes.has(id))) {
        goodbyes.delete(recovery.holder);
        const { calls, requests } = await rows.recoverLease(recovery);
        recover(known, recovery, calls.map(recoveredFromWire), requests, Date.now());
      }
      for (const id of goodbyes) if (!known.holders.has(id)) goodbyes.delete(id);
      const callIds = callsToCheck(known, Date.now());
      if (callIds.length === 0) continue;
      for (const { callId, fate } of await rows.checkCalls({ callIds })) applyFate(known, callId, fateFromWire(fate), Date.now());
    }
    isWatched = false;
  };
  const startWatching = (known: QuotaLedger): void => {
    CancellationScope.nonCancellable(async () => await watch(known)).catch(() => {
      isWatched = false; // the next order begins it again
    });
  };

  setHandler(
    leaseQuota,
    async (wire): Promise<LeaseResult> => {
      if (isClosed) return { state: "moved" };
      return await CancellationScope.nonCancellable(async () => {
        const known = ledger ?? (await open());
        await readLimits(known);
        if (wire.seq === 1 && !known.holders.has(wire.holder)) await rows.openLease({ holder: wire.holder });
        const answer = takeOrder(known, orderFromWire(wire), Date.now());
        if (isHeld(known)) startWatching(known);
        return answerToWire(answer);
      });
    },
    {
      validator({ holder, seq, opened, settled }) {
        const isWellFormed =
          /^[!-~]{1,64}$/.test(holder) && Number.isSafeInteger(seq) && seq > 0 && opened.length + settled.length <= 10_000;
        if (!isWellFormed) throw ApplicationFailure.nonRetryable("the order is malformed", "invalid_request");
      },
    },
  );
  setHandler(endLease, (holder) => {
    if (ledger?.holders.has(holder) !== true) return;
    goodbyes.add(holder);
    startWatching(ledger);
  });
  if (ledger !== undefined && isHeld(ledger)) startWatching(ledger);

  return {
    limitsChanged: () => void (limitsAreOld = true),
    close: () => void (isClosed = true),
    carry: () => (ledger === undefined ? undefined : ledgerToWire(ledger)),
  };
}
