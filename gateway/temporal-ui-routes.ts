import { readFileSync } from "node:fs";
import httpProxy from "@fastify/http-proxy";
import type { FastifyPluginAsync, FastifyReply, FastifyRequest } from "fastify";
import type { Changes } from "../control-plane/changes.ts";
import { requireAdmin } from "../control-plane/authentication.ts";
import { AppError } from "../domain/app-error.ts";
import { systemOwner } from "../domain/tenant.ts";
import { changeOptionsOf } from "./admin-change.ts";
import { pageHeaders } from "./page-routes.ts";

export type TemporalUiDeps = {
  /** Where Temporal's Web UI listens, with the public path `/temporal`; undefined: there is none. */
  readonly uiUrl: string | undefined;
  readonly changes: Pick<Changes, "make">;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
};

const prefix = "/temporal";
const describes = { summary: "Temporal's Web UI; what changes something takes the scope all" };

/** The Web UI starts from an inline script and has no policy of its own below a path (it says so at its start). */
const contentSecurityPolicy = [
  "default-src 'none'",
  "script-src 'self' 'unsafe-inline'",
  "style-src 'self' 'unsafe-inline'",
  "img-src 'self' data:",
  "font-src 'self' data:",
  "media-src 'self'",
  "connect-src 'self'",
  "worker-src 'self' blob:",
  "frame-ancestors 'none'",
  "base-uri 'self'",
  "form-action 'self'",
].join("; ");

const uiHeaders = { ...pageHeaders, "content-security-policy": contentSecurityPolicy };

/** The only cookie that is the Web UI's own. */
const uiCookie = "_csrf";

/** A workflow's queries change nothing, though they are POSTs: its stack trace and its own description of where it stands. */
const queryPath = /^\/temporal\/api\/v1\/namespaces\/[^/]+\/workflows\/[^/]+\/query\/[^/]+$/;
/** A slash or a dot in disguise could make another path of it behind us. */
const disguised = /%(?:2f|5c|2e)|\\/i;

/**
 * Temporal's Web UI under our own origin, for administrators. Looking takes the scope `read`. Whatever else it can do (end, signal,
 * reset a workflow) takes the scope `all` and is recorded before it is passed on; what cannot be recorded is refused.
 */
export const createTemporalUiRoutes = ({ uiUrl, changes, log }: TemporalUiDeps): FastifyPluginAsync => {
  if (uiUrl === undefined) return withoutUi;
  return async (app) => {
    app.addHook("preHandler", async (request) => {
      const [path = ""] = request.url.split("?", 1);
      const { method } = request;
      if (method === "GET" || method === "HEAD" || (method === "POST" && queryPath.test(path) && !disguised.test(path))) return;
      const { principal } = request;
      if (principal === undefined) throw new AppError("forbidden");
      const { keyId } = requireAdmin(principal, "all");
      log("an administrator acts through Temporal's Web UI", { keyId, method, path });
      // Passed on each time it is asked for, so it is an entry each time: an Idempotency-Key would hide the second.
      const options = { ...changeOptionsOf(request), idempotency: undefined };
      await changes.make(systemOwner, { type: "temporal.operate", method, path: path.slice(prefix.length, 500) }, options);
    });
    await app.register(httpProxy, {
      upstream: new URL(uiUrl).origin,
      prefix,
      rewritePrefix: prefix,
      httpMethods: ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
      proxyPayloads: false, // parsed and bounded as every other body
      config: { access: "admin-page:read", describes },
      replyOptions: {
        rewriteRequestHeaders: (request, { cookie: _cookie, authorization: _authorization, ...headers }) => ({
          ...headers,
          ...uiCookieOf(request),
        }),
        rewriteHeaders: ({ "set-cookie": cookies, ...headers }) => ({
          // Whatever it lets other origins do on its own port, it is ours here.
          ...Object.fromEntries(Object.entries(headers).filter(([name]) => !name.startsWith("access-control-"))),
          ...uiHeaders,
          ...(headers["cache-control"] === undefined ? {} : { "cache-control": headers["cache-control"] }),
          ...(cookies === undefined ? {} : { "set-cookie": [cookies].flat().filter((text) => text.startsWith(`${uiCookie}=`)) }),
        }),
        onError: (reply, { error }) => void reply.send(new AppError("unavailable", { reason: "Temporal's Web UI" }, { cause: error })),
      },
    });
  };
};

/** Of a browser's cookies nothing of ours is shown to the Web UI. */
function uiCookieOf({ cookies }: Pick<FastifyRequest, "cookies">): { readonly cookie?: string } {
  const value = cookies[uiCookie];
  return value === undefined ? {} : { cookie: `${uiCookie}=${encodeURIComponent(value)}` };
}

const withoutUi: FastifyPluginAsync = async (app) => {
  const page = readFileSync(new URL("../control-plane/web/no-temporal-ui.html", import.meta.url));
  const tell = (_request: FastifyRequest, reply: FastifyReply): FastifyReply =>
    reply.code(404).headers(pageHeaders).type("text/html; charset=utf-8").send(page);
  for (const path of [prefix, `${prefix}/*`]) app.get(path, { config: { access: "admin-page:read", describes } }, tell);
};
