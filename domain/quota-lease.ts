import {
  type Amount,
  type HolderId,
  type LeaseAnswer,
  type LeaseOrder,
  type OpenedCall,
  type SettledCall,
  type UtcDay,
  type Want,
  covers,
  keyOf,
  leaseSpendMs,
  minus,
  noAmount,
  plus,
  utcDayOf,
} from "./quota-ledger.ts";
import type { CallId } from "./turn-id.ts";

/** What a call took from a lease. Its row must carry all of it before the provider is called. */
export type Reservation = {
  readonly holder: HolderId;
  /** Number of the order that reports it. */
  readonly batch: number;
  readonly day: UtcDay;
  readonly reserved: Amount;
};

/** What one order reports at most of each kind, so that it stays far below what a message may hold. */
const mostPerOrder = 2_000;

type Granted = Extract<LeaseAnswer, { state: "granted" }>;

/**
 * A holder's side of a lease: spends in memory what the workflow has granted, and reports it. One order is under way at a time; an
 * order without an answer is sent again as it was. `nowMs` is monotonic where a lease is spent, so a paused process sees it end.
 */
export class QuotaLease {
  readonly holder: HolderId;
  #seq = 0;
  #underWay: { readonly order: LeaseOrder; readonly sentAtMs: number } | undefined;
  #granted: Amount = noAmount;
  #requests = 0;
  #spendUntilMs = Number.NEGATIVE_INFINITY;
  #opened: OpenedCall[] = [];
  /** Names of reservations that two attempts of a call share. */
  readonly #shared = new Set<string>();
  #settled: SettledCall[] = [];
  #requestsSpent = 0;
  #requestsGivenBack: number[] = [];
  #answer: Granted | undefined;
  #isGone = false;

  constructor(holder: HolderId) {
    this.holder = holder;
  }

  /** The last answer; undefined before the first. */
  get answer(): Granted | undefined {
    return this.#answer;
  }

  /** Whether the workflow has taken the lease back. */
  get isGone(): boolean {
    return this.#isGone;
  }

  get granted(): Amount {
    return this.#granted;
  }

  get requests(): number {
    return this.#requests;
  }

  /** Whether there is nothing to report. */
  get isIdle(): boolean {
    const unreported = this.#opened.length + this.#settled.length + this.#requestsSpent + this.#requestsGivenBack.length;
    return this.#underWay === undefined && unreported === 0;
  }

  /** Takes up to `desired` for a call, at least `least`; undefined when the lease does not hold it now. */
  reserve(
    callId: CallId,
    { least, desired }: { least: Amount; desired: Amount },
    now: { monotonicMs: number; wallMs: number },
  ): Reservation | undefined {
    const day = this.#answer?.day;
    if (this.#opened.length === mostPerOrder) return undefined;
    if (day === undefined || !this.#isSpendable(now.monotonicMs) || utcDayOf(now.wallMs) > day || !covers(this.#granted, least))
      return undefined;
    const reserved = {
      tokens: Math.min(desired.tokens, this.#granted.tokens),
      nanoUsd: desired.nanoUsd < this.#granted.nanoUsd ? desired.nanoUsd : this.#granted.nanoUsd,
    };
    this.#granted = minus(this.#granted, reserved);
    const id = { callId, holder: this.holder, batch: this.#nextSeq };
    if (this.#opened.some((opened) => opened.callId === callId)) this.#shared.add(keyOf(id));
    this.#opened.push({ callId, day, reserved });
    return { holder: id.holder, batch: id.batch, day, reserved };
  }

  /**
   * No row carries the reservation, and none will. What is not reported yet can be spent again. Of two attempts with one name nobody
   * knows here whose row is written, so what they hold is looked up as if nothing had been said.
   */
  giveCallBack(callId: CallId, { batch, day, reserved }: Reservation): void {
    if (this.#isGone || this.#shared.has(keyOf({ callId, holder: this.holder, batch }))) return;
    if (batch < this.#nextSeq) return this.settle({ callId, holder: this.holder, batch, actual: undefined });
    this.#opened = this.#opened.filter((opened) => opened.callId !== callId);
    if (day === this.#answer?.day) this.#granted = plus(this.#granted, reserved);
  }

  /** Takes one request; undefined when none is left. `batch` goes into the turn's row. */
  admit(monotonicMs: number): { readonly holder: HolderId; readonly batch: number } | undefined {
    if (this.#requests === 0 || !this.#isSpendable(monotonicMs)) return undefined;
    this.#requests--;
    this.#requestsSpent++;
    return { holder: this.holder, batch: this.#nextSeq };
  }

  settle(settled: SettledCall): void {
    this.#settled.push(settled);
  }

  /** `batch`: of its admission. */
  giveRequestBack(batch: number): void {
    this.#requestsGivenBack.push(batch);
  }

  /** The next order, or the one that is under way still; undefined when the lease is gone. */
  order(want: Want, monotonicMs: number): LeaseOrder | undefined {
    if (this.#isGone) return undefined;
    if (this.#underWay === undefined) {
      const order: LeaseOrder = {
        holder: this.holder,
        seq: this.#nextSeq,
        opened: this.#opened,
        settled: this.#settled.splice(0, mostPerOrder),
        requestsSpent: this.#requestsSpent,
        requestsGivenBack: this.#requestsGivenBack,
        want,
      };
      this.#opened = [];
      this.#requestsSpent = 0;
      this.#requestsGivenBack = [];
      this.#underWay = { order, sentAtMs: monotonicMs };
    }
    return this.#underWay.order;
  }

  take(answer: LeaseAnswer): void {
    const underWay = this.#underWay;
    if (underWay === undefined || this.#isGone) return;
    if (answer.state === "gone") return this.drop();
    if (answer.seq !== underWay.order.seq) return;
    this.#underWay = undefined;
    this.#seq = answer.seq;
    this.#answer = answer;
    this.#spendUntilMs = underWay.sentAtMs + leaseSpendMs;
    // What was taken since the order was written is not in the answer.
    this.#granted = this.#opened
      .filter(({ day }) => day === answer.day)
      .reduce((rest, { reserved }) => minus(rest, reserved), answer.granted);
    this.#requests = answer.requests - this.#requestsSpent;
  }

  /** The lease was taken back: what it has not reported is found in the rows. */
  drop(): void {
    this.#isGone = true;
    this.#granted = noAmount;
    this.#requests = 0;
  }

  get #nextSeq(): number {
    return (this.#underWay?.order.seq ?? this.#seq) + 1;
  }

  #isSpendable(monotonicMs: number): boolean {
    return !this.#isGone && monotonicMs < this.#spendUntilMs;
  }
}
