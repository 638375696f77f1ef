import type { FastifyPluginAsync, FastifyRequest } from "fastify";
import { z } from "zod";
import type { Changes } from "../control-plane/changes.ts";
import { mintTenantToken } from "../control-plane/credentials.ts";
import type { Tenants } from "../control-plane/tenants.ts";
import type { TenantCommand } from "../domain/audit.ts";
import { parseTenantId, systemOwner, type TenantId } from "../domain/tenant.ts";
import { acceptEmptyBodies, changeOptionsOf, noBody } from "./admin-change.ts";
import { tenantJson } from "./admin-routes.ts";

export type TenantStateDeps = { readonly tenants: Tenants; readonly changes: Changes };

const tenantParams = z.object({ tenant: z.string() });
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
    const tenantToChange = async (request: FastifyRequest): Promise<TenantId> => {
      const tenantId = parseTenantId(tenantParams.parse(request.params).tenant);
      noBody.parse(request.body);
      await tenants.get(tenantId);
      return tenantId;
    };
    const change = async (request: FastifyRequest, command: TenantCommand): Promise<TenantId> => {
      const options = changeOptionsOf(request);
      const tenantId = await tenantToChange(request);
      await changes.make(tenantId, command, options);
      return tenantId;
    };

    app.post("/v1/tenants", { config: { access: "admin:tenants" } }, async (request, reply) => {
      const { id, display_name, markup } = newTenant.parse(request.body);
      const tenantId = parseTenantId(id);
      const { token, hash } = mintTenantToken(tenantId);
      const answer = await changes.issue(
        systemOwner,
        { type: "tenant.create", tenantId, displayName: display_name ?? null, markup: markup ?? null, tokenHash: hash.toString("hex") },
        changeOptionsOf(request),
        { tenant: tenantId, token },
      );
      return await reply.code(201).header("cache-control", "no-store").send(answer);
    });

    for (const name of ["suspend", "resume"] as const) {
      app.post(`/v1/tenants/:tenant/${name}`, { config: { access: "admin:tenants" } }, async (request) => {
        const tenantId = await change(request, { type: `tenant.${name}` });
        return tenantJson(await tenants.get(tenantId));
      });
    }

    app.post("/v1/tenants/:tenant/token/rotate", { config: { access: "admin:tenants" } }, async (request, reply) => {
      const options = changeOptionsOf(request);
      const tenantId = await tenantToChange(request);
      const { token, hash } = mintTenantToken(tenantId);
      const command = { type: "token.rotate", tokenHash: hash.toString("hex") } as const;
      const answer = await changes.issue(tenantId, command, options, { tenant: tenantId, token });
      return await reply.header("cache-control", "no-store").send(answer);
    });

    app.post("/v1/tenants/:tenant/token/revoke", { config: { access: "admin:tenants" } }, async (request) => {
      const tenantId = await change(request, { type: "token.revoke" });
      return { tenant: tenantId, revoked: true };
    });

    app.get("/v1/tenants/:tenant/token", { config: { access: "admin:read" } }, async (request) => {
      const tenantId = parseTenantId(tenantParams.parse(request.params).tenant);
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
