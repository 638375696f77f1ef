import { gzip } from "node:zlib";
import { promisify } from "node:util";
import { isGrpcServiceError } from "@temporalio/client";
import { historyToJSON } from "@temporalio/common/lib/proto-utils.js";
import { tsToMs } from "@temporalio/common/lib/time.js";
import proto from "@temporalio/proto";
import type { ClosedRun, ClosedRunsQuery } from "../domain/history-archive.ts";
import { type TenantId, ownerOfWorkflowId, systemOwner } from "../domain/tenant.ts";
import type { TemporalConnection } from "./temporal-connection.ts";

const { History } = proto.temporal.api.history.v1;
const { WorkflowExecutionStatus } = proto.temporal.api.enums.v1;
const compress = promisify(gzip);

const runsAtOnce = 100;
const notFound = 5;

export type ClosedRunsPage = { readonly runs: readonly ClosedRun[]; readonly next: string | undefined };

/** A part of a history as it is kept: `temporal.api.history.v1.History`, gzipped. */
export type HistoryPage = { readonly bytes: Uint8Array; readonly events: number };

/** What Temporal still has of runs that have closed. */
export type ClosedRuns = {
  /** Some of the tenants' runs that closed in a time; those of the system are left out. */
  list(query: ClosedRunsQuery): Promise<ClosedRunsPage>;
  /** The history, page by page, with its payloads as they are. Ends without a page where the run is gone. */
  pages(run: ClosedRun): AsyncGenerator<HistoryPage, void, undefined>;
};

export const createClosedRuns = ({ client: { workflowService }, namespace }: TemporalConnection): ClosedRuns => ({
  async list({ fromMs, toMs, page }) {
    const [from, to] = [fromMs, toMs].map((ms) => new Date(ms).toISOString());
    const { executions, nextPageToken } = await workflowService.listWorkflowExecutions({
      namespace,
      query: `ExecutionStatus != "Running" AND CloseTime >= "${from}" AND CloseTime < "${to}"`,
      pageSize: runsAtOnce,
      nextPageToken: Buffer.from(page ?? "", "base64"),
    });
    const runs = executions.flatMap(({ execution, type, status, startTime, closeTime }) => {
      const tenantId = tenantOf(execution?.workflowId ?? "");
      if (tenantId === undefined) return [];
      return [
        {
          tenantId,
          workflowId: execution?.workflowId ?? "",
          runId: execution?.runId ?? "",
          type: type?.name ?? "",
          status: WorkflowExecutionStatus[status ?? 0]?.replace("WORKFLOW_EXECUTION_STATUS_", "") ?? "",
          startedAtMs: tsToMs(startTime),
          closedAtMs: tsToMs(closeTime),
        },
      ];
    });
    return { runs, next: nextPageToken.length === 0 ? undefined : Buffer.from(nextPageToken).toString("base64") };
  },
  async *pages({ workflowId, runId }) {
    let nextPageToken: Uint8Array = new Uint8Array();
    do {
      const page = await workflowService
        .getWorkflowExecutionHistory({ namespace, execution: { workflowId, runId }, nextPageToken })
        .catch((error: unknown) => {
          if (isGrpcServiceError(error) && Number(error.code) === notFound) return undefined;
          throw error;
        });
      if (page === undefined) return;
      const events = page.history?.events ?? [];
      yield { bytes: await compress(History.encode({ events }).finish()), events: events.length };
      nextPageToken = page.nextPageToken;
    } while (nextPageToken.length > 0);
  },
});

/** Nobody's workflow is none of ours: a namespace may be shared. */
function tenantOf(workflowId: string): TenantId | undefined {
  try {
    const owner = ownerOfWorkflowId(workflowId);
    return owner === systemOwner ? undefined : owner;
  } catch {
    return undefined;
  }
}

/** The events of a page as Temporal's own tools write them into a history file. @param page not compressed any more */
export const eventsOfPage = (page: Uint8Array): readonly unknown[] =>
  (JSON.parse(historyToJSON(History.decode(page))) as { readonly events: readonly unknown[] }).events;
