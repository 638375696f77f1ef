import { Context } from "@temporalio/activity";
import type { Reconciler } from "../control-plane/reconciler.ts";
import type { ReconcileBatch, ReconcileProgress, ReconcileReport, ReconciledBatch } from "../domain/reconciliation.ts";
import { asSystemActivity } from "./activity-context.ts";

/** The effects of `reconcile:_system:…`. Inputs and results are ids and counts; what differs stands in rows and in the audit. */
export const createReconcileActivities = ({ reconciler }: { readonly reconciler: Reconciler }) => {
  return {
    async countTenants(): Promise<number> {
      return await asSystemActivity(async () => await reconciler.count());
    },
    /** Safe to repeat. */
    async reconcileTenants(batch: ReconcileBatch): Promise<ReconciledBatch> {
      return await asSystemActivity(async (signal) => await reconciler.compare(batch, signal));
    },
    /** Safe to repeat. */
    async finishReconciliation(run: { readonly startedAtMs: number; readonly report: ReconcileProgress }): Promise<ReconcileReport> {
      const runId = Context.current().info.workflowExecution?.workflowId ?? "";
      return await asSystemActivity(async () => await reconciler.finish({ runId, ...run }));
    },
  };
};

export type ReconcileActivities = ReturnType<typeof createReconcileActivities>;
