import { ScheduleNotFoundError } from "@temporalio/client";
import { afterAll, beforeAll, expect, test } from "vitest";
import { systemOwner, type TenantId } from "../../domain/tenant.ts";
import { readAccounts } from "../../storage/invoice-repository.ts";
import { type InvoiceClient, createInvoiceClient } from "../../temporal/invoice-client.ts";
import { startInvoiceSchedules } from "../../workers/invoice-schedules.ts";
import { type ChangesStage, startChanges } from "../control-plane/changes-stage.ts";
import { someTenantId } from "../control-plane/control-stage.ts";
import { billCall, customerOf, dayOf, invoicesAt, settingsFor } from "../control-plane/invoice-stage.ts";
import { type FakeStripe, startFakeStripe } from "../fixtures/fake-stripe.ts";
import { runSql } from "../storage/fresh-database.ts";

let stage: ChangesStage;
let stripe: FakeStripe;
let client: InvoiceClient;
/** What `config.yaml` maps. */
const customers = new Map<string, string>();

beforeAll(async () => {
  stripe = await startFakeStripe();
  stage = await startChanges({ invoices: invoicesAt(stripe, () => settingsFor(stripe, { customers })) });
  client = createInvoiceClient(stage.stack.connection);
});
afterAll(async () => {
  await stage.close();
  await stripe.close();
});

async function mappedTenant(name: string): Promise<TenantId> {
  const { tenantId } = await stage.createTenant(name);
  customers.set(tenantId, customerOf(tenantId));
  stripe.customers.add(customerOf(tenantId));
  return tenantId;
}
const workflows = () => stage.stack.connection.client.workflow;
const scheduleOf = (tenantId: TenantId) => stage.stack.connection.client.schedule.getHandle(`invoice:${tenantId}`);
const hasSchedule = async (tenantId: TenantId): Promise<boolean> =>
  await scheduleOf(tenantId)
    .describe()
    .then(() => true)
    .catch((error: unknown) => {
      if (error instanceof ScheduleNotFoundError) return false;
      throw error;
    });
const accountOf = async (tenantId: TenantId) => (await stage.stack.database.withControl(async (tx) => await readAccounts(tx, tenantId)))[0];

/** Brings schedules up to date once. */
async function sync(): Promise<void> {
  const { database, pool } = stage.stack;
  const settings = () => settingsFor(stripe, { customers });
  await startInvoiceSchedules({ database, settings, client, wake: pool.wake, log: () => undefined, intervalMs: 3_600_000 }).stop();
}

async function runNow(tenantId: TenantId, rest: string): Promise<unknown> {
  await stage.stack.pool.wake(systemOwner);
  return await workflows()
    .getHandle(await client.start(tenantId, rest, {}))
    .result();
}

/** Lets the schedule fire, and waits for what it started. */
async function trigger(tenantId: TenantId): Promise<string> {
  const before = (await scheduleOf(tenantId).describe()).info.numActionsTaken;
  await scheduleOf(tenantId).trigger();
  const started = async () => (await scheduleOf(tenantId).describe()).info;
  await expect.poll(async () => (await started()).numActionsTaken, { timeout: 30_000 }).toBe(before + 1);
  const { workflowId } = (await started()).recentActions.at(-1)?.action.workflow ?? { workflowId: "" };
  await workflows().getHandle(workflowId).result();
  return workflowId;
}

test("a run tells Stripe what is owed and says how it ended; the same run again tells nothing more", async () => {
  const tenantId = await mappedTenant("told");
  await billCall(stage.stack.database, tenantId, dayOf(-1), 12n);

  expect(await runNow(tenantId, "once")).toEqual({ planned: 1, sent: 1, refused: 0, held: 0 });
  expect(await runNow(tenantId, "once")).toEqual({ planned: 1, sent: 1, refused: 0, held: 0 });

  expect(stripe.attempts.filter(({ customer }) => customer === customerOf(tenantId))).toHaveLength(1);
  expect(await stage.stack.operations.read(`invoice:${tenantId}:once`)).toMatchObject({
    kind: "invoice",
    tenantId,
    state: "done",
    progress: { done: 2, total: 2 },
  });
});

