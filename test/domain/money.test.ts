import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { formatUsd, noMarkup, parseMarkup, parseNanoUsd, parseRate, roundToNanoUsd } from "../../domain/money.ts";
import { canBeBilled, parseRates, priceOf } from "../../domain/rate-card.ts";
import { type Usage, noUsage } from "../../domain/usage.ts";

const checkRates = parseRates("check", { input: "15", output: "75", cache_read: "1.50", reasoning: "75" });
const checkUsage: Usage = {
  inputTokens: 142_500,
  outputTokens: 38_200,
  cacheReadTokens: 12_300,
  cacheWriteTokens: 0,
  reasoningTokens: 5_400,
};

describe("a rate", () => {
  test.each([
    ["0", 0n],
    ["0.0", 0n],
    ["15", 15_000_000n],
    ["1.50", 1_500_000n],
    ["0.000001", 1n],
    ["999999.999999", 999_999_999_999n],
    ["1000000", 1_000_000_000_000n],
    ["1000000.000000", 1_000_000_000_000n],
  ])("%s is read exactly, as millionths", (text, millionths) => {
    expect(parseRate(text, "input")).toBe(millionths);
  });

  const refused = [
    "",
    " ",
    "-1",
    "+1",
    "1e3",
    "1E3",
    "0x10",
    "1_000",
    "1,5",
    ".5",
    "5.",
    "01",
    "00",
    " 1",
    "1 ",
    "1\n",
    "٣",
    "NaN",
    "Infinity",
    "1.2.3",
    "0.0000001",
    "1.0000000",
  ];
  test.each([...refused, "1000000.000001", "1000001", "10000000", "9".repeat(400)])("%j is refused by its name", (text) => {
    expect(() => parseRate(text, "rate_card.m.input")).toThrow(
      expect.objectContaining({ code: "invalid_rate", client: expect.objectContaining({ param: "rate_card.m.input" }) }),
    );
  });

  test("that is refused is not repeated at length", () => {
    expect(() => parseRate("9".repeat(100_000), "input")).toThrow(
      expect.objectContaining({ message: expect.stringMatching(/^.{1,160}$/) }),
    );
  });

  test("without a price of its own falls back as the contract says", () => {
    expect(parseRates("m", { input: "3", output: "7" })).toEqual({
      input: 3_000_000n,
      output: 7_000_000n,
      cacheRead: 3_000_000n,
      cacheWrite: 3_000_000n,
      reasoning: 7_000_000n,
    });
    expect(() => parseRates("m", { input: "3", output: "7", reasoning: "free" })).toThrow(
      expect.objectContaining({ client: expect.objectContaining({ param: "rate_card.m.reasoning" }) }),
    );
  });
});

test("a markup is a decimal share, at most a millionfold", () => {
  expect(parseMarkup("0.10", "markup")).toBe(100_000);
  expect(parseMarkup("0", "markup")).toBe(noMarkup);
  expect(parseMarkup("1000000", "markup")).toBe(1_000_000_000_000);
  expect(() => parseMarkup("1000000.000001", "markup")).toThrow(expect.objectContaining({ code: "invalid_rate" }));
  expect(() => parseMarkup("-0.1", "markup")).toThrow(expect.objectContaining({ code: "invalid_rate" }));
});

