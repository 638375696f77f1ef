import { randomBytes } from "node:crypto";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { freshNamespace } from "../fresh-namespace.ts";
import { type RunningProduct, configWithProvider, startProduct } from "../product.ts";
import { freshDatabase, runSql } from "../storage/fresh-database.ts";
import { type ModelServer, startModelServer } from "./model-server.ts";

/** Two gateways and a worker on one database: what is let in at one door is counted at the other. */
let model: ModelServer;
let first: RunningProduct;
let second: RunningProduct;
let worker: RunningProduct;
let databaseUrl: string;

beforeAll(async () => {
  model = await startModelServer();
  databaseUrl = await freshDatabase();
  const env = {
    DATABASE_URL: databaseUrl,
    TEMPORAL_ADDRESS: inject("temporalAddress"),
    TEMPORAL_NAMESPACE: await freshNamespace(inject("temporalAddress")),
  };
  const config = configWithProvider(model.url);
  first = await startProduct({ config, env, role: "gateway" });
  worker = await startProduct({ env, role: "worker", home: first.home });
  second = await startProduct({ config, env, role: "gateway", adminKey: first.adminKey });
});
afterAll(async () => {
  await worker?.stop();
  await first?.stop();
  await second?.stop();
  await model?.close();
});

type Quota = { tokens_per_day?: number | null; cost_per_day_usd?: string | null; requests_per_minute?: number | null };
type Tenant = { readonly id: string; readonly token: string };

async function newTenant(quota: Quota): Promise<Tenant> {
  const id = `quota-${randomBytes(4).toString("hex")}`;
  const token = await first.createTenant(id);
  await putQuota(id, quota);
  return { id, token };
}

async function putQuota(id: string, quota: Quota): Promise<void> {
  const answer = await fetch(`${first.url}/v1/tenants/${id}/quota`, {
    method: "PUT",
    headers: { authorization: `Bearer ${first.adminKey}`, "content-type": "application/json" },
    body: JSON.stringify(quota),
  });
  expect(answer.status).toBe(200);
}

async function ask(gateway: RunningProduct, { token }: Tenant, text: string, more: object = {}, headers: Record<string, string> = {}) {
  const answer = await fetch(`${gateway.url}/v1/chat/completions`, {
    method: "POST",
    headers: { authorization: `Bearer ${token}`, "content-type": "application/json", "x-openclaw-mode": "gateway", ...headers },
    body: JSON.stringify({ model: "default", messages: [{ role: "user", content: text }], ...more }),
  });
  return { status: answer.status, headers: answer.headers, json: (await answer.json()) as Record<string, unknown> };
}

const codeOf = ({ json }: { json: Record<string, unknown> }): unknown => (json["error"] as { code?: string } | undefined)?.code;
const usedTokens = async (id: string): Promise<number> =>
  Number(
    (
      await runSql(
        databaseUrl,
        `select coalesce(sum(input_tokens + output_tokens + reasoning_tokens), 0)::int as used from control.usage_ledger where tenant_id = '${id}'`,
      )
    ).rows[0]?.["used"],
  );

test("exactly so many requests of a minute pass two doors, and the rest are told when to come again", async () => {
  const tenant = await newTenant({ requests_per_minute: 5 });

  const answers = await Promise.all(
    Array.from({ length: 20 }, async (_, index) => await ask(index % 2 === 0 ? first : second, tenant, `request ${index}`)),
  );

  const passed = answers.filter(({ status }) => status === 200);
  const refused = answers.filter(({ status }) => status === 429);
  expect([passed.length, refused.length]).toEqual([5, 15]);
  for (const answer of refused) {
    expect(answer.json).toEqual({
      error: { message: expect.any(String), type: "quota_exceeded", param: null, code: "requests_per_minute" },
    });
    expect(Number(answer.headers.get("retry-after"))).toBeGreaterThanOrEqual(1);
    expect(Number(answer.headers.get("retry-after"))).toBeLessThanOrEqual(61);
  }
  for (const { headers } of answers) {
    expect(headers.get("x-ratelimit-limit-requests")).toBe("5");
    expect(Number(headers.get("x-ratelimit-remaining-requests"))).toBeLessThan(5);
    expect(headers.get("x-ratelimit-limit-tokens")).toBeNull();
  }
});

