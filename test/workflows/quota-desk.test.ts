import { type WorkflowHandle, WorkflowUpdateFailedError } from "@temporalio/client";
import { afterEach, beforeEach, expect, test } from "vitest";
import type { QuotaLeases } from "../../control-plane/quota-leases.ts";
import { AppError } from "../../domain/app-error.ts";
import type { NanoUsd } from "../../domain/money.ts";
import { type Amount, hold, openLedger, utcDayOf } from "../../domain/quota-ledger.ts";
import { type OrderWire, ledgerToWire } from "../../domain/quota-wire.ts";
import type { TenantQuota } from "../../domain/tenant-quota.ts";
import type { TenantContext } from "../../domain/tenant.ts";
import type { FinishedTurn, TurnKind } from "../../domain/turn.ts";
import { chainStart } from "../../temporal/chain-client.ts";
import { leaseQuota } from "../../workflows/quota-messages.ts";
import type { TenantInput } from "../../workflows/tenant-messages.ts";
import { type ChangesStage, startChanges } from "../control-plane/changes-stage.ts";
import { someStatelessTurn, turnServiceOf } from "../turn-stack.ts";

/** The tenant's workflow, its rows and two processes' leases, with ceilings that audited changes set. */
let stage: ChangesStage;
let acme: TenantContext;
let here: QuotaLeases;
let there: QuotaLeases;

beforeEach(async () => {
  stage = await startChanges();
  const { tenantId } = await stage.createTenant();
  await expect.poll(async () => (await stage.stack.operations.read(`provision:${tenantId}`))?.state, { timeout: 30_000 }).toBe("done");
  acme = { tenantId, requestId: "test" };
  here = stage.stack.quota;
  there = stage.stack.otherLeases();
});
afterEach(async () => {
  await there.close();
  await stage.close();
});

const unlimited: TenantQuota = { tokensPerDay: null, costPerDayNanoUsd: null, requestsPerMinute: null };
const setQuota = async (quota: Partial<TenantQuota>): Promise<void> =>
  await stage.make(acme.tenantId, { type: "quota.update", quota: { ...unlimited, ...quota } });
const tokens = (count: number): Amount => ({ tokens: count, nanoUsd: 0n as NanoUsd });
const need = (count: number) => ({ least: tokens(count), desired: tokens(count) });
let calls = 0;
const someCall = () => `call-${++calls}` as Parameters<QuotaLeases["reserve"]>[1];
const counted = async () => await stage.stack.clientOf(acme.tenantId).quota.count();

async function ask(quota: QuotaLeases, kind: TurnKind = "chat"): Promise<FinishedTurn> {
  const service = turnServiceOf(stage.stack, quota);
  return await (
    await service.submit(acme, someStatelessTurn("hello", { kind }))
  ).finished;
}

const codeOf = async (work: Promise<unknown>): Promise<string> =>
  await work.then(
    () => "nothing",
    (error: unknown) => (error instanceof AppError ? error.code : String(error)),
  );
const leaseRows = async (): Promise<number> =>
  (await stage.stack.database.withTenant(acme, async (tx) => await tx.query("select from quota_lease where fenced_at is null"))).length;
const usedByRows = async (): Promise<number> =>
  await stage.stack.database.withTenant(acme, async (tx) => {
    const [row] = await tx.query<{ used: bigint }>(
      "select coalesce(sum(input_tokens + output_tokens + reasoning_tokens), 0)::bigint as used from control.usage_ledger",
    );
    return Number(row?.used);
  });

test("leases and counters go on in the next run of the workflow, and a ceiling that the last change of a run lowered holds in the next", async () => {
  await setQuota({ tokensPerDay: 100_000 });
  await restartWith({ changesPerRun: 2 });
  const runOf = async () => (await stage.stack.connection.client.workflow.getHandle(`tenant:${acme.tenantId}`).describe()).runId;
  const firstRun = await runOf();
  expect((await ask(here)).state).toBe("done");
  await expect.poll(async () => (await counted())?.used.tokens, { timeout: 20_000 }).toBe(15);

  await setQuota({ tokensPerDay: 90_000 });
  await setQuota({ tokensPerDay: 20 });
  await expect.poll(runOf, { timeout: 20_000 }).not.toBe(firstRun);

  expect(await counted()).toMatchObject({ used: { tokens: 15 } });
  expect(await codeOf(there.reserve(acme.tenantId, someCall(), need(6)))).toBe("tokens_per_day");
  await expect(there.reserve(acme.tenantId, someCall(), need(5))).resolves.toMatchObject({ reserved: { tokens: 5 } });
});

