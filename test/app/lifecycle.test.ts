import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { join } from "node:path";
import pg from "pg";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { freshNamespace } from "../fresh-namespace.ts";
import { type RunningProduct, configWithProvider, startProduct } from "../product.ts";
import { freshDatabase, runSql } from "../storage/fresh-database.ts";
import { type ModelServer, startModelServer } from "./model-server.ts";

type Answer = { readonly status: number; readonly body: Record<string, unknown> };

let model: ModelServer;
let product: RunningProduct;
let databaseUrl = "";

beforeAll(async () => {
  model = await startModelServer();
  databaseUrl = await freshDatabase();
  product = await startProduct({
    config: configWithProvider(model.url, "quotas: { default: { tokens_per_day: 100_000, cost_per_day_usd: 0.50 } }"),
    env: {
      DATABASE_URL: databaseUrl,
      TEMPORAL_ADDRESS: inject("temporalAddress"),
      TEMPORAL_NAMESPACE: await freshNamespace(inject("temporalAddress")),
    },
  });
});
afterAll(async () => {
  await product?.stop();
  await model?.close();
});

async function call(bearer: string, method: string, path: string, body?: unknown, headers: Record<string, string> = {}): Promise<Answer> {
  const answer = await fetch(product.url + path, {
    method,
    headers: { authorization: `Bearer ${bearer}`, ...(body === undefined ? {} : { "content-type": "application/json" }), ...headers },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  return { status: answer.status, body: (await answer.json()) as Record<string, unknown> };
}
const admin = async (method: string, path: string, body?: unknown, headers?: Record<string, string>) =>
  await call(product.adminKey, method, path, body, headers);
const errorOf = ({ status, body }: Answer) => [status, (body["error"] as Record<string, unknown> | undefined)?.["code"]];
const someId = (name: string): string => `${name}-${randomBytes(4).toString("hex")}`;
const newTenant = async (name: string, more: object = {}) => {
  const id = someId(name);
  const { status, body } = await admin("POST", "/v1/tenants", { id, ...more });
  expect(status).toBe(201);
  return { id, token: body["token"] as string };
};
const chat = async (token: string, content: string) =>
  await call(token, "POST", "/v1/chat/completions", { model: "default", messages: [{ role: "user", content }] });
const operation = async (workflowId: string) => await admin("GET", `/v1/operations/${workflowId}`);
const stateOf = async (workflowId: string) => (await operation(workflowId)).body["state"];
const untilDone = async (workflowId: string) => await expect.poll(async () => await stateOf(workflowId), { timeout: 90_000 }).toBe("done");
const remove = async (id: string, headers?: Record<string, string>) =>
  await admin("DELETE", `/v1/tenants/${id}?confirm=${id}`, undefined, headers);

/** What there is of a tenant outside Temporal. */
async function partsOf(id: string) {
  const name = `tenant_${id.replaceAll("-", "_")}`;
  const { rows } = await runSql(
    databaseUrl,
    `select (select state from control.tenant where id = '${id}') as state,
       (select count(*)::int from control.tenant_token where tenant_id = '${id}' and revoked_at is null) as tokens,
       (select version > 0 from control.tenant_schema where tenant_id = '${id}') as noted,
       to_regclass('${name}.turn') is not null as schema, to_regrole('${name}') is not null as role`,
  );
  return { ...(rows[0] as object), directory: existsSync(join(product.home, "tenants", id)) };
}
const whole = { state: "active", tokens: 1, noted: true, schema: true, role: true, directory: true };
const nothing = { state: null, tokens: 0, noted: null, schema: false, role: false };
const erased = { state: "deleted", tokens: 0, noted: null, schema: false, role: false, directory: false };

/** Takes a lock that holds the product up at one place, until it is released. */
async function holding(...statements: string[]): Promise<{ waiting(): Promise<void>; release(): Promise<void> }> {
  const client = new pg.Client({ connectionString: databaseUrl });
  await client.connect();
  await client.query("begin");
  for (const statement of statements) await client.query(statement);
  const { rows } = await client.query<{ pid: number }>("select pg_backend_pid() as pid");
  return {
    async waiting() {
      const blocked = `select from pg_stat_activity where ${rows[0]?.pid} = any (pg_blocking_pids(pid))`;
      await expect.poll(async () => (await runSql(databaseUrl, blocked)).rowCount, { timeout: 60_000, interval: 20 }).toBeGreaterThan(0);
    },
    async release() {
      await client.query("rollback");
      await client.end();
    },
  };
}

/** Makes the change at most once more than a crash did. */
const settled = async (id: string): Promise<void> =>
  await expect
    .poll(async () => [201, 409].includes((await admin("POST", "/v1/tenants", { id }).catch(() => ({ status: 0 }))).status), {
      timeout: 60_000,
    })
    .toBe(true);

test("a tenant's ceilings are the defaults where none are given, exact, and changed one by one", async () => {
  const { id } = await newTenant("quota", { display_name: "Quota Ltd", quota: { requests_per_minute: 7 } });
  const quota = async () => (await admin("GET", `/v1/tenants/${id}/quota`)).body;
  expect(await quota()).toEqual({ tokens_per_day: 100_000, cost_per_day_usd: "0.5", requests_per_minute: 7 });

  const put = await admin("PUT", `/v1/tenants/${id}/quota`, { cost_per_day_usd: "123456.000000001", requests_per_minute: null });
  expect(put).toEqual({ status: 200, body: { tokens_per_day: 100_000, cost_per_day_usd: "123456.000000001", requests_per_minute: null } });
  expect((await admin("PUT", `/v1/tenants/${id}/quota`, { cost_per_day_usd: 0.1 })).body).toMatchObject({ cost_per_day_usd: "0.1" });

  const refused: readonly unknown[] = [
    {},
    { tokens_per_day: -1 },
    { tokens_per_day: 1.5 },
    { tokens_per_day: "10" },
    { tokens_per_day: 2 ** 53 },
    { requests_per_minute: 1_000_001 },
    { cost_per_day_usd: "-1" },
    { cost_per_day_usd: "1e3" },
    { cost_per_day_usd: 1e-7 },
    { cost_per_day_usd: "0.0000000001" },
    { cost_per_day_usd: "1000000.1" },
    { cost_per_day: 1 },
    { constructor: null },
    [],
  ];
  for (const body of refused) expect([body, (await admin("PUT", `/v1/tenants/${id}/quota`, body)).status]).toEqual([body, 400]);
  expect((await admin("PUT", `/v1/tenants/${id}/quota`, { tokens_per_day: -1 })).body).toMatchObject({
    error: { type: "invalid_request_error", param: "tokens_per_day" },
  });
  expect(await quota()).toEqual({ tokens_per_day: 100_000, cost_per_day_usd: "0.1", requests_per_minute: null });

  const patched = await admin("PATCH", `/v1/tenants/${id}`, { display_name: null, markup: "0.25", quota: { tokens_per_day: 0 } });
  expect(patched).toMatchObject({ status: 200, body: { display_name: null, markup_ppm: 250_000, quota: { tokens_per_day: 0 } } });
  expect((await admin("PATCH", `/v1/tenants/${id}`, {})).status).toBe(400);
  expect((await admin("PATCH", `/v1/tenants/${id}`, { id: "other" })).status).toBe(400);
  expect((await admin("PATCH", `/v1/tenants/${id}`, { display_name: "a\u0000b" })).status).toBe(400);
  const { body } = await admin("GET", `/v1/audit?tenant=${id}`);
  const actions = (body["data"] as { action: string; outcome: string }[]).filter(({ outcome }) => outcome === "applied");
  expect(actions.map(({ action }) => action)).toEqual(["tenant.create", "quota.update", "quota.update", "tenant.update"]);
});

test("twenty creations of one id at once make one tenant", async () => {
  const id = someId("race");

  const answers = await Promise.all(Array.from({ length: 20 }, async () => await admin("POST", "/v1/tenants", { id })));

  expect(answers.map(({ status }) => status).toSorted((a, b) => a - b)).toEqual([201, ...Array<number>(19).fill(409)]);
  expect(await partsOf(id)).toEqual(whole);
});

test("a tenant's token opens none of the routes of tenants' lives, and a narrower admin key only what it may", async () => {
  const { id, token } = await newTenant("outsider");
  const other = await newTenant("victim");
  const key = async (scopes: string[]) =>
    (await admin("POST", "/v1/admin-keys", { id: randomBytes(6).toString("hex"), scopes })).body["key"] as string;
  const reader = await key(["read"]);
  const writes = [
    ["POST", "/v1/tenants", { id: someId("evil") }],
    ["PATCH", `/v1/tenants/${other.id}`, { display_name: "mine" }],
    ["DELETE", `/v1/tenants/${other.id}?confirm=${other.id}`, undefined],
    ["PUT", `/v1/tenants/${other.id}/quota`, { tokens_per_day: null }],
  ] as const;
  const reads = [
    ["GET", `/v1/tenants/${other.id}/quota`],
    ["GET", `/v1/operations/provision:${other.id}`],
  ] as const;

  for (const [method, path, body] of [...writes, ...reads.map(([method, path]) => [method, path, undefined] as const)]) {
    expect([path, errorOf(await call(token, method, path, body))]).toEqual([path, [403, "forbidden"]]);
    expect([path, (await call("tk_nobody_x", method, path, body)).status]).toEqual([path, 401]);
  }
  for (const [method, path, body] of writes) expect([path, (await call(reader, method, path, body)).status]).toEqual([path, 403]);
  for (const [method, path] of reads) expect([path, (await call(reader, method, path)).status]).toEqual([path, 200]);
  expect(await partsOf(other.id)).toEqual(whole);
  expect((await admin("GET", `/v1/tenants/${id}`)).status).toBe(200);
});

test("an operation is read by its own name only, and no other workflow is seen through it", async () => {
  const { id, token } = await newTenant("seen");
  await admin("POST", `/v1/tenants/${id}/suspend`);
  await admin("POST", `/v1/tenants/${id}/resume`);
  await chat(token, "hello");
  await untilDone(`provision:${id}`);

  expect((await operation(`provision:${id}`)).body).toEqual({
    workflow_id: `provision:${id}`,
    kind: "provision",
    tenant: id,
    state: "done",
    started_at: expect.stringMatching(/Z$/),
    finished_at: expect.stringMatching(/Z$/),
    progress: {
      steps: ["schema and role", "directory", "data key", "audit chain"].map((name) => ({ name, state: "done" })),
      done: 4,
      total: 4,
    },
  });
  const unknown = [
    `tenant:${id}`,
    "tenant:_system",
    `turn:${id}:api.0`,
    `erase:${id}`,
    `provision:${id}:x`,
    "provision:_system",
    "erase:",
    "x",
    `backup:${id}:1`,
  ];
  for (const workflowId of unknown)
    expect([workflowId, errorOf(await operation(encodeURIComponent(workflowId)))]).toEqual([workflowId, [404, "not_found"]]);
});

test("a deletion is confirmed, refuses the tenant at once, ends and bills its turn, and leaves others alone", async () => {
  const { id, token } = await newTenant("deleted");
  const other = await newTenant("neighbour");
  expect((await chat(token, "before the end")).status).toBe(200);
  const held = model.hold("STREAM then wait", 2);
  const streaming = fetch(`${product.url}/v1/chat/completions`, {
    method: "POST",
    headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
    body: JSON.stringify({ model: "default", stream: true, messages: [{ role: "user", content: "STREAM then wait" }] }),
  }).then(async (answer) => await answer.text());
  await held.arrived;

  for (const path of [`/v1/tenants/${id}`, `/v1/tenants/${id}?confirm=${other.id}`, `/v1/tenants/${id}?confirm=`])
    expect((await admin("DELETE", path)).body).toMatchObject({ error: { code: "invalid_request", param: "confirm" } });
  expect(errorOf(await remove(someId("nobody")))).toEqual([404, "not_found"]);
  expect(await remove(id, { "idempotency-key": `delete-${id}` })).toEqual({ status: 202, body: { workflow_id: `erase:${id}` } });

  expect(errorOf(await chat(token, "after the end"))).toEqual([401, "invalid_api_key"]);
  for (const path of ["", "/quota", "/token"]) expect(errorOf(await admin("GET", `/v1/tenants/${id}${path}`))).toEqual([404, "not_found"]);
  expect(errorOf(await admin("POST", `/v1/tenants/${id}/resume`))).toEqual([404, "not_found"]);
  expect(await remove(id)).toEqual({ status: 202, body: { workflow_id: `erase:${id}` } });
  expect(await streaming).not.toContain("[DONE]");
  await untilDone(`erase:${id}`);

  expect(await partsOf(id)).toEqual(erased);
  expect(errorOf(await remove(id))).toEqual([404, "not_found"]);
  expect((await remove(id, { "idempotency-key": `delete-${id}` })).status).toBe(202);
  expect(errorOf(await admin("POST", "/v1/tenants", { id }))).toEqual([409, "conflict"]);
  const ledger = await runSql(databaseUrl, `select count(*)::int as calls from control.usage_ledger where tenant_id = '${id}'`);
  expect(ledger.rows).toEqual([{ calls: 2 }]);
  expect((await admin("GET", `/v1/billing/report?tenant=${id}&period=today`)).body).toMatchObject({ tenant: id });
  const { body } = await admin("GET", `/v1/audit?tenant=${id}`);
  expect((body["data"] as { action: string }[]).map(({ action }) => action)).toEqual([
    "tenant.create",
    "tenant.delete",
    "tenant.erase",
    "tenant.create",
  ]);
  expect((await chat(other.token, "still here")).status).toBe(200);
  expect(await partsOf(other.id)).toEqual(whole);
  expect((await admin("GET", "/v1/audit/verify")).body).toMatchObject({ ok: true, findings: [] });
}, 120_000);

test("a suspended tenant can be deleted, and one whose provision has not ended", async () => {
  const { id } = await newTenant("suspended");
  await admin("POST", `/v1/tenants/${id}/suspend`);
  const { id: fresh } = await newTenant("fresh");

  expect([(await remove(fresh)).status, (await remove(id)).status]).toEqual([202, 202]);

  await Promise.all([untilDone(`erase:${id}`), untilDone(`erase:${fresh}`)]);
  expect([await partsOf(id), await partsOf(fresh)]).toEqual([erased, erased]);
}, 120_000);

const crashPoints = {
  "before its schema": async () => await holding("select from control.chain_head where chain = 'system' for update"),
  "between its schema and its commit": async () => await holding("lock table control.tenant_token in exclusive mode"),
  "at its audit entry": async () => await holding("lock table control.audit_entry in exclusive mode"),
};
for (const [where, hold] of Object.entries(crashPoints)) {
  test(`kill -9 of a creation ${where} leaves a whole tenant or none`, async () => {
    await newTenant("warm");
    const id = someId("killed");
    const held = await hold();
    const creating = admin("POST", "/v1/tenants", { id }).catch(() => undefined);
    await held.waiting();

    await product.kill();
    await creating;
    expect(await partsOf(id)).toMatchObject(nothing);
    await held.release();
    await product.restart();

    await settled(id);
    expect(await partsOf(id)).toEqual(whole);
    await untilDone(`provision:${id}`);
    expect((await admin("GET", "/v1/audit/verify")).body).toMatchObject({ ok: true, findings: [] });
  }, 180_000);
}

test("kill -9 between a creation's commit and its answer: the tenant is whole, and its provision runs", async () => {
  const id = someId("committed");
  const listener = new pg.Client({ connectionString: databaseUrl });
  await listener.connect();
  const committed = new Promise<void>((resolve) => listener.on("notification", () => resolve()));
  await listener.query("listen openclaw_audit");
  const creating = admin("POST", "/v1/tenants", { id }).catch(() => undefined);
  await committed;

  await product.kill();
  await creating;
  await listener.end();
  await product.restart();

  expect(await partsOf(id)).toEqual(whole);
  await expect.poll(async () => await stateOf(`provision:${id}`), { timeout: 60_000 }).toBe("done");
  expect(errorOf(await admin("POST", "/v1/tenants", { id }))).toEqual([409, "conflict"]);
}, 180_000);

test("kill -9 at every step of a deletion: it goes on where it was, once", async () => {
  const { id, token } = await newTenant("stubborn");
  const other = await newTenant("bystander");
  expect((await chat(token, "to be billed")).status).toBe(200);
  const schema = `tenant_${id.replaceAll("-", "_")}`;
  const atStep = (name: string) => async () => ({
    async waiting() {
      await expect
        .poll(async () => ((await operation(`erase:${id}`)).body["progress"] as { steps: unknown[] } | null)?.steps, {
          timeout: 60_000,
          interval: 20,
        })
        .toContainEqual({ name, state: "running" });
    },
    async release() {},
  });
  const points = [
    async () => await holding(`lock table ${schema}.turn in row exclusive mode`),
    atStep("runs ended"),
    async () => await holding("lock table control.audit_entry in exclusive mode"),
    async () => await holding(`lock table ${schema}.message in access share mode`),
    atStep("late runs ended"),
    async () => await holding(`select from control.tenant where id = '${id}' for update`),
  ];

  for (const [index, hold] of points.entries()) {
    const held = await hold();
    if (index === 0) expect((await remove(id)).status).toBe(202);
    await held.waiting();
    await product.kill();
    await held.release();
    await product.restart();
    expect(errorOf(await chat(token, "let me in"))).toEqual([401, "invalid_api_key"]);
  }
  await untilDone(`erase:${id}`);

  expect(await partsOf(id)).toEqual(erased);
  expect(await partsOf(other.id)).toEqual(whole);
  expect((await chat(other.token, "still here")).status).toBe(200);
  const ledger = await runSql(databaseUrl, `select count(*)::int as calls from control.usage_ledger where tenant_id = '${id}'`);
  expect(ledger.rows).toEqual([{ calls: 1 }]);
  const { body } = await admin("GET", `/v1/audit?tenant=${id}`);
  expect((body["data"] as { action: string }[]).map(({ action }) => action)).toEqual(["tenant.create", "tenant.delete", "tenant.erase"]);
  expect((await admin("GET", "/v1/audit/verify")).body).toMatchObject({ ok: true, findings: [] });
}, 300_000);
