import fc from "fast-check";
import { expect, test } from "vitest";
import { type CallSize, maxTokensInstead, reserveQuota } from "../../activities/call-reservation.ts";
import { AppError } from "../../domain/app-error.ts";
import { type MarkupPpm, noMarkup } from "../../domain/money.ts";
import { parseRates, priceOf } from "../../domain/rate-card.ts";
import { callIdOf, mintTurnId } from "../../domain/turn-id.ts";
import { noUsage } from "../../domain/usage.ts";
import type { Database } from "../../storage/database.ts";
import { scriptedProvider, startTurnStack } from "../turn-stack.ts";

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

test("what no row carries can be reserved again at once, reported or not; what a row may carry cannot", async () => {
  const limits = { tokensPerDay: 1_000, nanoUsdPerDay: undefined, requestsPerMinute: undefined };
  const stack = await startTurnStack({ provider: scriptedProvider(async () => ({ text: "" })), limits });
  try {
    const acme = await stack.addTenant("acme");
    const reserve = async (database: Pick<Database, "withTenant">, turn: number) =>
      await reserveQuota(
        { database: database as Database, quota: stack.quota },
        {
          context: acme,
          callId: callIdOf(mintTurnId(turn, new Uint8Array(10)), 0),
          attempt: 1,
          startedAtMs: Date.now(),
          ...{ holder: null, batch: null, day: null, reservedTokens: null, reservedNanoUsd: null },
          price: sized(1, 1, "1", "1").price,
        },
        { promptTokens: 600, maxTokens: 400 },
      );
    const callsHeld = async () => (await stack.clientOf(acme.tenantId).quota.count())?.calls;
    const failing = (error: AppError, heldBefore = 0): Pick<Database, "withTenant"> => ({
      async withTenant() {
        await expect.poll(callsHeld, { timeout: 30_000 }).toBe(heldBefore);
        throw error;
      },
    });
    const unavailable = { code: "unavailable" };

    await expect(reserve(stack.database, 1)).rejects.toMatchObject(unavailable); // there is no such call: another attempt has ended it
    await expect(reserve(failing(new AppError("unavailable")), 2)).rejects.toMatchObject(unavailable);
    await expect(reserve(failing(new AppError("unavailable"), 1), 3)).rejects.toMatchObject(unavailable);
    await expect.poll(callsHeld, { timeout: 30_000 }).toBe(0);
    await expect(reserve(failing(new AppError("unavailable", { outcome: "unknown" })), 4)).rejects.toMatchObject(unavailable);

    await expect(reserve(stack.database, 5)).rejects.toMatchObject({ code: "tokens_per_day" });
  } finally {
    await stack.close();
  }
}, 90_000);
