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