test("a run that Stripe asks to wait waits as long as it was asked", async () => {
  const tenantId = await mappedTenant("patient");
  await billCall(stage.stack.database, tenantId, dayOf(-1), 12n);

  stripe.next({ retryAfter: "3" });
  expect(await runNow(tenantId, "once")).toMatchObject({ sent: 1 });

  const [first, second] = stripe.attempts.filter(({ customer }) => customer === customerOf(tenantId)).map(({ atMs }) => atMs);
  expect((second ?? 0) - (first ?? 0)).toBeGreaterThanOrEqual(3_000); // alone it would come again after one
});

test("answers that are lost again and again end in one event", async () => {
  const tenantId = await mappedTenant("lost");
  await billCall(stage.stack.database, tenantId, dayOf(-1), 12n);

  stripe.next("lose", "lose", "drop", "drop", "lose-500");
  expect(await runNow(tenantId, "once")).toMatchObject({ sent: 1 });

  expect(stripe.sumOf(customerOf(tenantId))).toBe(12n);
});

test("a tenant that is mapped has a schedule, which tells Stripe; it goes when the mapping does", async () => {
  const tenantId = await mappedTenant("scheduled");
  const other = await mappedTenant("other");
  await billCall(stage.stack.database, tenantId, dayOf(-1), 12n);

  await sync();
  await sync();
  const workflowId = await trigger(tenantId);
  expect(workflowId).toMatch(new RegExp(`^invoice:${tenantId}:scheduled-`));
  expect(stripe.sumOf(customerOf(tenantId))).toBe(12n);

  customers.delete(tenantId);
  await sync();
  expect([await hasSchedule(tenantId), await hasSchedule(other)]).toEqual([false, true]);
  customers.set(tenantId, customerOf(tenantId));
  await sync();
  expect(await hasSchedule(tenantId)).toBe(true);
});

test("a tenant that is mapped before it is made gets its schedule when it is", async () => {
  const tenantId = someTenantId("later");
  customers.set(tenantId, customerOf(tenantId));
  await sync();
  expect([await accountOf(tenantId), await hasSchedule(tenantId)]).toEqual([undefined, false]);

  await stage.make(systemOwner, { type: "tenant.create", tenantId, displayName: null, markup: null, tokenHash: "ab".repeat(32) });
  await sync();

  expect(await hasSchedule(tenantId)).toBe(true);
});

test("a deletion does not end the invoicing before the last rows were told", async () => {
  const tenantId = await mappedTenant("deleted");
  await sync();
  await stage.make(systemOwner, { type: "tenant.delete", tenantId });
  await expect.poll(async () => (await stage.stack.operations.read(`erase:${tenantId}`))?.state, { timeout: 60_000 }).toBe("done");
  await billCall(stage.stack.database, tenantId, dayOf(0), 30n); // as the end of its last turn left it
  await trigger(tenantId);
  await sync();
  expect([await hasSchedule(tenantId), stripe.sumOf(customerOf(tenantId))]).toEqual([true, 0n]);

  // The day has ended.
  await runSql(stage.stack.ownerUrl, `update control.tenant set erased_at = erased_at - interval '1 day' where id = '${tenantId}'`);
  await runSql(stage.stack.ownerUrl, `update control.usage_daily set day = day - 1 where tenant_id = '${tenantId}'`);
  stripe.next("lose-500");
  await trigger(tenantId);
  await sync();

  expect(stripe.sumOf(customerOf(tenantId))).toBe(30n);
  expect(await accountOf(tenantId)).toMatchObject({ closed: true, sentNanoUsd: 30n });
  expect(await hasSchedule(tenantId)).toBe(false);
});

test("a tenant's own client cannot touch its invoicing", async () => {
  const tenantId = await mappedTenant("outsider");

  await expect(stage.stack.clientOf(tenantId).endRun(`invoice:${tenantId}:once`, "mine")).rejects.toMatchObject({
    code: "tenant_violation",
  });
});
