import { randomBytes } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import pg from "pg";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { wantNothing } from "../../domain/quota-ledger.ts";
import { amountToWire, orderToWire } from "../../domain/quota-wire.ts";
import { reconcileScheduleId } from "../../domain/reconciliation.ts";
import { parseTenantId, systemOwner, tenantSchemaOf } from "../../domain/tenant.ts";
import { type Database, openDatabase } from "../../storage/database.ts";
import { type OpenedDataKeys, openDataKeys } from "../../storage/open-data-keys.ts";
import { guardedClient } from "../../temporal/chain-client.ts";
import { type TemporalConnection, connectTemporal } from "../../temporal/temporal-connection.ts";
import { forTenant } from "../../temporal/tenant-client.ts";
import { openclaw } from "../control-plane/cli-stage.ts";
import { billCall, dayOf } from "../control-plane/invoice-stage.ts";
import { freshNamespace } from "../fresh-namespace.ts";
import { type RunningProduct, configWithProvider, homeBeside, startProduct } from "../product.ts";
import { freshDatabase, quiet, runSql, sharedKek } from "../storage/fresh-database.ts";
import { type ModelServer, startModelServer } from "./model-server.ts";

let model: ModelServer;
let product: RunningProduct;
let second: RunningProduct;
let database: Database;
let databaseUrl: string;
let keys: OpenedDataKeys;
let connection: TemporalConnection;
const home = mkdtempSync(join(tmpdir(), "openclaw-look-"));

beforeAll(async () => {
  model = await startModelServer();
  databaseUrl = await freshDatabase();
  const address = inject("temporalAddress");
  const namespace = await freshNamespace(address);
  const env = { DATABASE_URL: databaseUrl, TEMPORAL_ADDRESS: address, TEMPORAL_NAMESPACE: namespace };
  const config = configWithProvider(model.url);
  product = await startProduct({ config, env });
  second = await startProduct({ config, env, adminKey: product.adminKey, home: homeBeside(product.home) }); // its tenants outlive it
  database = await openDatabase({ ownerUrl: databaseUrl, log: quiet });
  keys = await openDataKeys({ database, home, keyEncryptionKey: sharedKek(databaseUrl), log: quiet });
  connection = await connectTemporal({ address, namespace, dataKeys: keys.dataKeys });
});
afterAll(async () => {
  await connection?.close();
  await keys?.close();
  await database?.close();
  await product?.stop();
  await second?.stop();
  await model?.close();
  rmSync(home, { recursive: true, force: true });
});

type Tenant = { readonly id: string; readonly token: string };

async function newTenant(quota?: object): Promise<Tenant> {
  const id = `rec-${randomBytes(4).toString("hex")}`;
  const token = await product.createTenant(id);
  if (quota !== undefined) expect((await product.admin("PUT", `/v1/tenants/${id}/quota`, quota)).status).toBe(200);
  return { id, token };
}

const ask = async ({ token }: Tenant, text: string, at = product): Promise<number> => {
  const answer = await fetch(`${at.url}/v1/chat/completions`, {
    method: "POST",
    headers: { authorization: `Bearer ${token}`, "content-type": "application/json", "x-openclaw-mode": "gateway" },
    body: JSON.stringify({ model: "default", messages: [{ role: "user", content: text }], max_tokens: 300 }),
  });
  await answer.text();
  return answer.status;
};

/** Each rarely lasts longer than a second; the rest is for machines that have much else to do. */
const patience = { timeout: 90_000, interval: 100 };
const schedule = () => guardedClient(systemOwner, connection).schedule;

const scheduledRuns = async (): Promise<readonly string[]> =>
  (await schedule().getHandle(reconcileScheduleId).describe()).info.recentActions.map(({ action }) => action.workflow.workflowId);

/** As the night does. @returns the workflow id */
async function startRun(): Promise<string> {
  const before = new Set(await scheduledRuns());
  await schedule().getHandle(reconcileScheduleId).trigger();
  let started: string | undefined;
  await expect.poll(async () => (started = (await scheduledRuns()).find((id) => !before.has(id))), patience).toBeDefined();
  return started ?? "";
}

type Operation = { state: string; kind: string; progress: { done: number; total: number; failure?: string } };
async function endOf(workflowId: string): Promise<Operation> {
  let operation: Record<string, unknown> = {};
  await expect
    .poll(async () => {
      operation = (await product.admin("GET", `/v1/operations/${workflowId}`)).body;
      return operation["state"];
    }, patience)
    .toBe("done");
  return operation as Operation;
}
const reconcile = async (): Promise<Operation> => await endOf(await startRun());

