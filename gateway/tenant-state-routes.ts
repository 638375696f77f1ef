import type { FastifyPluginAsync, FastifyRequest } from "fastify";
import { z } from "zod";
import type { Changes } from "../control-plane/changes.ts";
import { mintTenantToken } from "../control-plane/credentials.ts";
import { type Tenants, notFound } from "../control-plane/tenants.ts";
import { AppError } from "../domain/app-error.ts";
import type { TenantCommand } from "../domain/audit.ts";
import { type TenantQuota, parseQuotaChange, quotaFieldsOf } from "../domain/tenant-quota.ts";
import { lifeWorkflowIdOf, systemOwner, type TenantId } from "../domain/tenant.ts";
import type { OperationClient } from "../temporal/operation-client.ts";
import { acceptEmptyBodies, changeOptionsOf, noBody } from "./admin-change.ts";
import { tenantNamedByAdmin, tenantOfPath } from "./admin-path.ts";
import { tenantJson } from "./admin-routes.ts";

export type TenantStateDeps = {
  readonly tenants: Tenants;
  readonly changes: Changes;
  readonly operations: Pick<OperationClient, "read">;
  /** Of a new tenant, where the request leaves a ceiling out. */
  readonly defaultQuota: TenantQuota;
};

/** A command travels through a workflow, which takes no megabytes and no half characters. */
const shortText = z
  .string()
  .max(1_000)
  .refine((text) => text.isWellFormed(), "must be Unicode text");
/** A JSON number arrives as its own text (admin-change.ts). */
const decimalText = z.union([shortText, z.number().transform(String)]);
const quotaBody = z.strictObject({
  tokens_per_day: z.number().nullable().optional(),
  cost_per_day_usd: decimalText.nullable().optional(),
  requests_per_minute: z.number().nullable().optional(),
});
const newTenant = z.strictObject({
  id: z.string(),
  display_name: shortText.nullable().optional(),
  markup: decimalText.nullable().optional(),
  quota: quotaBody.optional(),
});
const changedTenant = newTenant.omit({ id: true });
const deleteQuery = z.strictObject({ confirm: z.string().optional() });

const timeOf = (ms: number | undefined): string | null => (ms === undefined ? null : new Date(ms).toISOString());

