import { ScheduleAlreadyRunning, ScheduleNotFoundError, ScheduleOverlapPolicy, type ScheduleSpec } from "@temporalio/client";
import { systemOwner, taskQueueOf } from "../domain/tenant.ts";
import { guardedClient } from "./chain-client.ts";
import type { TemporalConnection } from "./temporal-connection.ts";

/** What the system does at times. A time that Temporal or every process slept through is made up for within `catchupWindow`. */
export type SystemSchedule = {
  readonly scheduleId: string;
  readonly workflowType: string;
  readonly workflowId: string;
  readonly spec: ScheduleSpec;
  readonly catchupWindow: "1 hour" | "20 hours";
  readonly summary: string;
};

/** Makes the schedule, in whichever process comes first; safe to repeat. Its workflow takes no arguments. */
export async function ensureSystemSchedule(connection: TemporalConnection, schedule: SystemSchedule): Promise<void> {
  const { scheduleId, workflowType, workflowId, spec, catchupWindow, summary } = schedule;
  try {
    await guardedClient(systemOwner, connection).schedule.create<() => Promise<unknown>>({
      scheduleId,
      spec,
      policies: { overlap: ScheduleOverlapPolicy.SKIP, catchupWindow },
      action: { type: "startWorkflow", workflowType, workflowId, taskQueue: taskQueueOf(systemOwner), args: [], staticSummary: summary },
    });
  } catch (error) {
    if (!(error instanceof ScheduleAlreadyRunning)) throw error;
  }
}

/** Removes a schedule that is not wanted any more; safe to repeat. */
export async function removeSystemSchedule(connection: TemporalConnection, scheduleId: string): Promise<void> {
  try {
    await guardedClient(systemOwner, connection).schedule.getHandle(scheduleId).delete();
  } catch (error) {
    if (!(error instanceof ScheduleNotFoundError)) throw error;
  }
}
