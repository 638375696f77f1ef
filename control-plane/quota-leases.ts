import { randomUUID } from "node:crypto";
import { isDeepStrictEqual } from "node:util";
import { AppError } from "../domain/app-error.ts";
import { QuotaLease, type Reservation } from "../domain/quota-lease.ts";
import {
  type Amount,
  type HolderId,
  type QuotaLimits,
  type SettledCall,
  type Want,
  covers,
  isUnlimited,
  noAmount,
  plus,
  utcDayOf,
  type UtcDay,
} from "../domain/quota-ledger.ts";
import { answerFromWire, orderToWire } from "../domain/quota-wire.ts";
import type { TenantId } from "../domain/tenant.ts";
import type { CallId } from "../domain/turn-id.ts";
import type { QuotaClient } from "../temporal/quota-client.ts";

/** What a call needs of a quota: what it can begin with, and what it would like. */
export type Need = { readonly least: Amount; readonly desired: Amount };

/** What let a turn in; its row carries it. */
export type Admission = { readonly holder: string; readonly batch: number };

/** How a tenant stands, for the `x-ratelimit-*` headers; `remaining` and `limit` are undefined where there is no ceiling. */
export type QuotaStanding = {
  readonly requests: { readonly limit: number | undefined; readonly remaining: number | undefined; readonly resetSeconds: number };
  readonly tokens: { readonly limit: number | undefined; readonly remaining: number | undefined; readonly resetSeconds: number };
};

/** This process's leases of all tenants' quotas: the hot path spends them in memory. */
export interface QuotaLeases {
  /** Whether the tenant has a ceiling at all. @throws {AppError} `tenant_suspended` */
  isLimited(tenantId: TenantId): Promise<boolean>;
  /** Takes at once what a call needs; undefined when the lease does not hold it now. */
  take(tenantId: TenantId, callId: CallId, need: Need): Reservation | undefined;
  /**
   * The same, waiting for the lease to hold it.
   * @throws {AppError} `tokens_per_day`, `cost_per_day_usd` when not even the least is left; `unavailable` when Temporal is away
   */
  reserve(tenantId: TenantId, callId: CallId, need: Need): Promise<Reservation>;
  /** Tells what a call came to; undefined: nothing. */
  settle(tenantId: TenantId, call: SettledCall): void;
  /** The reservation was not written to the call's row, and never will be. */
  giveCallBack(tenantId: TenantId, callId: CallId, reservation: Reservation): void;
  /** Lets one turn in. @throws {AppError} `requests_per_minute`, or a day's ceiling that is reached */
  admit(tenantId: TenantId): Promise<Admission>;
  /** The turn was refused at its first reservation: it does not count. */
  giveBack(tenantId: TenantId, admission: Admission): void;
  /** A row was refused because this lease was taken back: it is given up, and the next one begun. */
  fenced(tenantId: TenantId, holder: HolderId): void;
  /** Undefined when there is no ceiling. */
  standingOf(tenantId: TenantId): Promise<QuotaStanding | undefined>;
  /** Gives the leases back. What they have not reported is found in the rows. */
  close(): Promise<void>;
}

export type QuotaLeasesDeps = {
  /** @throws {AppError} `tenant_suspended` */
  readonly limitsOf: (tenantId: TenantId) => Promise<QuotaLimits>;
  readonly clientOf: (tenantId: TenantId) => { readonly quota: QuotaClient };
  readonly wake: (tenantId: TenantId) => Promise<void>;
  /** Tokens of the calls that ended today, by their rows: what the headers say before the workflow has answered for the first time. */
  readonly usedTokens: (tenantId: TenantId) => Promise<number>;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
};

