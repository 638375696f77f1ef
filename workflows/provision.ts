import {
  ApplicationFailure,
  CancellationScope,
  isCancellation,
  proxyActivities,
  proxyLocalActivities,
  sleep,
  workflowInfo,
} from "@temporalio/workflow";
import type { TenantLifeActivities } from "../activities/tenant-life-activities.ts";
import type { StepState } from "../domain/operation.ts";
import { tenantOfLifeWorkflow } from "../domain/tenant.ts";
import { trackSteps } from "./operation-steps.ts";

const names = ["schema and role", "directory", "data key", "audit chain"] as const;
const roundsBeforeUndo = 4;

const quick = proxyLocalActivities<TenantLifeActivities>({
  startToCloseTimeout: "10s",
  scheduleToCloseTimeout: "20s",
  retry: { initialInterval: "200ms", maximumInterval: "5s" },
});
const patient = proxyActivities<TenantLifeActivities>({
  startToCloseTimeout: "1 minute",
  heartbeatTimeout: "5s",
  retry: { initialInterval: "200ms", maximumInterval: "10s" },
});

/**
 * Completes a tenant that has been made: its row, token, role and schema were committed with the change that made it; this sees that
 * they, its directory and its data key are there, and opens its audit chain. What fails again and again is undone: the tenant is
 * deleted as by an administrator, with entries that say so, and its id is used up.
 */
export async function provision(): Promise<void> {
  const tenantId = tenantOfLifeWorkflow(workflowInfo().workflowId);
  const steps = trackSteps<(typeof names)[number] | "undo">(`The tenant **${tenantId}** is made.`, names);
  const markAll = (state: StepState): void => names.forEach((name) => steps.mark(name, state));
  await CancellationScope.nonCancellable(async () => {
    for (let round = 1; ; round++) {
      markAll(round === 1 ? "running" : "failing");
      try {
        await (round === 1 ? quick : patient).completeTenant();
        return markAll("done");
      } catch (error) {
        if (isCancellation(error)) throw error;
        if (round === roundsBeforeUndo) break;
        await sleep(round * 1_000, { summary: "tries again" });
      }
    }
    steps.mark("undo", "running");
    await patient.undoTenant();
    steps.mark("undo", "done");
    throw ApplicationFailure.nonRetryable("the tenant could not be completed and is deleted again", "undone");
  });
}
