import { ScheduleAlreadyRunning, ScheduleNotFoundError, ScheduleOverlapPolicy, type ScheduleSpec } from "@temporalio/client";
import { type ArchiveReport, archiveScheduleId } from "../domain/history-archive.ts";
import { systemOwner, taskQueueOf } from "../domain/tenant.ts";
import { guardedClient } from "./chain-client.ts";
import type { TemporalConnection } from "./temporal-connection.ts";

/** Each hour, so that little is left to do when somebody looks for a run of yesterday. */
const spec: ScheduleSpec = { intervals: [{ every: "1 hour" }], jitter: "10 minutes" };

/** Makes the one schedule of the archive, or removes it where nothing is to be archived; safe to repeat, in each process. */
export async function ensureArchiveSchedule(connection: TemporalConnection, isWanted: boolean): Promise<void> {
  const { schedule } = guardedClient(systemOwner, connection);
  try {
    if (!isWanted) return await schedule.getHandle(archiveScheduleId).delete();
    await schedule.create<() => Promise<ArchiveReport>>({
      scheduleId: archiveScheduleId,
      spec,
      policies: { overlap: ScheduleOverlapPolicy.SKIP, catchupWindow: "1 hour" },
      action: {
        type: "startWorkflow",
        workflowType: "archive",
        workflowId: `${archiveScheduleId}:hourly`,
        taskQueue: taskQueueOf(systemOwner),
        args: [],
        staticSummary: "closed histories are archived",
      },
    });
  } catch (error) {
    if (!(error instanceof ScheduleAlreadyRunning || error instanceof ScheduleNotFoundError)) throw error;
  }
}
