import type { NanoUsd } from "./money.ts";
import type { CallId } from "./turn-id.ts";

/**
 * The quota of one tenant as its workflow keeps it: pure, so that workflows replay it and tests race it (docs/adr/012).
 * Each unit of the day's limit is in exactly one place: free, a holder's grant, a call, or used.
 */

/** What a day's quota counts. */
export type Amount = { readonly tokens: number; readonly nanoUsd: NanoUsd };

export const noAmount: Amount = { tokens: 0, nanoUsd: 0n as NanoUsd };

/** Undefined: no ceiling. */
export type QuotaLimits = {
  readonly tokensPerDay: number | undefined;
  readonly nanoUsdPerDay: NanoUsd | undefined;
  readonly requestsPerMinute: number | undefined;
};

/** A UTC day, `2026-11-23`. */
export type UtcDay = string;

/** Names one lease of one process, never used again after it was taken back. */
export type HolderId = string;

/**
 * Names one reservation. Attempts of a call may make several, one after the other or at once; the call's row knows one of them, and
 * that one for good.
 */
export type ReservationId = { readonly callId: CallId; readonly holder: HolderId; readonly batch: number };

/** Its holder and batch are those of the order that reports it. */
export type OpenedCall = { readonly callId: CallId; readonly day: UtcDay; readonly reserved: Amount };

/** `actual` undefined: the call was never billed. */
export type SettledCall = ReservationId & { readonly actual: Amount | undefined };

/** What the calls that wait in a process need. */
export type Want = {
  /** None: what is granted is for calls to come, as long as there is plenty. */
  readonly calls: number;
  /** Of the first in line, or like the last one: what it can begin with, and what it would like. */
  readonly least: Amount;
  readonly first: Amount;
  /** What all of them would like. */
  readonly total: Amount;
  /** Turns that wait at the door. */
  readonly requests: number;
};

export const wantNothing: Want = { calls: 0, least: noAmount, first: noAmount, total: noAmount, requests: 0 };

/** One message of a holder: at most one is under way, and a repeat has the same `seq`. */
export type LeaseOrder = {
  readonly holder: HolderId;
  readonly seq: number;
  readonly opened: readonly OpenedCall[];
  readonly settled: readonly SettledCall[];
  /** Turns admitted since the last message. */
  readonly requestsSpent: number;
  /** By which message those were reported that were refused since and do not count. */
  readonly requestsGivenBack: readonly number[];
  readonly want: Want;
};

export type LeaseAnswer =
  | {
      readonly state: "granted";
      readonly seq: number;
      readonly day: UtcDay;
      /** Everything that the holder may still open calls with, after this order's `opened`. */
      readonly granted: Amount;
      readonly requests: number;
      /** What is free for anybody; undefined where there is no ceiling. */
      readonly left: { readonly tokens: number | undefined; readonly nanoUsd: NanoUsd | undefined; readonly requests: number | undefined };
      readonly limits: QuotaLimits;
      /** Until a request leaves the window, when none is left. */
      readonly requestsAgainInMs: number;
    }
  /** The lease was taken back: its process begins another one. */
  | { readonly state: "gone" };

type Holder = {
  readonly seq: number;
  readonly answer: LeaseAnswer;
  readonly granted: Amount;
  readonly requests: number;
  readonly untilMs: number;
  readonly isRecovering: boolean;
  /** Which of its messages came in which second of the last minute. */
  readonly reports: readonly SecondOfReports[];
};

export type SecondOfReports = { readonly second: number; readonly firstSeq: number; readonly lastSeq: number };

export type HeldCall = ReservationId & { readonly reserved: Amount; readonly checkedAtMs: number };

/**
 * What a ledger has counted of a day, and of which of its rows it cannot have: those that are `open`, and those of `leases` whose
 * batch is above the last that arrived. Every other row of the day that a lease reserved is in `used`, to the digit.
 */
export type DayBooks = {
  readonly day: UtcDay;
  readonly used: Amount;
  readonly open: readonly ReservationId[];
  readonly leases: readonly { readonly holder: HolderId; readonly seq: number }[];
};

export type QuotaLedger = {
  limits: QuotaLimits;
  day: UtcDay;
  used: Amount;
  /** What providers counted above the reservations of the day. */
  overshoot: Amount;
  /** The day before, as it ended. */
  last: DayBooks | undefined;
  readonly holders: Map<HolderId, Holder>;
  /** By `keyOf`. */
  readonly calls: Map<string, HeldCall>;
  /** Admitted turns by second of the epoch, the last minute's only. */
  readonly requests: Map<number, number>;
};

