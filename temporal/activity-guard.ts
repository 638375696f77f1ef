import { ApplicationFailure, type Context } from "@temporalio/activity";
import type { ActivityInterceptorsFactory } from "@temporalio/worker";
import { ownerOfTaskQueue, ownerOfWorkflowId } from "../domain/tenant.ts";

/** An activity runs only for a workflow of the tenant (or of the system) whose task queue it came by. */
export const activityTenantGuard: ActivityInterceptorsFactory = ({ info }: Context) => ({
  inbound: {
    async execute(input, next) {
      const workflowId = info.workflowExecution?.workflowId ?? "";
      if (!belongTogether(info.taskQueue, workflowId)) {
        throw ApplicationFailure.nonRetryable(`an activity on ${info.taskQueue} may not run for ${workflowId}`, "tenant_violation");
      }
      return await next(input);
    },
  },
});

function belongTogether(taskQueue: string, workflowId: string): boolean {
  try {
    return ownerOfTaskQueue(taskQueue) === ownerOfWorkflowId(workflowId);
  } catch {
    return false;
  }
}
