import { Client, WithStartWorkflowOperation, type WorkflowClientInterceptor, WorkflowNotFoundError } from "@temporalio/client";
import { WorkflowIdConflictPolicy, WorkflowIdReusePolicy, defineSearchAttributeKey } from "@temporalio/common";
import { AppError } from "../domain/app-error.ts";
import type { ChainState } from "../domain/audit.ts";
import { type Owner, ownerOfTaskQueue, ownerOfWorkflowId, systemOwner, taskQueueOf } from "../domain/tenant.ts";
import { type ChangeOrder, type ChangeResult, type TenantInput, changeState, tenantState } from "../workflows/tenant-messages.ts";
import type { TemporalConnection } from "./temporal-connection.ts";

/** The audit chain's workflow of one owner. */
export interface ChainClient {
  /**
   * Sends the change and waits for its result. The same op id may be sent again after any error.
   * @throws when Temporal cannot be reached, or `signal` fires: the change may or may not have been made
   */
  change(order: ChangeOrder, signal: AbortSignal): Promise<ChangeResult>;
  /** Undefined when the workflow has never run, or its history is gone. */
  state(signal: AbortSignal): Promise<ChainState | undefined>;
}

const tenantIdKey = defineSearchAttributeKey("TenantId", "KEYWORD");

export type ChainSettings = Pick<TenantInput, "changesPerRun">;

/** The door to what belongs to no tenant: the chain `system`. It cannot touch a tenant's workflows. */
export const forSystem = (connection: TemporalConnection, settings: ChainSettings = {}): ChainClient =>
  chainClient(systemOwner, guardedClient(systemOwner, connection), settings);

/** A client that refuses every name of another owner. */
export const guardedClient = (owner: Owner, connection: TemporalConnection): Client =>
  new Client({ connection: connection.native, namespace: connection.namespace, interceptors: { workflow: [ownerGuard(owner)] } });

export function chainClient(owner: Owner, client: Client, settings: ChainSettings = {}): ChainClient {
  const workflowId = `tenant:${owner}`;
  return {
    async change(order, signal) {
      const startWorkflowOperation = openingOf(owner, settings);
      return await client.withAbortSignal(
        signal,
        async () =>
          await client.workflow.executeUpdateWithStart(changeState, { updateId: order.opId, args: [order], startWorkflowOperation }),
      );
    },
    async state(signal) {
      try {
        return await client.withAbortSignal(signal, async () => await client.workflow.getHandle(workflowId).query(tenantState));
      } catch (error) {
        if (error instanceof WorkflowNotFoundError) return undefined;
        throw error;
      }
    },
  };
}

/** Opens the workflow of the owner where it is not open. */
export function openingOf(owner: Owner, settings: ChainSettings) {
  return new WithStartWorkflowOperation<(input: TenantInput) => Promise<void>>("tenant", {
    workflowId: `tenant:${owner}`,
    taskQueue: taskQueueOf(owner),
    args: [settings],
    workflowIdConflictPolicy: WorkflowIdConflictPolicy.USE_EXISTING,
    workflowIdReusePolicy: WorkflowIdReusePolicy.ALLOW_DUPLICATE,
    workflowTaskTimeout: "5s",
    ...(owner === systemOwner ? {} : { typedSearchAttributes: [{ key: tenantIdKey, value: owner }] }),
    staticSummary: owner === systemOwner ? "state changes of the system" : `state and quota of ${owner}`,
  });
}

/** Refuses every call that names a workflow or a queue of another owner, whoever built the name. */
export function ownerGuard(owner: Owner): WorkflowClientInterceptor {
  const refuse = (name: string): never => {
    throw new AppError("tenant_violation", { owner, name });
  };
  const check = (workflowId: string): void => {
    if (ownerOfWorkflowId(workflowId) !== owner) refuse(workflowId);
  };
  const checkStart = ({ workflowId, taskQueue }: { workflowId: string; taskQueue: string }): void => {
    check(workflowId);
    if (ownerOfTaskQueue(taskQueue) !== owner) refuse(taskQueue);
  };
  return {
    start: async (input, next) => (checkStart(input.options), await next(input)),
    startWithDetails: async (input, next) => (checkStart(input.options), await next(input)),
    startUpdate: async (input, next) => (check(input.workflowExecution.workflowId ?? ""), await next(input)),
    startUpdateWithStart: async (input, next) => (checkStart(input.workflowStartOptions), await next(input)),
    signal: async (input, next) => (check(input.workflowExecution.workflowId ?? ""), await next(input)),
    signalWithStart: async (input, next) => (checkStart(input.options), await next(input)),
    query: async (input, next) => (check(input.workflowExecution.workflowId ?? ""), await next(input)),
    terminate: async (input, next) => (check(input.workflowExecution.workflowId ?? ""), await next(input)),
    cancel: async (input, next) => (check(input.workflowExecution.workflowId ?? ""), await next(input)),
    describe: async (input, next) => (check(input.workflowExecution.workflowId ?? ""), await next(input)),
  };
}
