import { ApplicationFailure } from "@temporalio/activity";
import type { InvoiceSender } from "../control-plane/invoices.ts";
import { AppError } from "../domain/app-error.ts";
import type { InvoiceReport, InvoiceRun } from "../domain/invoice.ts";
import { asInvoiceActivity } from "./activity-context.ts";

/** The effects of `invoice:<tenant>:…`. The tenant is the workflow's, and Stripe's key this process's: no input names them. */
export const createInvoiceActivities = ({ sender }: { readonly sender: InvoiceSender }) => ({
  async planInvoice(run: InvoiceRun): Promise<number> {
    return await asInvoiceActivity(async (tenantId) => await sender.plan(tenantId, run));
  },
  async sendInvoice(run: InvoiceRun): Promise<Omit<InvoiceReport, "planned">> {
    return await asInvoiceActivity(async (tenantId, signal) => {
      try {
        return await sender.send(tenantId, run, signal);
      } catch (error) {
        if (!(error instanceof AppError) || error.client.retryAfterSeconds === undefined) throw error;
        const { message, code, client } = error;
        throw ApplicationFailure.create({ message, type: code, nextRetryDelay: `${client.retryAfterSeconds}s` }); // as Stripe asked
      }
    });
  },
});

export type InvoiceActivities = ReturnType<typeof createInvoiceActivities>;
