import { archiveScheduleId } from "../domain/history-archive.ts";
import { ensureSystemSchedule, removeSystemSchedule } from "./system-schedule.ts";
import type { TemporalConnection } from "./temporal-connection.ts";

/** Makes the one schedule of the archive, or removes it where nothing is to be archived; safe to repeat, in each process. */
export async function ensureArchiveSchedule(connection: TemporalConnection, isWanted: boolean): Promise<void> {
  if (!isWanted) return await removeSystemSchedule(connection, archiveScheduleId);
  await ensureSystemSchedule(connection, {
    scheduleId: archiveScheduleId,
    workflowType: "archive",
    workflowId: `${archiveScheduleId}:hourly`,
    // Each hour, so that little is left to do when somebody looks for a run of yesterday.
    spec: { intervals: [{ every: "1 hour" }], jitter: "10 minutes" },
    catchupWindow: "1 hour",
    summary: "closed histories are archived",
  });
}
