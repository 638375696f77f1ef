import fc from "fast-check";
import { expect, test } from "vitest";
import { noQuota, parseQuotaChange, quotaFieldsOf } from "../../domain/tenant-quota.ts";

const refused = expect.objectContaining({ code: "invalid_request" });

test("an absent ceiling is left alone, null is none, and zero is a ceiling", () => {
  expect(parseQuotaChange({})).toEqual({});
  expect(parseQuotaChange({ tokens_per_day: null, requests_per_minute: 0, cost_per_day_usd: "0" })).toEqual({
    tokensPerDay: null,
    requestsPerMinute: 0,
    costPerDayNanoUsd: "0",
  });
});

test("money comes back as the decimal that was given, to the nano-dollar", () => {
  fc.assert(
    fc.property(fc.bigInt(0n, 1_000_000_000_000_000n), (nano) => {
      const text = `${nano / 1_000_000_000n}.${(nano % 1_000_000_000n).toString().padStart(9, "0")}`;
      const parsed = parseQuotaChange({ cost_per_day_usd: text });

      expect(parsed.costPerDayNanoUsd).toBe(nano.toString());
      const shown = quotaFieldsOf({ ...noQuota, ...parsed }).cost_per_day_usd;
      expect(parseQuotaChange({ cost_per_day_usd: shown })).toEqual(parsed);
      expect(shown).not.toMatch(/\.$|\.\d*0$/);
    }),
  );
});

test.each(["", " 1", "-1", "+1", "1.", ".5", "1e3", "01", "1,5", "0x1", "NaN", "1000000.000000001", "0.0000000001", "9".repeat(5_000)])(
  "%j is no amount",
  (cost_per_day_usd) => {
    expect(() => parseQuotaChange({ cost_per_day_usd }, "quota.")).toThrow(refused);
  },
);

test.each([-1, 0.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53])("%d is no ceiling", (value) => {
  expect(() => parseQuotaChange({ tokens_per_day: value })).toThrow(refused);
  expect(() => parseQuotaChange({ requests_per_minute: value })).toThrow(refused);
});
