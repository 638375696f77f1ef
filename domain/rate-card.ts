import type { Branded } from "./branded.ts";
import { type MarkupPpm, type NanoUsd, type PicoUsdPerToken, parseRate, roundToNanoUsd } from "./money.ts";
import type { Usage } from "./usage.ts";

/** USD per 1M tokens, as decimal text: what `config.yaml` and the stored card hold. */
export type RateText = {
  readonly input: string;
  readonly output: string;
  readonly cache_read?: string | undefined;
  readonly cache_write?: string | undefined;
  readonly reasoning?: string | undefined;
};
export type RateCardText = Readonly<Record<string, RateText>>;

export type Rates = {
  readonly input: PicoUsdPerToken;
  readonly output: PicoUsdPerToken;
  readonly cacheRead: PicoUsdPerToken;
  readonly cacheWrite: PicoUsdPerToken;
  readonly reasoning: PicoUsdPerToken;
};

/** Lower-case hex SHA-256 of the card's RFC 8785 form. */
export type RateCardHash = Branded<string, "RateCardHash">;

export type RateCard = { readonly hash: RateCardHash; readonly rates: ReadonlyMap<string, Rates>; readonly text: RateCardText };

/** @throws {AppError} `invalid_rate` naming the key path of the first bad rate. */
export function parseRates(model: string, text: RateText): Rates {
  const rate = (name: keyof RateText, fallback: string): PicoUsdPerToken => parseRate(text[name] ?? fallback, `rate_card.${model}.${name}`);
  return {
    input: rate("input", ""),
    output: rate("output", ""),
    cacheRead: rate("cache_read", text.input),
    cacheWrite: rate("cache_write", text.input),
    reasoning: rate("reasoning", text.output),
  };
}

export type Price = { readonly costNanoUsd: NanoUsd; readonly providerCostNanoUsd: NanoUsd };

/** The price of one call: Σ class tokens × rate × (1 + markup), rounded once, half to even, to 1e-9 USD. */
export function priceOf(rates: Rates, usage: Usage, markupPpm: MarkupPpm): Price {
  const picoUsd =
    BigInt(usage.inputTokens) * rates.input +
    BigInt(usage.cacheReadTokens) * rates.cacheRead +
    BigInt(usage.cacheWriteTokens) * rates.cacheWrite +
    BigInt(usage.outputTokens) * rates.output +
    BigInt(usage.reasoningTokens) * rates.reasoning;
  return {
    costNanoUsd: roundToNanoUsd(picoUsd * (1_000_000n + BigInt(markupPpm))),
    providerCostNanoUsd: roundToNanoUsd(picoUsd * 1_000_000n),
  };
}

/** A billing row's cost is a signed 64-bit integer, and so is the sum of a day. */
const mostNanoUsdOfCall = 2n ** 63n / 8n;
const tokenClasses = 5n;

/**
 * Whether the dearest call that is believed of a provider fits a billing row with room for a day's sum. Rates and markup may each be a
 * million; both at once would make some thousand tokens cost more, which is to be known before they are paid for.
 * @param mostTokens of each class
 */
export function canBeBilled(rates: Rates, markupPpm: MarkupPpm, mostTokens: number): boolean {
  const dearest = Object.values(rates).reduce<bigint>((most, rate) => (rate > most ? rate : most), 0n);
  return roundToNanoUsd(tokenClasses * BigInt(mostTokens) * dearest * (1_000_000n + BigInt(markupPpm))) <= mostNanoUsdOfCall;
}