const alarms = async (tenant?: Tenant): Promise<readonly string[]> => {
  const query = tenant === undefined ? "" : `&tenant=${tenant.id}`;
  const entries = (await product.admin("GET", `/v1/audit?action=billing.alarm${query}`)).body["data"];
  return (entries as { target: string; actor: object; outcome: string; chain: string }[]).map(({ target, actor, outcome, chain }) => {
    expect({ actor, outcome, chain }).toEqual({ actor: { type: "system", id: "reconcile" }, outcome: "applied", chain: "system" });
    return target;
  });
};
/** By the owner of the database, past the triggers, as a careless hand would. */
const tamper = async (sql: string) => await runSql(databaseUrl, `set session_replication_role = replica; ${sql}`);
const metric = async (name: string): Promise<number> => {
  const text = await (await fetch(`${product.url}/metrics`)).text();
  return Number(new RegExp(`^${name.replaceAll(/[{}"]/g, String.raw`\$&`)} (\\S+)$`, "m").exec(text)?.[1] ?? Number.NaN);
};
const firstRowOf = async ({ id }: Tenant): Promise<string> => {
  const { rows } = await runSql(databaseUrl, `select id from control.usage_ledger where tenant_id = '${id}' order by id limit 1`);
  return String((rows[0] as { id: string } | undefined)?.id);
};

test("two processes make one schedule, and a product with turns under way raises no alarm", async () => {
  const [counted, paid, free] = [
    await newTenant({ tokens_per_day: 10_000_000 }),
    await newTenant({ cost_per_day_usd: "1000", requests_per_minute: 100_000 }),
    await newTenant(),
  ];
  const ids: string[] = [];
  for await (const { scheduleId } of schedule().list()) ids.push(scheduleId);
  expect(ids.filter((id) => id.startsWith("reconcile"))).toEqual([reconcileScheduleId]);

  let isOver = false;
  const callers = [counted, paid, free].map(async (tenant, index) => {
    const statuses: number[] = [];
    const ways = [`USAGE 10 ${5 + index} 3 2\nSLOW 20`, "NOUSAGE", "FAIL 400"];
    for (let n = 0; !isOver || n < ways.length; n++)
      statuses.push(await ask(tenant, ways[n % ways.length] ?? "", index % 2 === 0 ? product : second));
    return statuses;
  });
  const run = await reconcile();
  const verified = await openclaw(["billing", "verify", "--json"], { OPENCLAW_URL: product.url, OPENCLAW_TOKEN: product.adminKey });
  isOver = true;
  const statuses = (await Promise.all(callers)).flat();
  await second.stop();

  expect(new Set(statuses)).toEqual(new Set([200, 400]));
  expect(run).toMatchObject({ kind: "reconcile", state: "done" });
  expect(run.progress.done).toBe(run.progress.total);
  expect(JSON.parse(verified.stdout)).toMatchObject({ ok: true, findings: [], unread: [] });
  expect(JSON.parse(verified.stdout)).toHaveProperty("rows", expect.any(Number));
  expect(await alarms()).toEqual([]);
}, 240_000);

