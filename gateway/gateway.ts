import { fastifyCookie } from "@fastify/cookie";
import Fastify, { LogController, type FastifyInstance, type FastifyPluginAsync } from "fastify";
import { randomBytes } from "node:crypto";
import { encodeUlid, ulidBytes } from "../domain/ulid.ts";
import { type AccessDeps, registerAccess } from "./access.ts";
import { boundBodies } from "./body-bounds.ts";
import { answerClientError, answerFrameworkError, registerErrorEdge } from "./error-edge.ts";
import type { GatewayLogger } from "./gateway-logger.ts";
import { type GatewayMetrics, registerMetrics } from "./gateway-metrics.ts";
import { type EdgeOptions, isWebSocketUpgrade, registerEdge, serverLimits } from "./http-edge.ts";
import { jsonParserOf } from "./json-body.ts";
import { registerOpenApi } from "./openapi.ts";
import { type RequestTracing, registerTracing } from "./request-tracing.ts";
import { type RateLimitDeps, registerRateLimitHeaders } from "./rate-limit-headers.ts";
import { cutSlowReaders, sendInPieces } from "./slow-readers.ts";
import { registerWebSockets } from "./web-sockets.ts";

export type GatewayOptions = AccessDeps & {
  /** Undefined: no answer tells of quotas. */
  readonly quota?: RateLimitDeps["quota"];
  readonly routes: readonly FastifyPluginAsync[];
  readonly logger: GatewayLogger;
  readonly edge?: EdgeOptions;
  readonly metrics?: GatewayMetrics;
  readonly tracing?: RequestTracing | undefined;
};

/** Contract §3: JSON bodies up to 16 MiB. */
const bodyLimitBytes = 16 * 1024 * 1024;

/** The HTTP side, not yet listening. Every route is authenticated before its body is read, and answers errors in one shape. */
export async function createGateway({
  authenticate,
  authenticateSession,
  quota,
  routes,
  logger,
  edge = {},
  metrics,
  tracing,
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
      shouldUpgradeCallback: isWebSocketUpgrade,
    },
    trustProxy: edge.trustedProxies === undefined || edge.trustedProxies.length === 0 ? false : [...edge.trustedProxies],
    genReqId: () => `req_${encodeUlid(ulidBytes(Date.now(), randomBytes(10)))}`,
    requestIdHeader: false,
    forceCloseConnections: "idle",
    frameworkErrors: answerFrameworkError,
    clientErrorHandler: answerClientError,
  });
  app.removeContentTypeParser(["text/plain", "application/json"]);
  app.addContentTypeParser("application/json", { parseAs: "string" }, jsonParserOf(app));
  registerErrorEdge(app);
  const readers = cutSlowReaders(app.server, { seconds: edge.slowReaderSeconds ?? 60, onCut: () => metrics?.slowReaderCut() });
  app.addHook("onClose", async () => readers.stop());
  metrics?.observeUnread(readers.unreadBytes);
  sendInPieces(app);
  await registerWebSockets(app); // before anything may refuse a request: it is what lets go of the socket of a refused upgrade
  if (metrics !== undefined) registerMetrics(app, metrics);
  if (tracing !== undefined) registerTracing(app, tracing);
  await registerEdge(app, edge);
  await app.register(fastifyCookie);
  registerAccess(app, {
    authenticate,
    ...(authenticateSession === undefined ? {} : { authenticateSession }),
    onFailure: () => metrics?.authenticationFailed(),
  });
  boundBodies(app, edge.bodyBytes);
  if (quota !== undefined) registerRateLimitHeaders(app, { quota });
  registerOpenApi(app);
  app.addHook("onSend", async (request, reply) => {
    if (!reply.hasHeader("x-request-id")) void reply.header("x-request-id", request.id);
  });
  for (const route of routes) await app.register(route);
  return app;
}
