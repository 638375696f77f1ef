import fc from "fast-check";
import { expect, test } from "vitest";
import type { CountedUsage } from "../../domain/usage.ts";
import { normaliseAnthropicUsage } from "../../providers/anthropic-usage.ts";
import { normaliseOpenAiUsage } from "../../providers/openai-usage.ts";
import { createUsageCounter, type ReportedUsage } from "../../providers/reported-usage.ts";
import { normaliseResponsesUsage } from "../../providers/responses-usage.ts";
import { estimateTokens } from "../../providers/token-estimate.ts";
import { someRequest } from "./one-call.ts";

const most = 12_800_000;
const normalisers = [normaliseOpenAiUsage, normaliseResponsesUsage, normaliseAnthropicUsage];
const names = [
  ..."prompt_tokens completion_tokens total_tokens input_tokens output_tokens cached_tokens num_cached_tokens".split(" "),
  ..."prompt_cache_hit_tokens cache_read_input_tokens cache_creation_input_tokens cache_write_tokens reasoning_tokens".split(" "),
  ..."thinking_tokens ephemeral_5m_input_tokens ephemeral_1h_input_tokens".split(" "),
];
const nests =
  "prompt_tokens_details prompt_token_details completion_tokens_details input_tokens_details output_tokens_details cache_creation".split(
    " ",
  );

const tokens = fc.integer({ min: 0, max: most });
const anything = fc.oneof(
  { weight: 6, arbitrary: tokens },
  {
    weight: 2,
    arbitrary: fc.constantFrom(0, 1, null, undefined, most, most + 1, 2 ** 53, -1, -0, 1.5, Number.NaN, Infinity, "12", true, [], {}),
  },
  { weight: 1, arbitrary: fc.jsonValue() as fc.Arbitrary<unknown> },
);
const fieldsOf = (keys: readonly string[]) =>
  fc.record(Object.fromEntries(keys.map((key) => [key, anything])) as Record<string, typeof anything>, { requiredKeys: [] });
const hostileUsage = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.tuple(fieldsOf([...names, ...nests]), fieldsOf(names), fieldsOf(names)).map(([top, one, other]) => ({
      ...top,
      ...Object.fromEntries(nests.map((nest, at) => [nest, at % 2 === 0 ? one : other])),
    })),
  },
  { weight: 1, arbitrary: anything },
);

const classesOf = (usage: CountedUsage): readonly number[] => [
  usage.inputTokens,
  usage.cacheReadTokens,
  usage.cacheWriteTokens,
  usage.outputTokens,
  usage.reasoningTokens,
];
const sumOf = (usage: CountedUsage): number => classesOf(usage).reduce((sum, count) => sum + count, 0);

test("whatever a provider says, there is no error, no negative, no fraction and no number beyond the integers", () => {
  let counted = 0;
  fc.assert(
    fc.property(hostileUsage, fc.string(), fc.string(), (raw, output, reasoning) => {
      for (const normalise of normalisers) {
        const reported = normalise(raw, most);
        const counter = createUsageCounter(someRequest(), { generated: () => ({ output, reasoning }) }, estimateTokens);
        const usages = [counter.ofWhole(reported), counter.ofPart(reported, "cut")].filter((usage) => usage !== undefined);

        for (const usage of usages) {
          for (const count of classesOf(usage)) expect(Number.isSafeInteger(count) && count >= 0, JSON.stringify(usage)).toBe(true);
          expect(usage.estimated).toBe(usage.doubt !== undefined);
        }
        if (typeof reported !== "string") counted += 1;
      }
    }),
    { numRuns: 2_000 },
  );
  expect(counted).toBeGreaterThan(500);
});

/** A provider that counts `input` to `reasoning`, and how it says so. */
const families: readonly [string, (...classes: readonly [number, number, number, number, number]) => ReportedUsage][] = [
  [
    "OpenAI Chat Completions",
    (input, read, write, output, reasoning) =>
      normaliseOpenAiUsage(
        {
          prompt_tokens: input + read + write,
          completion_tokens: output + reasoning,
          total_tokens: input + read + write + output + reasoning,
          prompt_tokens_details: { cached_tokens: read, cache_write_tokens: write },
          completion_tokens_details: { reasoning_tokens: reasoning },
        },
        most,
      ),
  ],
  [
    "OpenAI Responses",
    (input, read, write, output, reasoning) =>
      normaliseResponsesUsage(
        {
          input_tokens: input + read + write,
          output_tokens: output + reasoning,
          total_tokens: input + read + write + output + reasoning,
          input_tokens_details: { cached_tokens: read, cache_write_tokens: write },
          output_tokens_details: { reasoning_tokens: reasoning },
        },
        most,
      ),
  ],
  [
    "Anthropic Messages",
    (input, read, write, output, reasoning) =>
      normaliseAnthropicUsage(
        {
          input_tokens: input,
          cache_read_input_tokens: read,
          cache_creation_input_tokens: write,
          output_tokens: output + reasoning,
          output_tokens_details: { thinking_tokens: reasoning },
        },
        most,
      ),
  ],
];

const part = fc.integer({ min: 0, max: Math.floor(most / 5) });

test.each(families)("the classes that %s counted come back, and add up to its total", (_, tell) => {
  fc.assert(
    fc.property(part, part, part, part, part, (input, read, write, output, reasoning) => {
      const usage = tell(input, read, write, output, reasoning);

      expect(usage).toEqual({
        inputTokens: input,
        cacheReadTokens: read,
        cacheWriteTokens: write,
        outputTokens: output,
        reasoningTokens: reasoning,
        estimated: false,
      });
    }),
  );
});

test("xAI's reasoning beside the completion comes back, and adds up to its total", () => {
  fc.assert(
    fc.property(part, part, part, fc.integer({ min: 1, max: 1_000_000 }), (input, read, output, reasoning) => {
      const total = input + read + output + reasoning;
      const usage = normaliseOpenAiUsage(
        {
          prompt_tokens: input + read,
          completion_tokens: output,
          total_tokens: total,
          prompt_tokens_details: { cached_tokens: read },
          completion_tokens_details: { reasoning_tokens: reasoning },
        },
        most,
      );

      if (typeof usage === "string") return expect(usage).toBe("a count");
      expect(usage).toMatchObject({ inputTokens: input, cacheReadTokens: read, outputTokens: output, reasoningTokens: reasoning });
      expect([sumOf(usage), usage.estimated]).toEqual([total, false]);
    }),
  );
});