test("every answer of a tenant says how it stands, errors too", async () => {
  const tenant = await newTenant({ requests_per_minute: 9, tokens_per_day: 1_000_000 });
  const as = { authorization: `Bearer ${tenant.token}`, "content-type": "application/json" };
  const answers = [
    await fetch(`${first.url}/v1/models`, { headers: as }),
    await fetch(`${second.url}/v1/models/nothing`, { headers: as }),
    await fetch(`${first.url}/v1/chat/completions`, { method: "POST", headers: as, body: "{" }),
    await fetch(`${second.url}/v1/chat/completions`, {
      method: "POST",
      headers: as,
      body: JSON.stringify({ model: "none", messages: [] }),
    }),
    await fetch(`${first.url}/rpc`, { method: "POST", headers: as, body: JSON.stringify({ jsonrpc: "2.0", id: 1, method: "health" }) }),
  ];

  expect(answers.map(({ status }) => status)).toEqual([200, 404, 400, 400, 200]);
  for (const { headers, status, url } of answers) {
    const told = ["limit-requests", "remaining-requests", "reset-requests", "limit-tokens", "remaining-tokens", "reset-tokens"];
    const values = told.map((name) => Number(headers.get(`x-ratelimit-${name}`) ?? Number.NaN));
    expect({ status, url, values }).toEqual({ status, url, values: [9, 9, expect.any(Number), 1_000_000, 1_000_000, expect.any(Number)] });
    expect(values.some(Number.isNaN)).toBe(false);
  }
});

test("a stream that is refused is an ordinary 429, and a repeated Idempotency-Key is not a request", async () => {
  const tenant = await newTenant({ requests_per_minute: 1 });
  const key = { "idempotency-key": "once" };

  const answer = await ask(first, tenant, "one", {}, key);
  const refused = await ask(second, tenant, "two", { stream: true });
  const repeated = await ask(second, tenant, "one", {}, key);

  expect([answer.status, refused.status, repeated.status]).toEqual([200, 429, 200]);
  expect(refused.headers.get("content-type")).toContain("application/json");
  expect(repeated.json["id"]).toBe(answer.json["id"]);
});

test("a raised ceiling lets in at once, and without one nobody asks the workflow", async () => {
  const tenant = await newTenant({ requests_per_minute: 1 });
  expect((await ask(first, tenant, "one")).status).toBe(200);
  expect((await ask(first, tenant, "two")).status).toBe(429);

  await putQuota(tenant.id, { requests_per_minute: 2 });
  await expect.poll(async () => (await ask(second, tenant, "three")).status, { timeout: 10_000 }).toBe(200);
  await putQuota(tenant.id, { requests_per_minute: null });
  const free = await ask(first, tenant, "four");

  expect(free.status).toBe(200);
  expect(free.headers.get("x-ratelimit-limit-requests")).toBeNull();
});

test("a day's tokens are never passed, the answer is cut to what is left, and what is used is what the rows say", async () => {
  const tenant = await newTenant({ tokens_per_day: 900 });
  const long = "USAGE 100 200 0 0";

  let cuts = 0;
  let answer = await ask(first, tenant, long);
  for (let calls = 1; answer.status === 200 && calls < 30; calls++) {
    if ((model.lastCeiling() ?? 0) < 4_000) cuts++;
    expect(await usedTokens(tenant.id)).toBeLessThanOrEqual(900);
    answer = await ask(calls % 2 === 0 ? first : second, tenant, long);
  }

  expect(answer.status).toBe(429);
  expect(codeOf(answer)).toBe("tokens_per_day");
  expect(cuts).toBeGreaterThan(0);
  expect(Number(answer.headers.get("retry-after"))).toBeGreaterThan(0);
  expect(Number(answer.headers.get("retry-after"))).toBeLessThanOrEqual(86_400);
  expect(answer.headers.get("x-ratelimit-limit-tokens")).toBe("900");
});

test("a budget stops calls before the provider hears of them", async () => {
  const tenant = await newTenant({ cost_per_day_usd: "0.000001" });
  const before = model.allCalls();

  const answer = await ask(first, tenant, "too dear");

  expect([answer.status, codeOf(answer)]).toEqual([429, "cost_per_day_usd"]);
  expect(model.allCalls()).toBe(before);
  const rows = await runSql(databaseUrl, `select 1 from control.usage_ledger where tenant_id = '${tenant.id}'`);
  expect(rows.rows).toEqual([]);
});

test("a worker that is killed in the middle of a call leaves its reservation to the call's row", async () => {
  const tenant = await newTenant({ tokens_per_day: 20_000, requests_per_minute: 100 });
  const held = model.hold("the worker dies here");
  const answer = ask(first, tenant, "the worker dies here", { max_tokens: 500 });
  await held.arrived;

  await worker.kill();
  held.release();
  await worker.restart();

  expect((await answer).status).toBe(200);
  const next = await ask(second, tenant, "and goes on", { max_tokens: 500 });
  expect(next.status).toBe(200);
  const rows = (
    await runSql(
      databaseUrl,
      `select count(*)::int as rows, count(distinct id)::int as calls from control.usage_ledger where tenant_id = '${tenant.id}'`,
    )
  ).rows[0];
  expect(rows).toEqual({ rows: 2, calls: 2 });
});
