import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { openclaw } from "../control-plane/cli-stage.ts";
import { billCall, customerOf, dayOf, ledgerSum, usageMeter } from "../control-plane/invoice-stage.ts";
import { type FakeStripe, startFakeStripe } from "../fixtures/fake-stripe.ts";
import { freshNamespace } from "../fresh-namespace.ts";
import { leaksIn } from "../planted-secrets.ts";
import { type RunningProduct, configWithProvider, startProduct } from "../product.ts";
import { freshDatabase, quiet, runSql } from "../storage/fresh-database.ts";
import { type Database, openDatabase } from "../../storage/database.ts";

let stripe: FakeStripe;
let product: RunningProduct;
let database: Database;
let databaseUrl: string;
let namespace: string;

const [told, killed, refused, unmapped] = ["told", "killed", "refused", "unmapped"].map(
  (name) => `${name}-${randomBytes(4).toString("hex")}`,
) as [string, string, string, string];
const apiKey = `sk_test_${randomBytes(12).toString("hex")}`;
const yesterday = dayOf(-1);
const period = `${dayOf(-3)}..${dayOf(0)}`;

beforeAll(async () => {
  stripe = await startFakeStripe(apiKey);
  for (const tenant of [told, killed]) stripe.customers.add(customerOf(tenant));
  databaseUrl = await freshDatabase();
  namespace = await freshNamespace(inject("temporalAddress"));
  product = await startProduct({
    config: configWithProvider(
      "http://127.0.0.1:1",
      `  platform_fee_usd_per_month: 49.50
  stripe:
    api_key_env: MY_STRIPE_KEY
    api_base: "${stripe.url}"
    mode: test
    first_day: "${dayOf(-3)}"
    customers: { ${[told, killed, refused].map((tenant) => `${tenant}: ${customerOf(tenant)}`).join(", ")} }
`,
    ),
    env: {
      DATABASE_URL: databaseUrl,
      TEMPORAL_ADDRESS: inject("temporalAddress"),
      TEMPORAL_NAMESPACE: namespace,
      MY_STRIPE_KEY: apiKey,
    },
  });
  database = await openDatabase({ ownerUrl: databaseUrl, log: quiet });
  for (const tenant of [told, killed, refused, unmapped]) await product.createTenant(tenant);
});
afterAll(async () => {
  await product?.stop();
  await database?.close();
  await stripe?.close();
});

const invoice = async (...words: readonly string[]) =>
  await openclaw(["billing", "invoice", ...words], { OPENCLAW_URL: product.url, OPENCLAW_TOKEN: product.adminKey });
const audited = async (action: string, tenant: string) =>
  (await product.admin("GET", `/v1/audit?tenant=${tenant}&action=${action}`)).body["data"] as readonly object[];

test("a dry run shows what would be told and tells nothing; a run tells it once, and both are exact", async () => {
  await billCall(database, told, yesterday, 4_780_000_001n);
  await billCall(database, told, dayOf(-2), 7n);
  await billCall(database, told, dayOf(0), 1n);
  const words = ["--tenant", told, "--period", period];

  const dry = await invoice(...words, "--dry-run", "--json");
  expect(dry, dry.stderr).toMatchObject({ code: 0 });
  expect(JSON.parse(dry.stdout)).toMatchObject({
    tenant: told,
    customer: customerOf(told),
    dry_run: true,
    total_usd: "4.780000008",
    lines: [
      { event: `usage.${dayOf(-2)}.1`, state: "not planned", value: "7" },
      { event: `usage.${yesterday}.1`, event_name: usageMeter, value: "4780000001", amount_usd: "4.780000001" },
    ],
  });
  expect(stripe.attempts).toEqual([]);
  expect(await audited("invoice.run", told)).toEqual([]);

  for (let again = 0; again < 2; again++) {
    const run = await invoice(...words, "--json");
    expect(run, run.stderr).toMatchObject({ code: 0 });
    expect(JSON.parse(run.stdout)).toMatchObject({ data: [{ tenant: told, sent_events: 2, sent_usd: "4.780000008", undecided: [] }] });
  }

  expect(stripe.attempts).toHaveLength(2);
  expect(stripe.sumOf(customerOf(told), usageMeter)).toBe(await ledgerSum(databaseUrl, told));
  const entry = { chain: "system", actor: { type: "admin" }, outcome: "applied", target: `invoice:${dayOf(-3)}..${dayOf(0)}` };
  expect(await audited("invoice.run", told)).toMatchObject([entry, entry]);
});

test("kill -9 between Stripe's acceptance and our note of it: the event is told again under its identifier and counts once", async () => {
  await billCall(database, killed, yesterday, 123n);
  const held = Promise.withResolvers<void>();
  stripe.next({ hold: held.promise });
  const { body } = await product.admin("POST", "/v1/billing/invoices", { tenant: killed, period });
  await expect.poll(() => stripe.events.some(({ customer }) => customer === customerOf(killed)), { timeout: 30_000 }).toBe(true);

  await product.kill();
  held.resolve();
  const { rows } = await runSql(databaseUrl, `select state, attempts from control.invoice_event where tenant_id = '${killed}'`);
  expect(rows).toEqual([{ state: "open", attempts: 1 }]);
  await product.restart();
  await expect
    .poll(async () => (await product.admin("GET", `/v1/operations/${String(body["workflow_id"])}`)).body["state"], { timeout: 60_000 })
    .toBe("done");

  const ours = stripe.attempts.filter(({ customer }) => customer === customerOf(killed));
  expect(ours.length).toBeGreaterThan(1);
  expect(new Set(ours.map(({ identifier }) => identifier)).size).toBe(1);
  expect(stripe.sumOf(customerOf(killed))).toBe(123n);
  const status = await invoice("status", "--tenant", killed, "--json");
  expect(JSON.parse(status.stdout)).toMatchObject({ data: [{ sent_events: 1, sent_usd: "0.000000123", undecided_count: 0 }] });
}, 120_000);

