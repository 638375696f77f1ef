import { AppError } from "./app-error.ts";
import type { Branded } from "./branded.ts";

/** Billionths of a US dollar. bigint in memory; decimal string in JSON, Temporal payloads and SQL bindings. */
export type NanoUsd = Branded<bigint, "NanoUsd">;

/** A price: millionths of a US dollar per 1,000,000 tokens, which is 1e-12 USD (one pico-dollar) per token. */
export type PicoUsdPerToken = Branded<bigint, "PicoUsdPerToken">;

/** A markup in millionths: 10 % is 100,000. */
export type MarkupPpm = Branded<number, "MarkupPpm">;

export const noMarkup = 0 as MarkupPpm;

function divideHalfEven(numerator: bigint, denominator: bigint): bigint {
  const quotient = numerator / denominator;
  const twice = 2n * (numerator % denominator);
  if (twice < denominator) return quotient;
  if (twice > denominator) return quotient + 1n;
  return quotient % 2n === 0n ? quotient : quotient + 1n;
}

/** Sum of price parts in atto-dollars (1e-18 USD: pico-dollars per token times markup in ppm), rounded once, half to even. */
export const roundToNanoUsd = (attoUsd: bigint): NanoUsd => divideHalfEven(attoUsd, 1_000_000_000n) as NanoUsd;

export const parseNanoUsd = (text: string): NanoUsd => BigInt(text) as NanoUsd;

/**
 * `text` as an integer of `10^-places`; at most `places` decimals, no sign, no exponent.
 * @throws {AppError} `invalid_rate`
 */
function parseDecimal(text: string, places: number, name: string): bigint {
  const [, whole, fraction = ""] = /^(0|[1-9]\d{0,6})(?:\.(\d+))?$/.exec(text) ?? [];
  if (whole === undefined || fraction.length > places) throw invalidRate(name, text);
  return BigInt(whole + fraction.padEnd(places, "0"));
}

const invalidRate = (name: string, text: string): AppError =>
  new AppError("invalid_rate", {
    client: { message: `${name} must be a decimal of at most 6 places between 0 and 1,000,000, not "${text.slice(0, 32)}".`, param: name },
  });

/** USD per 1M tokens as decimal text. @throws {AppError} `invalid_rate` beyond 6 places or outside 0 to 1,000,000. */
export function parseRate(text: string, name: string): PicoUsdPerToken {
  const picoUsd = parseDecimal(text, 6, name);
  if (picoUsd > 1_000_000_000_000n) throw invalidRate(name, text);
  return picoUsd as PicoUsdPerToken;
}

/** A markup as decimal text, `"0.10"` for 10 %. @throws {AppError} `invalid_rate` beyond 6 places or outside 0 to 1,000,000. */
export function parseMarkup(text: string, name: string): MarkupPpm {
  const ppm = parseDecimal(text, 6, name);
  if (ppm > 1_000_000_000_000n) throw invalidRate(name, text);
  return Number(ppm) as MarkupPpm;
}

/** An amount in US dollars as decimal text. @throws {AppError} `invalid_request` beyond 9 places or outside 0 to 1,000,000. */
export function parseUsdAmount(text: string, param: string): NanoUsd {
  const [, whole, fraction = ""] = /^(0|[1-9]\d{0,6})(?:\.(\d{1,9}))?$/.exec(text) ?? [];
  const nanoUsd = whole === undefined ? undefined : BigInt(whole + fraction.padEnd(9, "0"));
  if (nanoUsd === undefined || nanoUsd > 1_000_000_000_000_000n) {
    throw new AppError("invalid_request", {
      client: { message: `${param} must be US dollars: a decimal of at most 9 places between 0 and 1,000,000.`, param },
    });
  }
  return nanoUsd as NanoUsd;
}

/** Decimal text with `places` decimals, half-even from the exact value; nine places are exact. */
export function formatUsd(nanoUsd: bigint, places: 6 | 9 = 9): string {
  const sign = nanoUsd < 0n ? "-" : "";
  const absolute = nanoUsd < 0n ? -nanoUsd : nanoUsd;
  const scaled = divideHalfEven(absolute, 10n ** BigInt(9 - places))
    .toString()
    .padStart(places + 1, "0");
  return `${sign}${scaled.slice(0, -places)}.${scaled.slice(-places)}`;
}
