import { randomBytes } from "node:crypto";
import { fileURLToPath } from "node:url";
import { WorkflowFailedError, WorkflowNotFoundError } from "@temporalio/client";
import { ApplicationFailure } from "@temporalio/common";
import { DefaultLogger, Runtime, Worker, bundleWorkflowCode } from "@temporalio/worker";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { type TenantId, taskQueueOf } from "../../domain/tenant.ts";
import { activityTenantGuard } from "../../temporal/activity-guard.ts";
import { type TemporalConnection, connectTemporal } from "../../temporal/temporal-connection.ts";
import { someTenant } from "../storage/fresh-database.ts";
import type { Crossing } from "./crossing-workflows.ts";

const acme = someTenant("acme").tenantId;
const globex = someTenant("globex").tenantId;
const touched: string[] = [];
let connection: TemporalConnection;
let workers: Worker[];
let running: Promise<unknown>;

const pathOf = (name: string): string => fileURLToPath(new URL(name, import.meta.url));
const guardedBundle = async (guarded: boolean) =>
  await bundleWorkflowCode({
    workflowsPath: pathOf("crossing-workflows.ts"),
    workflowInterceptorModules: guarded ? [pathOf("../../workflows/tenant-guard.ts")] : [],
    logger: new DefaultLogger("ERROR"),
  });

beforeAll(async () => {
  Runtime.install({ logger: new DefaultLogger("ERROR"), shutdownSignals: [] });
  connection = await connectTemporal({ address: inject("temporalAddress"), namespace: "default" });
  const [guarded, open] = await Promise.all([guardedBundle(true), guardedBundle(false)]);
  const workerOn = async (taskQueue: string, workflowBundle: typeof guarded) =>
    await Worker.create({
      connection: connection.native,
      taskQueue,
      workflowBundle,
      activities: { touch: async () => (touched.push(taskQueue), "touched") },
      interceptors: { activity: [activityTenantGuard] },
    });
  workers = [
    await workerOn(taskQueueOf(acme), guarded),
    await workerOn(taskQueueOf(globex), guarded),
    await workerOn(`tenant:${acme}:unguarded`, open), // runs acme's workflows without the workflow guard: only the activity's is left
  ];
  running = Promise.all(workers.map(async (worker) => await worker.run()));
});
afterAll(async () => {
  for (const worker of workers) worker.shutdown();
  await running;
  await connection.close();
});

const someId = (tenant: string): string => `turn:${tenant}:${randomBytes(6).toString("hex")}`;
let newest = "";
const run = async (workflow: string, target: Crossing, taskQueue = taskQueueOf(acme)): Promise<unknown> =>
  await connection.client.workflow.execute(workflow, { workflowId: (newest = someId(acme)), taskQueue, args: [target] }).then(
    (result: unknown) => result,
    (error: unknown) => (error instanceof WorkflowFailedError ? rootOf(error) : error),
  );
function rootOf(error: Error): unknown {
  return error.cause instanceof Error ? rootOf(error.cause) : error;
}
const exists = async (workflowId: string): Promise<boolean> =>
  await connection.client.workflow
    .getHandle(workflowId)
    .describe()
    .then(
      () => true,
      (error: unknown) => {
        if (error instanceof WorkflowNotFoundError) return false;
        throw error;
      },
    );
const waiting = async (tenant: TenantId) =>
  await connection.client.workflow.start("waitForTouch", { workflowId: someId(tenant), taskQueue: taskQueueOf(tenant), args: [] });
/** That the newest workflow of `run` scheduled and continued nothing: the guards on the other side refuse as well, but only later. */
const scheduledNothing = async (): Promise<void> => {
  const { events = [] } = await connection.client.workflow.getHandle(newest).fetchHistory();
  const asked = events?.some(
    ({ activityTaskScheduledEventAttributes: activity, workflowExecutionStartedEventAttributes: started }) =>
      activity != null || (started?.continuedExecutionRunId ?? "") !== "",
  );
  expect(asked).toBe(false);
};

describe("within its own tenant a workflow", () => {
  test.each([
    ["activityOnQueue", "touched"],
    ["childOf", "hello"],
    ["moveTo", "moved"],
  ])("may do what %s does", async (workflow, result) => {
    expect(await run(workflow, { workflowId: someId(acme), taskQueue: taskQueueOf(acme) })).toBe(result);
  });

  test("may signal", async () => {
    const other = await waiting(acme);

    expect(await run("signalTo", { workflowId: other.workflowId, taskQueue: taskQueueOf(acme) })).toBe("signalled");

    expect(await other.result()).toBe("touched");
  });
});

describe("a workflow is refused", () => {
  const refused = (outcome: unknown): void => {
    expect(outcome).toBeInstanceOf(ApplicationFailure);
    expect(outcome).toMatchObject({ type: "tenant_violation", nonRetryable: true });
  };

  test("an activity on the other tenant's queue", async () => {
    touched.length = 0;

    refused(await run("activityOnQueue", { workflowId: "", taskQueue: taskQueueOf(globex) }));

    expect(touched).toEqual([]);
    await scheduledNothing();
  });

  test.each([
    ["with the other tenant's id", () => ({ workflowId: someId(globex), taskQueue: taskQueueOf(acme) })],
    ["on the other tenant's queue", () => ({ workflowId: someId(acme), taskQueue: taskQueueOf(globex) })],
  ])("a child %s", async (_what, target) => {
    const child = target();

    refused(await run("childOf", child));

    expect(await exists(child.workflowId)).toBe(false);
  });

  test("a signal to the other tenant's workflow", async () => {
    const victim = await waiting(globex);

    refused(await run("signalTo", { workflowId: victim.workflowId, taskQueue: taskQueueOf(acme) }));

    const { events } = await victim.fetchHistory();
    expect(events?.some(({ workflowExecutionSignaledEventAttributes: signal }) => signal != null)).toBe(false);
    await victim.terminate();
  });

  test("to continue on the other tenant's queue", async () => {
    refused(await run("moveTo", { workflowId: "", taskQueue: taskQueueOf(globex) }));

    await scheduledNothing();
  });
});

test("an activity that reaches a tenant's queue from the other tenant's workflow does not run", async () => {
  touched.length = 0;

  const outcome = await run("activityOnQueue", { workflowId: "", taskQueue: taskQueueOf(globex) }, `tenant:${acme}:unguarded`);

  expect(outcome).toMatchObject({ type: "tenant_violation", nonRetryable: true });
  expect(touched).toEqual([]);
});
