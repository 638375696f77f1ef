import { ApplicationFailure, type WorkflowInterceptors, workflowInfo } from "@temporalio/workflow";
import { AppError } from "../domain/app-error.ts";
import { tenantOfName } from "../domain/tenant.ts";

/** @throws {ApplicationFailure} not retryable: any other error would fail the workflow task, which is retried for ever. */
function refuseOtherTenant(name: string): void {
  let tenant: string | undefined;
  try {
    tenant = tenantOfName(name);
  } catch (error) {
    if (!(error instanceof AppError)) throw error;
  }
  if (tenant !== tenantOfName(workflowInfo().taskQueue)) {
    throw ApplicationFailure.nonRetryable(`a workflow on ${workflowInfo().taskQueue} may not touch ${name}`, "tenant_violation");
  }
}

/** A workflow runs, and acts, only inside the tenant of the task queue that it runs on. */
export const interceptors = (): WorkflowInterceptors => ({
  inbound: [
    {
      async execute(input, next) {
        refuseOtherTenant(workflowInfo().workflowId);
        return await next(input);
      },
    },
  ],
  outbound: [
    {
      async scheduleActivity(input, next) {
        refuseOtherTenant(input.options.taskQueue ?? workflowInfo().taskQueue);
        return await next(input);
      },
      async startChildWorkflowExecution(input, next) {
        refuseOtherTenant(input.options.workflowId);
        refuseOtherTenant(input.options.taskQueue ?? workflowInfo().taskQueue);
        return await next(input);
      },
      async signalWorkflow(input, next) {
        refuseOtherTenant(
          input.target.type === "external" ? (input.target.workflowExecution.workflowId ?? "") : (input.target.childWorkflowId ?? ""),
        );
        return await next(input);
      },
      async continueAsNew(input, next) {
        refuseOtherTenant(input.options.taskQueue ?? workflowInfo().taskQueue);
        return await next(input);
      },
    },
  ],
});
