import type { FastifyPluginAsync } from "fastify";
import { z } from "zod";
import type { Verification, VerifyOptions } from "../control-plane/audit-verify.ts";
import { AppError } from "../domain/app-error.ts";
import { listAnchors } from "../storage/audit-anchor-repository.ts";
import { listEntries, readChain } from "../storage/audit-repository.ts";
import type { Database } from "../storage/database.ts";

export type AuditDeps = { readonly database: Database; readonly verify: (options: VerifyOptions) => Promise<Verification> };

const since = z
  .string()
  .refine(
    (text) => /^\d{4}-\d\d-\d\d/.test(text) && !Number.isNaN(Date.parse(text)),
    "since is a date or a time: 2026-06-03 or 2026-06-03T10:14:22Z",
  )
  .transform(Date.parse)
  .optional();
const limit = z
  .string()
  .regex(/^[1-9]\d{0,3}$/, "limit is a number from 1 to 9999")
  .default("1000")
  .transform(Number);
const after = z.string().max(1_000).optional();

const auditQuery = z.strictObject({
  tenant: z.string().optional(),
  since,
  action: z.string().optional(),
  chain: z.string().optional(),
  limit,
  after,
});
const anchorsQuery = z.strictObject({ limit, after });
const verifyQuery = z.strictObject({ since });

const name = z.string().regex(/^[\x20-\x7e]*$/);
const entryPlace = z.tuple([z.iso.datetime(), name, z.int().positive()]);
const anchorPlace = z.tuple([name, name, z.int().positive(), z.iso.datetime()]);

/** The audit, for administrators. `next` of a page is the `after` of the one behind it. */
export const createAuditRoutes =
  ({ database, verify }: AuditDeps): FastifyPluginAsync =>
  async (app) => {
    app.get(
      "/v1/audit",
      { config: { access: "admin:read", describes: { summary: "Audit entries", query: auditQuery } } },
      async (request) => {
        const query = auditQuery.parse(request.query);
        const { chain, tenant, action } = query;
        const [ts, ofChain, seq] = cursorOf(entryPlace, query.after) ?? [];
        const behind = ts === undefined || ofChain === undefined || seq === undefined ? undefined : { ts, chain: ofChain, seq };
        const entries = await database.withControl(
          (tx) =>
            chain === undefined
              ? listEntries(tx, { tenant, action, sinceMs: query.since, after: behind, limit: query.limit + 1 })
              : readChain(tx, chain, behind?.seq ?? 0, query.limit + 1),
          { readOnly: true },
        );
        return pageOf(entries, query.limit, (entry) => [entry.ts, entry.chain, entry.seq]);
      },
    );

    app.get(
      "/v1/audit/anchors",
      { config: { access: "admin:read", describes: { summary: "Signed anchors of the chains", query: anchorsQuery } } },
      async (request) => {
        const query = anchorsQuery.parse(request.query);
        const [key, chain, seq, at] = cursorOf(anchorPlace, query.after) ?? [];
        const behind =
          key === undefined || chain === undefined || seq === undefined || at === undefined ? undefined : { key, chain, seq, ts: at };
        const anchors = await database.withControl((tx) => listAnchors(tx, behind, query.limit + 1), { readOnly: true });
        return pageOf(anchors, query.limit, (anchor) => [anchor.key, anchor.chain, anchor.seq, anchor.ts]);
      },
    );

    app.get(
      "/v1/audit/verify",
      { config: { access: "admin:read", describes: { summary: "Compares entries, file, workflows and anchors", query: verifyQuery } } },
      async (request) => await verify({ sinceMs: verifyQuery.parse(request.query).since }),
    );
  };

function pageOf<T>(items: readonly T[], size: number, placeOf: (item: T) => unknown) {
  const data = items.slice(0, size);
  const last = data.at(-1);
  const next = items.length > size && last !== undefined ? Buffer.from(JSON.stringify(placeOf(last))).toString("base64url") : null;
  return { object: "list", data, has_more: next !== null, next };
}

function cursorOf<T>(schema: z.ZodType<T>, raw: string | undefined): T | undefined {
  if (raw === undefined) return undefined;
  try {
    return schema.parse(JSON.parse(Buffer.from(raw, "base64url").toString()));
  } catch {
    throw new AppError("invalid_request", { client: { message: "after is what an earlier page gave as next.", param: "after" } });
  }
}