describe("a price", () => {
  test("is the contract's check value", () => {
    const { costNanoUsd, providerCostNanoUsd } = priceOf(checkRates, checkUsage, parseMarkup("0.10", "markup"));

    expect(formatUsd(costNanoUsd)).toBe("5.968545000");
    expect(formatUsd(costNanoUsd, 6)).toBe("5.968545");
    expect(formatUsd(providerCostNanoUsd, 6)).toBe("5.425950");
  });

  test.each([
    [500_000_000n, 0n],
    [500_000_001n, 1n],
    [1_499_999_999n, 1n],
    [1_500_000_000n, 2n],
    [2_500_000_000n, 2n],
    [3_500_000_000n, 4n],
  ])("of %d atto-dollars is %d nano-dollars: halves go to the even side", (attoUsd, nanoUsd) => {
    expect(roundToNanoUsd(attoUsd)).toBe(nanoUsd);
  });

  test("is rounded once per call, not once per class of tokens", () => {
    const rates = parseRates("tiny", { input: "0.0005", output: "0.0005" });
    const oneOfEach: Usage = { ...noUsage, inputTokens: 1, outputTokens: 1 };

    expect(priceOf(rates, oneOfEach, noMarkup).costNanoUsd).toBe(1n); // half and half a nano-dollar; each alone would be 0
  });

  test("of rates and markup that are both near their bounds can be told to be too much before a call is made", () => {
    const most = parseRates("dear", { input: "1000000", output: "1000000" });
    const window = 100 * 1_000_000; // the counts of a provider that are believed
    const millionfold = parseMarkup("1000000", "markup");
    expect(canBeBilled(most, parseMarkup("1", "markup"), window)).toBe(true);
    expect(canBeBilled(most, millionfold, window)).toBe(false);
    expect(canBeBilled(parseRates("usual", { input: "15", output: "75" }), parseMarkup("1000", "markup"), window)).toBe(true);
    fc.assert(
      fc.property(fc.nat(1_000_000), fc.nat(1_000_000), fc.integer({ min: 1, max: 1_000_000_000 }), (rate, markup, mostTokens) => {
        const [rates, ppm] = [parseRates("m", { input: String(rate), output: "1" }), parseMarkup(String(markup), "markup")];
        const classes = ["inputTokens", "cacheReadTokens", "cacheWriteTokens", "outputTokens", "reasoningTokens"] as const;
        const usage = { ...noUsage, ...Object.fromEntries(classes.map((name) => [name, mostTokens])) };
        if (canBeBilled(rates, ppm, mostTokens)) expect(8n * priceOf(rates, usage, ppm).costNanoUsd).toBeLessThan(2n ** 63n + 8n);
      }),
    );
  });

  const tokens = fc.nat(2_000_000_000);
  const usages: fc.Arbitrary<Usage> = fc.record({
    inputTokens: tokens,
    cacheReadTokens: tokens,
    cacheWriteTokens: tokens,
    outputTokens: tokens,
    reasoningTokens: tokens,
  });
  const rateText = fc.tuple(fc.nat(999_999), fc.nat(999_999)).map(([whole, fraction]) => `${whole}.${String(fraction).padStart(6, "0")}`);
  const ratesOf = fc.record({ input: rateText, output: rateText, cache_read: rateText, cache_write: rateText, reasoning: rateText });
  const markups = fc.nat(1_000_000).map((ppm) => parseMarkup(`0.${String(ppm).padStart(6, "0")}`.replace("0.1000000", "1"), "markup"));

  test("is within half a nano-dollar of the exact sum over the classes, and the same each time", () => {
    fc.assert(
      fc.property(usages, ratesOf, markups, (usage, text, markup) => {
        const rates = parseRates("m", text);
        const { costNanoUsd } = priceOf(rates, usage, markup);
        const alone = (Object.keys(noUsage) as (keyof Usage)[]).map((key) => ({ ...noUsage, [key]: usage[key] }));
        const classes = [rates.input, rates.cacheRead, rates.cacheWrite, rates.output, rates.reasoning];
        const exact =
          Object.values(usage).reduce((sum, count, place) => sum + BigInt(count) * (classes[place] ?? 0n), 0n) *
          (1_000_000n + BigInt(markup));
        const offBy = costNanoUsd * 1_000_000_000n - exact;

        expect(2n * (offBy < 0n ? -offBy : offBy)).toBeLessThanOrEqual(1_000_000_000n);
        expect(priceOf(parseRates("m", { ...text }), { ...usage }, markup).costNanoUsd).toBe(costNanoUsd);
        const summed = alone.reduce((sum, part) => sum + priceOf(rates, part, markup).costNanoUsd, 0n);
        expect(Number(summed - costNanoUsd)).toBeGreaterThanOrEqual(-3);
        expect(Number(summed - costNanoUsd)).toBeLessThanOrEqual(3);
      }),
    );
  });
});

describe("dollars as text", () => {
  test.each([
    [0n, "0.000000000", "0.000000"],
    [1n, "0.000000001", "0.000000"],
    [500n, "0.000000500", "0.000000"],
    [1_500n, "0.000001500", "0.000002"],
    [2_500n, "0.000002500", "0.000002"],
    [999_999_999n, "0.999999999", "1.000000"],
    [1_234_567_890_123n, "1234.567890123", "1234.567890"],
    [-1_500_000_000n, "-1.500000000", "-1.500000"],
  ])("%d nano-dollars", (nanoUsd, nine, six) => {
    expect(formatUsd(nanoUsd)).toBe(nine);
    expect(formatUsd(nanoUsd, 6)).toBe(six);
  });

  test("with nine places lose nothing, however large", () => {
    const amounts = fc.bigInt({ min: 0n, max: 10n ** 24n });
    fc.assert(
      fc.property(amounts, (nanoUsd) => {
        expect(BigInt(formatUsd(nanoUsd).replace(".", ""))).toBe(nanoUsd);
      }),
    );
    expect(parseNanoUsd("9007199254740993")).toBe(9_007_199_254_740_993n);
  });
});
