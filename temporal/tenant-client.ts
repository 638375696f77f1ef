import { WithStartWorkflowOperation, WorkflowNotFoundError, WorkflowUpdateStage } from "@temporalio/client";
import { WorkflowIdConflictPolicy, WorkflowIdReusePolicy, defineSearchAttributeKey } from "@temporalio/common";
import { channelPrefixes, sessionPartsOf, type SessionId } from "../domain/session-id.ts";
import { type TenantContext, ownerOfWorkflowId, taskQueueOf } from "../domain/tenant.ts";
import type { TurnId } from "../domain/turn-id.ts";
import type { TurnTicket, TurnVerdict } from "../domain/turn.ts";
import { type LaneInput, type LaneState, abortTurn, laneState, submitTurn, turnArrived } from "../workflows/turn-messages.ts";
import { type ChainClient, chainClient, guardedClient } from "./chain-client.ts";
import { type QuotaClient, quotaClient } from "./quota-client.ts";
import type { TemporalConnection } from "./temporal-connection.ts";

/** The lane a turn runs in: its session's, or the `k`-th of the tenant's stateless pool. */
export type Lane = { readonly sessionId: SessionId } | { readonly pool: number };

export type LaneSettings = Pick<LaneInput, "windowMs" | "modelCall" | "turnsPerRun">;

/** How many stateless turns one lane of the pool runs at once: the server's default bound on Updates in flight per workflow. */
export const poolLaneConcurrency = 10;

/** The part of a lane's workflow id behind the tenant, as the outbox of open turns keeps it. */
export const laneNameOf = (lane: Lane): string => ("pool" in lane ? `api.${lane.pool}` : lane.sessionId);

export const laneOfName = (name: string): Lane => {
  const [, pool] = /^api\.(\d+)$/.exec(name) ?? [];
  return pool === undefined ? { sessionId: name as SessionId } : { pool: Number(pool) };
};

/** What a tenant may do with Temporal. Every id and queue in it is built from the tenant, never taken from a caller. */
export interface TenantClient {
  /**
   * Hands a turn to its lane and waits until the lane has accepted it, at most `acceptanceMs` of the mode: its row and its events tell the rest.
   * @throws when Temporal cannot be reached, refuses the call or no worker took it in time: it may or may not have been accepted
   */
  offerTurn(lane: Lane, ticket: TurnTicket): Promise<void>;
  /**
   * Hands a turn to its lane and waits for the verdict; `queued` when the lane moves meanwhile.
   * @throws when Temporal cannot be reached or the call is refused: the turn may or may not have been accepted
   */
  submitTurn(lane: Lane, ticket: TurnTicket): Promise<TurnVerdict>;
  /** Hands a turn to its lane without waiting. */
  sendTurn(lane: Lane, ticket: TurnTicket): Promise<void>;
  /** Ends one turn. @returns false when the lane is not open: nothing to abort */
  abortTurn(lane: Lane, turnId: TurnId): Promise<boolean>;
  /** Ids of the tenant's open workflows, as far as visibility knows yet; its audit chain is not among them. */
  openRuns(): Promise<readonly string[]>;
  /** Terminates a workflow of the tenant, if it is open. */
  endRun(workflowId: string, reason: string): Promise<void>;
  /** Terminates the run of a lane whose workflow task fails again and again; its turns stand in their rows. @returns whether it did */
  endStuckLane(lane: Lane): Promise<boolean>;
  /** Undefined when the lane is not open. */
  laneState(lane: Lane): Promise<LaneState | undefined>;
  /** The tenant's state changes. */
  readonly chain: ChainClient;
  readonly quota: QuotaClient;
}

const keys = {
  tenantId: defineSearchAttributeKey("TenantId", "KEYWORD"),
  channel: defineSearchAttributeKey("Channel", "KEYWORD"),
  turnKind: defineSearchAttributeKey("TurnKind", "KEYWORD"),
  sessionId: defineSearchAttributeKey("SessionId", "KEYWORD_LIST"),
  turnId: defineSearchAttributeKey("TurnId", "KEYWORD_LIST"),
};

