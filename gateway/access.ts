import type { FastifyInstance, FastifyRequest } from "fastify";
import { requireOwnOrigin, sessionIdOf } from "./admin-cookie.ts";
import { type FailedAuthenticationLimiter, createFailedAuthenticationLimiter } from "./failed-authentication-limiter.ts";
import { isLocalProgram } from "./http-edge.ts";
import { AppError } from "../domain/app-error.ts";
import type { TenantContext } from "../domain/tenant.ts";
import {
  type AdminPrincipal,
  type AdminScope,
  type Principal,
  type TenantPrincipal,
  requireAdmin,
  requireTenant,
} from "../control-plane/authentication.ts";

/** Who may call a route; every route declares it, or the gateway does not start. */
export type Access =
  | "public"
  | "tenant"
  | `admin:${AdminScope}`
  | `tenant-or-admin:${AdminScope}`
  | `local-or-admin:${AdminScope}`
  | AdminPageAccess;

/**
 * Operators' pages and what they load: a browser's session is enough, for anything but GET and HEAD only from a page of ours.
 * Without a scope any admin key will do.
 */
export type AdminPageAccess = "admin-page" | `admin-page:${AdminScope}`;

declare module "fastify" {
  interface FastifyContextConfig {
    access?: Access;
  }
  interface FastifyInstance {
    /** What a caller is told whose credential failed, also where a route of its own found out. */
    failedAuthentications: FailedAuthenticationLimiter;
  }
  interface FastifyRequest {
    principal: Principal | undefined;
  }
}

export type AccessDeps = {
  readonly authenticate: (authorization: string | undefined) => Promise<Principal>;
  /** Whose browser session this is; undefined: no cookie is accepted. */
  readonly authenticateSession?: (sessionId: string | undefined) => Promise<AdminPrincipal>;
  readonly onFailure?: () => void;
};

/** Authenticates in `onRequest`, before a byte of the body is read. */
export function registerAccess(app: FastifyInstance, { authenticate, authenticateSession, onFailure }: AccessDeps): void {
  const limiter = createFailedAuthenticationLimiter({ onFailure });
  app.decorate("failedAuthentications", limiter);
  app.decorateRequest("principal", undefined);
  app.addHook("onRoute", ({ config, method, url }) => {
    if (config?.access === undefined) throw new Error(`route ${String(method)} ${url} does not declare its access`);
  });
  app.addHook("onRequest", async (request, reply) => {
    if (request.is404) throw new AppError("not_found"); // before its body is read
    const access = request.routeOptions.config.access;
    if (access === undefined || access === "public") return;
    if (isAdminPage(access) && request.headers.authorization === undefined && authenticateSession !== undefined) {
      const session = await authenticateSession(sessionIdOf(request)).catch((error: unknown) => {
        if (isRefusal(error) && isNavigation(request)) return undefined;
        throw error;
      });
      if (session === undefined) return await reply.redirect(`/admin?next=${encodeURIComponent(request.url)}`, 303);
      if (request.method !== "GET" && request.method !== "HEAD") requireOwnOrigin(request);
      const [, scope] = access.split(":") as ["admin-page", AdminScope?];
      request.principal = scope === undefined ? session : requireAdmin(session, scope);
      return;
    }
    if (access.startsWith("local-or-") && request.headers.authorization === undefined && isLocalProgram(request)) return;
    const principal = await authenticate(request.headers.authorization).catch((error: unknown) => {
      if (!isRefusal(error)) throw error;
      throw limiter.refuse(request.ip, error);
    });
    const [who, scope] = access.split(":") as ["tenant" | "admin" | "admin-page" | "tenant-or-admin" | "local-or-admin", AdminScope?];
    if (who === "tenant") requireTenant(principal);
    else if (who !== "tenant-or-admin" || principal.kind === "admin") requireAdmin(principal, scope);
    request.principal = principal;
  });
}

const isAdminPage = (access: Access): access is AdminPageAccess => access === "admin-page" || access.startsWith("admin-page:");

const isRefusal = (error: unknown): error is AppError => error instanceof AppError && error.code === "invalid_api_key";

/** Whether a person is at the other end who can be shown the way to the login. */
function isNavigation({ method, headers }: FastifyRequest): boolean {
  const mode = headers["sec-fetch-mode"];
  return method === "GET" && (mode === undefined ? (headers.accept ?? "").includes("text/html") : mode === "navigate");
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