/** What administrators change about tenants and their tokens. Every change is audited, or refused. */
export const createTenantStateRoutes =
  ({ tenants, changes, operations, defaultQuota }: TenantStateDeps): FastifyPluginAsync =>
  async (app) => {
    acceptEmptyBodies(app);

    /** A change of a tenant that exists; one that does not has no chain. */
    const changeExisting = async (request: FastifyRequest, commandOf: (tenantId: TenantId) => TenantCommand): Promise<TenantId> => {
      const tenantId = tenantOfPath(request);
      const command = commandOf(tenantId);
      const options = changeOptionsOf(request);
      await tenants.get(tenantId);
      await changes.make(tenantId, command, options);
      return tenantId;
    };
    const change = async (request: FastifyRequest, command: TenantCommand): Promise<TenantId> => {
      noBody.parse(request.body);
      return await changeExisting(request, () => command);
    };
    const tenantToChange = async (request: FastifyRequest): Promise<TenantId> => {
      const tenantId = tenantOfPath(request);
      noBody.parse(request.body);
      await tenants.get(tenantId);
      return tenantId;
    };

    app.post(
      "/v1/tenants",
      { config: { access: "admin:tenants", describes: { summary: "Creates a tenant; its token is shown once", body: newTenant } } },
      async (request, reply) => {
        const { id, display_name, markup, quota = {} } = newTenant.parse(request.body);
        const tenantId = tenantNamedByAdmin(request, id);
        const ceilings = { ...defaultQuota, ...parseQuotaChange(quota, "quota.") };
        const { token, hash } = mintTenantToken(tenantId);
        const answer = await changes.issue(
          systemOwner,
          {
            type: "tenant.create",
            tenantId,
            displayName: display_name ?? null,
            markup: markup ?? null,
            tokenHash: hash.toString("hex"),
            quota: ceilings,
          },
          changeOptionsOf(request),
          { tenant: tenantId, token },
        );
        return await reply.code(201).header("cache-control", "no-store").send(answer);
      },
    );

    app.patch(
      "/v1/tenants/:tenant",
      { config: { access: "admin:tenants", describes: { summary: "Changes name, markup or ceilings", body: changedTenant } } },
      async (request) => {
        const tenantId = await changeExisting(request, () => {
          const { display_name: displayName, markup, quota } = changedTenant.parse(request.body ?? {});
          const ceilings = quota === undefined ? undefined : parseQuotaChange(quota, "quota.");
          if (ceilings !== undefined && displayName === undefined && markup === undefined) return { type: "quota.update", quota: ceilings };
          return {
            type: "tenant.update",
            ...(displayName === undefined ? {} : { displayName }),
            ...(markup === undefined ? {} : { markup }),
            ...(ceilings === undefined ? {} : { quota: ceilings }),
          };
        });
        return tenantJson(await tenants.get(tenantId));
      },
    );

    app.get(
      "/v1/tenants/:tenant/quota",
      { config: { access: "admin:read", describes: { summary: "The tenant's ceilings; null: none" } } },
      async (request) => {
        const tenantId = tenantOfPath(request);
        return quotaFieldsOf((await tenants.get(tenantId)).quota);
      },
    );

    app.put(
      "/v1/tenants/:tenant/quota",
      { config: { access: "admin:tenants", describes: { summary: "Sets ceilings; what is absent stays", body: quotaBody } } },
      async (request) => {
        const tenantId = await changeExisting(request, () => ({
          type: "quota.update",
          quota: parseQuotaChange(quotaBody.parse(request.body ?? {})),
        }));
        return quotaFieldsOf((await tenants.get(tenantId)).quota);
      },
    );

    app.delete(
      "/v1/tenants/:tenant",
      {
        config: { access: "admin:tenants", describes: { summary: "Deletes a tenant for ever; bills and audit stay", query: deleteQuery } },
      },
      async (request, reply) => {
        const tenantId = tenantOfPath(request);
        noBody.parse(request.body);
        const { confirm } = deleteQuery.parse(request.query);
        if (confirm !== tenantId) {
          throw new AppError("invalid_request", {
            client: { message: `Deleting cannot be taken back: repeat the tenant's id as ?confirm=${tenantId}.`, param: "confirm" },
          });
        }
        const options = changeOptionsOf(request);
        const deletion = await tenants.deletionOf(tenantId);
        if (deletion === "done" && options.idempotency === undefined) throw notFound(tenantId);
        const workflowId = lifeWorkflowIdOf("erase", tenantId);
        const isRunning = deletion === "running" && (await operations.read(workflowId))?.state === "running";
        if (!isRunning) await changes.make(systemOwner, { type: "tenant.delete", tenantId }, options);
        return await reply.code(202).send({ workflow_id: workflowId });
      },
    );

    for (const name of ["suspend", "resume"] as const) {
      app.post(
        `/v1/tenants/:tenant/${name}`,
        { config: { access: "admin:tenants", describes: { summary: "Suspends or resumes a tenant" } } },
        async (request) => {
          const tenantId = await change(request, { type: `tenant.${name}` });
          return tenantJson(await tenants.get(tenantId));
        },
      );
    }

    app.post(
      "/v1/tenants/:tenant/token/rotate",
      { config: { access: "admin:tenants", describes: { summary: "A new token; the old one ends at once" } } },
      async (request, reply) => {
        const options = changeOptionsOf(request);
        const tenantId = await tenantToChange(request);
        const { token, hash } = mintTenantToken(tenantId);
        const command = { type: "token.rotate", tokenHash: hash.toString("hex") } as const;
        const answer = await changes.issue(tenantId, command, options, { tenant: tenantId, token });
        return await reply.header("cache-control", "no-store").send(answer);
      },
    );

    app.post(
      "/v1/tenants/:tenant/token/revoke",
      { config: { access: "admin:tenants", describes: { summary: "Ends the tenant's token" } } },
      async (request) => {
        const tenantId = await change(request, { type: "token.revoke" });
        return { tenant: tenantId, revoked: true };
      },
    );

    app.get(
      "/v1/tenants/:tenant/token",
      { config: { access: "admin:read", describes: { summary: "What may be shown of the token" } } },
      async (request) => {
        const tenantId = tenantOfPath(request);
        await tenants.get(tenantId);
        const { hashPrefix, createdAtMs, lastUsedAtMs } = await tenants.tokenOf(tenantId);
        return {
          tenant: tenantId,
          prefix: `tk_${tenantId}_`,
          hash_prefix: hashPrefix,
          created_at: timeOf(createdAtMs),
          last_used_at: timeOf(lastUsedAtMs),
        };
      },
    );
  };
