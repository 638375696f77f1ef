import { randomBytes } from "node:crypto";
import { expect, onTestFinished, test } from "vitest";
import { type ReconcileReport, reconcileScheduleId } from "../../domain/reconciliation.ts";
import { systemOwner, taskQueueOf } from "../../domain/tenant.ts";
import { listEntries } from "../../storage/audit-repository.ts";
import { startChanges } from "../control-plane/changes-stage.ts";
import { billCall, dayOf } from "../control-plane/invoice-stage.ts";

test("a run that moves to a new one goes on behind the last tenant: everybody is compared once, and alarmed once", async () => {
  const stage = await startChanges();
  onTestFinished(() => stage.close());
  const { database, pool, connection, addTenant, operations } = stage.stack;
  const tenants: string[] = [];
  for (let n = 0; n < 45; n++) tenants.push((await addTenant("many")).tenantId);
  const [first = ""] = [...tenants].sort();
  const [last = ""] = [...tenants].sort().slice(-1);
  for (const tenantId of [first, last]) await billCall(database, tenantId, dayOf(-1), 5n); // by a rate card that is not stored
  await pool.wake(systemOwner);

  const workflowId = `${reconcileScheduleId}:${randomBytes(4).toString("hex")}`;
  const begin = { after: "", compared: 0, rows: 0, unread: [], batchesPerRun: 1 };
  const handle = await connection.client.workflow.start<(input: object) => Promise<ReconcileReport>>("reconcile", {
    workflowId,
    taskQueue: taskQueueOf(systemOwner),
    args: [begin],
  });
  const report = await handle.result();

  expect(report).toEqual({ compared: tenants.length, rows: 2, unread: [], found: 2, open: 2 });
  expect((await handle.describe()).runId).not.toBe(handle.firstExecutionRunId);
  expect(await operations.read(workflowId)).toMatchObject({ kind: "reconcile", state: "done", progress: { done: 45, total: 45 } });
  const alarms = await database.withControl((tx) =>
    listEntries(tx, { tenant: undefined, action: "billing.alarm", sinceMs: undefined, after: undefined, limit: 10 }),
  );
  expect(alarms.map(({ tenant }) => tenant)).toEqual([first, last]);
});
