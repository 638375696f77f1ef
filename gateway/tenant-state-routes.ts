import type { FastifyPluginAsync, FastifyRequest } from "fastify";
import { z } from "zod";
import type { Changes } from "../control-plane/changes.ts";
import { mintTenantToken } from "../control-plane/credentials.ts";
import type { Tenants } from "../control-plane/tenants.ts";
import type { TenantCommand } from "../domain/audit.ts";
import { systemOwner, type TenantId } from "../domain/tenant.ts";
import { acceptEmptyBodies, changeOptionsOf, noBody } from "./admin-change.ts";
import { tenantNamedByAdmin, tenantOfPath } from "./admin-path.ts";
import { tenantJson } from "./admin-routes.ts";

export type TenantStateDeps = { readonly tenants: Tenants; readonly changes: Changes };

const newTenant = z.strictObject({
  id: z.string(),
  display_name: z.string().optional(),
  markup: z.union([z.string(), z.number().transform(String)]).optional(),
});

const timeOf = (ms: number | undefined): string | null => (ms === undefined ? null : new Date(ms).toISOString());

/** What administrators change about tenants and their tokens. Every change is audited, or refused. */
export const createTenantStateRoutes =
  ({ tenants, changes }: TenantStateDeps): FastifyPluginAsync =>
  async (app) => {
    acceptEmptyBodies(app);

    /** A change of a tenant that exists; one that does not has no chain. */
    const change = async (request: FastifyRequest, commandOf: (tenantId: TenantId) => TenantCommand): Promise<TenantId> => {
      const tenantId = tenantOfPath(request);
      noBody.parse(request.body);
      const options = changeOptionsOf(request);
      await tenants.get(tenantId);
      await changes.make(tenantId, commandOf(tenantId), options);
      return tenantId;
    };

    app.post("/v1/tenants", { config: { access: "admin:tenants" } }, async (request, reply) => {
      const { id, display_name, markup } = newTenant.parse(request.body);
      const tenantId = tenantNamedByAdmin(request, id);
      const { token, hash } = mintTenantToken(tenantId);
      await changes.make(
        systemOwner,
        { type: "tenant.create", tenantId, displayName: display_name ?? null, markup: markup ?? null, tokenHash: hash.toString("hex") },
        changeOptionsOf(request),
      );
      return await reply.code(201).header("cache-control", "no-store").send({ tenant: tenantId, token });
    });

    for (const name of ["suspend", "resume"] as const) {
      app.post(`/v1/tenants/:tenant/${name}`, { config: { access: "admin:tenants" } }, async (request) => {
        const tenantId = await change(request, () => ({ type: `tenant.${name}` }));
        return tenantJson(await tenants.get(tenantId));
      });
    }

    app.post("/v1/tenants/:tenant/token/rotate", { config: { access: "admin:tenants" } }, async (request, reply) => {
      let token = "";
      const tenantId = await change(request, (id) => {
        const minted = mintTenantToken(id);
        token = minted.token;
        return { type: "token.rotate", tokenHash: minted.hash.toString("hex") };
      });
      return await reply.header("cache-control", "no-store").send({ tenant: tenantId, token });
    });

    app.post("/v1/tenants/:tenant/token/revoke", { config: { access: "admin:tenants" } }, async (request) => {
      const tenantId = await change(request, () => ({ type: "token.revoke" }));
      return { tenant: tenantId, revoked: true };
    });

    app.get("/v1/tenants/:tenant/token", { config: { access: "admin:read" } }, async (request) => {
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
    });
  };
