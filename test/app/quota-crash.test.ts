import { afterAll, beforeAll, expect, test } from "vitest";
import type { MockCall } from "../fixtures/mock-openai-server.ts";
import { type QuotaStage, type Row, type Tenant, startQuotaStage } from "./quota-stage.ts";

/** Whatever happens to a call, the provider's own count, the billing rows and the workflow's counters come to the same. */
let stage: QuotaStage;
const tenants: Tenant[] = [];

beforeAll(async () => {
  stage = await startQuotaStage();
});
afterAll(async () => await stage.close());

async function newTenant(quota: object, product = stage.first): Promise<Tenant> {
  const tenant = await stage.newTenant(product, quota);
  tenants.push(tenant);
  return tenant;
}

const plenty = { tokens_per_day: 1_000_000, cost_per_day_usd: "100" };
/** Calls of the provider about a conversation, which the line `KEY` names. */
const callsAbout = (key: string): readonly MockCall[] => stage.model.calls().filter(({ conversation }) => conversation === key);
const distinct = (calls: readonly MockCall[]): number => new Set(calls.map(({ idempotencyKey }) => idempotencyKey)).size;
/** As the provider counts it: cached within the prompt, reasoning within the completion. */
const usageOf = ({ input, cached, output, reasoning }: Row) => ({
  prompt: input + cached,
  completion: output + reasoning,
  cached,
  reasoning,
});
const billed = (key: string) => callsAbout(key).filter(({ outcome }) => outcome === "billed");
const ended = async (tenant: Tenant): Promise<void> =>
  await expect.poll(async () => await stage.openTurns(tenant), { timeout: 60_000 }).toBe(0);

/** Reads a stream until it has told `word`, then leaves. */
async function leaveAt(word: string, tenant: Tenant, text: string): Promise<void> {
  const leaving = new AbortController();
  const answer = await fetch(`${stage.first.url}/v1/chat/completions`, {
    method: "POST",
    headers: { authorization: `Bearer ${tenant.token}`, "content-type": "application/json", "x-openclaw-mode": "gateway" },
    body: JSON.stringify({ model: "default", stream: true, messages: [{ role: "user", content: text }] }),
    signal: leaving.signal,
  });
  expect(answer.headers.get("x-ratelimit-limit-tokens")).toBe("1000000");
  let seen = "";
  const decoder = new TextDecoder();
  for await (const piece of answer.body ?? []) {
    seen += decoder.decode(piece as Uint8Array, { stream: true });
    if (seen.includes(word)) break;
  }
  leaving.abort();
}

test("a client that leaves after the third chunk, a retry and a call that is asked for twice have one row each, with the provider's count", async () => {
  const tenant = await newTenant(plenty);
  const cut = stage.model.control.hold({ when: ({ conversation }) => conversation === "leaves", afterChunks: 4 });
  await leaveAt("word2", tenant, "WORDS 30\nKEY leaves");
  cut.release();
  const retried = await stage.ask(stage.first, tenant, "WORDS 20\nFAIL 503 x1\nKEY retried");
  const key = { "idempotency-key": "twice" };
  const twice = await Promise.all(
    [stage.first, stage.second].map(async (product) => await stage.ask(product, tenant, "USAGE 50 40 10 5\nKEY twice", {}, key)),
  );
  await ended(tenant);

  expect(retried.status).toBe(200);
  expect(twice.map(({ status }) => status)).toEqual([200, 200]);
  expect(twice[0]?.json["id"]).toBe(twice[1]?.json["id"]);
  expect([billed("leaves").length, billed("retried").length, callsAbout("retried").length, callsAbout("twice").length]).toEqual([
    1, 1, 2, 1,
  ]);
  const rows = await stage.rows(tenant);
  expect(rows).toHaveLength(3);
  for (const call of [...billed("leaves"), ...billed("retried"), ...billed("twice")]) {
    const row = rows.find(({ id }) => id === call.idempotencyKey);
    expect(row === undefined ? undefined : usageOf(row)).toEqual(call.usage);
  }
});

test("a stream that the provider cuts, or ends without a count, is billed by our own count, which says so", async () => {
  const tenant = await newTenant(plenty);

  const cut = await stage.ask(stage.first, tenant, "WORDS 30\nCUT 4\nKEY cut", { stream: true });
  const uncounted = await stage.ask(stage.first, tenant, "WORDS 30\nNOUSAGE\nKEY uncounted", { stream: true });
  await ended(tenant);

  expect([200, 502]).toContain(cut.status); // what had come by then may not have been sent on yet
  expect(uncounted.status).toBe(200);
  const rows = await stage.rows(tenant);
  expect([callsAbout("cut").length, callsAbout("uncounted").length]).toEqual([1, 1]);
  expect(rows.map(({ id }) => id).toSorted()).toEqual(
    [...callsAbout("cut"), ...callsAbout("uncounted")].map(({ idempotencyKey }) => String(idempotencyKey)).toSorted(),
  );
  for (const row of rows) expect([row.estimated, row.input > 0, row.output > 0]).toEqual([true, true, true]);
});

