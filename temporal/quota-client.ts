import { type Client, WithStartWorkflowOperation, WorkflowNotFoundError } from "@temporalio/client";
import type { QueryDefinition } from "@temporalio/common";
import type { HolderId } from "../domain/quota-ledger.ts";
import type { AnswerWire, OrderWire, QuotaBooks } from "../domain/quota-wire.ts";
import type { TenantId } from "../domain/tenant.ts";
import { type QuotaCount, endLease, leaseQuota, quotaBooks, quotaCount } from "../workflows/quota-messages.ts";
import { type ChainWorkflow, chainStart } from "./chain-client.ts";

/** The quota of one tenant, which its workflow keeps. */
export interface QuotaClient {
  /** Sends an order; the same one may be sent again after any error. @throws when Temporal cannot be reached in time */
  lease(order: OrderWire): Promise<AnswerWire>;
  /** The holder's process stops. */
  endLease(holder: HolderId): Promise<void>;
  /** What the workflow has counted today; undefined when it counts nothing. */
  count(): Promise<QuotaCount | undefined>;
  /** The same by day, with what it cannot have counted yet. @throws when the workflow cannot be asked in time */
  books(): Promise<QuotaBooks | undefined>;
}

/** A worker answers in milliseconds; a caller waits longer and sends the order again. */
const answerMs = 5_000;

export function quotaClient(tenantId: TenantId, client: Client): QuotaClient {
  const ask = async <T>(query: QueryDefinition<T | null>): Promise<T | undefined> => {
    try {
      return (
        (await client.withDeadline(
          Date.now() + answerMs,
          async () => await client.workflow.getHandle(`tenant:${tenantId}`).query(query),
        )) ?? undefined
      );
    } catch (error) {
      if (error instanceof WorkflowNotFoundError) return undefined;
      throw error;
    }
  };
  return {
    async lease(order) {
      for (;;) {
        const answer = await client.withDeadline(
          Date.now() + answerMs,
          async () =>
            await client.workflow.executeUpdateWithStart(leaseQuota, {
              updateId: `${order.holder}.${order.seq}`,
              args: [order],
              startWorkflowOperation: new WithStartWorkflowOperation<ChainWorkflow>("tenant", chainStart(tenantId, {})),
            }),
        );
        if (answer.state !== "moved") return answer;
      }
    },
    async endLease(holder) {
      try {
        await client.withDeadline(
          Date.now() + answerMs,
          async () => await client.workflow.getHandle(`tenant:${tenantId}`).signal(endLease, holder),
        );
      } catch (error) {
        if (!(error instanceof WorkflowNotFoundError)) throw error;
      }
    },
    count: async () => await ask(quotaCount),
    books: async () => await ask(quotaBooks),
  };
}
