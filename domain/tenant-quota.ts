import { AppError } from "./app-error.ts";
import { formatUsd, parseUsdAmount } from "./money.ts";

/** A tenant's ceilings; null: none. Whole numbers fit a safe integer; money is nano-USD as decimal text, as payloads carry it. */
export type TenantQuota = {
  readonly tokensPerDay: number | null;
  readonly costPerDayNanoUsd: string | null;
  readonly requestsPerMinute: number | null;
};

export const noQuota: TenantQuota = { tokensPerDay: null, costPerDayNanoUsd: null, requestsPerMinute: null };

/** What callers send (contract §4): an absent ceiling is left as it is. */
export type QuotaFields = {
  readonly tokens_per_day?: number | null | undefined;
  readonly cost_per_day_usd?: string | null | undefined;
  readonly requests_per_minute?: number | null | undefined;
};

/** The ceilings to set; others stay. */
export type QuotaChange = Partial<TenantQuota>;

const mostRequestsPerMinute = 1_000_000;

/** @throws {AppError} `invalid_request` for a ceiling that is no whole number in its range, or no amount of money; `at` precedes its name */
export function parseQuotaChange(fields: QuotaFields, at = ""): QuotaChange {
  const { tokens_per_day: tokens, cost_per_day_usd: cost, requests_per_minute: requests } = fields;
  return {
    ...(tokens === undefined ? {} : { tokensPerDay: ceiling(tokens, `${at}tokens_per_day`, Number.MAX_SAFE_INTEGER) }),
    ...(cost === undefined ? {} : { costPerDayNanoUsd: cost === null ? null : parseUsdAmount(cost, `${at}cost_per_day_usd`).toString() }),
    ...(requests === undefined ? {} : { requestsPerMinute: ceiling(requests, `${at}requests_per_minute`, mostRequestsPerMinute) }),
  };
}

function ceiling(value: number | null, param: string, most: number): number | null {
  if (value === null) return null;
  if (!Number.isSafeInteger(value) || value < 0 || value > most) {
    throw new AppError("invalid_request", {
      client: { message: `${param} must be null or a whole number from 0 to ${most.toLocaleString("en-US")}.`, param },
    });
  }
  return value;
}

/** As the API shows it: money is exact decimal text. */
export const quotaFieldsOf = ({ tokensPerDay, costPerDayNanoUsd, requestsPerMinute }: TenantQuota) => ({
  tokens_per_day: tokensPerDay,
  cost_per_day_usd: costPerDayNanoUsd === null ? null : formatUsd(BigInt(costPerDayNanoUsd)).replace(/\.?0+$/, ""),
  requests_per_minute: requestsPerMinute,
});