/** What a call's row says; without a reservation its holder is the empty string. */
export type CallRow = ReservationId & { readonly day: UtcDay } & RowFate;

export type RowFate =
  | { readonly state: "started"; readonly reserved: Amount }
  | { readonly state: "done"; readonly reserved: Amount; readonly actual: Amount }
  | { readonly state: "void" | "missing" };

/** How long the workflow keeps a lease that its holder may spend for `leaseSpendMs`. */
const leaseKeptMs = 60_000;
export const leaseSpendMs = 20_000;
const windowSeconds = 60;
const callCheckMs = 60_000;
const clockSkewMs = 60_000;
/** A grant is at most this part of what is free. */
const grantShare = 8;
const leastAhead = 8;
/** With less than so many calls' worth free, nothing is granted ahead of the calls that wait. */
const aheadFrom = 100;

export const utcDayOf = (atMs: number): UtcDay => new Date(atMs).toISOString().slice(0, 10);

/** The nearest time to `atMs` within the day: two clocks may disagree at midnight, and a call is counted in one day only. */
export function withinDay(atMs: number, day: UtcDay): number {
  const startMs = Date.parse(`${day}T00:00:00Z`);
  return Math.min(Math.max(atMs, startMs), startMs + 86_400_000 - 1);
}

export const openLedger = (limits: QuotaLimits, day: UtcDay, used: Amount = noAmount): QuotaLedger => ({
  limits,
  day,
  used,
  overshoot: noAmount,
  last: undefined,
  holders: new Map(),
  calls: new Map(),
  requests: new Map(),
});

/** A new day begins with nothing used or held: what is open belongs to the day of its admission. */
export function rollDay(ledger: QuotaLedger, nowMs: number): void {
  const today = utcDayOf(nowMs);
  if (today <= ledger.day) return;
  ledger.last = booksOf(ledger);
  ledger.day = today;
  ledger.used = noAmount;
  ledger.overshoot = noAmount;
  ledger.calls.clear();
  for (const [id, holder] of ledger.holders) ledger.holders.set(id, { ...holder, granted: noAmount });
}

export const booksOf = ({ day, used, calls, holders }: QuotaLedger): DayBooks => ({
  day,
  used,
  open: [...calls.values()].map(({ callId, holder, batch }) => ({ callId, holder, batch })),
  leases: [...holders].map(([holder, { seq }]) => ({ holder, seq })),
});

/** The answer is a function of holder and seq: a repeat is answered as the first was. */
export function takeOrder(ledger: QuotaLedger, order: LeaseOrder, nowMs: number): LeaseAnswer {
  rollDay(ledger, nowMs);
  forgetOldRequests(ledger, nowMs);
  const known = ledger.holders.get(order.holder);
  if (known === undefined ? order.seq !== 1 : known.isRecovering) return { state: "gone" };
  if (known !== undefined && order.seq === known.seq) return known.answer;
  if (known !== undefined && order.seq !== known.seq + 1) return { state: "gone" };

  let granted = known?.granted ?? noAmount;
  for (const { callId, day, reserved } of order.opened) {
    if (day !== ledger.day) continue;
    granted = minus(granted, reserved);
    const id: ReservationId = { callId, holder: order.holder, batch: order.seq };
    // Two attempts in one order have one name: which of them the row knows is not known here.
    const twin = ledger.calls.get(keyOf(id))?.reserved ?? noAmount;
    hold(ledger, { ...id, reserved: largerOf(twin, reserved), checkedAtMs: nowMs });
  }
  for (const settled of order.settled) endCall(ledger, settled, settled.actual);
  const requestsHeld = Math.max(0, (known?.requests ?? 0) - order.requestsSpent);
  const reports = reportsWith(known?.reports ?? [], order.seq, nowMs);
  countRequests(ledger, order.requestsSpent, nowMs);
  for (const seq of order.requestsGivenBack) giveBack(ledger, reports, seq);

  const others = { ...ledger, holders: new Map(ledger.holders) };
  others.holders.set(order.holder, { ...(known ?? freshHolder), granted, requests: requestsHeld });
  const free = freeOf(others);
  granted = plus(granted, grantOf(free, granted, order.want, aheadOf(order.opened.length)));
  const requests = requestsHeld + requestGrantOf(free.requests, requestsHeld, order.want.requests, aheadOf(order.requestsSpent));
  ledger.holders.set(order.holder, { ...freshHolder, granted, requests });
  const answer: LeaseAnswer = {
    state: "granted",
    seq: order.seq,
    day: ledger.day,
    granted,
    requests,
    left: freeOf(ledger),
    limits: ledger.limits,
    requestsAgainInMs: requestsAgainInMs(ledger, nowMs),
  };
  ledger.holders.set(order.holder, {
    seq: order.seq,
    answer,
    granted,
    requests,
    untilMs: nowMs + leaseKeptMs,
    isRecovering: false,
    reports,
  });
  return answer;
}