/** The only door to Temporal's client: bound to one tenant, and guarded against a name of another one. */
export function forTenant(
  { tenantId }: Pick<TenantContext, "tenantId">,
  connection: TemporalConnection,
  settings: LaneSettings,
): TenantClient {
  const client = guardedClient(tenantId, connection);
  const workflowIdOf = (lane: Lane): string => `turn:${tenantId}:${laneNameOf(lane)}`;
  const input = (lane: Lane): LaneInput => ({
    tenantId,
    sessionId: "pool" in lane ? undefined : lane.sessionId,
    concurrency: "pool" in lane ? poolLaneConcurrency : 1,
    ...settings,
  });
  const start = (lane: Lane, { turnId, sessionId, kind }: TurnTicket) => ({
    workflowId: workflowIdOf(lane),
    taskQueue: taskQueueOf(tenantId),
    args: [input(lane)] as [LaneInput],
    workflowIdConflictPolicy: WorkflowIdConflictPolicy.USE_EXISTING,
    workflowIdReusePolicy: WorkflowIdReusePolicy.ALLOW_DUPLICATE,
    workflowTaskTimeout: "5s",
    typedSearchAttributes: [
      { key: keys.tenantId, value: tenantId },
      { key: keys.channel, value: channelPrefixes[sessionPartsOf(sessionId).prefix] },
      { key: keys.turnKind, value: kind },
      { key: keys.sessionId, value: [sessionId] },
      { key: keys.turnId, value: [turnId] },
    ],
    staticSummary: "pool" in lane ? `stateless calls of ${tenantId}` : `session ${lane.sessionId} of ${tenantId}`,
  });

  return {
    chain: chainClient(tenantId, client),
    quota: quotaClient(tenantId, client),
    async offerTurn(lane, ticket) {
      await client.withDeadline(Date.now() + acceptanceMs[settings.modelCall], async () => {
        await client.workflow.startUpdateWithStart(submitTurn, {
          updateId: ticket.turnId,
          args: [ticket],
          waitForStage: WorkflowUpdateStage.ACCEPTED,
          startWorkflowOperation: new WithStartWorkflowOperation<LaneWorkflow>("turn", start(lane, ticket)),
        });
      });
    },
    async submitTurn(lane, ticket) {
      return await client.workflow.executeUpdateWithStart(submitTurn, {
        updateId: ticket.turnId,
        args: [ticket],
        startWorkflowOperation: new WithStartWorkflowOperation<LaneWorkflow>("turn", start(lane, ticket)),
      });
    },
    async sendTurn(lane, ticket) {
      await client.workflow.signalWithStart<LaneWorkflow, [TurnTicket]>("turn", {
        ...start(lane, ticket),
        signal: turnArrived,
        signalArgs: [ticket],
      });
    },
    async abortTurn(lane, turnId) {
      const signalled = client.workflow.getHandle(workflowIdOf(lane)).signal(abortTurn, turnId);
      return (await orUndefinedWhenNotOpen(signalled.then(() => true))) ?? false;
    },
    async openRuns() {
      const query = `ExecutionStatus = "Running" AND (TenantId = "${tenantId}" OR TaskQueue = "${taskQueueOf(tenantId)}")`;
      const ids = new Set<string>();
      for await (const { workflowId } of client.workflow.list({ query })) ids.add(workflowId);
      ids.delete(`tenant:${tenantId}`);
      return [...ids].filter((workflowId) => ownerOfWorkflowId(workflowId) === tenantId);
    },
    async endRun(workflowId, reason) {
      await orUndefinedWhenNotOpen(client.workflow.getHandle(workflowId).terminate(reason));
    },
    async endStuckLane(lane) {
      const handle = client.workflow.getHandle(workflowIdOf(lane));
      const description = await orUndefinedWhenNotOpen(handle.describe());
      if ((description?.raw.pendingWorkflowTask?.attempt ?? 0) < stuckTaskAttempts) return false;
      await orUndefinedWhenNotOpen(handle.terminate("its workflow task failed again and again"));
      return true;
    },
    async laneState(lane) {
      return await orUndefinedWhenNotOpen(client.workflow.getHandle(workflowIdOf(lane)).query(laneState));
    },
  };
}

/** How long a lane may take to accept a turn: a worker answers in milliseconds, a server that restarts in seconds. */
const acceptanceMs = {
  remote: 10_000,
  // A local model call keeps the lane's workflow task open: a new turn is accepted when the task is renewed, after four seconds or more.
  local: 60_000,
};

/** Attempts of one workflow task after which a lane counts as stuck; a busy server needs one or two. */
const stuckTaskAttempts = 5;

type LaneWorkflow = (input: LaneInput) => Promise<unknown>;

async function orUndefinedWhenNotOpen<T>(answer: Promise<T>): Promise<T | undefined> {
  try {
    return await answer;
  } catch (error) {
    if (error instanceof WorkflowNotFoundError) return undefined;
    throw error;
  }
}
