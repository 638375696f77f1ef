import type { FastifyRequest } from "fastify";
import { z } from "zod";
import { AppError } from "../domain/app-error.ts";
import { parseTenantId, type TenantId } from "../domain/tenant.ts";

/*
 * The one module of the gateway in which text becomes a tenant: lint refuses `parseTenantId` everywhere else, so that a handler of a
 * tenant's own route has nothing but its token to take one from (`tenantOf`).
 */

const tenantParams = z.object({ tenant: z.string() });

/**
 * The tenant that the path of an administrator's route names. On a route that tenants may call too, theirs is the only one that exists.
 * @throws {AppError} `invalid_tenant_id`; `not_found` for a tenant that asks for another
 */
export function tenantOfPath(request: FastifyRequest): TenantId {
  requireAccess(request, /^(?:tenant-or-)?admin:/);
  const tenantId = parseTenantId(tenantParams.parse(request.params).tenant);
  if (request.principal?.kind === "tenant" && request.principal.tenantId !== tenantId) throw new AppError("not_found");
  return tenantId;
}

/** A tenant that an administrator names in a query or a body. @throws {AppError} `invalid_tenant_id` */
export function tenantNamedByAdmin(request: FastifyRequest, name: string): TenantId {
  requireAccess(request, /^admin:/);
  return parseTenantId(name);
}

function requireAccess(request: FastifyRequest, allowed: RegExp): void {
  const { access } = request.routeOptions.config;
  if (request.principal === undefined || !allowed.test(access ?? "")) {
    throw new Error(`${request.method} ${request.routeOptions.url ?? ""} may not take a tenant from the request: its access is ${access}`);
  }
}