test("a process that is killed in the middle of a stream leaves one row, that of the call which was answered", async () => {
  const tenant = await newTenant(plenty);
  const held = stage.model.control.hold({ when: ({ conversation }) => conversation === "killed", afterChunks: 4 });
  const answer = stage.ask(stage.first, tenant, "WORDS 30\nKEY killed", { stream: true });
  await held.arrived;

  await stage.first.kill();
  held.release();
  await stage.first.restart();
  await answer;
  await ended(tenant);

  const calls = callsAbout("killed");
  expect(calls.map(({ outcome }) => outcome)).toEqual(["left", "billed"]);
  expect(distinct(calls)).toBe(1);
  const rows = await stage.rows(tenant);
  expect(rows.map(usageOf)).toEqual(billed("killed").map(({ usage }) => usage));
  expect(rows.map(({ id }) => id)).toEqual([calls[0]?.idempotencyKey]);
});

test("of 200 parallel calls over two processes never more than 50 pass a quota for 50, and exactly 50 once the lease of the one that was killed is recovered", async () => {
  const answerTokens = 40;
  const textOf = (promptTokens: number, key: string): string => `USAGE ${promptTokens} ${answerTokens} 0 0\nKEY ${key}`;
  const settings = { max_tokens: answerTokens };
  // What a call reserves is known from one of the same length, and is what these use in the end.
  const probe = await newTenant(plenty, stage.second);
  await stage.ask(stage.second, probe, textOf(10, "by-probe"), settings);
  const [each = { tokens: 0, nanoUsd: 0n }] = await stage.reservations(probe);
  const promptTokens = each.tokens - answerTokens;
  expect(promptTokens).toBeGreaterThanOrEqual(10);
  expect(promptTokens).toBeLessThan(100);
  const limit = 50;
  const costUsd = `${(each.nanoUsd * BigInt(limit)) / 1_000_000_000n}.${String((each.nanoUsd * BigInt(limit)) % 1_000_000_000n).padStart(9, "0")}`;
  const races = [
    { key: "by-token", tenant: await newTenant({ tokens_per_day: each.tokens * limit, cost_per_day_usd: null }), code: "tokens_per_day" },
    { key: "by-money", tenant: await newTenant({ tokens_per_day: null, cost_per_day_usd: costUsd }), code: "cost_per_day_usd" },
  ];
  const keys = new Set(races.map(({ key }) => key));
  const held = stage.model.control.hold({ when: ({ conversation }) => keys.has(conversation) });

  const answers = races.map(
    async ({ key, tenant }) =>
      await Promise.all(
        Array.from({ length: 200 }, async (_, index) => {
          const product = index % 2 === 0 ? stage.first : stage.second;
          return await stage.ask(product, tenant, textOf(promptTokens, key), settings);
        }),
      ),
  );
  for (const { key } of races) await expect.poll(() => callsAbout(key).length, { timeout: 60_000 }).toBeGreaterThanOrEqual(25);
  await stage.first.kill();
  held.release();

  for (const [index, { code }] of races.entries()) {
    for (const { status, json, headers } of (await answers[index]) ?? []) {
      if (status !== 429) continue;
      expect((json["error"] as { code: string }).code).toBe(code);
      expect(Number(headers.get("retry-after"))).toBeGreaterThan(0);
    }
  }
  for (const { key, tenant } of races) {
    await ended(tenant);
    expect(distinct(callsAbout(key))).toBeLessThanOrEqual(limit);
  }
  // The killed process's lease ends a minute after its last order; then the rest of the quota is free again, and no more than that.
  await Promise.all(
    races.map(async ({ key, tenant, code }) => {
      await expect
        .poll(
          async () => {
            await stage.ask(stage.second, tenant, textOf(promptTokens, key), settings);
            return (await stage.rows(tenant)).length;
          },
          { timeout: 120_000, interval: 500 },
        )
        .toBe(limit);
      for (let more = 0; more < 3; more++) {
        const refused = await stage.ask(stage.second, tenant, textOf(promptTokens, key), settings);
        expect([refused.status, (refused.json["error"] as { code: string }).code]).toEqual([429, code]);
      }
      expect(distinct(callsAbout(key))).toBe(limit);
      expect(new Set((await stage.reservations(tenant)).map(({ tokens }) => tokens))).toEqual(new Set([each.tokens]));
    }),
  );
  await stage.first.restart();
}, 240_000);

test("a process that stops gives its leases back, so that nothing is held, and the workflows' counters are the sums of the rows", async () => {
  await stage.second.stop();
  for (const tenant of tenants) {
    const rows = await stage.rows(tenant);
    const used = {
      tokens: rows.reduce((sum, { input, output, reasoning }) => sum + input + output + reasoning, 0),
      nanoUsd: rows.reduce((sum, { costNanoUsd }) => sum + costNanoUsd, 0n).toString(),
    };
    // Wakes the other process's worker, and is not a call.
    const idle = await fetch(`${stage.first.url}/v1/models`, { headers: { authorization: `Bearer ${tenant.token}` } });
    expect(idle.status).toBe(200);
    await expect
      .poll(async () => await stage.count(tenant), { timeout: 100_000, interval: 500 })
      .toMatchObject({ used, held: { tokens: 0, nanoUsd: "0" }, calls: 0 });
  }
}, 150_000);
