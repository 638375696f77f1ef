import type { FastifyPluginAsync } from "fastify";
import { z } from "zod";
import type { AdminSessions } from "../control-plane/admin-sessions.ts";
import { type Principal, requireAdmin } from "../control-plane/authentication.ts";
import { AppError } from "../domain/app-error.ts";
import { requireOwnOrigin, sessionIdOf, setSessionCookie } from "./admin-cookie.ts";

export type AdminLoginDeps = {
  readonly sessions: AdminSessions;
  readonly authenticate: (credential: string) => Promise<Principal>;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
};

const loginBody = z.strictObject({ key: z.string("key is an admin key") });

const timeOf = (ms: number): string => new Date(ms).toISOString();

/** An admin key for a cookie: for the operators' pages only, the API takes the key itself. */
export const createAdminLoginRoutes =
  ({ sessions, authenticate, log }: AdminLoginDeps): FastifyPluginAsync =>
  async (app) => {
    app.post(
      "/admin/login",
      { config: { access: "public", describes: { summary: "An admin key for a cookie of the operators' pages", body: loginBody } } },
      async (request, reply) => {
        if (request.headers.origin !== undefined) requireOwnOrigin(request);
        const { key } = loginBody.parse(request.body);
        const principal = await authenticate(key).catch((error: unknown) => {
          const isRefused = error instanceof AppError && error.code === "invalid_api_key";
          throw isRefused ? app.failedAuthentications.refuse(request.ip, error) : error;
        });
        const { keyId, scopes } = requireAdmin(principal, undefined);
        const { id, expiresAtMs } = await sessions.open(key);
        log("an administrator signed in", { keyId, address: request.ip, requestId: request.id });
        setSessionCookie(request, reply, id);
        return await reply.header("cache-control", "no-store").send({ key_id: keyId, scopes, expires_at: timeOf(expiresAtMs) });
      },
    );

    app.get("/admin/session", { config: { access: "admin-page", describes: { summary: "Who is signed in" } } }, async (request, reply) => {
      const { principal, expiresAtMs } = await sessions.find(sessionIdOf(request));
      void reply.header("cache-control", "no-store");
      return { key_id: principal.keyId, scopes: principal.scopes, expires_at: timeOf(expiresAtMs) };
    });

    app.post(
      "/admin/logout",
      { config: { access: "admin-page", describes: { summary: "Ends the session of the cookie" } } },
      async (request, reply) => {
        const id = sessionIdOf(request);
        if (id !== undefined) await sessions.end(id);
        if (request.principal?.kind === "admin") log("an administrator signed out", { keyId: request.principal.keyId });
        setSessionCookie(request, reply, undefined);
        return await reply.code(204).send();
      },
    );
  };
