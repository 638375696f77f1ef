import type { ServerResponse } from "node:http";
import type { FastifyInstance, FastifyPluginAsync } from "fastify";

/** What the HTTP side tells whoever counts. */
export type GatewayMetrics = {
  authenticationFailed(): void;
  slowReaderCut(): void;
  /** Tells where the bytes that callers have not read can be asked for. */
  observeUnread(bytes: () => number): void;
  requestBegan(response: ServerResponse): void;
  requestEnded(answer: { readonly method: string; readonly route: string; readonly status: number; readonly seconds: number }): void;
};

export function registerMetrics(app: FastifyInstance, metrics: GatewayMetrics): void {
  app.addHook("onRequest", async (_request, reply) => metrics.requestBegan(reply.raw));
  app.addHook("onResponse", async (request, reply) =>
    metrics.requestEnded({
      method: request.method,
      // The pattern, never the path: there are as many of those as callers like.
      route: request.routeOptions.url ?? "none",
      status: reply.statusCode,
      seconds: reply.elapsedTime / 1_000,
    }),
  );
}

/** `GET /metrics` in Prometheus' form. */
export const createMetricsRoutes =
  ({ render }: { readonly render: () => Promise<string> }): FastifyPluginAsync =>
  async (app) => {
    app.get(
      "/metrics",
      { config: { access: "local-or-admin:read", describes: { summary: "Prometheus' form" } } },
      async (_request, reply) => {
        return await reply.type("text/plain; version=0.0.4; charset=utf-8").send(await render());
      },
    );
  };