const freshHolder = {
  seq: 0,
  answer: { state: "gone" },
  granted: noAmount,
  requests: 0,
  untilMs: 0,
  isRecovering: false,
  reports: [],
} as const;

export type Recovery = {
  readonly holder: HolderId;
  /** Calls of later batches were never reported. */
  readonly afterBatch: number;
  readonly callIds: readonly CallId[];
};

/** The lease is to be taken back without waiting for its end. @returns whether there is such a lease */
export function takeBack(ledger: QuotaLedger, id: HolderId): boolean {
  const holder = ledger.holders.get(id);
  if (holder !== undefined) ledger.holders.set(id, { ...holder, isRecovering: true });
  return holder !== undefined;
}

/** New ceilings. Where one is lower, what was granted under the old ones is taken back. */
export function changeLimits(ledger: QuotaLedger, limits: QuotaLimits): void {
  const isLowered =
    isLower(limits.tokensPerDay, ledger.limits.tokensPerDay) ||
    isLower(limits.nanoUsdPerDay, ledger.limits.nanoUsdPerDay) ||
    isLower(limits.requestsPerMinute, ledger.limits.requestsPerMinute);
  ledger.limits = limits;
  if (isLowered) for (const id of ledger.holders.keys()) takeBack(ledger, id);
}

const isLower = <T extends number | bigint>(now: T | undefined, before: T | undefined): boolean =>
  now !== undefined && (before === undefined || now < before);

export const isUnlimited = ({ tokensPerDay, nanoUsdPerDay, requestsPerMinute }: QuotaLimits): boolean =>
  tokensPerDay === undefined && nanoUsdPerDay === undefined && requestsPerMinute === undefined;

/** Leases whose time is over, or that are to be taken back: each must be fenced, its rows read, and `recover` called with them. */
export function beginRecovery(ledger: QuotaLedger, nowMs: number): readonly Recovery[] {
  const recoveries: Recovery[] = [];
  for (const [id, holder] of ledger.holders) {
    if (!holder.isRecovering && holder.untilMs > nowMs && !isAhead(holder.untilMs - leaseKeptMs, nowMs)) continue;
    ledger.holders.set(id, { ...holder, isRecovering: true });
    recoveries.push({ holder: id, afterBatch: holder.seq, callIds: callsOf(ledger, id) });
  }
  return recoveries;
}

/** What a fenced lease's rows say: unreported calls are counted, and what is left of the grant is free again. */
export function recover(
  ledger: QuotaLedger,
  { holder, afterBatch }: Recovery,
  rows: readonly CallRow[],
  requestsSpent: number,
  nowMs: number,
): void {
  rollDay(ledger, nowMs);
  if (ledger.holders.get(holder)?.isRecovering !== true) return;
  const byCall = new Map(rows.map((row) => [row.callId, row]));
  for (const held of ledger.calls.values()) {
    if (held.holder !== holder) continue;
    const row = byCall.get(held.callId);
    // A reservation that is not in its row now never will be.
    if (row === undefined || keyOf(row) !== keyOf(held)) endCall(ledger, held, undefined);
  }
  for (const row of byCall.values()) {
    const isUnreported = row.holder === holder && row.batch > afterBatch;
    if (isUnreported && row.day === ledger.day && "reserved" in row) hold(ledger, { ...row, checkedAtMs: nowMs });
  }
  applyRows(ledger, rows, nowMs);
  countRequests(ledger, requestsSpent, nowMs);
  ledger.holders.delete(holder);
}

/** Calls that nobody has reported on for a while: their rows decide. */
export const callsToCheck = (ledger: QuotaLedger, nowMs: number): readonly CallId[] =>
  idsOf([...ledger.calls.values()].filter(({ checkedAtMs }) => nowMs - checkedAtMs >= callCheckMs || isAhead(checkedAtMs, nowMs)));

/** Whether a lease waits to be taken back. */
export const hasRecovery = ({ holders }: QuotaLedger): boolean => [...holders.values()].some(({ isRecovering }) => isRecovering);

/** Whether a time that was noted is one that has not come: the clock went back since, by more than two servers' clocks differ. */
export const isAhead = (atMs: number, nowMs: number): boolean => atMs > nowMs + clockSkewMs;

