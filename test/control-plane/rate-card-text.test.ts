import fc from "fast-check";
import { expect, test } from "vitest";
import { parseAdminConfig } from "../../control-plane/admin-config.ts";
import { withRateCard } from "../../control-plane/rate-card-text.ts";
import { createRateCard } from "../../control-plane/rate-cards.ts";

const head = `# mine
default_model: a
providers: { p: { kind: demo } }   # one
models:
  a: { provider: p, context_window: 10, max_output_tokens: 5 }
`;
const card = { a: { input: "1", output: "2.50" }, "x:y/z@1": { input: "3", output: "4", cache_read: "0.5" } };
const lines = `    a: { input: 1, output: 2.5 }
    "x:y/z@1": { input: 3, output: 4, cache_read: 0.5 }
`;
const flow = `{ "a": { "input": 1, "output": 2.5 }, "x:y/z@1": { "input": 3, "output": 4, "cache_read": 0.5 } }`;

test("what is not of the card keeps every byte, and a model that stays its line", () => {
  const text = `${head}# before
billing:
  markup: 0.10  # ours
  # lead
  rate_card:
    # of the year
    a: { input: 1.00, output: 2.5 }  # stays
    b: { input: 9, output: 9 }       # changes
    gone:
      input: 1 # inner
      output: 2
    # tail

# after
quotas: {}
`;

  const rewritten = withRateCard(text, {
    a: { input: "1", output: "2.5" },
    b: { input: "8", output: "9" },
    c: { input: "0", output: "0" },
  });

  expect(rewritten).toBe(
    text
      .replace("b: { input: 9, output: 9 }", "b: { input: 8, output: 9 }")
      .replace(/ {4}gone:[^]*?output: 2\n/, "    c: { input: 0, output: 0 }\n"),
  );
});

test.each([
  ["an empty card", "billing:\n  rate_card: {} # none\nquotas: {}\n", `billing:\n  rate_card:\n${lines.trimEnd()} # none\nquotas: {}\n`],
  ["no card", "billing:\n  markup: 0\nquotas: {}\n", `billing:\n  markup: 0\n  rate_card:\n${lines}quotas: {}\n`],
  ["no billing", "quotas: {}\n# end\n", `quotas: {}\nbilling:\n  rate_card:\n${lines}# end\n`],
  ["a last line that is not ended", "billing:\n  markup: 0", `billing:\n  markup: 0\n  rate_card:\n${lines.trimEnd()}`],
  ["an end of the document", "billing:\n  markup: 0\n...\n", `billing:\n  markup: 0\n  rate_card:\n${lines}...\n`],
  ["braces", "billing: { rate_card: { b: { input: 1, output: 1 }, }, markup: 0 }\n", `billing: { rate_card: ${flow}, markup: 0 }\n`],
  ["braces without a card", "billing: { markup: 0 }\n", `billing: { "rate_card": ${flow}, markup: 0 }\n`],
  ["empty braces", "billing: {}\n", `billing: { "rate_card": ${flow} }\n`],
  [
    "braces over lines, with comments that hold braces",
    "billing:\n  rate_card: {\n    b: { input: 1, output: 1 }, # not }\n    }\n  markup: 0\n",
    `billing:\n  rate_card:\n${lines}  markup: 0\n`,
  ],
  ["quoted keys", `"billing":\n  'rate_card':\n    "b": {"input":1,"output":1}\n`, `"billing":\n  'rate_card':\n${lines}`],
  ["Windows line ends", "billing:\r\n  markup: 0\r\n", `billing:\r\n  markup: 0\r\n  rate_card:\r\n${lines.replaceAll("\n", "\r\n")}`],
])("a card is written into %s", (_name, before, after) => {
  expect(withRateCard(head + before, card)).toBe(head + after);
});

test("a file that is JSON stays JSON", () => {
  const json = JSON.stringify(
    {
      default_model: "a",
      providers: { p: { kind: "demo" } },
      models: { a: { provider: "p", context_window: 10, max_output_tokens: 5 } },
      billing: { rate_card: { a: { input: 9, output: 9 } }, markup: "0.1" },
    },
    undefined,
    2,
  );

  expect(JSON.parse(withRateCard(json, card))).toEqual({
    ...(JSON.parse(json) as object),
    billing: { rate_card: JSON.parse(flow) as object, markup: "0.1" },
  });
});

test("what cannot be rewritten in place is refused as a whole", () => {
  const text = `${head}billing:\n  rate_card:\n    ? a\n    : { input: 1, output: 1 }\n`;

  expect(() => withRateCard(text, card)).toThrow(expect.objectContaining({ code: "conflict" }));
});

test("any card is read back as it was written, whichever stood there", () => {
  const rate = fc.tuple(fc.nat(999_999), fc.nat(999_999)).map(([whole, part]) => `${whole}.${String(part).padStart(6, "0")}`);
  const model = fc.oneof(
    fc.stringMatching(/^[A-Za-z0-9][A-Za-z0-9_.:/@-]{0,12}$/),
    fc.constantFrom("null", "toString", "valueOf", "4o", "1e3", "true", "no", "a:", "0x1", "1.0", "billing", "rate_card"),
  );
  const rates = fc.record(
    { input: rate, output: rate, cache_read: rate, cache_write: rate, reasoning: rate },
    { requiredKeys: ["input", "output"], noNullPrototype: true },
  );
  const cards = fc.dictionary(model, rates, { minKeys: 1, maxKeys: 6, noNullPrototype: true });
  const layouts = fc.constantFrom(
    "billing:\n  markup: 0.2 # x\n  rate_card: {}\n# end\n",
    "billing: { markup: 0.2 }\n# end",
    "# no billing\n",
    "billing:\n    rate_card:\n          # deep\n          a: { input: 1, output: 1 }\n    markup: 0.2\n",
  );

  fc.assert(
    fc.property(layouts, cards, cards, (layout, first, second) => {
      const once = withRateCard(head + layout, first);
      const twice = withRateCard(once, second);

      for (const [text, wanted] of [
        [once, first],
        [twice, second],
      ] as const) {
        expect(parseAdminConfig(text).rateCard.hash).toBe(createRateCard(wanted).hash);
        expect(text.startsWith(head)).toBe(true);
        for (const kept of layout.match(/#.*|markup: 0\.2/g) ?? []) expect(text).toContain(kept);
      }
    }),
    { numRuns: 300 },
  );
});
