import fc from "fast-check";
import { expect, test } from "vitest";
import { maxTokensWithin } from "../../activities/call-reservation.ts";
import { type MarkupPpm, type NanoUsd, noMarkup } from "../../domain/money.ts";
import { parseRates, priceOf } from "../../domain/rate-card.ts";
import { noUsage } from "../../domain/usage.ts";

const price = (input: string, output: string, markupPpm: MarkupPpm = noMarkup) => ({
  rates: parseRates("some-model", { input, output }),
  markupPpm,
});
const held = (tokens: number, nanoUsd: bigint) => ({ tokens, nanoUsd: nanoUsd as NanoUsd });

test("without a quota another model may say as much as its own ceiling allows", () => {
  expect(maxTokensWithin(undefined, { promptTokens: 1_000_000, maxTokens: 4_000, price: price("1000", "1000") })).toBe(4_000);
});

test("a dearer model says less for what is held, one that is too dear for a beginning says nothing", () => {
  const own = held(1_000 + 4_000, 1_000n * 1_000n + 4_000n * 2_000n); // at 1 and 2 USD per 1M
  const within = (input: string, output: string) =>
    maxTokensWithin(own, { promptTokens: 1_000, maxTokens: 4_000, price: price(input, output) });

  expect(within("1", "2")).toBe(4_000);
  expect(within("3", "6")).toBe(1_000); // 9,000,000 - 3,000,000 for the prompt, at 6,000 a token
  expect(within("6", "12")).toBeUndefined(); // 250 tokens, of at least 256
  expect(within("9", "9")).toBeUndefined(); // the prompt takes it all
});

test("no more tokens than are held", () => {
  const few = held(1_300, 10n ** 12n);

  expect(maxTokensWithin(few, { promptTokens: 1_000, maxTokens: 4_000, price: price("1", "2") })).toBe(300);
  expect(maxTokensWithin(few, { promptTokens: 1_100, maxTokens: 4_000, price: price("1", "2") })).toBeUndefined();
  expect(maxTokensWithin(few, { promptTokens: 1_290, maxTokens: 7, price: price("1", "2") })).toBe(7); // the caller asked for few
});

test("whatever is held pays for the prompt and every token that the answer may have", () => {
  const rate = fc.integer({ min: 0, max: 1_000_000 }).map((micro) => (micro / 1_000_000).toFixed(6));
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: 100_000 }),
      fc.bigInt({ min: 0n, max: 10n ** 11n }),
      fc.integer({ min: 0, max: 50_000 }),
      fc.integer({ min: 1, max: 50_000 }),
      rate,
      rate,
      fc.integer({ min: 0, max: 2_000_000 }),
      (tokens, nanoUsd, promptTokens, maxTokens, input, output, markup) => {
        const its = price(input, output, markup as MarkupPpm);
        const most = maxTokensWithin(held(tokens, nanoUsd), { promptTokens, maxTokens, price: its });

        if (most === undefined) return;
        expect(most).toBeGreaterThanOrEqual(Math.min(256, maxTokens));
        expect(most).toBeLessThanOrEqual(maxTokens);
        expect(promptTokens + most).toBeLessThanOrEqual(tokens);
        const { costNanoUsd } = priceOf(its.rates, { ...noUsage, inputTokens: promptTokens, outputTokens: most }, its.markupPpm);
        expect(costNanoUsd <= nanoUsd).toBe(true);
      },
    ),
    { numRuns: 500 },
  );
});
