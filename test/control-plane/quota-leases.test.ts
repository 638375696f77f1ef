import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { AppError, type ErrorCode } from "../../domain/app-error.ts";
import type { NanoUsd } from "../../domain/money.ts";
import { createQuotaLeases, type QuotaLeases } from "../../control-plane/quota-leases.ts";
import type { QuotaLimits } from "../../domain/quota-ledger.ts";
import type { TenantContext } from "../../domain/tenant.ts";
import { readUsedToday } from "../../storage/usage-totals.ts";
import type { FinishedTurn, TurnSubmission } from "../../domain/turn.ts";
import type { QuotaClient } from "../../temporal/quota-client.ts";
import { type TurnStack, scriptedProvider, someStatelessTurn, startTurnStack, turnServiceOf } from "../turn-stack.ts";

const provider = scriptedProvider(async () => ({ text: "yes" }));

const stateless = (): TurnSubmission => someStatelessTurn("hello");

/** How many of `count` calls that two processes make at once get through, and why the others do not. */
async function race(stack: TurnStack, context: TenantContext, quotas: readonly QuotaLeases[], count: number) {
  const services = quotas.map((quota) => turnServiceOf(stack, quota));
  const ends = await Promise.allSettled(
    Array.from({ length: count }, async (_, index): Promise<FinishedTurn> => {
      const service = services[index % services.length];
      if (service === undefined) throw new Error("no process");
      return await (
        await service.submit(context, stateless())
      ).finished;
    }),
  );
  const codes = ends.map((end): ErrorCode | "done" => {
    if (end.status === "rejected") return end.reason instanceof AppError ? end.reason.code : "internal";
    return end.value.state === "done" ? "done" : end.value.error.code;
  });
  const counts = new Map<string, number>();
  for (const code of codes) counts.set(code, (counts.get(code) ?? 0) + 1);
  return Object.fromEntries(counts);
}

describe("requests per minute", () => {
  let stack: TurnStack;
  let acme: TenantContext;
  beforeAll(async () => {
    stack = await startTurnStack({ provider, limits: { tokensPerDay: undefined, nanoUsdPerDay: undefined, requestsPerMinute: 50 } });
    acme = await stack.addTenant("acme");
  });
  afterAll(async () => await stack.close());

  it("lets exactly 50 of 200 parallel calls of two processes through", async () => {
    const other = stack.otherLeases();
    expect(await race(stack, acme, [stack.quota, other], 200)).toEqual({ done: 50, requests_per_minute: 150 });
    await other.close();
  });

  it("tells when to come again", async () => {
    const error = await turnServiceOf(stack, stack.quota)
      .submit(acme, stateless())
      .then(
        () => undefined,
        (reason: unknown) => reason,
      );
    expect(error).toBeInstanceOf(AppError);
    expect((error as AppError).client.retryAfterSeconds).toBeGreaterThan(0);
    expect((error as AppError).client.retryAfterSeconds).toBeLessThanOrEqual(61);
  });

  it("are asked for once in a while by a tenant who floods, and at once when his limit has changed", async () => {
    let limits: QuotaLimits = { tokensPerDay: undefined, nanoUsdPerDay: undefined, requestsPerMinute: 50 };
    let orders = 0;
    const { quota } = stack.clientOf(acme.tenantId);
    const flooded = createQuotaLeases({
      limitsOf: async () => limits,
      clientOf: () => ({
        quota: {
          ...quota,
          async lease(order) {
            orders++;
            return await quota.lease(order);
          },
        },
      }),
      wake: async () => undefined,
      usedTokens: async () => 0,
      log: () => undefined,
    });
    const refusal = async (): Promise<unknown> => await flooded.admit(acme.tenantId).catch((error: unknown) => error);
    expect(await refusal()).toMatchObject({ code: "requests_per_minute" });
    const asked = orders;
    for (let call = 0; call < 500; call++) expect(await refusal()).toMatchObject({ code: "requests_per_minute" });
    const during = orders - asked;
    limits = { ...limits, requestsPerMinute: 60 };
    await refusal();
    await flooded.close();

    expect(asked).toBeGreaterThan(0);
    expect(during).toBeLessThan(50);
    expect(orders - asked).toBeGreaterThan(during);
  });

  it("does not count the other tenant's", async () => {
    const globex = await stack.addTenant("globex");
    expect(await race(stack, globex, [stack.quota], 5)).toEqual({ done: 5 });
  });
});

