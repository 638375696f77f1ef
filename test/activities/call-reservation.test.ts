import fc from "fast-check";
import { expect, test } from "vitest";
import { type CallSize, maxTokensInstead } from "../../activities/call-reservation.ts";
import { type MarkupPpm, noMarkup } from "../../domain/money.ts";
import { parseRates, priceOf } from "../../domain/rate-card.ts";
import { noUsage } from "../../domain/usage.ts";

const sized = (promptTokens: number, maxTokens: number, input: string, output: string, markupPpm: MarkupPpm = noMarkup): CallSize => ({
  promptTokens,
  maxTokens,
  price: { rates: parseRates("some-model", { input, output }), markupPpm },
});

test("a dearer model says less for what is held, one that is too dear for a beginning says nothing", () => {
  const own = sized(1_000, 4_000, "1", "2");
  const within = (input: string, output: string) => maxTokensInstead(own, sized(1_000, 4_000, input, output));

  expect(within("1", "2")).toBe(4_000);
  expect(within("0.5", "1")).toBe(4_000);
  expect(within("3", "6")).toBe(1_000); // 9,000,000 nano-dollars, 3,000,000 for the prompt, at 6,000 a token
  expect(within("6", "12")).toBeUndefined(); // 250 tokens, of at least 256
  expect(within("9", "9")).toBeUndefined(); // the prompt takes it all
});

test("no more tokens than are held", () => {
  const few = sized(1_000, 300, "100", "100");

  expect(maxTokensInstead(few, sized(1_000, 4_000, "1", "2"))).toBe(300);
  expect(maxTokensInstead(few, sized(1_100, 4_000, "1", "2"))).toBeUndefined();
  expect(maxTokensInstead(few, sized(1_290, 7, "1", "2"))).toBe(7); // the caller asked for few
});

test("whatever is held pays for the prompt and every token that the answer may have", () => {
  const rate = fc.integer({ min: 0, max: 1_000_000 }).map((micro) => (micro / 1_000_000).toFixed(6));
  const size = fc
    .tuple(fc.integer({ min: 0, max: 50_000 }), fc.integer({ min: 1, max: 50_000 }), rate, rate, fc.integer({ min: 0, max: 2_000_000 }))
    .map(([promptTokens, maxTokens, input, output, markup]) => sized(promptTokens, maxTokens, input, output, markup as MarkupPpm));
  const costOf = ({ promptTokens, price: { rates, markupPpm } }: CallSize, outputTokens: number): bigint =>
    priceOf(rates, { ...noUsage, inputTokens: promptTokens, outputTokens }, markupPpm).costNanoUsd;
  let possible = 0;
  fc.assert(
    fc.property(size, size, (own, other) => {
      const most = maxTokensInstead(own, other);

      if (most === undefined) return;
      possible += 1;
      expect(most).toBeGreaterThanOrEqual(Math.min(256, other.maxTokens));
      expect(most).toBeLessThanOrEqual(other.maxTokens);
      expect(other.promptTokens + most).toBeLessThanOrEqual(own.promptTokens + own.maxTokens);
      expect(costOf(other, most) <= costOf(own, own.maxTokens) + 1n).toBe(true); // what is held is rounded up
    }),
    { numRuns: 500 },
  );
  expect(possible).toBeGreaterThan(50);
});
