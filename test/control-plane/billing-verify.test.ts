import { expect, test } from "vitest";
import { type BillingDays, verifyBilling } from "../../control-plane/billing-verify.ts";
import { createRateCard, storeRateCard } from "../../control-plane/rate-cards.ts";
import type { MarkupPpm } from "../../domain/money.ts";
import { priceOf } from "../../domain/rate-card.ts";
import type { QuotaBooks } from "../../domain/quota-wire.ts";
import type { TenantId } from "../../domain/tenant.ts";
import { type CallId, callIdOf } from "../../domain/turn-id.ts";
import { noUsage } from "../../domain/usage.ts";
import { closeCall, insertTurn, openCall, recordUsage } from "../../storage/turn-repository.ts";
import { runSql } from "../storage/fresh-database.ts";
import { quiet, someTurn } from "../turn-stack.ts";
import { controlStage, someTenantId } from "./control-stage.ts";

const card = createRateCard({ "test-model": { input: "1.25", output: "10", cache_read: "0.125" } });
const rates = card.rates.get("test-model");
if (rates === undefined) throw new Error("no rates");
const usage = { ...noUsage, inputTokens: 1_001, cacheReadTokens: 7, outputTokens: 33, reasoningTokens: 5, estimated: false };
const markupPpm = 150_000 as MarkupPpm;

/** Two tenants with three settled calls each, as the settlement writes them. */
async function billedStage() {
  const { database, tenants, ownerUrl } = await controlStage();
  await database.withControl((tx) => storeRateCard(tx, card));
  const settle = async (tenantId: TenantId): Promise<string> => {
    const turn = someTurn("api:jane:default", "hello");
    const callId = callIdOf(turn.turnId, 0);
    const terms = { rateCardHash: card.hash, markupPpm };
    await database.withTenant({ tenantId, requestId: "req_test" }, async (tx) => {
      await insertTurn(tx, turn, turn.sessionId);
      await openCall(tx, { turnId: turn.turnId, step: 0, model: "test-model", terms });
      await closeCall(tx, { callId, attempt: 1, model: "test-model", reply: undefined, usage, providerRequestId: undefined });
      await recordUsage(tx, {
        id: callId,
        providerRequestId: undefined,
        atMs: Date.now(),
        sessionId: turn.sessionId,
        model: "test-model",
        usage,
        toolCalls: 0,
        ...priceOf(rates as NonNullable<typeof rates>, usage, markupPpm),
        markupPpm,
        rateCardHash: card.hash,
        reason: "chat",
      });
    });
    return callId;
  };
  const acme = (await tenants.create({ id: someTenantId("acme") })).tenant.id;
  const globex = (await tenants.create({ id: someTenantId("globex") })).tenant.id;
  const calls = [await settle(acme), await settle(acme), await settle(acme)];
  for (let n = 0; n < 3; n++) await settle(globex);
  /** By the owner of the database, past the triggers, as a careless hand would. */
  const tamper = async (sql: string) => await runSql(ownerUrl, `set session_replication_role = replica; ${sql}`);
  const books = new Map<string, QuotaBooks | Error>();
  const booksOf = async (id: TenantId): Promise<QuotaBooks | undefined> => {
    const known = books.get(id);
    if (known instanceof Error) throw known;
    return known;
  };
  const deps = { database, tenants, booksOf, pageRows: 2, againMs: 1, log: quiet };
  const verify = async (tenantId?: TenantId, days?: BillingDays) => await verifyBilling(deps, { tenantId, days, requestId: "req_test" });
  return { acme, globex, calls, books, tamper, verify, schema: `tenant_${acme.replaceAll("-", "_")}` };
}

test("rows as the settlement writes them agree with their calls, sums and prices", async () => {
  const { acme, verify } = await billedStage();

  expect(await verify()).toEqual({ ok: true, tenants: 2, rows: 6, findings: [], has_more: false, unread: [] });
  expect(await verify(acme)).toMatchObject({ ok: true, tenants: 1, rows: 3 });
  await expect(verify(someTenantId("nobody"))).rejects.toMatchObject({ code: "not_found" });
});