test("every kind of tampering raises one alarm, whoever else cannot be read, and again only when it was gone in between", async () => {
  const quota = { tokens_per_day: 1_000_000 };
  const [edited, removed, summed, counted, suspended, erased, unreadable] = [
    await newTenant(),
    await newTenant(),
    await newTenant(),
    await newTenant(quota),
    await newTenant(quota),
    await newTenant(),
    await newTenant(quota),
  ];
  for (const tenant of [edited, removed, summed, counted, suspended, erased, unreadable])
    expect(await ask(tenant, "USAGE 10 5 0 0")).toBe(200);
  const [editedRow, removedRow] = [await firstRowOf(edited), await firstRowOf(removed)];
  const today = dayOf(0);

  await tamper(`update control.usage_ledger set cost_nano_usd = cost_nano_usd + 1 where id = '${editedRow}'`);
  await tamper(`delete from control.usage_ledger where id = '${removedRow}'`);
  await tamper(`update control.usage_daily set calls = calls + 1 where tenant_id = '${summed.id}'`);
  const orders = forTenant({ tenantId: parseTenantId(counted.id) }, connection, { windowMs: 2_000, modelCall: "remote" }).quota;
  const made = { callId: `trn_${"0".repeat(26)}.0` as never, holder: "rogue", batch: 1 };
  await orders.lease({
    ...orderToWire({ holder: "rogue", seq: 1, opened: [], settled: [], requestsSpent: 0, requestsGivenBack: [], want: wantNothing }),
    opened: [{ callId: made.callId, day: today, reserved: { tokens: 0, nanoUsd: "0" } }],
    settled: [{ ...made, actual: amountToWire({ tokens: 50, nanoUsd: 7n as never }) }],
  });
  await product.admin("POST", `/v1/tenants/${suspended.id}/suspend`);
  const deletion = (await product.admin("DELETE", `/v1/tenants/${erased.id}?confirm=${erased.id}`)).body["workflow_id"];
  await endOf(String(deletion));
  await tamper(`update control.usage_daily set tokens_in = tokens_in - 3 where tenant_id = '${erased.id}'`);
  const journal = `"${tenantSchemaOf(parseTenantId(unreadable.id))}".model_call`;
  await tamper(`alter table ${journal} rename to hidden`);

  const { progress } = await reconcile();

  expect(progress.failure).toBe(`could not be read: ${unreadable.id}`);
  expect(progress.done).toBe(progress.total - 1);
  expect(await alarms(edited)).toEqual([
    expect.stringMatching(new RegExp(`^sum_differs ${today} test-model: cost_nano_usd is \\d+, the rows come to \\d+$`)),
    expect.stringMatching(new RegExp(`^price_differs ${editedRow}: cost_nano_usd is \\d+, its tokens come to \\d+$`)),
  ]);
  expect(await alarms(removed)).toEqual([
    `row_missing ${removedRow}: the call ended and has no billing row: model test-model, input_tokens 10, output_tokens 5`,
    expect.stringMatching(new RegExp(`^sum_unexpected ${today} test-model: there is a sum and no row: tokens_in 10, tokens_out 5, `)),
  ]);
  expect(await alarms(summed)).toEqual([`sum_differs ${today} test-model: calls is 2, the rows come to 1`]);
  expect(await alarms(counted)).toEqual([
    `counter_differs ${today}: the workflow has counted 65 tokens, the rows come to 15 tokens; ` +
      `the workflow has counted 0.000525007 USD, the rows come to 0.000525000 USD`,
  ]);
  expect(await alarms(erased)).toEqual([`sum_differs ${today} test-model: tokens_in is 7, the rows come to 10`]);
  expect(await alarms(suspended)).toEqual([]);
  const total = 7;
  expect(await alarms()).toHaveLength(total);
  const logs = readFileSync(join(product.home, "gateway.log"), "utf8");
  expect(logs.split("\n").filter((line) => line.includes("ALARM: the billing of a tenant differs"))).toHaveLength(total);
  await expect.poll(async () => await metric('openclaw_billing_differences_open{check="rollup"}'), patience).toBe(4);
  expect(await metric("openclaw_reconciliation_unread_tenants")).toBe(1);
  expect(await metric("openclaw_reconciliation_finished_timestamp_seconds")).toBeGreaterThan(Date.now() / 1_000 - 600);

  const verified = await openclaw(["billing", "verify", "--tenant", counted.id, "--period", "today", "--json"], {
    OPENCLAW_URL: product.url,
    OPENCLAW_TOKEN: product.adminKey,
  });
  expect(verified.code).toBe(1);
  expect(JSON.parse(verified.stdout)).toMatchObject({ findings: [{ check: "counter", kind: "counter_differs", subject: today }] });

  await tamper(`alter table ${journal.replace("model_call", "hidden")} rename to model_call`);
  await tamper(`update control.usage_daily set calls = calls - 1 where tenant_id = '${summed.id}'`);
  expect((await reconcile()).progress).not.toHaveProperty("failure");
  expect(await alarms()).toHaveLength(total);
  await tamper(`update control.usage_daily set calls = calls + 1 where tenant_id = '${summed.id}'`);
  await reconcile();
  expect(await alarms(summed)).toHaveLength(2);
  expect(await alarms()).toHaveLength(total + 1);
}, 240_000);

test("kill -9 in the middle: the run goes on, and each difference has one alarm", async () => {
  const before = (await alarms()).length;
  const rows: Tenant[] = [];
  for (let n = 0; n < 6; n++) rows.push(await newTenant());
  for (const { id } of rows) await billCall(database, id, dayOf(-1), 5n); // by a rate card that is not stored
  const busy = await newTenant({ tokens_per_day: 1_000_000 });
  const held = model.hold("a call that outlives its process");
  const cut = ask(busy, "a call that outlives its process").catch(() => 0);
  expect(await ask(busy, "USAGE 10 5 0 0")).toBe(200);
  await held.arrived;
  // Whoever writes an alarm waits here, and has its difference in the rows already.
  const holder = new pg.Client({ connectionString: databaseUrl });
  await holder.connect();
  await holder.query("begin");
  await holder.query("select from control.chain_head where chain = 'system' for update");
  const known = async (): Promise<number> => {
    const ids = rows.map(({ id }) => `'${id}'`).join(", ");
    return (await runSql(databaseUrl, `select from control.billing_finding where tenant_id in (${ids})`)).rowCount ?? 0;
  };

  const run = await startRun();
  await expect.poll(known, patience).toBeGreaterThan(0);
  await product.kill();
  await holder.query("rollback");
  await holder.end();
  await product.restart();
  held.release();
  await cut;
  const { progress } = await endOf(run);

  expect(progress.done).toBe(progress.total);
  expect(await alarms(busy)).toEqual([]);
  for (const tenant of rows)
    expect(await alarms(tenant)).toEqual([
      expect.stringMatching(/^price_differs trn_\w+\.0: its rate card is not stored, or was changed$/),
    ]);
  expect(await alarms()).toHaveLength(before + rows.length);
  expect((await product.admin("GET", "/v1/audit/verify")).body).toMatchObject({ ok: true });
}, 240_000);
