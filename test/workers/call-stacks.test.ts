import { DefaultLogger, Runtime } from "@temporalio/worker";
import { expect, inject, onTestFinished, test } from "vitest";
import { parseTenantId } from "../../domain/tenant.ts";
import { connectTemporal } from "../../temporal/temporal-connection.ts";
import { forTenant } from "../../temporal/tenant-client.ts";
import { createTenantWorkerPool } from "../../workers/tenant-worker-pool.ts";
import { workflowBundle } from "../../workers/workflow-bundle.ts";
import { someTurn } from "../turn-stack.ts";

// In a file of its own: the workflow thread is the process's, so all its pools have the same answer.
test("with call stacks, Temporal can ask a lane what it waits for", async () => {
  Runtime.install({ logger: new DefaultLogger("ERROR"), shutdownSignals: [] });
  const connection = await connectTemporal({ address: inject("temporalAddress"), namespace: "default" });
  const pool = createTenantWorkerPool({
    connection,
    bundle: await workflowBundle(inject("bundleDirectory")),
    activities: { callModel: async () => ({ state: "done" }) },
    log: () => {},
    callStacks: true,
  });
  onTestFinished(async () => {
    await pool.close();
    await connection.close();
  });
  const tenantId = parseTenantId("with-call-stacks");
  const turn = someTurn("api:stack:default", "hello");
  await pool.wake(tenantId);
  await forTenant({ tenantId }, connection, { windowMs: 60_000, modelCall: "remote" }).submitTurn({ sessionId: turn.sessionId }, turn);

  const stack = await connection.client.workflow.getHandle(`turn:${tenantId}:api:stack:default`).query<string>("__stack_trace");

  expect(stack).toMatch(/at serve .*turn\.ts/);
});
