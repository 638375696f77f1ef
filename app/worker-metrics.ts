import { createAuthentication } from "../control-plane/authentication.ts";
import { createGateway } from "../gateway/gateway.ts";
import { createMetricsRoutes } from "../gateway/gateway-metrics.ts";
import { createHealthRoutes } from "../gateway/health-routes.ts";
import type { Logger } from "pino";
import type { ProductParts } from "./product.ts";
import type { Resources } from "./resources.ts";

/** `/metrics`, `/healthz` and `/readyz` of a process without a gateway, where `OPENCLAW_METRICS_PORT` asks for them. */
export async function startWorkerMetrics(parts: ProductParts & { readonly logger: Logger }, resources: Resources): Promise<void> {
  const { environment, config, database, temporal, metrics, logger, log } = parts;
  if (environment.metricsPort === undefined) return;
  const authentication = resources.add(createAuthentication({ database, rootAdminKey: environment.adminKey, log }), (opened) =>
    opened.close(),
  );
  const app = await createGateway({
    authenticate: authentication.authenticate,
    logger,
    edge: { trustedProxies: config.http.trusted_proxies },
    metrics: metrics.gateway,
    routes: [
      createMetricsRoutes(metrics),
      createHealthRoutes({
        database: async () => void (await database.withControl(async (tx) => await tx.query("select 1"))),
        temporal: async () => void (await temporal.client.workflowService.getSystemInfo({})),
      }),
    ],
  });
  resources.add(app, (opened) => opened.close());
  await app.listen({ host: environment.host, port: environment.metricsPort });
}