/** When a lease is over, or a call is to be checked, at the earliest. */
export const nextDueMs = ({ holders, calls }: QuotaLedger): number =>
  Math.min(
    ...[...holders.values()].map(({ untilMs }) => untilMs),
    ...[...calls.values()].map(({ checkedAtMs }) => checkedAtMs + callCheckMs),
  );

/** What rows say of calls that are held. */
export function applyRows(ledger: QuotaLedger, rows: readonly CallRow[], nowMs: number): void {
  const byCall = new Map(rows.map((row) => [row.callId, row]));
  for (const held of ledger.calls.values()) {
    const row = byCall.get(held.callId);
    if (row === undefined) continue;
    const isInRow = keyOf(row) === keyOf(held);
    // Its process may still write the row; once its lease is fenced, the recovery tells.
    const mayCome = row.state === "missing" || (row.state === "started" && row.holder === "");
    if (isInRow ? row.state === "started" : mayCome) hold(ledger, { ...held, checkedAtMs: nowMs });
    else endCall(ledger, held, isInRow && row.state === "done" ? row.actual : undefined);
  }
}

export const keyOf = ({ callId, holder, batch }: ReservationId): string => `${callId} ${holder} ${batch}`;

export function hold(ledger: QuotaLedger, { callId, holder, batch, reserved, checkedAtMs }: HeldCall): void {
  ledger.calls.set(keyOf({ callId, holder, batch }), { callId, holder, batch, reserved, checkedAtMs });
}

/** Settling what is unknown or ended changes nothing. */
function endCall(ledger: QuotaLedger, id: ReservationId, actual: Amount | undefined): void {
  const held = ledger.calls.get(keyOf(id));
  if (held === undefined) return;
  ledger.calls.delete(keyOf(id));
  if (actual !== undefined) use(ledger, held.reserved, actual);
}

function use(ledger: QuotaLedger, reserved: Amount, actual: Amount): void {
  ledger.used = plus(ledger.used, actual);
  ledger.overshoot = plus(ledger.overshoot, atLeastNothing(minus(actual, reserved)));
}

const callsOf = (ledger: QuotaLedger, id: HolderId): readonly CallId[] =>
  idsOf([...ledger.calls.values()].filter(({ holder }) => holder === id));

const idsOf = (calls: readonly HeldCall[]): readonly CallId[] => [...new Set(calls.map(({ callId }) => callId))];

export const plus = (a: Amount, b: Amount): Amount => ({ tokens: a.tokens + b.tokens, nanoUsd: (a.nanoUsd + b.nanoUsd) as NanoUsd });
export const minus = (a: Amount, b: Amount): Amount => ({ tokens: a.tokens - b.tokens, nanoUsd: (a.nanoUsd - b.nanoUsd) as NanoUsd });
export const covers = (a: Amount, b: Amount): boolean => a.tokens >= b.tokens && a.nanoUsd >= b.nanoUsd;
const least = (a: bigint, b: bigint): NanoUsd => (a < b ? a : b) as NanoUsd;
const most = (a: bigint, b: bigint): NanoUsd => (a > b ? a : b) as NanoUsd;
const largerOf = (a: Amount, b: Amount): Amount => ({ tokens: Math.max(a.tokens, b.tokens), nanoUsd: most(a.nanoUsd, b.nanoUsd) });
const atLeastNothing = ({ tokens, nanoUsd }: Amount): Amount => ({ tokens: Math.max(0, tokens), nanoUsd: most(nanoUsd, 0n) });

/** What leases and calls hold of the day. */
export const heldOf = ({ holders, calls }: QuotaLedger): Amount =>
  [...[...holders.values()].map(({ granted }) => granted), ...[...calls.values()].map(({ reserved }) => reserved)].reduce(plus, noAmount);

type Free = { readonly tokens: number | undefined; readonly nanoUsd: NanoUsd | undefined; readonly requests: number | undefined };

/** What nobody holds or has used. */
export function freeOf({ limits, used, holders, calls, requests }: QuotaLedger): Free {
  let taken = used;
  let requestsTaken = 0;
  for (const holder of holders.values()) {
    taken = plus(taken, holder.granted);
    requestsTaken += holder.requests;
  }
  for (const { reserved } of calls.values()) taken = plus(taken, reserved);
  for (const count of requests.values()) requestsTaken += count;
  return {
    tokens: limits.tokensPerDay === undefined ? undefined : Math.max(0, limits.tokensPerDay - taken.tokens),
    nanoUsd: limits.nanoUsdPerDay === undefined ? undefined : most(limits.nanoUsdPerDay - taken.nanoUsd, 0n),
    requests: limits.requestsPerMinute === undefined ? undefined : Math.max(0, limits.requestsPerMinute - requestsTaken),
  };
}

