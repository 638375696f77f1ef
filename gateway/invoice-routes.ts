import { createHash } from "node:crypto";
import type { FastifyPluginAsync } from "fastify";
import { z } from "zod";
import { parsePeriod } from "../control-plane/billing-period.ts";
import { type Changes, opIdOf } from "../control-plane/changes.ts";
import type { Invoices } from "../control-plane/invoices.ts";
import { invoiceResolutions, parseInvoiceEventId } from "../domain/invoice.ts";
import { type Owner, systemOwner } from "../domain/tenant.ts";
import type { InvoiceClient } from "../temporal/invoice-client.ts";
import { changeOptionsOf } from "./admin-change.ts";
import { tenantNamedByAdmin } from "./admin-path.ts";

export type InvoiceRouteDeps = {
  readonly invoices: Invoices;
  readonly changes: Changes;
  readonly client: Pick<InvoiceClient, "start">;
  /** Makes sure that a worker polls the owner's queue. */
  readonly wake: (owner: Owner) => Promise<void>;
};

const statusQuery = z.strictObject({ tenant: z.string().optional() });
const runBody = z.strictObject({ tenant: z.string(), period: z.string().default("current-month"), dry_run: z.boolean().default(false) });
const resolveBody = z.strictObject({ tenant: z.string(), event: z.string(), as: z.enum(invoiceResolutions) });

/** Usage and fees that are told to Stripe. */
export const createInvoiceRoutes =
  ({ invoices, changes, client, wake }: InvoiceRouteDeps): FastifyPluginAsync =>
  async (app) => {
    app.get(
      "/v1/billing/invoices",
      {
        config: { access: "admin:billing", describes: { summary: "What was told to Stripe, and what is not decided", query: statusQuery } },
      },
      async (request) => {
        const { tenant } = statusQuery.parse(request.query);
        return await invoices.status(tenant === undefined ? undefined : tenantNamedByAdmin(request, tenant));
      },
    );

    app.post(
      "/v1/billing/invoices",
      { config: { access: "admin:billing", describes: { summary: "Tells Stripe now, or shows what it would be told", body: runBody } } },
      async (request, reply) => {
        const { tenant, period: text, dry_run: isDryRun } = runBody.parse(request.body);
        const tenantId = tenantNamedByAdmin(request, tenant);
        const period = parsePeriod(text, Date.now());
        if (isDryRun) return await invoices.preview(tenantId, period);
        await invoices.requireCustomer(tenantId);
        const { firstDay, lastDay } = period;
        const options = changeOptionsOf(request);
        await changes.make(systemOwner, { type: "invoice.run", tenantId, period: `${firstDay}..${lastDay}` }, options);
        // The same operation is the same run, so a repeat answers the same workflow.
        const rest = createHash("sha256").update(opIdOf(options)).digest("hex").slice(0, 20);
        await wake(systemOwner);
        return await reply.code(202).send({ workflow_id: await client.start(tenantId, rest, { firstDay, lastDay }) });
      },
    );

    app.post(
      "/v1/billing/invoices/resolve",
      {
        config: {
          access: "admin:billing",
          describes: { summary: "Says what Stripe has of an event that is held or refused", body: resolveBody },
        },
      },
      async (request) => {
        const { tenant, event, as } = resolveBody.parse(request.body);
        const tenantId = tenantNamedByAdmin(request, tenant);
        const key = parseInvoiceEventId(event);
        const { mode } = await invoices.requireCustomer(tenantId);
        await changes.make(systemOwner, { type: "invoice.resolve", tenantId, mode, ...key, as }, changeOptionsOf(request));
        return { tenant: tenantId, event, state: as };
      },
    );
  };
