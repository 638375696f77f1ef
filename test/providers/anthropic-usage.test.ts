import fc from "fast-check";
import { expect, test } from "vitest";
import { mergeAnthropicUsage, normaliseAnthropicUsage } from "../../providers/anthropic-usage.ts";

const most = 1_000_000;

test("cache classes stand beside the input, thinking inside the output", () => {
  const usage = {
    input_tokens: 50,
    cache_creation_input_tokens: 248,
    cache_read_input_tokens: 100_000,
    output_tokens: 503,
    output_tokens_details: { thinking_tokens: 400 },
  };

  expect(normaliseAnthropicUsage(usage, most)).toEqual({
    inputTokens: 50,
    cacheReadTokens: 100_000,
    cacheWriteTokens: 248,
    outputTokens: 103,
    reasoningTokens: 400,
    estimated: false,
  });
});

test("a stream's counts are cumulative: the last one of each field stands, null replaces nothing", () => {
  const start = { input_tokens: 25, cache_creation_input_tokens: 0, cache_read_input_tokens: 7, output_tokens: 1 };
  const delta = { input_tokens: null, cache_read_input_tokens: null, output_tokens: 15 };

  const merged = mergeAnthropicUsage(mergeAnthropicUsage({}, start), delta);

  expect(normaliseAnthropicUsage(merged, most)).toMatchObject({
    inputTokens: 25,
    cacheReadTokens: 7,
    cacheWriteTokens: 0,
    outputTokens: 15,
  });
});

test("explicit zeros are a count", () => {
  expect(normaliseAnthropicUsage({ input_tokens: 0, output_tokens: 0 }, most)).toEqual({
    inputTokens: 0,
    cacheReadTokens: 0,
    cacheWriteTokens: 0,
    outputTokens: 0,
    reasoningTokens: 0,
    estimated: false,
  });
});

test.each([
  ["nothing", {}],
  ["a negative input", { input_tokens: -1, output_tokens: 1 }],
  ["a fraction", { input_tokens: 1, output_tokens: 0.5 }],
  ["an absurd cache", { input_tokens: 1, output_tokens: 1, cache_read_input_tokens: most + 1 }],
])("%s is not a usage", (_, usage) => {
  expect(normaliseAnthropicUsage(usage, most)).toBeUndefined();
});

test("any believable counts give non-negative classes that add up to the provider's total", () => {
  const tokens = fc.integer({ min: 0, max: most });
  fc.assert(
    fc.property(tokens, tokens, tokens, tokens, tokens, (input, write, read, output, thinking) => {
      const usage = normaliseAnthropicUsage(
        {
          input_tokens: input,
          cache_creation_input_tokens: write,
          cache_read_input_tokens: read,
          output_tokens: output,
          output_tokens_details: { thinking_tokens: thinking },
        },
        most,
      );

      const parts = [usage?.inputTokens, usage?.cacheReadTokens, usage?.cacheWriteTokens, usage?.outputTokens, usage?.reasoningTokens].map(
        Number,
      );
      expect(parts.every((part) => part >= 0)).toBe(true);
      expect(parts.reduce((sum, part) => sum + part, 0)).toBe(input + write + read + output);
      expect(usage?.estimated).toBe(thinking > output);
    }),
  );
});