/** How many calls ahead a holder is granted while there is plenty: twice what it took since its last order. */
const aheadOf = (taken: number): number => Math.max(leastAhead, 2 * taken);

/** What a holder gets beside what it has: plenty ahead of its calls while there is plenty, and one call at a time near the limit. */
function grantOf({ tokens, nanoUsd }: Free, has: Amount, want: Want, aheadCalls: number): Amount {
  const dimensions = [
    dimension(tokens === undefined ? undefined : BigInt(tokens), BigInt(has.tokens), want, aheadCalls, ({ tokens: value }) =>
      BigInt(value),
    ),
    dimension(nanoUsd, has.nanoUsd, want, aheadCalls, ({ nanoUsd: value }) => value),
  ] as const;
  const [grantedTokens, grantedNanoUsd] = dimensions;
  // A call needs both: half of what it needs would only be kept from others.
  if (grantedTokens === undefined || grantedNanoUsd === undefined) return noAmount;
  return { tokens: Number(grantedTokens), nanoUsd: grantedNanoUsd as NanoUsd };
}

function dimension(
  free: bigint | undefined,
  has: bigint,
  want: Want,
  aheadCalls: number,
  of: (amount: Amount) => bigint,
): bigint | undefined {
  const missing = (target: bigint): bigint => most(target - has, 0n);
  const first = of(want.first);
  if (want.calls === 0 && free !== undefined && free < first * BigInt(aheadFrom)) return 0n;
  const ahead = most(of(want.total), first * BigInt(aheadCalls));
  if (free === undefined) return missing(ahead);
  const share = free / BigInt(grantShare);
  if (free >= first * BigInt(aheadFrom)) return least(missing(ahead), share);
  if (share >= first) return least(missing(of(want.total)), share);
  const fair = most(free / BigInt(want.calls), of(want.least));
  const grant = missing(least(first, fair));
  return grant <= free ? grant : undefined;
}

function requestGrantOf(free: number | undefined, has: number, waiting: number, aheadRequests: number): number {
  if (waiting === 0) return 0;
  const ahead = Math.max(waiting, aheadRequests);
  if (free === undefined) return Math.max(0, ahead - has);
  const target = free >= aheadFrom ? Math.max(waiting, Math.min(ahead, Math.floor(free / grantShare))) : waiting;
  return Math.min(free, Math.max(0, target - has));
}

export function countRequests({ requests }: QuotaLedger, count: number, nowMs: number): void {
  const second = secondOf(nowMs);
  if (count > 0) requests.set(second, (requests.get(second) ?? 0) + count);
}

/** A turn that was refused leaves the second in which it was counted, or none when that has left the window. */
function giveBack({ requests }: QuotaLedger, reports: readonly SecondOfReports[], seq: number): void {
  const report = reports.find(({ firstSeq, lastSeq }) => firstSeq <= seq && seq <= lastSeq);
  const count = report === undefined ? 0 : (requests.get(report.second) ?? 0);
  if (report !== undefined && count > 0) requests.set(report.second, count - 1);
}

function reportsWith(known: readonly SecondOfReports[], seq: number, nowMs: number): readonly SecondOfReports[] {
  const second = secondOf(nowMs);
  const recent = known.filter((report) => report.second >= second - windowSeconds);
  const last = recent.at(-1);
  return last?.second === second ? recent.with(-1, { ...last, lastSeq: seq }) : [...recent, { second, firstSeq: seq, lastSeq: seq }];
}

const secondOf = (atMs: number): number => Math.floor(atMs / 1_000);

/** After a clock went back, requests of seconds to come count in this one: nobody is refused until those have passed. */
function forgetOldRequests({ requests }: QuotaLedger, nowMs: number): void {
  const now = secondOf(nowMs);
  for (const [second, count] of [...requests]) {
    if (second >= now - windowSeconds && second <= now) continue;
    requests.delete(second);
    if (second > now) requests.set(now, (requests.get(now) ?? 0) + count);
  }
}

function requestsAgainInMs({ requests }: QuotaLedger, nowMs: number): number {
  const first = Math.min(...[...requests].filter(([, count]) => count > 0).map(([second]) => second));
  return Number.isFinite(first) ? Math.max(0, (first + windowSeconds + 1) * 1_000 - nowMs) : 0;
}
