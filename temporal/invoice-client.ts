import {
  ScheduleAlreadyRunning,
  ScheduleNotFoundError,
  ScheduleOverlapPolicy,
  type ScheduleSpec,
  WorkflowExecutionAlreadyStartedError,
} from "@temporalio/client";
import { WorkflowIdReusePolicy, defineSearchAttributeKey } from "@temporalio/common";
import type { InvoiceReport, InvoiceRun } from "../domain/invoice.ts";
import { type TenantId, invoiceWorkflowIdOf, systemOwner, taskQueueOf } from "../domain/tenant.ts";
import { guardedClient } from "./chain-client.ts";
import type { TemporalConnection } from "./temporal-connection.ts";

/** The runs of tenants' invoicing: by hand, and by a schedule per tenant. */
export interface InvoiceClient {
  /** Starts one run; the same `rest` again is the same run. @returns its workflow id */
  start(tenantId: TenantId, rest: string, run: InvoiceRun): Promise<string>;
  /** Safe to repeat. */
  ensureSchedule(tenantId: TenantId): Promise<void>;
  /** Safe to repeat; a run that is under way goes on. */
  removeSchedule(tenantId: TenantId): Promise<void>;
}

/**
 * In UTC: the first run comes before Stripe closes an invoice whose period ended at midnight (an hour after it, unless it is told to
 * wait longer); the others bring what was settled late or could not be sent.
 */
const spec: ScheduleSpec = { calendars: [{ hour: [0, 6, 12, 18], minute: 10 }], jitter: "5 minutes" };

const tenantIdKey = defineSearchAttributeKey("TenantId", "KEYWORD");
const scheduleIdOf = (tenantId: TenantId): string => `invoice:${tenantId}`;

type InvoiceWorkflow = (run: InvoiceRun) => Promise<InvoiceReport>;

export function createInvoiceClient(connection: TemporalConnection): InvoiceClient {
  const client = guardedClient(systemOwner, connection);
  const optionsOf = (tenantId: TenantId, rest: string, run: InvoiceRun) => ({
    workflowId: invoiceWorkflowIdOf(tenantId, rest),
    taskQueue: taskQueueOf(systemOwner),
    args: [run] as [InvoiceRun],
    typedSearchAttributes: [{ key: tenantIdKey, value: tenantId }],
    staticSummary: `invoice of ${tenantId}`,
  });

  return {
    async start(tenantId, rest, run) {
      const options = optionsOf(tenantId, rest, run);
      try {
        await client.workflow.start<InvoiceWorkflow>("invoice", {
          ...options,
          workflowIdReusePolicy: WorkflowIdReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
        });
      } catch (error) {
        if (!(error instanceof WorkflowExecutionAlreadyStartedError)) throw error;
      }
      return options.workflowId;
    },
    async ensureSchedule(tenantId) {
      try {
        await client.schedule.create<InvoiceWorkflow>({
          scheduleId: scheduleIdOf(tenantId),
          spec,
          policies: { overlap: ScheduleOverlapPolicy.SKIP, catchupWindow: "6 hours" },
          action: { type: "startWorkflow", workflowType: "invoice", ...optionsOf(tenantId, "scheduled", {}) },
        });
      } catch (error) {
        if (!(error instanceof ScheduleAlreadyRunning)) throw error;
      }
    },
    async removeSchedule(tenantId) {
      try {
        await client.schedule.getHandle(scheduleIdOf(tenantId)).delete();
      } catch (error) {
        if (!(error instanceof ScheduleNotFoundError)) throw error;
      }
    },
  };
}
