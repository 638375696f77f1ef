import { WorkflowExecutionAlreadyStartedError } from "@temporalio/client";
import { WorkflowIdReusePolicy } from "@temporalio/common";
import { rotationWorkflowIdOf } from "../domain/key-rotation.ts";
import { systemOwner, taskQueueOf } from "../domain/tenant.ts";
import type { RekeyInput } from "../workflows/rekey-messages.ts";
import { guardedClient } from "./chain-client.ts";
import type { TemporalConnection } from "./temporal-connection.ts";

/** Starts the workflow of a rotation. One that runs, or has ended well, is left alone. */
export function rekeyStarter(connection: TemporalConnection): (rotationId: string) => Promise<void> {
  const client = guardedClient(systemOwner, connection);
  return async (rotationId) => {
    try {
      await client.workflow.start<(input: RekeyInput) => Promise<unknown>>("rekey", {
        workflowId: rotationWorkflowIdOf(rotationId),
        taskQueue: taskQueueOf(systemOwner),
        args: [{ rotationId }],
        workflowIdReusePolicy: WorkflowIdReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
        staticSummary: "rotation of the keys",
      });
    } catch (error) {
      if (!(error instanceof WorkflowExecutionAlreadyStartedError)) throw error;
    }
  };
}
