import { reconcileScheduleId } from "../domain/reconciliation.ts";
import { ensureSystemSchedule } from "./system-schedule.ts";
import type { TemporalConnection } from "./temporal-connection.ts";

/** Makes the one schedule of the nightly comparison; safe to repeat, in each process. */
export async function ensureReconcileSchedule(connection: TemporalConnection): Promise<void> {
  await ensureSystemSchedule(connection, {
    scheduleId: reconcileScheduleId,
    workflowType: "reconcile",
    workflowId: `${reconcileScheduleId}:nightly`,
    // In UTC: well behind midnight, when the calls over it have ended. The jitter keeps deployments that share a Postgres or a Temporal
    // from starting together.
    spec: { calendars: [{ hour: 3, minute: 0 }], jitter: "30 minutes" },
    catchupWindow: "20 hours",
    summary: "billing is compared",
  });
}
