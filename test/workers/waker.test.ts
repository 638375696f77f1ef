import { randomBytes } from "node:crypto";
import { DefaultLogger, Runtime } from "@temporalio/worker";
import { afterAll, beforeAll, expect, inject, onTestFinished, test } from "vitest";
import { type TenantId, parseTenantId, taskQueueOf } from "../../domain/tenant.ts";
import type { TurnId } from "../../domain/turn-id.ts";
import { listDueOwners } from "../../temporal/due-owners.ts";
import { type TemporalConnection, connectTemporal } from "../../temporal/temporal-connection.ts";
import { type TenantWorkerPool, createTenantWorkerPool } from "../../workers/tenant-worker-pool.ts";
import { startWaker } from "../../workers/waker.ts";
import { workflowBundle } from "../../workers/workflow-bundle.ts";
import type { LaneInput } from "../../workflows/turn-messages.ts";
import { freshNamespace } from "../fresh-namespace.ts";
import { someTurn } from "../turn-stack.ts";

let connection: TemporalConnection;
let bundle: Awaited<ReturnType<typeof workflowBundle>>;

beforeAll(async () => {
  Runtime.install({ logger: new DefaultLogger("ERROR"), shutdownSignals: [] });
  const address = inject("temporalAddress");
  connection = await connectTemporal({ address, namespace: await freshNamespace(address) });
  bundle = await workflowBundle(inject("bundleDirectory"));
});
afterAll(async () => await connection.close());

type Ran = { readonly turnId: TurnId; readonly atMs: number; readonly attempt: number };

/** A process of its own with a waker: turns whose first tries fail as often as their tenant says answer with the next one. */
function startProcess(failures = 0) {
  const ran: Ran[] = [];
  const waiting = new Map<TurnId, (ran: Ran) => void>();
  const failed = Promise.withResolvers<void>();
  const woken: string[] = [];
  const pool: TenantWorkerPool = createTenantWorkerPool({
    connection,
    bundle,
    activities: {
      async callModel({ turnId }: { turnId: TurnId }) {
        const one = { turnId, atMs: Date.now(), attempt: ran.filter((other) => other.turnId === turnId).length + 1 };
        ran.push(one);
        if (one.attempt <= failures) {
          failed.resolve();
          throw new Error("try again");
        }
        waiting.get(turnId)?.(one);
        return { state: "done" };
      },
    },
    log() {},
  });
  const waker = startWaker({
    dueOwners: async (byMs) => await listDueOwners(connection, byMs),
    async wake(owner) {
      woken.push(owner);
      await pool.wake(owner);
    },
    log() {},
    intervalMs: 100,
  });
  onTestFinished(async () => {
    await waker.stop();
    await pool.close();
  });
  return {
    pool,
    woken,
    failed: failed.promise,
    done: async (turnId: TurnId) => await new Promise<Ran>((resolve) => waiting.set(turnId, resolve)),
  };
}

const someTenant = (): TenantId => parseTenantId(`waker-${randomBytes(4).toString("hex")}`);

/** What begins a lane with one turn in it, and no caller. */
function laneWith(tenantId: TenantId) {
  const { turnId, sessionId, kind } = someTurn("api:due:default", "hello");
  const input: LaneInput = {
    tenantId,
    sessionId,
    concurrency: 1,
    windowMs: 2_000,
    modelCall: "remote",
    carried: [{ turnId, sessionId, kind, aborted: false }],
  };
  const start = {
    workflowId: `turn:${tenantId}:${sessionId}`,
    taskQueue: taskQueueOf(tenantId),
    args: [input],
  };
  return { turnId, start };
}

test("a delayed start of a tenant without a worker is served when it is due, not before", async () => {
  const process = startProcess();
  const tenantId = someTenant();
  const { turnId, start } = laneWith(tenantId);
  const done = process.done(turnId);
  const dueMs = Date.now() + 2_500;
  await connection.client.workflow.start("turn", { ...start, startDelay: 2_500 });

  const { atMs } = await done;
  // Temporal's own clock: a start is up to a second late and never early.
  expect(atMs).toBeGreaterThan(dueMs - 100);
  expect(process.pool.live()).toBe(1);
});

test("a schedule of a tenant without a worker fires", async () => {
  const process = startProcess();
  const tenantId = someTenant();
  const { turnId, start } = laneWith(tenantId);
  const done = process.done(turnId);
  const schedule = await connection.client.schedule.create({
    scheduleId: `schedule:${tenantId}`,
    spec: {},
    action: { type: "startWorkflow", workflowType: "turn", ...start },
  });
  onTestFinished(async () => await schedule.delete());
  await schedule.trigger();
  expect((await done).turnId).toBe(turnId);
});

test("a retry that waits while its tenant's worker is stopped is made", async () => {
  const process = startProcess(1);
  const tenantId = someTenant();
  const { turnId, start } = laneWith(tenantId);
  const done = process.done(turnId);
  await connection.client.workflow.start("turn", start);
  await process.failed;
  await process.pool.forget(tenantId);
  expect((await done).attempt).toBe(2);
});

test("what was left behind by a process is gone on with by the next, for each tenant that has something open and nobody else", async () => {
  const left = [laneWith(someTenant()), laneWith(someTenant())];
  for (const { start } of left) await connection.client.workflow.start("turn", start);
  const asleep = someTenant();
  const chain = { workflowId: `tenant:${asleep}`, taskQueue: taskQueueOf(asleep) }; // which each tenant has
  await connection.client.workflow.start("tenant", { ...chain, args: [] });
  const process = startProcess();
  const ran = await Promise.all(left.map(async ({ turnId }) => await process.done(turnId)));

  expect(ran).toHaveLength(2);
  expect(process.woken).not.toContain(asleep);
});

test("a look that fails is followed by the next one", async () => {
  const { promise: woken, resolve: wake } = Promise.withResolvers<string>();
  let looks = 0;
  const logged: string[] = [];
  const waker = startWaker({
    async dueOwners() {
      looks++;
      if (looks === 1) throw new Error("away");
      return new Set([parseTenantId("acme")]);
    },
    wake: async (owner) => wake(owner),
    log: (message) => logged.push(message),
    intervalMs: 1,
  });
  expect(await woken).toBe("acme");
  await waker.stop();
  expect(logged).toEqual(["what is due could not be asked for"]);
});
