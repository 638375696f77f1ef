import { randomBytes } from "node:crypto";
import { DefaultLogger, Runtime } from "@temporalio/worker";
import { afterAll, beforeAll, expect, inject, onTestFinished, test, vi } from "vitest";
import { type TenantId, parseTenantId } from "../../domain/tenant.ts";
import { type TurnId, callIdOf } from "../../domain/turn-id.ts";
import { connectTemporal, type TemporalConnection } from "../../temporal/temporal-connection.ts";
import { forTenant, type TenantClient } from "../../temporal/tenant-client.ts";
import { SharedPoolWorker } from "../../workers/shared-pool-worker.ts";
import { type TenantWorkerPool, type TenantWorkerPoolOptions, createTenantWorkerPool } from "../../workers/tenant-worker-pool.ts";
import { workflowBundle } from "../../workers/workflow-bundle.ts";
import { someTurn } from "../turn-stack.ts";

let connection: TemporalConnection;
let bundle: TenantWorkerPoolOptions["bundle"];

beforeAll(async () => {
  Runtime.install({ logger: new DefaultLogger("ERROR"), shutdownSignals: [] });
  connection = await connectTemporal({ address: inject("temporalAddress"), namespace: "default" });
  bundle = await workflowBundle(inject("bundleDirectory"));
});
afterAll(async () => await connection.close());

/** Model calls that wait until the test lets them go, by their turn. */
const held = new Map<TurnId, { readonly arrived: PromiseWithResolvers<void>; readonly release: PromiseWithResolvers<void> }>();
const hold = (turnId: TurnId) => {
  const entry = { arrived: Promise.withResolvers<void>(), release: Promise.withResolvers<void>() };
  held.set(turnId, entry);
  return entry;
};

type Stage = {
  readonly pool: TenantWorkerPool;
  /** Calls in the order in which they were made. */
  readonly ran: string[];
  /** Resolves when the tenant's worker has stopped. */
  stopped(tenantId: TenantId): Promise<void>;
};

/** A pool of its own whose turns answer at once, closed when the test ends. */
function startPool(options: Partial<TenantWorkerPoolOptions> = {}): Stage {
  const ran: string[] = [];
  const stops = new Map<unknown, PromiseWithResolvers<void>>();
  const stopOf = (tenantId: unknown): PromiseWithResolvers<void> => {
    const stop = stops.get(tenantId) ?? Promise.withResolvers<void>();
    stops.set(tenantId, stop);
    return stop;
  };
  const pool: TenantWorkerPool = createTenantWorkerPool({
    connection,
    bundle,
    activities: {
      async callModel({ turnId, step }: { turnId: TurnId; step: number }) {
        ran.push(callIdOf(turnId, step));
        held.get(turnId)?.arrived.resolve();
        await held.get(turnId)?.release.promise;
        return { state: "done" };
      },
    },
    log: (message, fields) => void (message === "worker stopped" && stopOf(fields?.["owner"]).resolve()),
    ...options,
  });
  onTestFinished(async () => await pool.close());
  return { pool, ran, stopped: async (tenantId) => await stopOf(tenantId).promise };
}

const someTenant = (): TenantId => parseTenantId(`pool-${randomBytes(4).toString("hex")}`);
const clientOf = (tenantId: TenantId): TenantClient => forTenant({ tenantId }, connection, { windowMs: 60_000, modelCall: "remote" });
/** Wakes the tenant again and again, as the gateways do whose calls come in, until `event`: a busy machine idles for long. */
async function awakeUntil<T>(pool: TenantWorkerPool, tenantId: TenantId, event: Promise<T>): Promise<T> {
  await pool.wake(tenantId);
  const waking = setInterval(() => void pool.wake(tenantId), 20);
  return await event.finally(() => clearInterval(waking));
}
const laneOf = (turn: ReturnType<typeof someTurn>) => ({ sessionId: turn.sessionId });

test("a tenant's worker starts with its first turn, not before: a turn without one waits", async () => {
  const { pool, ran } = startPool();
  const tenantId = someTenant();
  const turn = someTurn("api:lazy:default", "hello");
  await clientOf(tenantId).sendTurn(laneOf(turn), turn);

  expect(pool.live()).toBe(0);
  expect(ran).toEqual([]);
  await pool.wake(tenantId);

  expect(await clientOf(tenantId).submitTurn(laneOf(turn), turn)).toEqual({ state: "done" });
  expect(ran).toEqual([callIdOf(turn.turnId, 0)]);
  expect(pool.live()).toBe(1);
});