/** How long a caller waits for quota while Temporal is away. */
const patienceMs = 10_000;
/** How old may be what the `x-ratelimit-*` headers say of other processes. */
const standingAgeMs = 5_000;
/** How long an answer waits for its headers; then they say what was known last, or what the rows say. */
const standingPatienceMs = 250;
/** What was used up is not asked for again for so long: a tenant who floods must not cost an Update for each call that is refused. */
const usedUpForMs = 200;
/** Reports are gathered for so long. */
const reportEveryMs = 1_000;
/** A tenant that nobody called for so long is forgotten; its lease has been taken back by then. */
const forgottenAfterMs = 120_000;

export function createQuotaLeases(deps: QuotaLeasesDeps): QuotaLeases {
  const tenants = new Map<TenantId, TenantLease>();
  const leaseOf = (tenantId: TenantId): TenantLease => {
    const known = tenants.get(tenantId);
    if (known !== undefined) return known;
    const opened = new TenantLease(tenantId, deps);
    tenants.set(tenantId, opened);
    return opened;
  };
  const sweep = setInterval(() => {
    for (const [tenantId, lease] of tenants) if (lease.idleForMs > forgottenAfterMs) tenants.delete(tenantId);
  }, forgottenAfterMs);
  sweep.unref();

  const isLimited = async (tenantId: TenantId): Promise<boolean> => !isUnlimited(await deps.limitsOf(tenantId));

  return {
    isLimited,
    take: (tenantId, callId, need) => leaseOf(tenantId).take(callId, need),
    reserve: async (tenantId, callId, need) => await leaseOf(tenantId).reserve(callId, need),
    settle: (tenantId, call) => leaseOf(tenantId).settle(call),
    giveCallBack: (tenantId, callId, reservation) => leaseOf(tenantId).giveCallBack(callId, reservation),
    admit: async (tenantId) => await leaseOf(tenantId).admit(),
    giveBack: (tenantId, admission) => leaseOf(tenantId).giveBack(admission),
    fenced: (tenantId, holder) => leaseOf(tenantId).fenced(holder),
    standingOf: async (tenantId) => ((await isLimited(tenantId)) ? await leaseOf(tenantId).standing() : undefined),
    async close() {
      clearInterval(sweep);
      await Promise.allSettled([...tenants.values()].map(async (lease) => await lease.close()));
    },
  };
}

type CallWaiter = { readonly callId: CallId; readonly need: Need; readonly untilMs: number; done(result: Reservation | AppError): void };
type TurnWaiter = { readonly untilMs: number; done(result: Admission | AppError): void };

/** One tenant's lease in this process: who waits for it, and the one order that is under way. */
class TenantLease {
  readonly #tenantId: TenantId;
  readonly #deps: QuotaLeasesDeps;
  #lease: QuotaLease | undefined;
  readonly #calls: CallWaiter[] = [];
  readonly #turns: TurnWaiter[] = [];
  #pumping: Promise<void> | undefined;
  #report: NodeJS.Timeout | undefined;
  #lastNeed: Amount = noAmount;
  #lastUsedMs = performance.now();
  #answeredAtMs = Number.NEGATIVE_INFINITY;
  #isClosed = false;

  constructor(tenantId: TenantId, deps: QuotaLeasesDeps) {
    this.#tenantId = tenantId;
    this.#deps = deps;
  }

  get idleForMs(): number {
    const isBusy = this.#pumping !== undefined || this.#lease?.isIdle === false || this.#calls.length + this.#turns.length > 0;
    return isBusy ? 0 : performance.now() - this.#lastUsedMs;
  }

