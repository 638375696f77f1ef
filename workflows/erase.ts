import { CancellationScope, continueAsNew, proxyActivities, sleep, workflowInfo } from "@temporalio/workflow";
import type { TenantLifeActivities } from "../activities/tenant-life-activities.ts";
import { tenantOfLifeWorkflow } from "../domain/tenant.ts";
import { trackSteps } from "./operation-steps.ts";

const { settleTurns, endRuns, closeTenantChain, dropSchema, removeFiles, eraseKey } = proxyActivities<TenantLifeActivities>({
  startToCloseTimeout: "10 minutes",
  heartbeatTimeout: "5s",
  retry: { initialInterval: "200ms", maximumInterval: "30s" },
});

/** In this order: an open run without its key would fail for ever, so the key goes last (protocols: erasure). */
const work = {
  "turns ended and billed": settleTurns,
  "runs ended": endRuns,
  "audit chain closed": closeTenantChain,
  "schema and role dropped": dropSchema,
  "files removed": removeFiles,
  "late runs ended": endRuns,
  "data key erased": eraseKey,
} as const;
type StepName = keyof typeof work;
const names = Object.keys(work) as StepName[];

const longestPauseSeconds = 60;

/**
 * Removes all that is left of a deleted tenant but its bills and its audit. A deletion is not taken back: a step that fails is tried
 * again until it succeeds, and cancelling changes nothing.
 */
export async function erase({ done = [] }: { readonly done?: readonly StepName[] } = {}): Promise<void> {
  const tenantId = tenantOfLifeWorkflow(workflowInfo().workflowId);
  const steps = trackSteps(`The deleted tenant **${tenantId}** is erased; its bills and its audit stay.`, names, done);
  await CancellationScope.nonCancellable(async () => {
    for (const name of names) {
      for (let attempt = 1; !steps.isDone(name); attempt++) {
        steps.mark(name, attempt === 1 ? "running" : "failing");
        try {
          await work[name]();
          steps.mark(name, "done");
        } catch {
          steps.mark(name, "failing");
          await sleep(Math.min(longestPauseSeconds, 2 ** attempt) * 1_000, { summary: `tries again: ${name}` });
          if (workflowInfo().continueAsNewSuggested) await continueAsNew<typeof erase>({ done: names.filter(steps.isDone) });
        }
      }
    }
  });
}