test("twenty wakes at once start one worker, and a tenant has one however often it is woken", async () => {
  const { pool } = startPool();
  const create = vi.spyOn(SharedPoolWorker, "create");
  onTestFinished(() => create.mockRestore());
  const tenantId = someTenant();

  await Promise.all(Array.from({ length: 20 }, async () => await pool.wake(tenantId)));
  await pool.wake(tenantId);

  expect(create).toHaveBeenCalledTimes(1);
  expect(pool.live()).toBe(1);
});

test("tenants share one workflow thread, and each runs its own turns", async () => {
  expect(SharedPoolWorker.missingHooks()).toBeUndefined();
  const { pool, ran } = startPool();
  await pool.wake(someTenant()); // the process's thread is there now
  const threads = vi.spyOn(SharedPoolWorker as unknown as { threadWithoutCallStacks: () => unknown }, "threadWithoutCallStacks");
  onTestFinished(() => threads.mockRestore());
  const tenants = [someTenant(), someTenant()].map((tenantId) => ({ tenantId, turn: someTurn("api:shared:default", "hello") })); // the same session id in both

  await Promise.all(tenants.map(async ({ tenantId }) => await pool.wake(tenantId)));
  const verdicts = await Promise.all(tenants.map(async ({ tenantId, turn }) => await clientOf(tenantId).submitTurn(laneOf(turn), turn)));

  expect(verdicts).toEqual([{ state: "done" }, { state: "done" }]);
  expect(ran.toSorted()).toEqual(tenants.map(({ turn }) => callIdOf(turn.turnId, 0)).toSorted());
  expect(pool.live()).toBe(3);
  expect(threads).not.toHaveBeenCalled();
});

test("a workflow is not asked for its call stack unless the pool was told so", async () => {
  const { pool } = startPool();
  const tenantId = someTenant();
  const turn = someTurn("api:stackless:default", "hello");
  await pool.wake(tenantId);
  await clientOf(tenantId).submitTurn(laneOf(turn), turn);

  const asked = connection.client.workflow.getHandle(`turn:${tenantId}:api:stackless:default`).query("__stack_trace");

  await expect(asked).rejects.toThrow("Encoded failure"); // "Workflow stack traces are not enabled on this worker"
});

test("an idle worker stops, and its open lane goes on when the tenant comes back", async () => {
  const { pool, ran, stopped } = startPool({ idleStopMs: 200 });
  const tenantId = someTenant();
  const [first, second] = [someTurn("api:open:default", "one"), someTurn("api:open:default", "two")];
  await awakeUntil(pool, tenantId, clientOf(tenantId).submitTurn(laneOf(first), first));
  const runOf = async () => (await connection.client.workflow.getHandle(`turn:${tenantId}:api:open:default`).describe()).runId;
  const run = await runOf();

  await stopped(tenantId);
  expect(pool.live()).toBe(0);
  const verdict = await awakeUntil(pool, tenantId, clientOf(tenantId).submitTurn(laneOf(second), second));

  expect(verdict).toEqual({ state: "done" });
  expect(await runOf()).toBe(run);
  expect(ran).toEqual([callIdOf(first.turnId, 0), callIdOf(second.turnId, 0)]);
});

test("a worker in the middle of a turn is not idle, however long the turn takes", async () => {
  const { pool, stopped } = startPool({ idleStopMs: 200 });
  const [busy, idle] = [someTenant(), someTenant()];
  const turn = someTurn("api:long:default", "a long one");
  const { arrived, release } = hold(turn.turnId);
  const verdict = clientOf(busy).submitTurn(laneOf(turn), turn);
  await awakeUntil(pool, busy, arrived.promise);
  await pool.wake(idle);

  await stopped(idle); // was woken later, and has been idle for as long as it may be
  expect(pool.live()).toBe(1);
  release.resolve();

  // Its answer comes in a task of its own, before which the worker may stop: whoever waits for a turn wakes its tenant.
  expect(await awakeUntil(pool, busy, verdict)).toEqual({ state: "done" });
});

test("of more workers than may live, the one that was woken first goes first", async () => {
  const { pool, stopped } = startPool({ liveWorkers: 1, idleStopMs: 4_000 });
  const [older, newer] = [someTenant(), someTenant()];
  await pool.wake(older);
  await pool.wake(newer);

  await stopped(older); // at the first sweep, long before it would have been idle for too long

  expect(pool.live()).toBe(1);
  const turn = someTurn("api:newer:default", "hello");
  expect(await clientOf(newer).submitTurn(laneOf(turn), turn)).toEqual({ state: "done" });
});

test("a pool that closes takes all its workers along", async () => {
  const { pool } = startPool();
  const tenants = [someTenant(), someTenant(), someTenant()];
  await Promise.all(tenants.map(async (tenantId) => await pool.wake(tenantId)));

  await pool.close();

  expect(pool.live()).toBe(0);
});
