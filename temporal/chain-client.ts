import {
  Client,
  WithStartWorkflowOperation,
  WorkflowExecutionAlreadyStartedError,
  type WorkflowClientInterceptor,
  WorkflowNotFoundError,
} from "@temporalio/client";
import { WorkflowIdConflictPolicy, WorkflowIdReusePolicy, defineSearchAttributeKey } from "@temporalio/common";
import { AppError } from "../domain/app-error.ts";
import type { ChainState, TenantFacts } from "../domain/audit.ts";
import { type Owner, ownerOfTaskQueue, ownerOfWorkflowId, systemOwner, taskQueueOf } from "../domain/tenant.ts";
import { type ChangeOrder, type ChangeResult, type TenantInput, changeState, tenantState } from "../workflows/tenant-messages.ts";
import { type TemporalConnection, converterOption } from "./temporal-connection.ts";

/** The audit chain's workflow of one owner. */
export interface ChainClient {
  /**
   * Sends the change and waits for its result. The same op id may be sent again after any error.
   * @throws when Temporal cannot be reached, or `signal` fires: the change may or may not have been made
   */
  change(order: ChangeOrder, signal: AbortSignal): Promise<ChangeResult>;
  /** Undefined when the workflow has never run, or its history is gone. */
  state(signal: AbortSignal): Promise<ChainState | undefined>;
  /** Starts the workflow of a tenant that is `facts` now, unless it runs or is closed. */
  open(facts: TenantFacts): Promise<void>;
  isOpen(): Promise<boolean>;
}

const tenantIdKey = defineSearchAttributeKey("TenantId", "KEYWORD");

export type ChainSettings = Pick<TenantInput, "changesPerRun">;

/** The door to what belongs to no tenant: the chain `system`. It cannot touch a tenant's workflows. */
export const forSystem = (connection: TemporalConnection, settings: ChainSettings = {}): ChainClient =>
  chainClient(systemOwner, guardedClient(systemOwner, connection), settings);

/** A client that refuses every name of another owner. */
export const guardedClient = (owner: Owner, connection: TemporalConnection): Client =>
  new Client({
    connection: connection.native,
    namespace: connection.namespace,
    interceptors: { workflow: [ownerGuard(owner)] },
    ...converterOption(connection.converterOf(owner)),
  });

export function chainClient(owner: Owner, client: Client, settings: ChainSettings = {}): ChainClient {
  const workflowId = `tenant:${owner}`;
  const start = (input: TenantInput) => chainStart(owner, input);
  return {
    async change(order, signal) {
      const startWorkflowOperation = new WithStartWorkflowOperation<ChainWorkflow>("tenant", start(settings));
      try {
        return await client.withAbortSignal(
          signal,
          async () =>
            await client.workflow.executeUpdateWithStart(changeState, {
              updateId: updateIdOf(order),
              args: [order],
              startWorkflowOperation,
            }),
        );
      } catch (error) {
        if (error instanceof WorkflowExecutionAlreadyStartedError) return { state: "closed" };
        throw error;
      }
    },
    async open(facts) {
      await client.workflow.start<ChainWorkflow>("tenant", start({ ...settings, tenant: facts })).catch((error: unknown) => {
        if (!(error instanceof WorkflowExecutionAlreadyStartedError)) throw error;
      });
    },
    async isOpen() {
      try {
        return (await client.workflow.getHandle(workflowId).describe()).status.name === "RUNNING";
      } catch (error) {
        if (error instanceof WorkflowNotFoundError) return false;
        throw error;
      }
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

/**
 * The server answers an Update that failed with the same failure for as long as the run lasts, so a repeat of the operation is
 * another Update: one that came too late must not stand in its way. The workflow knows the operation by its own id.
 */
const updateIdOf = ({ opId, notAfterMs }: ChangeOrder): string => `${opId}/${notAfterMs}`;

/** How the workflow of an owner is opened where it is not open. */
export const chainStart = (owner: Owner, input: TenantInput) => ({
  workflowId: `tenant:${owner}`,
  taskQueue: taskQueueOf(owner),
  args: [input] as [TenantInput],
  workflowIdConflictPolicy: WorkflowIdConflictPolicy.USE_EXISTING,
  // A chain that has had its last entry has completed, and is not begun anew; one that an operator ended may be.
  workflowIdReusePolicy: WorkflowIdReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
  workflowTaskTimeout: "5s",
  ...(owner === systemOwner ? {} : { typedSearchAttributes: [{ key: tenantIdKey, value: owner }] }),
  staticSummary: owner === systemOwner ? "state changes of the system" : `state and quota of ${owner}`,
});

export type ChainWorkflow = (input: TenantInput) => Promise<unknown>;

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
