import fc from "fast-check";
import { expect, test } from "vitest";
import type { Usage } from "../../domain/usage.ts";
import { normaliseOpenAiUsage } from "../../providers/openai-usage.ts";

const most = 1_000_000;
const classes = (
  inputTokens: number,
  cacheReadTokens: number,
  cacheWriteTokens: number,
  outputTokens: number,
  reasoningTokens: number,
): Usage => ({
  inputTokens,
  cacheReadTokens,
  cacheWriteTokens,
  outputTokens,
  reasoningTokens,
});
const sumOf = (usage: Usage): number =>
  usage.inputTokens + usage.cacheReadTokens + usage.cacheWriteTokens + usage.outputTokens + usage.reasoningTokens;

test.each<[string, unknown, Usage]>([
  [
    "OpenAI: cached inside the prompt, reasoning inside the completion",
    {
      prompt_tokens: 2006,
      completion_tokens: 300,
      total_tokens: 2306,
      prompt_tokens_details: { cached_tokens: 1920, audio_tokens: 0 },
      completion_tokens_details: { reasoning_tokens: 256, audio_tokens: 0, accepted_prediction_tokens: 0, rejected_prediction_tokens: 0 },
    },
    classes(86, 1920, 0, 44, 256),
  ],
  [
    "OpenAI: written to the cache, inside the prompt",
    {
      prompt_tokens: 2006,
      completion_tokens: 10,
      total_tokens: 2016,
      prompt_tokens_details: { cached_tokens: 1000, cache_write_tokens: 900 },
    },
    classes(106, 1000, 900, 10, 0),
  ],
  ["a server without details", { prompt_tokens: 9, completion_tokens: 12, total_tokens: 21 }, classes(9, 0, 0, 12, 0)],
  [
    "a server with empty details",
    { prompt_tokens: 9, completion_tokens: 12, total_tokens: 21, prompt_tokens_details: null, completion_tokens_details: {} },
    classes(9, 0, 0, 12, 0),
  ],
  ["a server without a total", { prompt_tokens: 9, completion_tokens: 12 }, classes(9, 0, 0, 12, 0)],
  ["a server whose total is always 0", { prompt_tokens: 9, completion_tokens: 12, total_tokens: 0 }, classes(9, 0, 0, 12, 0)],
  ["explicit zeros", { prompt_tokens: 0, completion_tokens: 0, total_tokens: 0 }, classes(0, 0, 0, 0, 0)],
  [
    "DeepSeek: hits and misses make up the prompt",
    { prompt_tokens: 1200, completion_tokens: 50, total_tokens: 1250, prompt_cache_hit_tokens: 1152, prompt_cache_miss_tokens: 48 },
    classes(48, 1152, 0, 50, 0),
  ],
  [
    "Mistral: cached, as it once was named",
    { prompt_tokens: 100, completion_tokens: 5, total_tokens: 105, num_cached_tokens: 64 },
    classes(36, 64, 0, 5, 0),
  ],
  [
    "Mistral: cached, in the singular",
    { prompt_tokens: 100, completion_tokens: 5, total_tokens: 105, prompt_token_details: { cached_tokens: 64 } },
    classes(36, 64, 0, 5, 0),
  ],
  [
    "Moonshot: cached at the top",
    { prompt_tokens: 100, completion_tokens: 5, total_tokens: 105, cached_tokens: 64 },
    classes(36, 64, 0, 5, 0),
  ],
  [
    "xAI: reasoning on top of the completion",
    { prompt_tokens: 32, completion_tokens: 9, total_tokens: 135, completion_tokens_details: { reasoning_tokens: 94 } },
    classes(32, 0, 0, 9, 94),
  ],
  [
    "xAI: the same with a part of the prompt cached",
    {
      prompt_tokens: 32,
      completion_tokens: 9,
      total_tokens: 135,
      prompt_tokens_details: { cached_tokens: 20 },
      completion_tokens_details: { reasoning_tokens: 94 },
    },
    classes(12, 20, 0, 9, 94),
  ],
  [
    "more reasoning than completion, and no total",
    { prompt_tokens: 32, completion_tokens: 9, completion_tokens_details: { reasoning_tokens: 94 } },
    classes(32, 0, 0, 9, 94),
  ],
  ["Gemini: thinking only in the total", { prompt_tokens: 7, completion_tokens: 11, total_tokens: 318 }, classes(7, 0, 0, 11, 300)],
  [
    "cached on top of the prompt",
    { prompt_tokens: 20, completion_tokens: 5, total_tokens: 125, prompt_tokens_details: { cached_tokens: 100 } },
    classes(20, 100, 0, 5, 0),
  ],
])("%s is split into disjoint classes", (_, usage, expected) => {
  expect(normaliseOpenAiUsage(usage, most)).toEqual({ ...expected, estimated: false });
});

