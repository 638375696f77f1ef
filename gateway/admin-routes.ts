import { Readable, finished } from "node:stream";
import type { FastifyPluginAsync } from "fastify";
import { z } from "zod";
import { explainCall } from "../control-plane/billing-explanation.ts";
import { parsePeriod } from "../control-plane/billing-period.ts";
import type { BillingReports } from "../control-plane/billing-reports.ts";
import type { VerifyBilling } from "../control-plane/billing-verify.ts";
import type { Tenant, Tenants } from "../control-plane/tenants.ts";
import { AppError } from "../domain/app-error.ts";
import { quotaFieldsOf } from "../domain/tenant-quota.ts";
import type { Database } from "../storage/database.ts";
import { tenantNamedByAdmin, tenantOfPath } from "./admin-path.ts";

export type AdminDeps = {
  readonly tenants: Tenants;
  readonly reports: BillingReports;
  readonly database: Database;
  readonly verifyBilling: VerifyBilling;
};

const rowParams = z.object({ id: z.string() });
const reportQuery = z.strictObject({
  tenant: z.string().optional(),
  period: z.string().default("current-month"),
  format: z.enum(["csv", "json"]).default("json"),
  detail: z.enum(["true", "false", "1", "0", ""]).optional(),
});

/** Whoever reads one slowly makes the gateway keep some 10 MB of it. */
const mostOpenReports = 8;

const verifyQuery = z.strictObject({ tenant: z.string().optional(), period: z.string().optional() });

/** A tenant as the admin API shows it. */
export const tenantJson = ({ id, displayName, state, markupPpm, quota, createdAtMs }: Tenant) => ({
  id,
  display_name: displayName ?? null,
  state,
  markup_ppm: markupPpm ?? null,
  quota: quotaFieldsOf(quota),
  created_at: new Date(createdAtMs).toISOString(),
});

/** What administrators read: tenants and bills. */
export const createAdminRoutes =
  ({ tenants, reports, database, verifyBilling }: AdminDeps): FastifyPluginAsync =>
  async (app) => {
    app.get("/v1/tenants", { config: { access: "admin:read", describes: { summary: "All tenants" } } }, async () => ({
      object: "list",
      data: (await tenants.list()).map(tenantJson),
    }));

    app.get("/v1/tenants/:tenant", { config: { access: "admin:read", describes: { summary: "One tenant" } } }, async (request) => {
      return tenantJson(await tenants.get(tenantOfPath(request)));
    });

    let openReports = 0;
    app.get(
      "/v1/billing/report",
      { config: { access: "admin:billing", describes: { summary: "The bill of a period, CSV or JSON", query: reportQuery } } },
      async (request, reply) => {
        const { tenant, period, format, detail } = reportQuery.parse(request.query);
        const report = {
          tenantId: tenant === undefined ? undefined : tenantNamedByAdmin(request, tenant),
          period: parsePeriod(period, Date.now()),
          detail: detail !== undefined && detail !== "false" && detail !== "0",
        };
        if (openReports >= mostOpenReports)
          throw new AppError("unavailable", { client: { message: "Too many reports are being read.", retryAfterSeconds: 10 } });
        openReports++;
        finished(reply.raw, () => openReports--);
        const chunks = format === "csv" ? await reports.csv(report) : await reports.json(report);
        return await reply
          .type(format === "csv" ? "text/csv; charset=utf-8" : "application/json; charset=utf-8")
          .send(Readable.from(chunks, { highWaterMark: 2 })); // the next page is read while one is sent, and no more
      },
    );

    app.get(
      "/v1/billing/rows/:id/explain",
      { config: { access: "admin:billing", describes: { summary: "How a billing row was priced" } } },
      async (request) => {
        const { id } = rowParams.parse(request.params);
        return await explainCall(database, id);
      },
    );

    app.get(
      "/v1/billing/verify",
      {
        config: {
          access: "admin:billing",
          describes: { summary: "Compares calls, billing rows, daily sums, prices and counters to the digit", query: verifyQuery },
        },
      },
      async (request) => {
        const { tenant, period } = verifyQuery.parse(request.query);
        const tenantId = tenant === undefined ? undefined : tenantNamedByAdmin(request, tenant);
        const days = period === undefined ? undefined : parsePeriod(period, Date.now());
        return await verifyBilling({ tenantId, days, requestId: request.id });
      },
    );
  };

const usageQuery = z.strictObject({ period: z.string().default("current-month") });

/** Usage of one tenant: for the tenant itself, or for an administrator. A tenant that asks for another's learns nothing (404). */
export const createUsageRoutes =
  ({ reports }: Pick<AdminDeps, "reports">): FastifyPluginAsync =>
  async (app) => {
    app.get(
      "/v1/tenants/:tenant/usage",
      { config: { access: "tenant-or-admin:billing", describes: { summary: "Usage of a period", query: usageQuery } } },
      async (request) => {
        const tenantId = tenantOfPath(request);
        const { period } = usageQuery.parse(request.query);
        return await reports.usage(tenantId, parsePeriod(period, Date.now()));
      },
    );
  };
