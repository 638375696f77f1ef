import type { AddressInfo } from "node:net";
import type { FastifyInstance } from "fastify";
import type { Logger } from "pino";
import { resolveModel } from "../control-plane/admin-config.ts";
import { createAuthentication } from "../control-plane/authentication.ts";
import { createBillingReports } from "../control-plane/billing-reports.ts";
import { defaultPort } from "../control-plane/environment.ts";
import type { Tenants } from "../control-plane/tenants.ts";
import { AppError } from "../domain/app-error.ts";
import type { TenantId } from "../domain/tenant.ts";
import { createAdminRoutes, createUsageRoutes } from "../gateway/admin-routes.ts";
import { createChatRoutes } from "../gateway/chat-routes.ts";
import { createGateway } from "../gateway/gateway.ts";
import { createHealthRoutes } from "../gateway/health-routes.ts";
import { createModelRoutes } from "../gateway/model-routes.ts";
import { createPageRoutes } from "../gateway/page-routes.ts";
import { createTurnService } from "../gateway/turn-service.ts";
import { createTurnSlots } from "../gateway/turn-slots.ts";
import type { ProductParts } from "./product.ts";
import type { Resources } from "./resources.ts";

export type GatewayParts = ProductParts & {
  readonly logger: Logger;
  readonly tenants: Tenants;
  /** Makes sure that a worker polls the tenant's queue. */
  readonly wake: (tenantId: TenantId) => Promise<void>;
};

export type StartedGateway = { readonly url: string; readonly warnings: readonly string[] };

/** The HTTP side: wired, listening, and stopped in an order that lets answers out first. */
export async function startGateway(parts: GatewayParts, resources: Resources): Promise<StartedGateway> {
  const { config, database, temporal, bus, clientOf, log, logger, tenants, wake, environment } = parts;
  const authentication = resources.add(createAuthentication({ database, rootAdminKey: environment.adminKey, log }), (opened) =>
    opened.close(),
  );
  const reports = createBillingReports({ database });
  const turns = createTurnService({
    database,
    bus,
    clientOf,
    wake,
    log,
    slots: createTurnSlots({ slotsPerTenant: config.http.slots_per_tenant }),
  });
  const app = await createGateway({
    authenticate: authentication.authenticate,
    logger,
    routes: [
      createHealthRoutes({
        config: async () => {},
        database: async () => void (await database.withControl(async (tx) => await tx.query("select 1"))),
        temporal: async () => void (await temporal.client.workflowService.getSystemInfo({})),
      }),
      createChatRoutes({ turns, resolveModel: (name) => resolveModel(config, name).id }),
      createModelRoutes({
        models: () => [...config.models.values()].filter(({ id }) => config.rateCard.rates.has(id)),
        startedAtMs: Date.now(),
      }),
      createAdminRoutes({ tenants, reports, database }),
      createUsageRoutes({ reports }),
      createPageRoutes(),
    ],
  });
  resources.add(app, closeGateway);
  return await listen(app, environment.host, environment.port);
}

/** How long answers that are on their way may take before their connections are cut. */
const drainMs = 1_000;

async function closeGateway(app: FastifyInstance): Promise<void> {
  const cut = setTimeout(() => app.server.closeAllConnections(), drainMs);
  await app.close();
  clearTimeout(cut);
}

/** A port that was asked for must be free; the default one gives way to any free one. */
async function listen(app: FastifyInstance, host: string, port: number | undefined): Promise<StartedGateway> {
  try {
    await app.listen({ host, port: port ?? defaultPort });
    return { url: urlOf(app), warnings: [] };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EADDRINUSE") throw error;
    if (port !== undefined)
      throw new AppError("invalid_configuration", {
        client: { message: `port ${port} is taken: free it or set OPENCLAW_PORT to another one` },
      });
    await app.listen({ host, port: 0 });
    return { url: urlOf(app), warnings: [`Port ${defaultPort} is taken, so this gateway listens on another one.`] };
  }
}

function urlOf(app: FastifyInstance): string {
  const { address, port, family } = app.server.address() as AddressInfo;
  const host = address === "0.0.0.0" || address === "::" ? "127.0.0.1" : family === "IPv6" ? `[${address}]` : address;
  return `http://${host}:${port}`;
}
