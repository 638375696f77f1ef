import type { NanoUsd } from "./money.ts";
import {
  type Amount,
  type DayBooks,
  type HolderId,
  type LeaseAnswer,
  type LeaseOrder,
  type QuotaLedger,
  type QuotaLimits,
  type CallRow,
  type ReservationId,
  type SecondOfReports,
  type RowFate,
  type UtcDay,
  keyOf,
} from "./quota-ledger.ts";
import type { CallId } from "./turn-id.ts";

/** Quota messages and state as JSON holds them: money is decimal text, what has no ceiling is null, maps are lists. */

export type AmountWire = { readonly tokens: number; readonly nanoUsd: string };
export type LimitsWire = {
  readonly tokensPerDay: number | null;
  readonly nanoUsdPerDay: string | null;
  readonly requestsPerMinute: number | null;
};

const money = (text: string): NanoUsd => BigInt(text) as NanoUsd;
const orNull = <T>(value: T | undefined): T | null => value ?? null;
const orNone = <T>(value: T | null): T | undefined => value ?? undefined;

export const amountToWire = ({ tokens, nanoUsd }: Amount): AmountWire => ({ tokens, nanoUsd: nanoUsd.toString() });
export const amountFromWire = ({ tokens, nanoUsd }: AmountWire): Amount => ({ tokens, nanoUsd: money(nanoUsd) });

export const limitsToWire = ({ tokensPerDay, nanoUsdPerDay, requestsPerMinute }: QuotaLimits): LimitsWire => ({
  tokensPerDay: orNull(tokensPerDay),
  nanoUsdPerDay: nanoUsdPerDay === undefined ? null : nanoUsdPerDay.toString(),
  requestsPerMinute: orNull(requestsPerMinute),
});
export const limitsFromWire = ({ tokensPerDay, nanoUsdPerDay, requestsPerMinute }: LimitsWire): QuotaLimits => ({
  tokensPerDay: orNone(tokensPerDay),
  nanoUsdPerDay: nanoUsdPerDay === null ? undefined : money(nanoUsdPerDay),
  requestsPerMinute: orNone(requestsPerMinute),
});

export type OrderWire = {
  readonly holder: HolderId;
  readonly seq: number;
  readonly opened: readonly { readonly callId: CallId; readonly day: UtcDay; readonly reserved: AmountWire }[];
  readonly settled: readonly (ReservationId & { readonly actual: AmountWire | null })[];
  readonly requestsSpent: number;
  readonly requestsGivenBack: readonly number[];
  readonly want: {
    readonly calls: number;
    readonly least: AmountWire;
    readonly first: AmountWire;
    readonly total: AmountWire;
    readonly requests: number;
  };
};

export const orderToWire = (order: LeaseOrder): OrderWire => ({
  ...order,
  opened: order.opened.map((call) => ({ ...call, reserved: amountToWire(call.reserved) })),
  settled: order.settled.map(({ actual, ...id }) => ({ ...id, actual: actual === undefined ? null : amountToWire(actual) })),
  want: {
    ...order.want,
    least: amountToWire(order.want.least),
    first: amountToWire(order.want.first),
    total: amountToWire(order.want.total),
  },
});

/** Whether an order can be taken: one that cannot would fail its workflow task again and again. */
export function isWellFormedOrder({ holder, seq, opened, settled, requestsSpent, requestsGivenBack, want }: OrderWire): boolean {
  return (
    /^[!-~]{1,64}$/.test(holder) &&
    isCount(seq) &&
    seq > 0 &&
    opened.length + settled.length <= 10_000 &&
    opened.every(({ callId, day, reserved }) => callId !== "" && /^\d{4}-\d\d-\d\d$/.test(day) && isAmount(reserved)) &&
    settled.every(
      ({ callId, holder: by, batch, actual }) => callId !== "" && by !== "" && isCount(batch) && (actual === null || isAmount(actual)),
    ) &&
    [requestsSpent, ...requestsGivenBack, want.calls, want.requests].every(isCount) &&
    [want.least, want.first, want.total].every(isAmount)
  );
}

const isCount = (value: number): boolean => Number.isSafeInteger(value) && value >= 0;
const isAmount = ({ tokens, nanoUsd }: AmountWire): boolean => isCount(tokens) && /^\d{1,30}$/.test(nanoUsd);

export const orderFromWire = (order: OrderWire): LeaseOrder => ({
  ...order,
  opened: order.opened.map((call) => ({ ...call, reserved: amountFromWire(call.reserved) })),
  settled: order.settled.map(({ actual, ...id }) => ({ ...id, actual: actual === null ? undefined : amountFromWire(actual) })),
  want: {
    ...order.want,
    least: amountFromWire(order.want.least),
    first: amountFromWire(order.want.first),
    total: amountFromWire(order.want.total),
  },
});

export type AnswerWire =
  | {
      readonly state: "granted";
      readonly seq: number;
      readonly day: UtcDay;
      readonly granted: AmountWire;
      readonly requests: number;
      readonly left: { readonly tokens: number | null; readonly nanoUsd: string | null; readonly requests: number | null };
      readonly limits: LimitsWire;
      readonly requestsAgainInMs: number;
    }
  | { readonly state: "gone" };

