import { fastifyCookie } from "@fastify/cookie";
import Fastify, { LogController, type FastifyInstance, type FastifyPluginAsync } from "fastify";
import { randomBytes } from "node:crypto";
import { AppError } from "../domain/app-error.ts";
import { encodeUlid, ulidBytes } from "../domain/ulid.ts";
import { type AccessDeps, registerAccess } from "./access.ts";
import { answerClientError, answerFrameworkError, registerErrorEdge } from "./error-edge.ts";
import type { GatewayLogger } from "./gateway-logger.ts";
import { type GatewayMetrics, registerMetrics } from "./gateway-metrics.ts";
import { type EdgeOptions, registerEdge, serverLimits } from "./http-edge.ts";
import { registerOpenApi } from "./openapi.ts";
import { type RateLimitDeps, registerRateLimitHeaders } from "./rate-limit-headers.ts";
import { registerWebSockets } from "./web-sockets.ts";

export type GatewayOptions = AccessDeps & {
  /** Undefined: no answer tells of quotas. */
  readonly quota?: RateLimitDeps["quota"];
  readonly routes: readonly FastifyPluginAsync[];
  readonly logger: GatewayLogger;
  readonly edge?: EdgeOptions;
  readonly metrics?: GatewayMetrics;
};

/** Contract §3: JSON bodies up to 16 MiB and 64 levels deep. */
const bodyLimitBytes = 16 * 1024 * 1024;
const jsonDepth = 64;
/** Entries of one object or array: no honest request comes near, and validating millions of them would stop everybody's turns. */
const jsonEntries = 10_000;

/** The HTTP side, not yet listening. Every route is authenticated before its body is read, and answers errors in one shape. */
export async function createGateway({
  authenticate,
  authenticateSession,
  quota,
  routes,
  logger,
  edge = {},
  metrics,
}: GatewayOptions): Promise<FastifyInstance> {
  const app = Fastify({
    loggerInstance: logger,
    logController: new LogController({ disableRequestLogging: true }),
    bodyLimit: bodyLimitBytes,
    requestTimeout: serverLimits.requestMs,
    connectionTimeout: 0,
    keepAliveTimeout: serverLimits.keepAliveMs,
    maxRequestsPerSocket: serverLimits.requestsPerSocket,
    http: {
      maxHeaderSize: serverLimits.maxHeaderBytes,
      headersTimeout: serverLimits.headersMs,
      connectionsCheckingInterval: serverLimits.checkMs,
    },
    trustProxy: edge.trustedProxies === undefined || edge.trustedProxies.length === 0 ? false : [...edge.trustedProxies],
    genReqId: () => `req_${encodeUlid(ulidBytes(Date.now(), randomBytes(10)))}`,
    requestIdHeader: false,
    forceCloseConnections: "idle",
    frameworkErrors: answerFrameworkError,
    clientErrorHandler: answerClientError,
  });
  app.removeContentTypeParser("text/plain");
  registerErrorEdge(app);
  await registerWebSockets(app); // before anything may refuse a request: it is what lets go of the socket of a refused upgrade
  if (metrics !== undefined) registerMetrics(app, metrics);
  await registerEdge(app, edge);
  await app.register(fastifyCookie);
  registerAccess(app, {
    authenticate,
    ...(authenticateSession === undefined ? {} : { authenticateSession }),
    onFailure: () => metrics?.authenticationFailed(),
  });
  if (quota !== undefined) registerRateLimitHeaders(app, { quota });
  registerOpenApi(app);
  app.addHook("onSend", async (request, reply) => {
    if (!reply.hasHeader("x-request-id")) void reply.header("x-request-id", request.id);
  });
  app.addHook("preValidation", async (request) => {
    const fault = request.body === undefined ? undefined : shapeFault(request.body);
    if (fault !== undefined) throw new AppError("invalid_json", { client: { message: fault } });
  });
  for (const route of routes) await app.register(route);
  return app;
}

/** What is wrong with the size of a JSON value, in a sentence; undefined for one that may be looked at. */
export function shapeFault(root: unknown): string | undefined {
  let level = [root].filter(isContainer);
  for (let depth = 0; level.length > 0; depth++) {
    if (depth >= jsonDepth) return `The body is nested deeper than ${jsonDepth} levels.`;
    const inner: object[] = [];
    for (const container of level) {
      const entries = Object.values(container);
      if (entries.length > jsonEntries) return `An object or array of the body has more than ${jsonEntries} entries.`;
      for (const entry of entries) if (isContainer(entry)) inner.push(entry);
    }
    level = inner;
  }
  return undefined;
}

const isContainer = (value: unknown): value is object => value !== null && typeof value === "object";
