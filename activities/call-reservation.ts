import type { QuotaLeases } from "../control-plane/quota-leases.ts";
import { AppError } from "../domain/app-error.ts";
import type { MarkupPpm, NanoUsd } from "../domain/money.ts";
import type { Reservation } from "../domain/quota-lease.ts";
import { type Amount, type ReservationId, type UtcDay, withinDay } from "../domain/quota-ledger.ts";
import type { Rates } from "../domain/rate-card.ts";
import type { TenantContext } from "../domain/tenant.ts";
import type { CallId } from "../domain/turn-id.ts";
import type { Usage } from "../domain/usage.ts";
import type { Database } from "../storage/database.ts";
import { reserveCall } from "../storage/quota-repository.ts";

/** The part of a process's leases that model calls spend. */
export type CallQuota = Pick<QuotaLeases, "isLimited" | "take" | "reserve" | "settle" | "giveCallBack" | "fenced">;

export type ReservedCall = {
  readonly context: TenantContext;
  readonly callId: CallId;
  readonly attempt: number;
  readonly startedAtMs: number;
  /** Where an earlier attempt reserved: it holds for all of them. */
  readonly holder: string | null;
  readonly batch: number | null;
  readonly day: UtcDay | null;
  readonly reservedTokens: bigint | null;
  readonly reservedNanoUsd: bigint | null;
  readonly price: { readonly rates: Rates; readonly markupPpm: MarkupPpm };
};

/** A call begins with room for so many tokens of an answer, unless its caller asked for fewer (contract §3). */
const leastAnswerTokens = 256;
/** A lease that was taken back between two steps is begun anew; more often than this it is no accident. */
const fencedAttempts = 5;

export type Reserved = {
  /** How many tokens the answer may have: fewer than asked where little is left. */
  readonly maxTokens: number;
  /** Of the call's billing row; it lies in the day whose quota the call is counted in. */
  readonly admittedAtMs: number;
  /** What the leases are to be told the end of; undefined without a quota. */
  readonly reservation: ReservationId | undefined;
};

/**
 * Reserves what a call may use at most, and writes it to the call's row before the provider hears of it.
 * @throws {AppError} `tokens_per_day`, `cost_per_day_usd`; `tenant_suspended`; `unavailable`
 */
export async function reserveQuota(
  { database, quota }: { readonly database: Database; readonly quota: CallQuota },
  call: ReservedCall,
  { promptTokens, maxTokens }: { readonly promptTokens: number; readonly maxTokens: number },
): Promise<Reserved> {
  const { tenantId } = call.context;
  const within = ({ holder, batch, day, reserved }: Reservation): Reserved => ({
    maxTokens: answerTokensOf(reserved, promptTokens, maxTokens, call.price),
    admittedAtMs: withinDay(call.startedAtMs, day),
    reservation: { callId: call.callId, holder, batch },
  });
  if (call.day !== null) {
    const reserved = { tokens: Number(call.reservedTokens ?? 0n), nanoUsd: (call.reservedNanoUsd ?? 0n) as NanoUsd };
    return within({ holder: call.holder ?? "", batch: call.batch ?? 0, day: call.day, reserved });
  }
  if (!(await quota.isLimited(tenantId))) return { maxTokens, admittedAtMs: call.startedAtMs, reservation: undefined };
  const need = {
    least: mostOf(promptTokens, Math.min(leastAnswerTokens, maxTokens), call.price),
    desired: mostOf(promptTokens, maxTokens, call.price),
  };
  for (let attempt = 0; attempt < fencedAttempts; attempt++) {
    const reservation = quota.take(tenantId, call.callId, need) ?? (await quota.reserve(tenantId, call.callId, need));
    const giveBack = (): void => quota.giveCallBack(tenantId, call.callId, reservation);
    const outcome = await database
      .withTenant(call.context, async (tx) => await reserveCall(tx, call, reservation))
      .catch((error: unknown) => {
        // A commit whose answer was lost may have written it: its row decides.
        if (error instanceof AppError && error.details["outcome"] !== "unknown") giveBack();
        throw error;
      });
    if (outcome === "written") return within(reservation);
    if (outcome === "taken") {
      giveBack();
      throw new AppError("unavailable", { callId: call.callId, why: "another attempt holds the call" });
    }
    quota.fenced(tenantId, reservation.holder);
  }
  throw new AppError("unavailable", { callId: call.callId, why: "its leases were taken back" });
}

/** What a call's row counts in the quota of its day. */
export const usedBy = ({ inputTokens, outputTokens, reasoningTokens }: Usage, costNanoUsd: NanoUsd): Amount => ({
  tokens: inputTokens + outputTokens + reasoningTokens,
  nanoUsd: costNanoUsd,
});

type Price = ReservedCall["price"];

/** The most that a call of so many tokens can count: every class at its dearest, rounded up. */
function mostOf(promptTokens: number, answerTokens: number, price: Price): Amount {
  const attoUsd = BigInt(promptTokens) * promptRate(price) + BigInt(answerTokens) * answerRate(price);
  return { tokens: promptTokens + answerTokens, nanoUsd: ((attoUsd + attoPerNano - 1n) / attoPerNano) as NanoUsd };
}

/** What decides how much a call of one model can count. */
export type CallSize = { readonly promptTokens: number; readonly maxTokens: number; readonly price: Price };

/**
 * How many tokens another model's answer may have within what `reserved` can count, which a quota holds for the call.
 * @returns undefined where that pays for no answer
 */
export function maxTokensInstead(reserved: CallSize, { promptTokens, maxTokens, price }: CallSize): number | undefined {
  const held = mostOf(reserved.promptTokens, reserved.maxTokens, reserved.price);
  const { tokens, nanoUsd } = mostOf(promptTokens, Math.min(leastAnswerTokens, maxTokens), price);
  return tokens > held.tokens || nanoUsd > held.nanoUsd ? undefined : answerTokensOf(held, promptTokens, maxTokens, price);
}

function answerTokensOf({ tokens, nanoUsd }: Amount, promptTokens: number, maxTokens: number, price: Price): number {
  const rate = answerRate(price);
  const paid = rate === 0n ? maxTokens : Number((nanoUsd * attoPerNano - BigInt(promptTokens) * promptRate(price)) / rate);
  return Math.max(1, Math.min(maxTokens, tokens - promptTokens, paid));
}

const attoPerNano = 1_000_000_000n;
const marked = (picoUsd: bigint, { markupPpm }: Price): bigint => picoUsd * (1_000_000n + BigInt(markupPpm));
const dearest = (...rates: bigint[]): bigint => rates.reduce((a, b) => (a > b ? a : b));
const promptRate = (price: Price): bigint => marked(dearest(price.rates.input, price.rates.cacheRead, price.rates.cacheWrite), price);
const answerRate = (price: Price): bigint => marked(dearest(price.rates.output, price.rates.reasoning), price);
