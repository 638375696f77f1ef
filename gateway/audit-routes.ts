import type { FastifyPluginAsync } from "fastify";
import { z } from "zod";
import type { Verification } from "../control-plane/audit-verify.ts";
import { listEntries } from "../storage/audit-repository.ts";
import type { Database } from "../storage/database.ts";

export type AuditDeps = { readonly database: Database; readonly verify: () => Promise<Verification> };

const auditQuery = z.strictObject({
  tenant: z.string().optional(),
  since: z
    .string()
    .refine(
      (text) => /^\d{4}-\d\d-\d\d/.test(text) && !Number.isNaN(Date.parse(text)),
      "since is a date or a time: 2026-06-03 or 2026-06-03T10:14:22Z",
    )
    .optional(),
  action: z.string().optional(),
  limit: z
    .string()
    .regex(/^[1-9]\d{0,3}$/, "limit is a number from 1 to 9999")
    .default("1000"),
});

/** The audit, for administrators. */
export const createAuditRoutes =
  ({ database, verify }: AuditDeps): FastifyPluginAsync =>
  async (app) => {
    app.get("/v1/audit", { config: { access: "admin:read" } }, async (request) => {
      const { tenant, since, action, limit } = auditQuery.parse(request.query);
      const entries = await database.withControl(
        (tx) => listEntries(tx, { tenant, action, sinceMs: since === undefined ? undefined : Date.parse(since), limit: Number(limit) + 1 }),
        { readOnly: true },
      );
      return { object: "list", data: entries.slice(0, Number(limit)), has_more: entries.length > Number(limit) };
    });

    app.get("/v1/audit/verify", { config: { access: "admin:read" } }, async () => await verify());
  };
