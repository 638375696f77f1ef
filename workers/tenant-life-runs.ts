import type { TenantLifeRuns } from "../activities/tenant-life-activities.ts";
import { AppError } from "../domain/app-error.ts";
import type { ChangeRequest } from "../domain/audit.ts";
import { lifeWorkflowIdOf, type Owner, type TenantId } from "../domain/tenant.ts";
import type { ChainClient } from "../temporal/chain-client.ts";
import type { OperationClient } from "../temporal/operation-client.ts";
import { type TenantClient, laneOfName } from "../temporal/tenant-client.ts";

export type TenantLifeRunsDeps = {
  readonly clientOf: (tenantId: TenantId) => TenantClient;
  readonly system: ChainClient;
  readonly operations: OperationClient;
  /** Makes sure that a worker polls the owner's queue. */
  readonly wake: (owner: Owner) => Promise<void>;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
};

const changePatienceMs = 20_000;
const closingPollMs = 100;
const reason = "the tenant is deleted";

/** What the beginning and the end of a tenant do with Temporal. */
export function createTenantLifeRuns({ clientOf, system, operations, wake, log }: TenantLifeRunsDeps): TenantLifeRuns {
  const change = async (chain: ChainClient, request: ChangeRequest, signal: AbortSignal): Promise<"done" | "closed" | "broken"> => {
    const result = await chain.change(
      { ...request, notAfterMs: Date.now() + changePatienceMs },
      AbortSignal.any([signal, AbortSignal.timeout(changePatienceMs)]),
    );
    if (result.state === "moved") throw new AppError("unavailable", { reason: "the chain moves to a new run" });
    if (result.state === "done" && result.outcome.state === "refused" && result.outcome.code !== "not_found") {
      throw new AppError("unavailable", { reason: `refused: ${result.outcome.message}` });
    }
    return result.state;
  };

  return {
    async abortTurn(tenantId, lane, turnId) {
      await wake(tenantId); // a lane ends its turn only where a worker runs it
      return await clientOf(tenantId).abortTurn(laneOfName(lane), turnId);
    },
    openRuns: async (tenantId) => await clientOf(tenantId).openRuns(),
    endRun: async (tenantId, workflowId) => await clientOf(tenantId).endRun(workflowId, reason),
    openChain: async (tenantId, facts) => await clientOf(tenantId).chain.open(facts),
    async closeChain(tenantId, signal) {
      const { chain, endRun } = clientOf(tenantId);
      await wake(tenantId);
      const requestId = lifeWorkflowIdOf("erase", tenantId);
      const request = { opId: requestId, command: { type: "tenant.erase" }, actor: { type: "system", id: "erase" }, requestId } as const;
      if ((await change(chain, request, signal)) === "broken") {
        log("ALARM: the audit chain of a deleted tenant is broken and was left as it is", { tenantId });
        await endRun(`tenant:${tenantId}`, "its chain is broken");
      }
      while (await chain.isOpen()) {
        if (signal.aborted) throw new AppError("unavailable", { reason: "the worker stops" });
        await new Promise((resolve) => setTimeout(resolve, closingPollMs));
      }
    },
    async endProvision(tenantId) {
      await operations.end(lifeWorkflowIdOf("provision", tenantId), reason);
    },
    async deleteTenant(tenantId, signal) {
      const requestId = lifeWorkflowIdOf("provision", tenantId);
      const request = {
        opId: `undo:${tenantId}`,
        command: { type: "tenant.delete", tenantId },
        actor: { type: "system", id: "provision" },
        requestId,
      } as const;
      if ((await change(system, request, signal)) === "broken")
        throw new AppError("unavailable", { reason: "the system's chain is broken" });
    },
  };
}