describe("tokens and money of a day", () => {
  it("are never passed by 200 parallel calls of two processes, and the rows say the same", async () => {
    const stack = await startTurnStack({
      provider,
      limits: { tokensPerDay: 1_200, nanoUsdPerDay: undefined, requestsPerMinute: undefined },
    });
    const acme = await stack.addTenant("acme");
    const other = stack.otherLeases();
    const first = await race(stack, acme, [stack.quota, other], 200);
    expect(first["done"]).toBeGreaterThan(0);
    expect(first["done"] ?? 0).toBeLessThanOrEqual(80); // 15 tokens each
    expect((first["done"] ?? 0) + (first["tokens_per_day"] ?? 0)).toBe(200);
    await other.close(); // what it was granted and did not use is free again, once its lease is recovered
    const countOf = async () => await stack.clientOf(acme.tenantId).quota.count();
    await expect.poll(async () => (await countOf())?.leases, { timeout: 30_000 }).toBeLessThanOrEqual(1);
    // One after the other, the rest of the day's tokens is used up to less than a call's reservation.
    let more = 0;
    const service = turnServiceOf(stack, stack.quota);
    for (let refused = 0; refused < 2;) {
      const turn = await service.submit(acme, stateless()).then(
        async ({ finished }) => await finished,
        () => undefined,
      );
      if (turn?.state === "done") more++;
      refused = turn?.state === "done" ? 0 : refused + 1;
      // A call that has answered holds its reservation until its process has reported it, and the next may be refused for it.
      if (refused === 1) await expect.poll(async () => (await countOf())?.calls, { timeout: 30_000 }).toBe(0);
    }
    const [{ used } = { used: 0n }] = await stack.database.withTenant(
      acme,
      async (tx) =>
        await tx.query<{ used: bigint }>(
          "select sum(input_tokens + output_tokens + reasoning_tokens)::bigint as used from control.usage_ledger",
        ),
    );
    expect(used).toBe(BigInt(((first["done"] ?? 0) + more) * 15));
    expect(used).toBeLessThanOrEqual(1_200n);
    expect(used).toBeGreaterThan(1_200n - 350n);
    await stack.close();
  });

  it("stop at the budget", async () => {
    // 10 input at 1 and 5 output at 2 USD per million: 20,000 nano-dollars a call.
    const stack = await startTurnStack({
      provider,
      limits: { tokensPerDay: undefined, nanoUsdPerDay: 800_000n as NanoUsd, requestsPerMinute: undefined },
    });
    const acme = await stack.addTenant("acme");
    const service = turnServiceOf(stack, stack.quota);
    let done = 0;
    let refusal: AppError | undefined;
    while (refusal === undefined) {
      try {
        const end = await (await service.submit(acme, stateless())).finished;
        if (end.state === "done") done++;
        else expect(end.error.code).toBe("cost_per_day_usd");
        if (end.state !== "done") break;
      } catch (error) {
        refusal = error as AppError;
        expect(refusal.code).toBe("cost_per_day_usd");
      }
    }
    expect(done).toBeGreaterThan(5);
    expect(done).toBeLessThanOrEqual(40);
    await stack.close();
  });
});

it("a tenant's standing is told by its rows while nobody answers for its workflow", async () => {
  const limits = { tokensPerDay: 50_000, nanoUsdPerDay: undefined, requestsPerMinute: 50 };
  const stack = await startTurnStack({ provider, limits });
  try {
    const acme = await stack.addTenant("acme");
    expect(await race(stack, acme, [stack.quota], 3)).toEqual({ done: 3 });
    const { tokens } = await stack.database.withControl((tx) => readUsedToday(tx, acme.tenantId));
    expect(tokens).toBeGreaterThan(0n);
    const silent = createQuotaLeases({
      limitsOf: async () => limits,
      clientOf: () => ({ quota: new Proxy({} as QuotaClient, { get: () => async () => await new Promise(() => undefined) }) }),
      wake: async () => undefined,
      usedTokens: async () => Number(tokens),
      log: () => undefined,
    });

    const standing = await silent.standingOf(acme.tenantId);

    expect(standing).toMatchObject({
      requests: { limit: 50, remaining: 50, resetSeconds: 0 },
      tokens: { limit: 50_000, remaining: 50_000 - Number(tokens) },
    });
    expect(standing?.tokens.resetSeconds).toBeGreaterThan(0);
  } finally {
    await stack.close();
  }
});
