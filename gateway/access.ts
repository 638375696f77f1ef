import type { FastifyInstance, FastifyRequest } from "fastify";
import { createFailedAuthenticationLimiter } from "./failed-authentication-limiter.ts";
import { isLocalProgram } from "./http-edge.ts";
import { AppError } from "../domain/app-error.ts";
import type { TenantContext } from "../domain/tenant.ts";
import { type AdminScope, type Principal, type TenantPrincipal, requireAdmin, requireTenant } from "../control-plane/authentication.ts";

/** Who may call a route; every route declares it, or the gateway does not start. */
export type Access = "public" | "tenant" | `admin:${AdminScope}` | `tenant-or-admin:${AdminScope}` | `local-or-admin:${AdminScope}`;

declare module "fastify" {
  interface FastifyContextConfig {
    access?: Access;
  }
  interface FastifyRequest {
    principal: Principal | undefined;
  }
}

export type AccessDeps = {
  readonly authenticate: (authorization: string | undefined) => Promise<Principal>;
  readonly onFailure?: () => void;
};

/** Authenticates in `onRequest`, before a byte of the body is read. */
export function registerAccess(app: FastifyInstance, { authenticate, onFailure }: AccessDeps): void {
  const limiter = createFailedAuthenticationLimiter();
  app.decorateRequest("principal", undefined);
  app.addHook("onRoute", ({ config, method, url }) => {
    if (config?.access === undefined) throw new Error(`route ${String(method)} ${url} does not declare its access`);
  });
  app.addHook("onRequest", async (request) => {
    if (request.is404) throw new AppError("not_found"); // before its body is read
    const access = request.routeOptions.config.access;
    if (access === undefined || access === "public") return;
    if (access.startsWith("local-or-") && request.headers.authorization === undefined && isLocalProgram(request)) return;
    const principal = await authenticate(request.headers.authorization).catch((error: unknown) => {
      if (!(error instanceof AppError) || error.code !== "invalid_api_key") throw error;
      onFailure?.();
      throw limiter.refuse(request.ip, error);
    });
    const [who, scope] = access.split(":") as ["tenant" | "admin" | "tenant-or-admin" | "local-or-admin", AdminScope];
    if (who === "tenant") requireTenant(principal);
    else if (who !== "tenant-or-admin" || principal.kind === "admin") requireAdmin(principal, scope);
    request.principal = principal;
  });
}

/** The tenant of a route with access `tenant`: from its token, never from the path, the query or the body. */
export const tenantOf = (request: FastifyRequest): TenantContext => ({
  tenantId: tenantPrincipalOf(request).tenantId,
  requestId: request.id,
});

/** The same with the token's epoch, for connections that outlive a request. */
export function tenantPrincipalOf({ principal }: FastifyRequest): TenantPrincipal {
  if (principal === undefined) throw new AppError("invalid_api_key");
  return requireTenant(principal);
}
