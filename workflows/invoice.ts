import { proxyActivities, workflowInfo } from "@temporalio/workflow";
import type { InvoiceActivities } from "../activities/invoice-activities.ts";
import type { InvoiceReport, InvoiceRun } from "../domain/invoice.ts";
import { tenantOfInvoiceWorkflow } from "../domain/tenant.ts";
import { trackSteps } from "./operation-steps.ts";

// Everything is noted in rows, so that a worker that dies costs one heartbeat. Five hours: the schedule's next run goes on.
const { planInvoice, sendInvoice } = proxyActivities<InvoiceActivities>({
  startToCloseTimeout: "30 minutes",
  scheduleToCloseTimeout: "5 hours",
  heartbeatTimeout: "5s",
  retry: { initialInterval: "1s", maximumInterval: "10 minutes" },
});

const names = ["what is owed is noted", "Stripe is told"] as const;

/** Tells Stripe what a tenant owes for days that have ended. What cannot be told now is left for the next run. */
export async function invoice(run: InvoiceRun = {}): Promise<InvoiceReport> {
  const tenantId = tenantOfInvoiceWorkflow(workflowInfo().workflowId);
  const steps = trackSteps(`Stripe is told what **${tenantId}** owes.`, names);
  steps.mark(names[0], "running");
  const planned = await planInvoice(run);
  steps.mark(names[0], "done");
  steps.mark(names[1], "running");
  const report = await sendInvoice(run);
  steps.mark(names[1], "done");
  return { planned, ...report };
}
