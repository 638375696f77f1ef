import { randomBytes } from "node:crypto";
import { Connection } from "@temporalio/client";
import { searchAttributeTypes } from "../domain/search-attributes.ts";
import { ensureNamespace } from "../temporal-dev/namespace-setup.ts";

/** A Temporal namespace of one's own on the run's server: the chain `system` is one per namespace. */
export async function freshNamespace(address: string): Promise<string> {
  const namespace = `test-${randomBytes(6).toString("hex")}`;
  const connection = await Connection.connect({ address });
  try {
    await connection.workflowService.registerNamespace({
      namespace,
      workflowExecutionRetentionPeriod: { seconds: (30 * 24 * 60 * 60) as never },
    });
    for (let attempt = 1; ; attempt++) {
      try {
        await ensureNamespace(connection, { namespace, searchAttributes: searchAttributeTypes });
        await connection.workflowService.listWorkflowExecutions({ namespace, query: "TenantId = 'x'" });
        return namespace;
      } catch (error) {
        if (attempt === 100) throw error;
        await new Promise((resolve) => setTimeout(resolve, 200)); // the server's parts learn of it one after the other
      }
    }
  } finally {
    await connection.close();
  }
}
