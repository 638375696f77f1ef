import type { AddressInfo } from "node:net";
import type { FastifyInstance } from "fastify";
import type { Logger } from "pino";
import { resolveModel } from "../control-plane/admin-config.ts";
import { startAuditRelay } from "../control-plane/audit-relay.ts";
import { verifyAudit } from "../control-plane/audit-verify.ts";
import { createAuthentication } from "../control-plane/authentication.ts";
import { createBillingReports } from "../control-plane/billing-reports.ts";
import { createChanges } from "../control-plane/changes.ts";
import { defaultPort } from "../control-plane/environment.ts";
import type { Tenants } from "../control-plane/tenants.ts";
import { AppError } from "../domain/app-error.ts";
import { type Owner, systemOwner } from "../domain/tenant.ts";
import { createAdminKeyRoutes } from "../gateway/admin-key-routes.ts";
import { createAdminRoutes, createUsageRoutes } from "../gateway/admin-routes.ts";
import { createAuditRoutes } from "../gateway/audit-routes.ts";
import { createChatRoutes } from "../gateway/chat-routes.ts";
import { createGateway } from "../gateway/gateway.ts";
import { createHealthRoutes } from "../gateway/health-routes.ts";
import { createModelRoutes } from "../gateway/model-routes.ts";
import { createPageRoutes } from "../gateway/page-routes.ts";
import { createRpcEndpoint } from "../gateway/rpc/rpc-endpoint.ts";
import { createRpcMethods } from "../gateway/rpc/rpc-methods.ts";
import { createRpcRoutes } from "../gateway/rpc/rpc-routes.ts";
import { createRpcSocketRoutes } from "../gateway/rpc/rpc-socket.ts";
import { createSessionService } from "../gateway/session-service.ts";
import { createTenantStateRoutes } from "../gateway/tenant-state-routes.ts";
import { openTokenWatch } from "../gateway/token-watch.ts";
import { createTurnService } from "../gateway/turn-service.ts";
import { createTurnSlots } from "../gateway/turn-slots.ts";
import { type ChainClient, forSystem } from "../temporal/chain-client.ts";
import type { ProductParts } from "./product.ts";
import type { Resources } from "./resources.ts";

export type GatewayParts = ProductParts & {
  readonly logger: Logger;
  readonly tenants: Tenants;
  /** Makes sure that a worker polls the owner's queue. */
  readonly wake: (owner: Owner) => Promise<void>;
};

export type StartedGateway = { readonly url: string; readonly warnings: readonly string[] };

/** The HTTP side: wired, listening, and stopped in an order that lets answers out first. */
export async function startGateway(parts: GatewayParts, resources: Resources): Promise<StartedGateway> {
  const { config, database, temporal, bus, clientOf, log, logger, tenants, wake, environment, home } = parts;
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
  const tokens = resources.add(await openTokenWatch({ database, log }), (opened) => opened.close());
  const relay = resources.add(await startAuditRelay({ database, home, log }), (started) => started.stop());
  const system = forSystem(temporal);
  const chainOf = (owner: Owner): ChainClient => (owner === systemOwner ? system : clientOf(owner).chain);
  const changes = createChanges({ database, chainOf, wake, obstacle: relay.obstacle, log });
  const stateOf = async (owner: Owner) => {
    await wake(owner);
    return await chainOf(owner).state(AbortSignal.timeout(stateQueryMs));
  };
  const checks = {
    config: async () => {},
    database: async () => void (await database.withControl(async (tx) => await tx.query("select 1"))),
    temporal: async () => void (await temporal.client.workflowService.getSystemInfo({})),
  };
  const endpoint = createRpcEndpoint({
    methods: createRpcMethods({
      turns,
      sessions: createSessionService({ database, bus, clientOf, log }),
      defaultModel: () => resolveModel(config, "default").id,
      reports,
      checks,
    }),
    logFailure: (error, fields) => logger.error({ err: error, ...fields }, "a call of /rpc failed"),
  });
  const app = await createGateway({
    authenticate: authentication.authenticate,
    logger,
    routes: [
      createHealthRoutes(checks),
      createChatRoutes({ turns, tokens, resolveModel: (name) => resolveModel(config, name).id }),
      createModelRoutes({
        models: () => [...config.models.values()].filter(({ id }) => config.rateCard.rates.has(id)),
        startedAtMs: Date.now(),
      }),
      createAdminRoutes({ tenants, reports, database }),
      createUsageRoutes({ reports }),
      createTenantStateRoutes({ tenants, changes }),
      createAdminKeyRoutes({ database, changes }),
      createAuditRoutes({ database, verify: async () => await verifyAudit({ database, home, flush: relay.flush, stateOf }) }),
      createRpcRoutes({ endpoint, tenants }),
      createRpcSocketRoutes({ endpoint, authenticateCredential: authentication.authenticateCredential, tokens }),
      createPageRoutes(),
    ],
  });
  resources.add(app, closeGateway);
  return await listen(app, environment.host, environment.port);
}

/** How long `audit verify` waits for one workflow to tell its end. */
const stateQueryMs = 5_000;

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