test("what was granted under a higher ceiling is taken back, in the rows too", async () => {
  await setQuota({ tokensPerDay: 1_000_000 });
  expect((await ask(here)).state).toBe("done"); // and much is granted ahead of the next ones
  expect(await leaseRows()).toBe(1);

  await setQuota({ tokensPerDay: 15 });
  await expect.poll(leaseRows, { timeout: 20_000 }).toBe(0);

  const end = await ask(here).catch((error: unknown) => error);
  expect(end instanceof AppError ? end.code : (end as { error?: { code: string } }).error?.code).toBe("tokens_per_day");
  expect(await usedByRows()).toBe(15);
});

test("a suspended tenant spends nothing, with a lease granted here or without any ceiling, until it is resumed", async () => {
  await setQuota({ tokensPerDay: 1_000_000 });
  await there.reserve(acme.tenantId, someCall(), need(100)); // the lease holds more than that now
  expect(there.take(acme.tenantId, someCall(), need(100))).toBeDefined();

  await stage.make(acme.tenantId, { type: "tenant.suspend" });

  expect(await codeOf(ask(there))).toBe("tenant_suspended");
  await expect.poll(leaseRows, { timeout: 20_000 }).toBe(0); // what it still has in memory opens nothing
  await stage.make(acme.tenantId, { type: "tenant.resume" });
  expect((await ask(there)).state).toBe("done");
  await setQuota({});
  await stage.make(acme.tenantId, { type: "tenant.suspend" });
  expect(await codeOf(ask(there))).toBe("tenant_suspended");
});

test("what is used while there is no ceiling counts once there is one", async () => {
  await setQuota({ tokensPerDay: 1_000 });
  expect((await ask(here)).state).toBe("done");
  await setQuota({});
  for (let turn = 0; turn < 3; turn++) expect((await ask(here)).state).toBe("done");
  expect(await counted()).toBeUndefined();

  await setQuota({ tokensPerDay: 65 });

  expect(await codeOf(here.reserve(acme.tenantId, someCall(), need(6)))).toBe("tokens_per_day");
  expect(await counted()).toMatchObject({ used: { tokens: await usedByRows() } });
});

test("background turns count in tokens and not in requests", async () => {
  await setQuota({ tokensPerDay: 100_000, requestsPerMinute: 1 });
  expect((await ask(here)).state).toBe("done");
  expect(await codeOf(ask(there))).toBe("requests_per_minute");

  expect((await ask(there, "heartbeat")).state).toBe("done");

  await expect.poll(async () => (await counted())?.used.tokens, { timeout: 20_000 }).toBe(30);
  expect(await codeOf(ask(here))).toBe("requests_per_minute");
  await setQuota({ tokensPerDay: 30, requestsPerMinute: 1 });
  expect(await ask(there, "cron")).toMatchObject({ state: "failed", error: { code: "tokens_per_day" } });
});

test("a process whose lease's row is gone begins another one instead of failing", async () => {
  await setQuota({ tokensPerDay: 100_000, requestsPerMinute: 100 });
  expect((await ask(here)).state).toBe("done");
  await stage.stack.database.withTenant(acme, async (tx) => await tx.execute("delete from quota_lease"));

  expect((await ask(here)).state).toBe("done");
  await expect.poll(async () => (await counted())?.used.tokens, { timeout: 20_000 }).toBe(30);
});