test("a repeat under an Idempotency-Key is the same run", async () => {
  const send = async (body: object) => {
    const headers = { authorization: `Bearer ${product.adminKey}`, "content-type": "application/json", "idempotency-key": "once" };
    const answer = await fetch(`${product.url}/v1/billing/invoices`, { method: "POST", headers, body: JSON.stringify(body) });
    return [answer.status, await answer.json()];
  };

  const first = await send({ tenant: told, period: "yesterday" });
  expect(first).toEqual([202, { workflow_id: expect.stringMatching(new RegExp(`^invoice:${told}:[0-9a-f]{20}$`)) }]);
  expect(await send({ tenant: told, period: "yesterday" })).toEqual(first);
  expect((await send({ tenant: told, period: "today" }))[0]).toBe(409);
});

test("what Stripe refuses ends the command with 1 and says why, until an administrator drops it, which is audited", async () => {
  await billCall(database, refused, yesterday, 5n);

  const run = await invoice("--tenant", refused, "--period", period);
  expect(run.code).toBe(1);
  expect(run.stdout).toContain("No such customer");

  const event = `usage.${yesterday}.1`;
  expect((await invoice("resolve", event, "--tenant", refused, "--as", "dropped")).code).toBe(0);
  expect((await invoice("resolve", event, "--tenant", refused, "--as", "sent")).code).toBe(4);
  expect((await invoice("--tenant", refused, "--period", period)).code).toBe(0);
  expect(await audited("invoice.resolve", refused)).toMatchObject([
    { outcome: "applied", target: `test:${event} dropped` },
    { outcome: "refused", target: `test:${event} sent` },
  ]);
});

test("what cannot be is refused: a tenant without a customer, one that is not there, a bad period, event or key of the body", async () => {
  const codeOf = async (path: string, body: object) => {
    const answer = await product.admin("POST", path, body);
    return [answer.status, (answer.body["error"] as Record<string, unknown>)["code"]];
  };
  const runs = "/v1/billing/invoices";

  expect(await codeOf(runs, { tenant: unmapped, period })).toEqual([409, "conflict"]);
  expect(await codeOf(runs, { tenant: unmapped, period, dry_run: true })).toEqual([409, "conflict"]);
  expect(await codeOf(runs, { tenant: "nobody-there", period })).toEqual([404, "not_found"]);
  expect(await codeOf(runs, { tenant: "Not_A_Tenant", period })).toEqual([400, "invalid_tenant_id"]);
  expect(await codeOf(runs, { tenant: told, period: "2026-02-30..2026-03-01" })).toEqual([400, "invalid_period"]);
  expect(await codeOf(runs, { tenant: told, period, force: true })).toEqual([400, "invalid_request"]);
  for (const event of ["", "usage", "usage.2026-13-01.1", "usage.2026-11-22.0", "refund.2026-11-22.1", "usage.2026-11-22.1; drop"])
    expect(await codeOf(`${runs}/resolve`, { tenant: told, event, as: "sent" })).toEqual([400, "invalid_request"]);
  expect(await codeOf(`${runs}/resolve`, { tenant: told, event: "usage.2020-01-01.1", as: "sent" })).toEqual([409, "conflict"]);
});

test("the month's platform fee is a line of the JSON report and not of the CSV", async () => {
  const report = async (format: string) =>
    await fetch(`${product.url}/v1/billing/report?tenant=${told}&period=today&format=${format}`, {
      headers: { authorization: `Bearer ${product.adminKey}` },
    });

  expect(await (await report("json")).json()).toMatchObject({
    total_cost_usd: "0.000000001",
    platform_fees: [{ date: dayOf(0), tenant: told, month: dayOf(0).slice(0, 7), platform_fee_usd: "49.500000000" }],
    total_with_fees_usd: "49.500000001",
  });
  expect(await (await report("csv")).text()).not.toMatch(/fee|49\.5/);
});

test("Stripe's key is in no table, no history, no log and no audit", async () => {
  const secrets = { key: apiKey };
  const isClean = (bytes: Uint8Array): void => expect(leaksIn(bytes, secrets)).toEqual([]);

  const { rows: tables } = await runSql(databaseUrl, "select tablename as name from pg_tables where schemaname = 'control'");
  for (const { name } of tables as { name: string }[]) {
    const { rows } = await runSql(databaseUrl, `select coalesce(string_agg(t::text, ' '), '') as text from control.${name} t`);
    isClean(Buffer.from((rows[0] as { text: string }).text));
  }
  isClean(readFileSync(join(product.home, "gateway.log")));
  isClean(readFileSync(join(product.home, "audit.jsonl")));
  // As it was before payloads were encrypted: a run is given days, and answers counts.
  const recorded = JSON.parse(readFileSync(new URL("../histories/0.1.0-invoice.json", import.meta.url), "utf8")) as object;
  const payloads = [...JSON.stringify(recorded).matchAll(/"data":"([^"]+)"/g)].map(([, data = ""]) =>
    Buffer.from(data, "base64").toString(),
  );
  const harmless = /^(?:"invoice of replay-\w+"|"replay-\w+"|\{"firstDay":"[\d-]{10}"\}|1|\{("(planned|sent|refused|held)":[01],?)+\})$/;
  expect(payloads.length).toBeGreaterThan(5);
  expect(payloads.filter((payload) => !harmless.test(payload))).toEqual([]);
});