  take(callId: CallId, need: Need): Reservation | undefined {
    this.#lastUsedMs = performance.now();
    this.#lastNeed = need.desired;
    if (this.#calls.length > 0) return undefined; // those who wait come first
    const reservation = this.#lease?.reserve(callId, need, this.#now());
    if (reservation !== undefined) this.#reportSoon();
    return reservation;
  }

  async reserve(callId: CallId, need: Need): Promise<Reservation> {
    const taken = this.take(callId, need);
    if (taken !== undefined) return taken;
    return await this.#wait<Reservation>((done) => this.#calls.push({ callId, need, untilMs: performance.now() + patienceMs, done }));
  }

  async admit(): Promise<Admission> {
    this.#lastUsedMs = performance.now();
    const dayIsOver = this.#dayCeiling() !== undefined;
    const admitted = this.#turns.length > 0 || dayIsOver ? undefined : this.#lease?.admit(performance.now());
    if (admitted !== undefined) {
      this.#reportSoon();
      return admitted;
    }
    const refusal = this.#turns.length > 0 ? undefined : await this.#knownRefusal();
    if (refusal !== undefined) throw refusal;
    return await this.#wait<Admission>((done) => this.#turns.push({ untilMs: performance.now() + patienceMs, done }));
  }

  settle(call: SettledCall): void {
    this.#openLease().settle(call);
    this.#reportSoon();
  }

  /** Of a lease that was taken back meanwhile the rows have told. */
  giveCallBack(callId: CallId, reservation: Reservation): void {
    if (this.#lease?.holder !== reservation.holder) return;
    this.#lease.giveCallBack(callId, reservation);
    this.#reportSoon();
  }

  /** A lease that was taken back meanwhile has been counted without what was refused by then: giving it back again would count it twice. */
  giveBack({ holder, batch }: Admission): void {
    if (this.#lease?.holder !== holder) return;
    this.#lease.giveRequestBack(batch);
    this.#reportSoon();
  }

  fenced(holder: HolderId): void {
    if (this.#lease?.holder !== holder || this.#lease.isGone) return;
    this.#lease.drop();
    this.#lease = undefined;
    const { quota } = this.#deps.clientOf(this.#tenantId);
    quota.endLease(holder).catch(() => {}); // else its time ends
  }

  async standing(): Promise<QuotaStanding | undefined> {
    const isOld = performance.now() - this.#answeredAtMs > standingAgeMs || this.#lease?.answer?.day !== utcDayOf(Date.now());
    if (isOld) await Promise.race([this.#pump(), new Promise((resolve) => setTimeout(resolve, standingPatienceMs))]);
    const answer = this.#lease?.answer;
    if (answer === undefined || this.#lease === undefined) return await this.#standingByRows();
    const { limits, left } = answer;
    return {
      requests: {
        limit: limits.requestsPerMinute,
        remaining: left.requests === undefined ? undefined : left.requests + this.#lease.requests,
        resetSeconds: Math.ceil(answer.requestsAgainInMs / 1_000),
      },
      tokens: {
        limit: limits.tokensPerDay,
        remaining: left.tokens === undefined ? undefined : left.tokens + this.#lease.granted.tokens,
        resetSeconds: secondsToEndOf(answer.day),
      },
    };
  }

  /** Without the workflow nobody knows of calls that are under way, or of this minute's requests. */
  async #standingByRows(): Promise<QuotaStanding> {
    const { requestsPerMinute, tokensPerDay } = await this.#deps.limitsOf(this.#tenantId);
    const left = tokensPerDay === undefined ? undefined : tokensPerDay - (await this.#deps.usedTokens(this.#tenantId));
    return {
      requests: { limit: requestsPerMinute, remaining: requestsPerMinute, resetSeconds: 0 },
      tokens: { limit: tokensPerDay, remaining: left, resetSeconds: secondsToEndOf(utcDayOf(Date.now())) },
    };
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    clearTimeout(this.#report);
    const lease = this.#lease;
    if (lease?.answer === undefined || lease.isGone) return;
    await this.#deps.clientOf(this.#tenantId).quota.endLease(lease.holder);
  }

  async #wait<T>(join: (done: (result: T | AppError) => void) => void): Promise<T> {
    return await new Promise<T>((resolve, reject) => {
      join((result) => (result instanceof AppError ? reject(result) : resolve(result)));
      void this.#pump();
    });
  }

  #reportSoon(): void {
    if (this.#report !== undefined || this.#isClosed) return;
    this.#report = setTimeout(() => {
      this.#report = undefined;
      void this.#pump();
    }, reportEveryMs);
    this.#report.unref();
  }

  /** Sends orders until nobody waits; one loop at a time. Never rejects: whoever waits is told. */
  #pump(): Promise<void> {
    this.#pumping ??= this.#run().finally(() => {
      this.#pumping = undefined;
      if (this.#calls.length + this.#turns.length > 0) void this.#pump();
    });
    return this.#pumping;
  }

  async #run(): Promise<void> {
    let failures = 0;
    for (let fruitless = 0; ;) {
      try {
        const lease = this.#openLease();
        await this.#sendOne(lease, this.#want());
        failures = 0;
        const waited = this.#calls.length + this.#turns.length;
        if (!lease.isGone) this.#serve(lease);
        else if (this.#lease === lease) this.#lease = undefined;
        fruitless = waited > 0 && this.#calls.length + this.#turns.length === waited ? fruitless + 1 : 0;
        if (fruitless > 1) {
          // A clock that is ahead of the workflow's at midnight: nothing can be taken for a moment.
          this.#giveUpOn(
            (untilMs) => untilMs <= performance.now(),
            () => new AppError("unavailable", { client: { retryAfterSeconds: 5 }, why: "no lease could be spent" }),
          );
          await new Promise((resolve) => setTimeout(resolve, Math.min(1_000, 25 * 2 ** fruitless)));
        }
      } catch (error) {
        failures++;
        this.#deps.log("quota was not leased", { tenantId: this.#tenantId, failures, error: String(error) });
        this.#giveUpOn(
          (untilMs) => untilMs <= performance.now(),
          () => new AppError("unavailable", { client: { retryAfterSeconds: 5 } }),
        );
        if (this.#calls.length + this.#turns.length > 0)
          await new Promise((resolve) => setTimeout(resolve, Math.min(1_000, 50 * 2 ** failures)));
        else if (failures > 5) return; // what is unreported is found in the rows
        else await new Promise((resolve) => setTimeout(resolve, 1_000));
      }
      if (this.#calls.length + this.#turns.length === 0 && failures === 0) return;
    }
  }

  #openLease(): QuotaLease {
    if (this.#lease === undefined || this.#lease.isGone) this.#lease = new QuotaLease(randomUUID());
    return this.#lease;
  }

  async #sendOne(lease: QuotaLease, want: Want): Promise<void> {
    const order = lease.order(want, performance.now());
    if (order === undefined) return;
    await this.#deps.wake(this.#tenantId);
    const result = await this.#deps.clientOf(this.#tenantId).quota.lease(orderToWire(order));
    const answer = answerFromWire(result);
    lease.take(answer);
    if (!lease.isGone) this.#answeredAtMs = performance.now();
  }

  #want(): Want {
    const [first] = this.#calls;
    return {
      calls: this.#calls.length,
      least: first?.need.least ?? noAmount,
      first: first?.need.desired ?? this.#lastNeed,
      total: this.#calls.reduce((sum, { need }) => plus(sum, need.desired), noAmount),
      requests: this.#turns.length,
    };
  }

  /** Gives what has come to those who wait, in order; refuses those for whom nothing is left. */
  #serve(lease: QuotaLease): void {
    for (let next = this.#calls[0]; next !== undefined; next = this.#calls[0]) {
      const { callId, need, done } = next;
      const reservation = lease.reserve(callId, shareOf(lease.granted, need, this.#calls.length), this.#now());
      const ceiling = reservation === undefined ? this.#ceilingFor(need.least) : undefined;
      if (reservation === undefined && ceiling === undefined) break;
      this.#calls.shift();
      done(reservation ?? (ceiling as AppError));
    }
    const dayCeiling = this.#dayCeiling();
    for (let next = this.#turns[0]; next !== undefined; next = this.#turns[0]) {
      const admission = dayCeiling === undefined ? lease.admit(performance.now()) : undefined;
      const ceiling = admission === undefined ? (dayCeiling ?? this.#minuteCeiling()) : undefined;
      if (admission === undefined && ceiling === undefined) break;
      this.#turns.shift();
      next.done(admission ?? (ceiling as AppError));
    }
    if (!lease.isIdle) this.#reportSoon();
  }

  /** What keeps `least` from being given: the ceiling whose rest, together with what this process holds, is below it. */
  #ceilingFor(least: Amount): AppError | undefined {
    const answer = this.#lease?.answer;
    if (answer === undefined || this.#lease === undefined) return undefined;
    const { left } = answer;
    const { granted } = this.#lease;
    if (left.tokens !== undefined && left.tokens + granted.tokens < least.tokens) return ceiling("tokens_per_day", answer.day);
    if (left.nanoUsd !== undefined && left.nanoUsd + granted.nanoUsd < least.nanoUsd) return ceiling("cost_per_day_usd", answer.day);
    return undefined;
  }

  #dayCeiling(): AppError | undefined {
    return this.#ceilingFor({ tokens: 1, nanoUsd: 1n as Amount["nanoUsd"] });
  }

  #minuteCeiling(): AppError | undefined {
    const answer = this.#lease?.answer;
    if (answer?.left.requests !== 0) return undefined;
    return new AppError("requests_per_minute", { client: { retryAfterSeconds: Math.max(1, Math.ceil(answer.requestsAgainInMs / 1_000)) } });
  }

  /** What a call was refused for a moment ago, unless limits have changed since, or something is to be reported that may free some. */
  async #knownRefusal(): Promise<AppError | undefined> {
    const answer = this.#lease?.answer;
    if (answer === undefined || performance.now() - this.#answeredAtMs > usedUpForMs) return undefined;
    const refusal = this.#minuteCeiling() ?? (this.#lease?.isIdle === true ? this.#dayCeiling() : undefined);
    return refusal !== undefined && isDeepStrictEqual(await this.#deps.limitsOf(this.#tenantId), answer.limits) ? refusal : undefined;
  }

  #giveUpOn(isOver: (untilMs: number) => boolean, reason: () => AppError): void {
    for (const waiters of [this.#calls, this.#turns]) {
      for (let next = waiters[0]; next !== undefined && isOver(next.untilMs); next = waiters[0]) {
        waiters.shift();
        next.done(reason());
      }
    }
  }

  #now(): { monotonicMs: number; wallMs: number } {
    return { monotonicMs: performance.now(), wallMs: Date.now() };
  }
}

/** Where little has come for many, each gets its part, but no less than it can begin with. */
function shareOf(granted: Amount, { least, desired }: Need, waiting: number): Need {
  const part: Amount = {
    tokens: Math.max(least.tokens, Math.floor(granted.tokens / waiting)),
    nanoUsd: biggest(least.nanoUsd, (granted.nanoUsd / BigInt(waiting)) as Amount["nanoUsd"]),
  };
  return {
    least,
    desired: covers(part, desired)
      ? desired
      : { tokens: Math.min(desired.tokens, part.tokens), nanoUsd: smallest(desired.nanoUsd, part.nanoUsd) },
  };
}

const biggest = (a: Amount["nanoUsd"], b: Amount["nanoUsd"]): Amount["nanoUsd"] => (a > b ? a : b);
const smallest = (a: Amount["nanoUsd"], b: Amount["nanoUsd"]): Amount["nanoUsd"] => (a < b ? a : b);

const dayMs = 86_400_000;
/** Of the workflow's day, which is the one that the counters are of: this process's clock may be a little ahead of it, or behind. */
const secondsToEndOf = (day: UtcDay): number => Math.max(1, Math.ceil((Date.parse(day) + dayMs - Date.now()) / 1_000));
const ceiling = (code: "tokens_per_day" | "cost_per_day_usd", day: UtcDay): AppError =>
  new AppError(code, { client: { retryAfterSeconds: secondsToEndOf(day) } });
