import { AppError } from "../domain/app-error.ts";
import { formatUsd, type MarkupPpm } from "../domain/money.ts";
import { priceOf, type Rates } from "../domain/rate-card.ts";
import type { TenantId } from "../domain/tenant.ts";
import type { Usage, UsageDoubt } from "../domain/usage.ts";
import type { Database } from "../storage/database.ts";
import { loadRateCard } from "./rate-cards.ts";

export type TokenClass = "input" | "cache_read" | "cache_write" | "output" | "reasoning";

export type ExplainedLine = {
  readonly class: TokenClass;
  readonly tokens: number;
  readonly usd_per_million: string;
  /** Exact, before the markup: nine places, up to twelve where there are so many. */
  readonly cost_usd: string;
};

/** How a billing row came to its price (contract §6). */
export type Explanation = {
  readonly id: string;
  readonly model: string;
  readonly lines: readonly ExplainedLine[];
  readonly markup_ppm: number;
  readonly cost_nano_usd: string;
  readonly cost_usd: string;
  readonly sentence: string;
};

type ExplainedRow = {
  id: string;
  tenant_id: string;
  day: string;
  model: string;
  input_tokens: bigint;
  cache_read_tokens: bigint;
  cache_write_tokens: bigint;
  output_tokens: bigint;
  reasoning_tokens: bigint;
  cost_nano_usd: bigint;
  provider_cost_nano_usd: bigint;
  markup_ppm: number;
  rate_card_hash: string;
  estimated: boolean;
  doubt: UsageDoubt | null;
};

const countedBecause: Readonly<Record<UsageDoubt, string>> = {
  missing: "counted here, the provider gave no count",
  unbelievable: "counted here, the provider's count cannot be true",
  contradictory: "split here, the provider's counts contradict each other",
  cut: "counted here, the answer ended before the provider's count",
};

const classes: readonly { readonly class: TokenClass; readonly usage: keyof Usage; readonly rate: keyof Rates; readonly says: string }[] = [
  { class: "input", usage: "inputTokens", rate: "input", says: "input" },
  { class: "output", usage: "outputTokens", rate: "output", says: "output" },
  { class: "cache_read", usage: "cacheReadTokens", rate: "cacheRead", says: "cached input" },
  { class: "cache_write", usage: "cacheWriteTokens", rate: "cacheWrite", says: "cache-write" },
  { class: "reasoning", usage: "reasoningTokens", rate: "reasoning", says: "reasoning" },
];

/**
 * Recomputes a row from its token counts and the card that it was priced with.
 * @param tenantId only this tenant's rows, where given
 * @throws {AppError} `not_found`; `internal` when the recomputed price differs from the stored one by a single digit.
 */
export async function explainCall(database: Pick<Database, "withControl">, rowId: string, tenantId?: TenantId): Promise<Explanation> {
  return database.withControl(
    async (tx) => {
      const [row] = await tx.query<ExplainedRow>(
        `select id, tenant_id, ("timestamp" at time zone 'UTC')::date as day, model, input_tokens, cache_read_tokens, cache_write_tokens,
                output_tokens, reasoning_tokens, cost_nano_usd, provider_cost_nano_usd, markup_ppm::float8, rate_card_hash, estimated, doubt
         from control.usage_ledger where id = $1 and ($2::text is null or tenant_id = $2)`,
        [rowId, tenantId ?? null],
      );
      if (row === undefined) throw new AppError("not_found", { client: { message: "There is no such billing row.", param: "id" } });
      const card = await loadRateCard(tx, row.rate_card_hash);
      const rates = card.rates.get(row.model);
      if (rates === undefined) throw new AppError("internal", { reason: "the row's rate card does not price its model", id: row.id });
      return explain(row, rates);
    },
    { readOnly: true },
  );
}

function explain(row: ExplainedRow, rates: Rates): Explanation {
  const usage: Usage = {
    inputTokens: Number(row.input_tokens),
    cacheReadTokens: Number(row.cache_read_tokens),
    cacheWriteTokens: Number(row.cache_write_tokens),
    outputTokens: Number(row.output_tokens),
    reasoningTokens: Number(row.reasoning_tokens),
  };
  const price = priceOf(rates, usage, row.markup_ppm as MarkupPpm);
  if (price.costNanoUsd !== row.cost_nano_usd || price.providerCostNanoUsd !== row.provider_cost_nano_usd) {
    throw new AppError("internal", {
      reason: "the recomputed price differs",
      id: row.id,
      stored: String(row.cost_nano_usd),
      recomputed: String(price.costNanoUsd),
    });
  }
  const lines = classes.map(({ class: tokenClass, usage: count, rate }): ExplainedLine => ({
    class: tokenClass,
    tokens: usage[count],
    usd_per_million: decimalText(rates[rate], 6, 2),
    cost_usd: decimalText(BigInt(usage[count]) * rates[rate], 12, 9),
  }));
  return {
    id: row.id,
    model: row.model,
    lines,
    markup_ppm: row.markup_ppm,
    cost_nano_usd: row.cost_nano_usd.toString(),
    cost_usd: formatUsd(row.cost_nano_usd),
    sentence: sentenceOf(row, lines),
  };
}

/** What a customer who disputes a charge is told. */
function sentenceOf(row: ExplainedRow, lines: readonly ExplainedLine[]): string {
  const parts = lines
    .filter(({ tokens }) => tokens > 0)
    .map((line) => {
      const { says } = classes.find(({ class: tokenClass }) => tokenClass === line.class) ?? { says: line.class };
      return `${line.tokens.toLocaleString("en-US")} ${says} tokens at $${line.usd_per_million}/M = $${shortText(line.cost_usd)}`;
    });
  const charge = shortText(formatUsd(row.cost_nano_usd));
  const counted = row.estimated ? ` (${row.doubt === null ? "counted here" : countedBecause[row.doubt]})` : "";
  const used = parts.length === 0 ? "no tokens" : parts.join(", plus ");
  const markup =
    row.markup_ppm === 0
      ? ""
      : ` Together $${shortText(formatUsd(row.provider_cost_nano_usd))}, plus ${shortText(decimalText(BigInt(row.markup_ppm), 4, 2), 0)} % markup = $${charge}.`;
  return `On ${row.day} ${row.tenant_id} used ${row.model}${counted}: ${used}.${markup} Charge: $${charge}.`;
}

/** `units` of `10^-places` as decimal text; zeros at the end go, down to `least` places. */
function decimalText(units: bigint, places: number, least: number): string {
  const digits = units.toString().padStart(places + 1, "0");
  return shortText(`${digits.slice(0, -places)}.${digits.slice(-places)}`, least);
}

function shortText(decimal: string, least = 2): string {
  const [whole = "0", fraction = ""] = decimal.split(".");
  const kept = fraction.replace(/0+$/, "").padEnd(least, "0");
  return kept === "" ? whole : `${whole}.${kept}`;
}
