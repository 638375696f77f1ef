import { continueAsNew, proxyActivities, setCurrentDetails, setHandler, sleep, workflowInfo } from "@temporalio/workflow";
import type { ReconcileActivities } from "../activities/reconcile-activities.ts";
import type { OperationProgress } from "../domain/operation.ts";
import type { ReconcileBatch, ReconcileProgress, ReconcileReport } from "../domain/reconciliation.ts";
import { operationProgress } from "./operation-messages.ts";

// A batch can be repeated from its start, so a worker that dies costs one heartbeat and at most one batch.
const { countTenants, reconcileTenants, finishReconciliation } = proxyActivities<ReconcileActivities>({
  startToCloseTimeout: "2 hours",
  scheduleToCloseTimeout: "20 hours",
  heartbeatTimeout: "5s",
  retry: { initialInterval: "1s", maximumInterval: "1 minute" },
});

/** What a run goes on with; absent in its first one. */
type ReconcileInput = ReconcileProgress & {
  readonly startedAtMs?: number;
  /** Default: as many as the server suggests. */
  readonly batchesPerRun?: number;
};

const begin: ReconcileInput = { after: "", compared: 0, rows: 0, unread: [] };
const tenantsAgain = 20;
/** Pauses before tenants that could not be read are tried again. */
const againAfter = ["1s", "2s"] as const;

/**
 * Compares journal, rows, sums, prices and counters of all tenants, some at a time. A tenant that cannot be read is tried again at the
 * end, and stops none of the others.
 */
export async function reconcile(input: ReconcileInput = begin): Promise<ReconcileReport> {
  let after: string | undefined = input.after;
  let { compared, rows, unread } = input;
  const startedAtMs = input.startedAtMs ?? workflowInfo().startTime.getTime();
  let report: ReconcileReport | undefined;
  let total = 0;
  const describe = (): void => {
    const lines = [
      `Billing is compared: **${compared} of ${total} tenants**, ${rows} rows`,
      ...(unread.length === 0 ? [] : [`- could not be read: ${unread.slice(0, 20).join(", ")}${unread.length > 20 ? ", …" : ""}`]),
      ...(report === undefined
        ? []
        : [`- ${report.found} new differences, ${report.open} open (openclaw audit list --action billing.alarm)`]),
    ];
    setCurrentDetails(lines.join("\n"));
  };
  setHandler(operationProgress, (): OperationProgress => {
    const again = after === undefined ? "running" : "waiting";
    return {
      steps: [
        { name: "tenants compared", state: after === undefined ? "done" : "running" },
        { name: "tenants tried again that could not be read", state: report === undefined ? again : "done" },
      ],
      done: compared,
      total,
      ...(report !== undefined && unread.length > 0 ? { failure: `could not be read: ${unread.join(", ")}` } : {}),
    };
  });
  const run = async (batch: ReconcileBatch): Promise<string | undefined> => {
    const done = await reconcileTenants(batch);
    compared += done.compared;
    rows += done.rows;
    unread = [...unread, ...done.unread];
    describe();
    return done.last;
  };

  total = await countTenants();
  describe();
  for (let batches = 1; after !== undefined; batches++) {
    after = await run({ after });
    const isFull = workflowInfo().continueAsNewSuggested || batches >= (input.batchesPerRun ?? Number.POSITIVE_INFINITY);
    if (after !== undefined && isFull)
      return await continueAsNew<typeof reconcile>({ ...input, after, compared, rows, unread, startedAtMs });
  }
  for (const pause of againAfter) {
    if (unread.length === 0) break;
    await sleep(pause, { summary: "tries again what could not be read" });
    const tenants = unread;
    unread = [];
    for (let from = 0; from < tenants.length; from += tenantsAgain) await run({ tenants: tenants.slice(from, from + tenantsAgain) });
  }
  report = await finishReconciliation({ startedAtMs, report: { after: "", compared, rows, unread } });
  describe();
  return report;
}
