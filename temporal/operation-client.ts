import { type WorkflowExecutionDescription, WorkflowNotFoundError } from "@temporalio/client";
import { AppError } from "../domain/app-error.ts";
import { type OperationKind, type OperationProgress, operationKinds } from "../domain/operation.ts";
import { type Owner, type TenantId, ownerOfWorkflowId, systemOwner, tenantOfName } from "../domain/tenant.ts";
import { operationProgress } from "../workflows/operation-messages.ts";
import { guardedClient } from "./chain-client.ts";
import type { TemporalConnection } from "./temporal-connection.ts";

export type Operation = {
  readonly workflowId: string;
  readonly kind: OperationKind;
  /** Undefined for an operation on the whole system. */
  readonly tenantId: TenantId | undefined;
  readonly state: "running" | "done" | "failed";
  readonly startedAtMs: number;
  readonly finishedAtMs: number | undefined;
  /** Undefined when no worker answers, or the workflow does not tell. */
  readonly progress: OperationProgress | undefined;
};

export interface OperationClient {
  /** Undefined for every id that names no operation, also of other workflows that exist. */
  read(workflowId: string): Promise<Operation | undefined>;
  /** Terminates an operation of the system, if it runs. */
  end(workflowId: string, reason: string): Promise<void>;
}

export type OperationClientDeps = {
  readonly connection: TemporalConnection;
  /** Makes sure that a worker polls the owner's queue. */
  readonly wake: (owner: Owner) => Promise<void>;
};

const longestId = 255;
const progressPatienceMs = 3_000;

/** Reads operations of every owner; everything else stays behind its own door. */
export function createOperationClient({ connection, wake }: OperationClientDeps): OperationClient {
  return {
    async read(workflowId) {
      const named = parseOperationId(workflowId);
      if (named === undefined) return undefined;
      const client = guardedClient(named.owner, connection);
      const handle = client.workflow.getHandle(workflowId);
      const described = await handle.describe().catch((error: unknown) => {
        if (error instanceof WorkflowNotFoundError) return undefined;
        throw error;
      });
      if (described === undefined) return undefined;
      await wake(named.owner);
      const progress = await client
        .withAbortSignal(AbortSignal.timeout(progressPatienceMs), async () => await handle.query(operationProgress))
        .catch(() => undefined);
      return {
        workflowId,
        kind: named.kind,
        tenantId: named.tenantId,
        state: stateOf(described),
        startedAtMs: described.startTime.getTime(),
        finishedAtMs: described.closeTime?.getTime(),
        progress,
      };
    },
    async end(workflowId, reason) {
      const handle = guardedClient(systemOwner, connection).workflow.getHandle(workflowId);
      await handle.terminate(reason).catch((error: unknown) => {
        if (!(error instanceof WorkflowNotFoundError)) throw error;
      });
    },
  };
}

function stateOf({ status }: WorkflowExecutionDescription): Operation["state"] {
  if (status.name === "RUNNING" || status.name === "CONTINUED_AS_NEW") return "running";
  return status.name === "COMPLETED" ? "done" : "failed";
}

function parseOperationId(
  workflowId: string,
): { readonly kind: OperationKind; readonly owner: Owner; readonly tenantId: TenantId | undefined } | undefined {
  const kind = operationKinds.find((known) => workflowId.startsWith(`${known}:`));
  if (kind === undefined || workflowId.length > longestId) return undefined;
  try {
    const owner = ownerOfWorkflowId(workflowId);
    return { kind, owner, tenantId: workflowId.startsWith(`${kind}:${systemOwner}`) ? undefined : tenantOfName(workflowId) };
  } catch (error) {
    if (error instanceof AppError) return undefined;
    throw error;
  }
}
