import { ApplicationFailure, type WorkflowInterceptors, workflowInfo } from "@temporalio/workflow";
import { AppError } from "../domain/app-error.ts";
import { type Owner, ownerOfTaskQueue, ownerOfWorkflowId } from "../domain/tenant.ts";

type OwnerOf = (name: string) => Owner;

/** @throws {ApplicationFailure} not retryable: any other error would fail the workflow task, which is retried for ever. */
function refuseOtherOwner(ownerOf: OwnerOf, name: string): void {
  const { taskQueue } = workflowInfo();
  if (ownerOrNone(ownerOf, name) !== ownerOrNone(ownerOfTaskQueue, taskQueue) || ownerOrNone(ownerOf, name) === undefined) {
    throw ApplicationFailure.nonRetryable(`a workflow on ${taskQueue} may not touch ${name}`, "tenant_violation");
  }
}

function ownerOrNone(ownerOf: OwnerOf, name: string): Owner | undefined {
  try {
    return ownerOf(name);
  } catch (error) {
    if (!(error instanceof AppError)) throw error;
    return undefined;
  }
}

const refuseOtherWorkflow = (workflowId: string): void => refuseOtherOwner(ownerOfWorkflowId, workflowId);
const refuseOtherQueue = (taskQueue: string | undefined): void => refuseOtherOwner(ownerOfTaskQueue, taskQueue ?? workflowInfo().taskQueue);

/** A workflow runs, and acts, only inside the tenant (or the system) of the task queue that it runs on. */
export const interceptors = (): WorkflowInterceptors => ({
  inbound: [
    {
      async execute(input, next) {
        refuseOtherWorkflow(workflowInfo().workflowId);
        return await next(input);
      },
    },
  ],
  outbound: [
    {
      async scheduleActivity(input, next) {
        refuseOtherQueue(input.options.taskQueue);
        return await next(input);
      },
      async startChildWorkflowExecution(input, next) {
        refuseOtherWorkflow(input.options.workflowId);
        refuseOtherQueue(input.options.taskQueue);
        return await next(input);
      },
      async signalWorkflow(input, next) {
        refuseOtherWorkflow(
          input.target.type === "external" ? (input.target.workflowExecution.workflowId ?? "") : (input.target.childWorkflowId ?? ""),
        );
        return await next(input);
      },
      async continueAsNew(input, next) {
        refuseOtherQueue(input.options.taskQueue);
        return await next(input);
      },
    },
  ],
});
