import { Context } from "@temporalio/activity";
import type { Reconciler } from "../control-plane/reconciler.ts";
import { AppError } from "../domain/app-error.ts";
import type { ReconcileBatch, ReconcileProgress, ReconcileReport, ReconciledBatch } from "../domain/reconciliation.ts";
import { systemOwner } from "../domain/tenant.ts";
import { asOwnActivity } from "./activity-context.ts";

/** The effects of `reconcile:_system:…`. Inputs and results are ids and counts; what differs stands in rows and in the audit. */
export const createReconcileActivities = ({ reconciler }: { readonly reconciler: Reconciler }) => {
  const asSystem = async <T>(body: (signal: AbortSignal) => Promise<T>): Promise<T> =>
    await asOwnActivity(async (owner, signal) => {
      if (owner !== systemOwner) throw new AppError("tenant_violation", { owner });
      return await body(signal);
    });
  return {
    async countTenants(): Promise<number> {
      return await asSystem(async () => await reconciler.count());
    },
    /** Safe to repeat. */
    async reconcileTenants(batch: ReconcileBatch): Promise<ReconciledBatch> {
      return await asSystem(async (signal) => await reconciler.compare(batch, signal));
    },
    /** Safe to repeat. */
    async finishReconciliation(run: { readonly startedAtMs: number; readonly report: ReconcileProgress }): Promise<ReconcileReport> {
      const runId = Context.current().info.workflowExecution?.workflowId ?? "";
      return await asSystem(async () => await reconciler.finish({ runId, ...run }));
    },
  };
};

export type ReconcileActivities = ReturnType<typeof createReconcileActivities>;