test("a split that contradicts the totals is cut to fit them, and marked", () => {
  const usage = { prompt_tokens: 10, completion_tokens: 5, total_tokens: 15, prompt_tokens_details: { cached_tokens: 40 } };

  expect(normaliseOpenAiUsage(usage, most)).toEqual({ ...classes(0, 10, 0, 5, 0), estimated: true, doubt: "contradictory" });
});

test.each<[string, unknown, Usage]>([
  ["is below its parts", { prompt_tokens: 10, completion_tokens: 5, total_tokens: 12 }, classes(10, 0, 0, 5, 0)],
  [
    "holds more than its parts and the reasoning that is named",
    { prompt_tokens: 10, completion_tokens: 5, total_tokens: 30, completion_tokens_details: { reasoning_tokens: 2 } },
    classes(10, 0, 0, 3, 17),
  ],
])("a total that %s is marked, and nothing that was counted is lost", (_, usage, expected) => {
  expect(normaliseOpenAiUsage(usage, most)).toEqual({ ...expected, estimated: true, doubt: "contradictory" });
});

test.each([
  ["nothing", undefined, "missing"],
  ["null", null, "missing"],
  ["a list", [1, 2], "missing"],
  ["no completion", { prompt_tokens: 5 }, "missing"],
  ["a negative count", { prompt_tokens: -1, completion_tokens: 5, total_tokens: 4 }, "unbelievable"],
  ["a fraction", { prompt_tokens: 1.5, completion_tokens: 5 }, "unbelievable"],
  ["a text", { prompt_tokens: "12", completion_tokens: 5 }, "unbelievable"],
  ["a count above the believable", { prompt_tokens: most + 1, completion_tokens: 5 }, "unbelievable"],
  ["an absurd total", { prompt_tokens: 1, completion_tokens: 5, total_tokens: 2 ** 53 }, "unbelievable"],
  ["a negative class", { prompt_tokens: 5, completion_tokens: 5, prompt_tokens_details: { cached_tokens: -3 } }, "unbelievable"],
  ["not a number", { prompt_tokens: Number.NaN, completion_tokens: 5 }, "unbelievable"],
])("%s is no count", (_, usage, why) => {
  expect(normaliseOpenAiUsage(usage, most)).toBe(why);
});

const tokens = fc.integer({ min: 0, max: 100_000 });

test("whatever a provider's true classes are, they come back from OpenAI's shape", () => {
  fc.assert(
    fc.property(tokens, tokens, tokens, tokens, tokens, fc.boolean(), (input, read, write, output, reasoning, withTotal) => {
      const prompt_tokens = input + read + write;
      const completion_tokens = output + reasoning;
      const usage = {
        prompt_tokens,
        completion_tokens,
        ...(withTotal ? { total_tokens: prompt_tokens + completion_tokens } : {}),
        prompt_tokens_details: { cached_tokens: read, cache_write_tokens: write },
        completion_tokens_details: { reasoning_tokens: reasoning },
      };

      expect(normaliseOpenAiUsage(usage, most)).toEqual({ ...classes(input, read, write, output, reasoning), estimated: false });
    }),
  );
});

test("any numbers give non-negative classes that add up to the provider's own total, or no usage", () => {
  const count = fc.oneof(tokens, fc.integer({ min: 0, max: 50 }), fc.constant(null), fc.constant(undefined));
  const odd = fc.oneof(
    { weight: 9, arbitrary: count },
    { weight: 1, arbitrary: fc.oneof(fc.integer({ min: -9, max: -1 }), fc.double({ noInteger: true }), fc.string()) },
  );
  let split = 0;
  fc.assert(
    fc.property(odd, odd, odd, odd, odd, odd, (prompt, completion, total, cached, written, reasoning) => {
      const usage = normaliseOpenAiUsage(
        {
          prompt_tokens: prompt,
          completion_tokens: completion,
          total_tokens: total,
          prompt_tokens_details: { cached_tokens: cached, cache_write_tokens: written },
          completion_tokens_details: { reasoning_tokens: reasoning },
        },
        most,
      );

      if (typeof usage === "string") return;
      split += 1;
      const parts = [usage.inputTokens, usage.cacheReadTokens, usage.cacheWriteTokens, usage.outputTokens, usage.reasoningTokens];
      expect(parts.every((part) => Number.isInteger(part) && part >= 0)).toBe(true);
      const counted = Number(prompt) + Number(completion);
      if (typeof total === "number" && total >= counted) expect(sumOf(usage)).toBe(total);
      else expect(sumOf(usage)).toBeGreaterThanOrEqual(counted);
    }),
    { numRuns: 2_000 },
  );
  expect(split).toBeGreaterThan(200);
});
