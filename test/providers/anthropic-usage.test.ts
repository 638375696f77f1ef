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

test("writes of both lifetimes are one class, however they are told", () => {
  const counts = { input_tokens: 50, cache_read_input_tokens: 10, output_tokens: 5 };
  const cache_creation = { ephemeral_5m_input_tokens: 148, ephemeral_1h_input_tokens: 100 };
  const written = { inputTokens: 50, cacheReadTokens: 10, cacheWriteTokens: 248, outputTokens: 5, reasoningTokens: 0 };

  const both = normaliseAnthropicUsage({ ...counts, cache_creation_input_tokens: 248, cache_creation }, most);
  const split = normaliseAnthropicUsage({ ...counts, cache_creation }, most);
  const torn = normaliseAnthropicUsage({ ...counts, cache_creation_input_tokens: 200, cache_creation }, most);

  expect(both).toEqual({ ...written, estimated: false });
  expect(split).toEqual(both);
  expect(torn).toEqual({ ...written, cacheWriteTokens: 200, estimated: true, doubt: "contradictory" });
});

test.each([
  ["nothing", {}, "missing"],
  ["an input without its output", { input_tokens: 5 }, "missing"],
  ["a negative input", { input_tokens: -1, output_tokens: 1 }, "unbelievable"],
  ["a fraction", { input_tokens: 1, output_tokens: 0.5 }, "unbelievable"],
  ["an absurd cache", { input_tokens: 1, output_tokens: 1, cache_read_input_tokens: most + 1 }, "unbelievable"],
  ["a text among the writes", { input_tokens: 1, output_tokens: 1, cache_creation: { ephemeral_1h_input_tokens: "9" } }, "unbelievable"],
])("%s is no count", (_, usage, why) => {
  expect(normaliseAnthropicUsage(usage, most)).toBe(why);
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

      if (typeof usage === "string") return expect(usage).toBe("a count");
      const parts = [usage.inputTokens, usage.cacheReadTokens, usage.cacheWriteTokens, usage.outputTokens, usage.reasoningTokens];
      expect(parts.every((part) => part >= 0)).toBe(true);
      expect(parts.reduce((sum, part) => sum + part, 0)).toBe(input + write + read + output);
      expect(usage.doubt).toBe(thinking > output ? "contradictory" : undefined);
      expect(usage.estimated).toBe(thinking > output);
    }),
  );
});
