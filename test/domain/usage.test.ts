import fc from "fast-check";
import { expect, test } from "vitest";
import { type Usage, addUsage, completionTokensOf, noUsage, promptTokensOf } from "../../domain/usage.ts";

const count = fc.nat(1_000_000);
const usage: fc.Arbitrary<Usage> = fc.record({
  inputTokens: count,
  cacheReadTokens: count,
  cacheWriteTokens: count,
  outputTokens: count,
  reasoningTokens: count,
});
const totalOf = (used: Usage): number => Object.values(used).reduce((sum, tokens) => sum + tokens, 0);

test("usages add up class by class", () => {
  const one: Usage = { inputTokens: 1, cacheReadTokens: 2, cacheWriteTokens: 3, outputTokens: 4, reasoningTokens: 5 };
  const other: Usage = { inputTokens: 10, cacheReadTokens: 20, cacheWriteTokens: 30, outputTokens: 40, reasoningTokens: 50 };

  expect(addUsage(one, other)).toEqual({
    inputTokens: 11,
    cacheReadTokens: 22,
    cacheWriteTokens: 33,
    outputTokens: 44,
    reasoningTokens: 55,
  });
  expect(promptTokensOf(one)).toBe(6);
  expect(completionTokensOf(one)).toBe(9);
});

test("every token is a prompt's or a completion's, once, and a sum forgets none", () => {
  fc.assert(
    fc.property(usage, usage, (a, b) => {
      expect(promptTokensOf(a) + completionTokensOf(a)).toBe(totalOf(a));
      expect(totalOf(addUsage(a, b))).toBe(totalOf(a) + totalOf(b));
      expect(addUsage(a, noUsage)).toEqual(a);
    }),
  );
});

test("a sum holds the five classes only, also when a part says that it was estimated", () => {
  expect(addUsage({ ...noUsage, estimated: true } as Usage, noUsage)).toEqual(noUsage);
});
