import { type Owner, ownerOfTaskQueue } from "../domain/tenant.ts";
import type { TemporalConnection } from "./temporal-connection.ts";

const pageSize = 1_000;

/**
 * Whose workflows want a worker now or by `byMs`: open ones, but for the chains, which everybody has and whose callers wake them, and
 * for those whose delayed start is later. One query for all tenants; what began in the last second may not be in it yet.
 */
export async function listDueOwners({ client, namespace }: TemporalConnection, byMs: number): Promise<ReadonlySet<Owner>> {
  const query = `ExecutionStatus = "Running" AND WorkflowType != "tenant" AND ExecutionTime <= "${new Date(byMs).toISOString()}"`;
  const owners = new Set<Owner>();
  let nextPageToken = new Uint8Array();
  do {
    const page = await client.workflowService.listWorkflowExecutions({ namespace, query, pageSize, nextPageToken });
    for (const { taskQueue } of page.executions) {
      const owner = ownerOf(taskQueue ?? "");
      if (owner !== undefined) owners.add(owner);
    }
    nextPageToken = Uint8Array.from(page.nextPageToken);
  } while (nextPageToken.length > 0);
  return owners;
}

/** Nobody's queue is none of ours: a namespace may be shared. */
function ownerOf(taskQueue: string): Owner | undefined {
  try {
    return ownerOfTaskQueue(taskQueue);
  } catch {
    return undefined;
  }
}
