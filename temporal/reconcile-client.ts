import { ScheduleAlreadyRunning, ScheduleOverlapPolicy, type ScheduleSpec } from "@temporalio/client";
import { type ReconcileReport, reconcileScheduleId } from "../domain/reconciliation.ts";
import { systemOwner, taskQueueOf } from "../domain/tenant.ts";
import { guardedClient } from "./chain-client.ts";
import type { TemporalConnection } from "./temporal-connection.ts";

/**
 * In UTC: well behind midnight, when the calls over it have ended. The jitter keeps deployments that share a Postgres or a Temporal
 * from starting together.
 */
const spec: ScheduleSpec = { calendars: [{ hour: 3, minute: 0 }], jitter: "30 minutes" };

/**
 * Makes the one schedule of the nightly comparison, in whichever process comes first; safe to repeat. A night that Temporal or every
 * process slept through is made up for once they are back.
 */
export async function ensureReconcileSchedule(connection: TemporalConnection): Promise<void> {
  const client = guardedClient(systemOwner, connection);
  try {
    await client.schedule.create<() => Promise<ReconcileReport>>({
      scheduleId: reconcileScheduleId,
      spec,
      policies: { overlap: ScheduleOverlapPolicy.SKIP, catchupWindow: "20 hours" },
      action: {
        type: "startWorkflow",
        workflowType: "reconcile",
        workflowId: `${reconcileScheduleId}:nightly`,
        taskQueue: taskQueueOf(systemOwner),
        args: [],
        staticSummary: "billing is compared",
      },
    });
  } catch (error) {
    if (!(error instanceof ScheduleAlreadyRunning)) throw error;
  }
}