test("each kind of difference is found and named, and only there", async () => {
  const { acme, globex, calls, tamper, verify, schema } = await billedStage();
  const [first = "", second = "", third = ""] = calls;
  const found = async () => (await verify()).findings.map(({ tenant, check, subject }) => [tenant, check, subject]);
  const day = new Date().toISOString().slice(0, 10);

  await tamper(`update control.usage_ledger set cost_nano_usd = cost_nano_usd + 1 where id = '${first}'`);
  const edited = await verify();
  expect(edited.ok).toBe(false);
  expect(edited.findings).toEqual([
    {
      tenant: acme,
      check: "rollup",
      kind: "sum_differs",
      subject: `${day} test-model`,
      day,
      what: expect.stringMatching(/^cost_nano_usd is \d+, the rows come to \d+$/),
    },
    {
      tenant: acme,
      check: "price",
      kind: "price_differs",
      subject: first,
      day,
      what: expect.stringMatching(/^cost_nano_usd is \d+, its tokens come to \d+$/),
    },
  ]);
  await tamper(`update control.usage_ledger set cost_nano_usd = cost_nano_usd - 1 where id = '${first}'`);
  expect(await found()).toEqual([]);

  await tamper(`update control.usage_daily set calls = calls + 1 where tenant_id = '${acme}'`);
  expect(await found()).toEqual([[acme, "rollup", `${day} test-model`]]);
  await tamper(`update control.usage_daily set calls = calls - 1 where tenant_id = '${acme}'`);

  await tamper(`update ${schema}.model_call set state = 'started' where id = '${second}'`);
  expect(await found()).toEqual([[acme, "journal", second]]);
  await tamper(`update ${schema}.model_call set state = 'done', usage = jsonb_set(usage, '{outputTokens}', '34') where id = '${second}'`);
  expect(await found()).toEqual([[acme, "journal", second]]);
  await tamper(`update ${schema}.model_call set usage = jsonb_set(usage, '{outputTokens}', '33') where id = '${second}'`);
  expect(await found()).toEqual([]);

  await tamper(`delete from control.usage_ledger where id = '${third}'`);
  expect(await found()).toEqual([
    [acme, "journal", third],
    [acme, "rollup", `${day} test-model`],
  ]);
  expect((await verify(globex)).ok).toBe(true);
});

test("counters are compared to the digit, but for what the workflow cannot have counted yet", async () => {
  const { acme, globex, calls, books, tamper, verify, schema } = await billedStage();
  const day = new Date().toISOString().slice(0, 10);
  for (const [index, id] of calls.entries())
    await tamper(`update ${schema}.model_call set holder = 'h', batch = ${index + 1}, day = '${day}' where id = '${id}'`);
  const [first] = calls as [CallId];
  const row = { tokens: 1_001 + 33 + 5, nanoUsd: priceOf(rates as NonNullable<typeof rates>, usage, markupPpm).costNanoUsd };
  const used = (rows: number, more = 0) => ({ tokens: rows * row.tokens + more, nanoUsd: (BigInt(rows) * row.nanoUsd).toString() });
  const found = async (counted: QuotaBooks["today"], of = acme) => {
    books.set(of, { today: counted });
    return (await verify(of)).findings.map(({ check, kind, subject, what }) => [check, kind, subject, what].join(" "));
  };
  const lease = (seq: number) => [{ holder: "h", seq }];
  const fault = (what: string) => [`counter counter_differs ${day} ${what}`];

  expect(await found({ day, used: used(3), open: [], leases: lease(3) })).toEqual([]);
  expect(await found({ day, used: used(3), open: [], leases: [] })).toEqual([]);
  expect(await found({ day, used: used(2), open: [], leases: lease(2) })).toEqual([]);
  expect(await found({ day, used: used(1), open: [{ callId: first, holder: "h", batch: 1 }], leases: lease(2) })).toEqual([]);
  expect(await found({ day, used: used(3, 1), open: [], leases: lease(3) })).toEqual(
    fault("the workflow has counted 3118 tokens, the rows come to 3117 tokens"),
  );
  expect(await found({ day, used: used(3), open: [], leases: lease(2) })).toHaveLength(1);
  expect(await found({ day, used: used(2), open: [], leases: lease(3) })).toHaveLength(1);
  expect(await found({ day, used: used(3), open: [{ callId: first, holder: "h", batch: 9 }], leases: [] })).toEqual([]);

  // No lease reserved them, or their journal is gone: they may be counted.
  for (const rows of [0, 1, 2, 3]) expect(await found({ day, used: used(rows), open: [], leases: [] }, globex)).toEqual([]);
  expect(await found({ day, used: used(3, 1), open: [], leases: [] }, globex)).toEqual(
    fault("the workflow has counted 3118 tokens, the rows come to 0 tokens to 3117 tokens"),
  );
});

test("a period is compared and nothing else, and a tenant that cannot be read stops no other", async () => {
  const { acme, globex, books, tamper, verify } = await billedStage();
  const dayAt = (offset: number) => new Date(Date.now() + offset * 86_400_000).toISOString().slice(0, 10);
  const only = (offset: number) => ({ firstDay: dayAt(offset), lastDay: dayAt(offset) });
  await tamper(`update control.usage_daily set calls = calls + 1 where tenant_id = '${acme}'`);

  expect(await verify(acme, only(-1))).toMatchObject({ ok: true, rows: 0 });
  expect(await verify(acme, only(0))).toMatchObject({ ok: false, rows: 3, findings: [{ check: "rollup" }] });

  books.set(globex, new Error("its workflow does not answer"));
  expect(await verify()).toMatchObject({ ok: false, tenants: 2, rows: 6, findings: [{ tenant: acme }], unread: [globex] });
});

test("a card that was changed afterwards is named once for every row that it priced", async () => {
  const { tamper, verify } = await billedStage();
  await tamper(`update control.rate_card set body = jsonb_set(body, '{test-model,output}', '"11"')`);

  const { findings, rows } = await verify();

  expect(rows).toBe(6);
  expect(findings.map(({ check, what }) => [check, what])).toEqual(Array(6).fill(["price", "its rate card is not stored, or was changed"]));
});