test("a late copy of a lease's first order does not bring the lease back, though it has left no row", async () => {
  await setQuota({ tokensPerDay: 1_000 });
  const order: OrderWire = {
    holder: "late-lease",
    seq: 1,
    opened: [],
    settled: [],
    requestsSpent: 0,
    requestsGivenBack: [],
    want: { calls: 1, least: wire(10), first: wire(10), total: wire(10), requests: 0 },
  };
  const handle = stage.stack.connection.client.workflow.getHandle(`tenant:${acme.tenantId}`);
  const send = async () => (await handle.executeUpdate<{ state: string }, [OrderWire]>("lease", { args: [order] })).state;
  expect(await send()).toBe("granted");
  expect(await send()).toBe("granted");

  await handle.signal("end-lease", order.holder);
  await expect.poll(async () => (await counted())?.leases, { timeout: 20_000 }).toBe(0);

  expect(await send()).toBe("gone");
  expect([await leaseRows(), (await counted())?.held.tokens]).toEqual([0, 0]);
});

test("a malformed order is refused, and the workflow goes on", async () => {
  await setQuota({ tokensPerDay: 1_000 });
  const good: OrderWire = {
    holder: "some-lease",
    seq: 1,
    opened: [],
    settled: [],
    requestsSpent: 0,
    requestsGivenBack: [],
    want: { calls: 0, least: wire(0), first: wire(0), total: wire(0), requests: 0 },
  };
  const handle = stage.stack.connection.client.workflow.getHandle(`tenant:${acme.tenantId}`);
  const bad: unknown[] = [
    null,
    {},
    { ...good, seq: 0 },
    { ...good, requestsSpent: -1 },
    { ...good, requestsGivenBack: [0.5] },
    { ...good, want: { ...good.want, total: { tokens: 1, nanoUsd: "much" } } },
    { ...good, opened: [{ callId: "c", day: utcDayOf(Date.now()), reserved: { tokens: -1_000_000, nanoUsd: "0" } }] },
    { ...good, settled: [{ callId: "c", holder: "h", batch: 1, actual: { tokens: 1, nanoUsd: "-1" } }] },
  ];

  for (const order of bad) {
    await expect(handle.executeUpdate(leaseQuota, { args: [order as OrderWire] })).rejects.toBeInstanceOf(WorkflowUpdateFailedError);
  }

  expect(await handle.executeUpdate(leaseQuota, { args: [good] })).toMatchObject({ state: "granted" });
});

const wire = (count: number) => ({ tokens: count, nanoUsd: "0" });

test("a workflow that comes from yesterday begins today with nothing, by its one timer, and yesterday's calls stay yesterday's", async () => {
  await setQuota({ tokensPerDay: 1_000 });
  const yesterday = utcDayOf(Date.now() - 86_400_000);
  const ledger = openLedger({ tokensPerDay: 1_000, nanoUsdPerDay: undefined, requestsPerMinute: undefined }, yesterday, tokens(400));
  const call = { callId: someCall(), holder: "yesterdays", batch: 1 };
  hold(ledger, { ...call, reserved: tokens(300), checkedAtMs: Date.now() });
  const run = await restartWith({ quota: ledgerToWire(ledger) });

  await expect
    .poll(counted, { timeout: 60_000 })
    .toEqual({ day: utcDayOf(Date.now()), used: wire(0), overshoot: wire(0), held: wire(0), leases: 0, calls: 0 });

  expect(await stage.stack.clientOf(acme.tenantId).quota.books()).toEqual({
    today: { day: utcDayOf(Date.now()), used: wire(0), open: [], leases: [] },
    last: { day: yesterday, used: wire(400), open: [call], leases: [] },
  });
  const { events } = await run.fetchHistory();
  expect(events?.filter(({ timerFiredEventAttributes: fired }) => fired !== null && fired !== undefined)).toHaveLength(1);
  here.settle(acme.tenantId, { ...call, actual: tokens(500) });
  await expect(here.reserve(acme.tenantId, someCall(), need(900))).resolves.toMatchObject({ day: utcDayOf(Date.now()) });
  expect(await counted()).toMatchObject({ used: wire(0), held: { tokens: 900 } });
});

/** Ends the tenant's workflow and starts it as its previous run would have. */
async function restartWith(input: TenantInput): Promise<WorkflowHandle> {
  const { client } = stage.stack.connection;
  await client.workflow.getHandle(`tenant:${acme.tenantId}`).terminate("a test starts it otherwise");
  return await client.workflow.start("tenant", chainStart(acme.tenantId, input));
}