export const answerToWire = (answer: LeaseAnswer): AnswerWire =>
  answer.state === "gone"
    ? answer
    : {
        ...answer,
        granted: amountToWire(answer.granted),
        left: {
          tokens: orNull(answer.left.tokens),
          nanoUsd: answer.left.nanoUsd === undefined ? null : answer.left.nanoUsd.toString(),
          requests: orNull(answer.left.requests),
        },
        limits: limitsToWire(answer.limits),
      };

export const answerFromWire = (answer: AnswerWire): LeaseAnswer =>
  answer.state === "gone"
    ? answer
    : {
        ...answer,
        granted: amountFromWire(answer.granted),
        left: {
          tokens: orNone(answer.left.tokens),
          nanoUsd: answer.left.nanoUsd === null ? undefined : money(answer.left.nanoUsd),
          requests: orNone(answer.left.requests),
        },
        limits: limitsFromWire(answer.limits),
      };

export type FateWire =
  | { readonly state: "started"; readonly reserved: AmountWire }
  | { readonly state: "done"; readonly reserved: AmountWire; readonly actual: AmountWire }
  | { readonly state: "void" | "missing" };

const fateFromWire = (fate: FateWire): RowFate => {
  switch (fate.state) {
    case "started":
      return { state: "started", reserved: amountFromWire(fate.reserved) };
    case "done":
      return { state: "done", reserved: amountFromWire(fate.reserved), actual: amountFromWire(fate.actual) };
    case "void":
    case "missing":
      return { state: fate.state };
  }
};

export type CallRowWire = ReservationId & { readonly day: UtcDay; readonly fate: FateWire };

export const callRowFromWire = ({ fate, ...row }: CallRowWire): CallRow => ({ ...row, ...fateFromWire(fate) });

export type DayBooksWire = Omit<DayBooks, "used"> & { readonly used: AmountWire };
export const booksToWire = (books: DayBooks): DayBooksWire => ({ ...books, used: amountToWire(books.used) });
export const booksFromWire = (books: DayBooksWire): DayBooks => ({ ...books, used: amountFromWire(books.used) });

/** The books of the day that a tenant's workflow is in, and of the one before it where it remembers one. */
export type QuotaBooks = { readonly today: DayBooksWire; readonly last?: DayBooksWire };

/** A ledger as its workflow carries it to the next run. */
export type LedgerWire = {
  readonly limits: LimitsWire;
  readonly day: UtcDay;
  readonly used: AmountWire;
  readonly overshoot: AmountWire;
  /** Absent before the first midnight, and in ledgers of earlier versions. */
  readonly last?: DayBooksWire;
  readonly holders: readonly {
    readonly id: HolderId;
    readonly seq: number;
    readonly answer: AnswerWire;
    readonly granted: AmountWire;
    readonly requests: number;
    readonly untilMs: number;
    readonly isRecovering?: true;
    readonly reports: readonly SecondOfReports[];
  }[];
  readonly calls: readonly (ReservationId & { readonly reserved: AmountWire; readonly checkedAtMs: number })[];
  readonly requests: readonly (readonly [second: number, count: number])[];
  /** They changed and have not been read since. */
  readonly limitsAreOld?: true;
};

export const ledgerToWire = (ledger: QuotaLedger): LedgerWire => ({
  limits: limitsToWire(ledger.limits),
  day: ledger.day,
  used: amountToWire(ledger.used),
  overshoot: amountToWire(ledger.overshoot),
  ...(ledger.last === undefined ? {} : { last: booksToWire(ledger.last) }),
  holders: [...ledger.holders].map(([id, { seq, answer, granted, requests, untilMs, isRecovering, reports }]) => ({
    id,
    seq,
    answer: answerToWire(answer),
    granted: amountToWire(granted),
    requests,
    untilMs,
    reports,
    ...(isRecovering ? { isRecovering } : {}),
  })),
  calls: [...ledger.calls.values()].map((call) => ({ ...call, reserved: amountToWire(call.reserved) })),
  requests: [...ledger.requests],
});

/** A recovery that was under way begins again, since fencing and reading are safe to repeat; its lease stays refused. */
export const ledgerFromWire = (wire: LedgerWire): QuotaLedger => ({
  limits: limitsFromWire(wire.limits),
  day: wire.day,
  used: amountFromWire(wire.used),
  overshoot: amountFromWire(wire.overshoot),
  last: wire.last === undefined ? undefined : booksFromWire(wire.last),
  holders: new Map(
    wire.holders.map(({ id, isRecovering = false, ...holder }) => [
      id,
      { ...holder, answer: answerFromWire(holder.answer), granted: amountFromWire(holder.granted), isRecovering },
    ]),
  ),
  calls: new Map(wire.calls.map((call) => [keyOf(call), { ...call, reserved: amountFromWire(call.reserved) }])),
  requests: new Map(wire.requests),
});
