import { isIPv4 } from "node:net";
import type { FastifyReply, FastifyRequest } from "fastify";
import { adminSessionSeconds } from "../control-plane/admin-sessions.ts";
import { AppError } from "../domain/app-error.ts";

/** The cookie of an administrator's browser. Off this machine it is sent over TLS only, and no other host can set it. */
const cookieNames = { plain: "openclaw_admin", secure: "__Host-openclaw_admin" } as const;

const isLoopback = (hostname: string): boolean =>
  hostname === "localhost" || hostname === "[::1]" || (isIPv4(hostname) && hostname.startsWith("127."));

const nameFor = (request: FastifyRequest): string => (isLoopback(request.hostname) ? cookieNames.plain : cookieNames.secure);

/** The session's id, as the browser says. */
export const sessionIdOf = (request: FastifyRequest): string | undefined => request.cookies[nameFor(request)];

/** @param id undefined: the cookie is taken away */
export function setSessionCookie(request: FastifyRequest, reply: FastifyReply, id: string | undefined): void {
  const name = nameFor(request);
  void reply.setCookie(name, id ?? "", {
    path: "/",
    httpOnly: true,
    sameSite: "strict",
    secure: name === cookieNames.secure,
    maxAge: id === undefined ? 0 : adminSessionSeconds,
  });
}

/**
 * What changes something on the word of a cookie alone must come from a page of ours. Browsers say where from with every POST.
 * @throws {AppError} `forbidden`
 */
export function requireOwnOrigin(request: FastifyRequest): void {
  const { origin } = request.headers;
  const site = request.headers["sec-fetch-site"];
  const isOwn = origin !== undefined && URL.canParse(origin) && new URL(origin).host === request.host;
  if (!isOwn || (site !== undefined && site !== "same-origin")) {
    throw new AppError("forbidden", { client: { message: "This request does not come from a page of this gateway." } });
  }
}
