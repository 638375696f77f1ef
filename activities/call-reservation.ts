import type { QuotaLeases } from "../control-plane/quota-leases.ts";
import { AppError } from "../domain/app-error.ts";
import type { MarkupPpm, NanoUsd } from "../domain/money.ts";
import { type Amount, type UtcDay, withinDay } from "../domain/quota-ledger.ts";
import type { Rates } from "../domain/rate-card.ts";
import type { TenantContext } from "../domain/tenant.ts";
import type { CallId } from "../domain/turn-id.ts";
import type { Usage } from "../domain/usage.ts";
import type { Database } from "../storage/database.ts";
import { reserveCall } from "../storage/quota-repository.ts";

/** The part of a process's leases that model calls spend. */
export type CallQuota = Pick<QuotaLeases, "isLimited" | "take" | "reserve" | "settle">;

export type ReservedCall = {
  readonly context: TenantContext;
  readonly callId: CallId;
  readonly attempt: number;
  readonly startedAtMs: number;
  /** Where an earlier attempt reserved: it holds for all of them. */
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
  /** What is held for the call, which the leases are to be told the end of; undefined where there is no quota. */
  readonly held: Amount | undefined;
};

/**
 * Reserves what a call may use at most, and writes it to the call's row before the provider hears of it.
 * @throws {AppError} `tokens_per_day`, `cost_per_day_usd`; `unavailable`
 */
export async function reserveQuota(
  { database, quota }: { readonly database: Database; readonly quota: CallQuota },
  call: ReservedCall,
  { promptTokens, maxTokens }: { readonly promptTokens: number; readonly maxTokens: number },
): Promise<Reserved> {
  const { tenantId } = call.context;
  const within = (reserved: Amount, day: UtcDay): Reserved => ({
    maxTokens: answerTokensOf(reserved, promptTokens, maxTokens, call.price),
    admittedAtMs: withinDay(call.startedAtMs, day),
    held: reserved,
  });
  if (call.day !== null) {
    return within({ tokens: Number(call.reservedTokens ?? 0n), nanoUsd: (call.reservedNanoUsd ?? 0n) as NanoUsd }, call.day);
  }
  if (!(await quota.isLimited(tenantId))) return { maxTokens, admittedAtMs: call.startedAtMs, held: undefined };
  const need = {
    least: mostOf(promptTokens, Math.min(leastAnswerTokens, maxTokens), call.price),
    desired: mostOf(promptTokens, maxTokens, call.price),
  };
  for (let attempt = 0; attempt < fencedAttempts; attempt++) {
    const reservation = quota.take(tenantId, call.callId, need) ?? (await quota.reserve(tenantId, call.callId, need));
    const isWritten = await database.withTenant(call.context, async (tx) => await reserveCall(tx, call, reservation));
    if (isWritten) return within(reservation.reserved, reservation.day);
  }
  throw new AppError("unavailable", { callId: call.callId, why: "its leases were taken back" });
}

/** What a call's row counts in the quota of its day. */
export const usedBy = ({ inputTokens, outputTokens, reasoningTokens }: Usage, costNanoUsd: NanoUsd): Amount => ({
  tokens: inputTokens + outputTokens + reasoningTokens,
  nanoUsd: costNanoUsd,
});

/**
 * How many tokens another model's answer may have within what is held for a call.
 * @returns undefined where what is held pays for no answer of it
 */
export function maxTokensWithin(
  held: Amount | undefined,
  { promptTokens, maxTokens, price }: { readonly promptTokens: number; readonly maxTokens: number; readonly price: Price },
): number | undefined {
  if (held === undefined) return maxTokens;
  const { tokens, nanoUsd } = mostOf(promptTokens, Math.min(leastAnswerTokens, maxTokens), price);
  return tokens > held.tokens || nanoUsd > held.nanoUsd ? undefined : answerTokensOf(held, promptTokens, maxTokens, price);
}

type Price = ReservedCall["price"];

/** The most that a call of so many tokens can count: every class at its dearest, rounded up. */
function mostOf(promptTokens: number, answerTokens: number, price: Price): Amount {
  const attoUsd = BigInt(promptTokens) * promptRate(price) + BigInt(answerTokens) * answerRate(price);
  return { tokens: promptTokens + answerTokens, nanoUsd: ((attoUsd + attoPerNano - 1n) / attoPerNano) as NanoUsd };
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
