import type { IncomingMessage } from "node:http";
import { isIP } from "node:net";
import helmet from "@fastify/helmet";
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import type { BodyBounds } from "./body-bounds.ts";
import { AppError } from "../domain/app-error.ts";

export type EdgeOptions = {
  /** `http.trusted_proxies`: addresses and networks whose `X-Forwarded-*` is believed. Default: nobody's. */
  readonly trustedProxies?: readonly string[];
  /** `http.allowed_origins`: other origins whose pages may call the API with a token. Default: none. */
  readonly allowedOrigins?: readonly string[];
  /** `http.slow_reader_seconds`. Default 60. */
  readonly slowReaderSeconds?: number;
  /** `http.body_megabytes`, `http.body_megabytes_per_tenant`. Default 256 and 64 MiB. */
  readonly bodyBytes?: BodyBounds;
};

/** What one connection may take, in time and bytes, before its request is whole. */
export const serverLimits = {
  maxHeaderBytes: 16 * 1024,
  headersMs: 10_000,
  /** For the whole request: 16 MiB in a minute is a slow line. */
  requestMs: 60_000,
  /** How often the two times above are looked at. */
  checkMs: 1_000,
  requestsPerSocket: 1_000,
  keepAliveMs: 65_000,
} as const;

/**
 * Whether a connection becomes another protocol's. Some clients (Java's own, `curl --http2`) offer HTTP/2 with every request of
 * plain HTTP: an offer that may be ignored, and is.
 */
export const isWebSocketUpgrade = ({ headers }: IncomingMessage): boolean => headers.upgrade?.trim().toLowerCase() === "websocket";

const corsMethods = "GET, POST, PUT, PATCH, DELETE";
const corsAnswerHeaders =
  "x-request-id, retry-after, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens";
const corsMaxAgeSeconds = 600;

/**
 * What every answer carries and which pages may ask: the headers that keep a browser from doing more than it should, and the rule of
 * origins. A page of another origin changes nothing here, whatever it carries; what it may read is for the browser to decide, and
 * only `allowedOrigins` are told yes. To be called before authentication is registered, so that a foreign page costs no look-up.
 */
export async function registerEdge(app: FastifyInstance, { allowedOrigins = [] }: EdgeOptions): Promise<void> {
  await app.register(helmet, {
    contentSecurityPolicy: {
      useDefaults: false,
      directives: {
        defaultSrc: ["'none'"],
        scriptSrc: ["'self'"],
        styleSrc: ["'self'"],
        imgSrc: ["'self'", "data:"],
        connectSrc: ["'self'", "wss:"],
        frameAncestors: ["'none'"],
        baseUri: ["'none'"],
        formAction: ["'self'"],
        requireTrustedTypesFor: ["'script'"],
      },
    },
    crossOriginOpenerPolicy: { policy: "same-origin" },
    crossOriginResourcePolicy: { policy: "same-origin" },
    referrerPolicy: { policy: "no-referrer" },
    frameguard: { action: "deny" },
    hsts: false,
  });

  const allowed = new Set(allowedOrigins);
  app.addHook("onRequest", async (request, reply) => {
    if (isOverTls(request)) void reply.header("strict-transport-security", "max-age=31536000; includeSubDomains");
    if (/%00/.test(request.url)) throw new AppError("invalid_request", { client: { message: "The address holds a NUL character." } });
    const { origin } = request.headers;
    if (origin === undefined || isOwn(origin, request)) return;
    void reply.header("vary", "Origin");
    if (allowed.has(origin)) return await allowOrigin(request, reply, origin);
    if (changesSomething(request))
      throw new AppError("forbidden", { client: { message: "Pages of this origin may not call the gateway." }, origin });
  });
  app.addHook("onSend", async (_request, reply) => {
    if (!reply.hasHeader("cache-control")) void reply.header("cache-control", "no-store");
  });
}

/** Whether a browser opened the page at the very address that it now calls. */
function isOwn(origin: string, request: FastifyRequest): boolean {
  const url = URL.parse(origin);
  return url !== null && /^https?:$/.test(url.protocol) && url.origin === origin && url.host === request.host.toLowerCase();
}

const changesSomething = ({ method, headers }: FastifyRequest): boolean =>
  !["GET", "HEAD", "OPTIONS"].includes(method) || headers.upgrade !== undefined;

/** Behind a proxy that ends TLS, for a name that others reach: a browser that was told so by a loopback address could not go back. */
const isOverTls = (request: FastifyRequest): boolean => request.protocol === "https" && !isLoopbackName(request.hostname);

async function allowOrigin(request: FastifyRequest, reply: FastifyReply, origin: string): Promise<FastifyReply | undefined> {
  void reply.headers({
    "access-control-allow-origin": origin,
    "access-control-expose-headers": corsAnswerHeaders,
    "cross-origin-resource-policy": "cross-origin",
  });
  if (request.method !== "OPTIONS" || request.headers["access-control-request-method"] === undefined) return undefined;
  const wanted = request.headers["access-control-request-headers"] ?? "";
  return await reply
    .code(204)
    .headers({
      "access-control-allow-methods": corsMethods,
      ...(/^[\w-]+(?:\s*,\s*[\w-]+)*$/.test(wanted) ? { "access-control-allow-headers": wanted } : {}),
      "access-control-max-age": corsMaxAgeSeconds,
    })
    .send();
}

const isLoopbackName = (name: string): boolean => name === "localhost" || isLoopbackAddress(name.replace(/^\[|\]$/g, ""));

function isLoopbackAddress(address: string): boolean {
  const plain = address.replace(/^::ffff:/i, "");
  return isIP(plain) === 4 ? plain.startsWith("127.") : plain === "::1";
}

const proxyHeaders = ["forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"] as const;

/**
 * Whether the caller is a program on this machine: the connection comes from loopback, no proxy stands in between, and it was not
 * made by a page whose name somebody let point here.
 */
export const isLocalProgram = ({ socket, headers, hostname }: FastifyRequest): boolean =>
  isLoopbackAddress(socket.remoteAddress ?? "") &&
  isLoopbackName(hostname) &&
  headers.origin === undefined &&
  proxyHeaders.every((name) => headers[name] === undefined);
