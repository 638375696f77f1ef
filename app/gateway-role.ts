import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { FastifyInstance } from "fastify";
import type { Logger } from "pino";
import { defaultQuota, resolveModel } from "../control-plane/admin-config.ts";
import { type AnchorKeeper, startAnchorKeeper } from "../control-plane/anchor-keeper.ts";
import { directoryPlace } from "../control-plane/anchor-place.ts";
import { startAuditRelay } from "../control-plane/audit-relay.ts";
import { openSigningKey } from "../control-plane/audit-signing-key.ts";
import { verifyAudit } from "../control-plane/audit-verify.ts";
import { createAuthentication } from "../control-plane/authentication.ts";
import { createBillingReports } from "../control-plane/billing-reports.ts";
import { type VerifyBilling, verifyBilling } from "../control-plane/billing-verify.ts";
import { createAdminSessions } from "../control-plane/admin-sessions.ts";
import { createChanges } from "../control-plane/changes.ts";
import { defaultPort } from "../control-plane/environment.ts";
import { createInvoices } from "../control-plane/invoices.ts";
import { createQuotaBooks } from "../control-plane/quota-books.ts";
import { startOverlayFiles } from "../control-plane/overlay-files.ts";
import { modelsOfTenant, resolveTenantModel, resolveTenantModelOf } from "../control-plane/overlay.ts";
import { type Overlays, createOverlayWriter } from "../control-plane/overlays.ts";
import type { Tenants } from "../control-plane/tenants.ts";
import type { Overlay } from "../control-plane/overlay.ts";
import type { TenantContext } from "../domain/tenant.ts";
import { AppError } from "../domain/app-error.ts";
import { type Owner, systemOwner } from "../domain/tenant.ts";
import { createAdminKeyRoutes } from "../gateway/admin-key-routes.ts";
import { createAdminLoginRoutes } from "../gateway/admin-login-routes.ts";
import { createAdminRoutes, createUsageRoutes } from "../gateway/admin-routes.ts";
import { createAuditRoutes } from "../gateway/audit-routes.ts";
import { createChatRoutes } from "../gateway/chat-routes.ts";
import { createCodecRoutes } from "../gateway/codec-routes.ts";
import { createEmbeddingRoutes } from "../gateway/embedding-routes.ts";
import { createFileRoutes } from "../gateway/file-routes.ts";
import { createGateway } from "../gateway/gateway.ts";
import { type ReadinessCheck, createHealthRoutes } from "../gateway/health-routes.ts";
import { createInvoiceRoutes } from "../gateway/invoice-routes.ts";
import { createKeyRoutes } from "../gateway/key-routes.ts";
import { createModelRoutes } from "../gateway/model-routes.ts";
import { createModerationRoutes } from "../gateway/moderation-routes.ts";
import { type ServiceDeps } from "../gateway/service-turns.ts";
import { createTranscriptionRoutes } from "../gateway/transcription-routes.ts";
import { createOperationRoutes } from "../gateway/operation-routes.ts";
import { createOverlayRoutes } from "../gateway/overlay-routes.ts";
import { createPageRoutes } from "../gateway/page-routes.ts";
import { createRateCardRoutes } from "../gateway/rate-card-routes.ts";
import { createTemporalUiRoutes } from "../gateway/temporal-ui-routes.ts";
import { createConversationRoutes } from "../gateway/conversation-routes.ts";
import { createHistoryRoutes } from "../gateway/history-routes.ts";
import { createArchivedHistories } from "../control-plane/history-archive.ts";
import { createConversationService } from "../gateway/conversation-service.ts";
import { createResponsesRoutes } from "../gateway/responses-routes.ts";
import { createResponseService } from "../gateway/responses-service.ts";
import { createRpcEndpoint } from "../gateway/rpc/rpc-endpoint.ts";
import { createRpcMethods } from "../gateway/rpc/rpc-methods.ts";
import { createRpcRoutes } from "../gateway/rpc/rpc-routes.ts";
import { createRpcSocketRoutes } from "../gateway/rpc/rpc-socket.ts";
import { createSandboxRoutes } from "../gateway/sandbox-routes.ts";
import { createSessionService } from "../gateway/session-service.ts";
import { fileAsDataUrl } from "../storage/file-input.ts";
import { createTenantStateRoutes } from "../gateway/tenant-state-routes.ts";
import { openTokenWatch } from "../gateway/token-watch.ts";
import { createTurnService } from "../gateway/turn-service.ts";
import { createTurnSlots } from "../gateway/turn-slots.ts";
import { type ChainClient, forSystem } from "../temporal/chain-client.ts";
import { createInvoiceClient } from "../temporal/invoice-client.ts";
import { createOperationClient } from "../temporal/operation-client.ts";
import { createPayloadDecoder } from "../temporal/payload-codec.ts";
import { createMetricsRoutes } from "../gateway/gateway-metrics.ts";
import { createTenantSandboxes } from "./tenant-sandboxes.ts";
import type { ProductParts } from "./product.ts";
import type { Resources } from "./resources.ts";

export type GatewayParts = ProductParts & {
  readonly logger: Logger;
  readonly tenants: Tenants;
  readonly temporalUiUrl: string | undefined;
  /** Makes sure that a worker polls the owner's queue. */
  readonly wake: (owner: Owner) => Promise<void>;
};

export type StartedGateway = {
  readonly url: string;
  readonly warnings: readonly string[];
  /** Takes no new requests and waits for those that run; where it is replaced, it says beforehand in `/readyz` that it will. */
  drain(options: { readonly isReplaced: boolean }): Promise<void>;
};

/** The HTTP side: wired, listening, and stopped in an order that lets answers out first. */
export async function startGateway(parts: GatewayParts, resources: Resources): Promise<StartedGateway> {
  const {
    config,
    live,
    database,
    keys,
    temporal,
    bus,
    clientOf,
    log,
    logger,
    tenants,
    wake,
    environment,
    home,
    temporalUiUrl,
    metrics,
    tracing,
    quota,
  } = parts;
  const authentication = resources.add(createAuthentication({ database, rootAdminKey: environment.adminKey, log }), (opened) =>
    opened.close(),
  );
  const sessions = createAdminSessions({ database, rootAdminKey: environment.adminKey });
  const reports = createBillingReports({ database });
  const slots = resources.add(createTurnSlots({ slotsPerTenant: config.http.slots_per_tenant, slots: config.http.slots }), (opened) =>
    opened.close(),
  );
  const untraced = createTurnService({ database, bus, clientOf, wake, quota, log, slots: metrics.observeSlots(slots) });
  const turns = metrics.observeTurns(tracing?.observeTurns(untraced) ?? untraced);
  const tokens = resources.add(await openTokenWatch({ database, log }), (opened) => opened.close());
  const relay = resources.add(await startAuditRelay({ database, home, log }), (started) => started.stop());
  const anchors = resources.add(await startAnchors(parts), (started) => started.stop());
  const system = forSystem(temporal);
  const chainOf = (owner: Owner): ChainClient => (owner === systemOwner ? system : clientOf(owner).chain);
  const changes = createChanges({ database, dataKeys: keys.dataKeys, chainOf, wake, obstacle: relay.obstacle, log });
  const operations = createOperationClient({ connection: temporal, wake });
  const ground = live.current;
  const rateCards = resources.add(await live.follow({ changes, isWriter: true }), (follower) => follower.stop());
  const writeOverlay = createOverlayWriter({ reader: parts.overlays, database, encryption: parts.encryption, ground, changes });
  const files = resources.add(await startOverlayFiles({ database, home, reader: parts.overlays, write: writeOverlay, log }), (started) =>
    started.stop(),
  );
  const overlays: Overlays = {
    ...parts.overlays,
    async write(tenantId, text, options) {
      await writeOverlay(tenantId, text, options);
      await files.sync(tenantId);
    },
  };
  const stateOf = async (owner: Owner) => {
    await wake(owner);
    return await chainOf(owner).state(AbortSignal.timeout(stateQueryMs));
  };
  const booksOf = createQuotaBooks({ database, tenants, clientOf, wake });
  const verifyBills: VerifyBilling = async (options) => await verifyBilling({ database, tenants, booksOf, log }, options);
  const sandboxes = createTenantSandboxes({
    config,
    home,
    driver: parts.sandbox,
    volumes: parts.volumes,
    egressAudit: parts.egressAudit,
    overlays,
    tenantOf: parts.tenantOf,
  });
  const checks: Record<string, ReadinessCheck> = {
    config: async () => {
      const fault = live.fault();
      if (fault !== undefined) throw new AppError("invalid_configuration", { client: { message: fault } });
    },
    database: async () => void (await database.withControl(async (tx) => await tx.query("select 1"))),
    temporal: async () => void (await temporal.client.workflowService.getSystemInfo({})),
  };
  const turnSessions = createSessionService({ database, bus, clientOf, log });
  const responses = createResponseService({ database, sessions: turnSessions });
  const conversations = createConversationService({ database });
  const answering = {
    turns,
    tokens,
    quota,
    overlays,
    resolveModel: (overlay: Overlay, name: string) => resolveTenantModelOf(live.current(), "chat", overlay, name).id,
    inputFiles: async (context: TenantContext, fileId: string) => await fileAsDataUrl({ database, files: parts.files }, context, fileId),
  };
  const endpoint = createRpcEndpoint({
    methods: createRpcMethods({
      turns,
      sessions: turnSessions,
      overlays,
      defaultModel: (overlay) => resolveTenantModel(live.current(), overlay, "default").id,
      tenants,
      reports,
      checks,
    }),
    logFailure: (error, fields) => logger.error({ err: error, ...fields }, "a call of /rpc failed"),
  });
  const services: ServiceDeps = {
    turns,
    files: parts.files,
    overlays,
    resolveModel: (kind, overlay, name) => resolveTenantModelOf(live.current(), kind, overlay, name).id,
  };
  const app = await createGateway({
    authenticate: authentication.authenticate,
    authenticateSession: async (id) => (await sessions.find(id)).principal,
    quota,
    logger,
    edge: {
      trustedProxies: config.http.trusted_proxies,
      allowedOrigins: config.http.allowed_origins,
      slowReaderSeconds: config.http.slow_reader_seconds,
      bodyBytes: { all: config.http.body_megabytes * 1_048_576, perTenant: config.http.body_megabytes_per_tenant * 1_048_576 },
    },
    metrics: metrics.gateway,
    tracing: tracing?.requests,
    routes: [
      createChatRoutes(answering),
      createEmbeddingRoutes(services),
      createModerationRoutes(services),
      createTranscriptionRoutes({ ...services, database }),
      createFileRoutes({
        database,
        files: parts.files,
        bounds: { files: config.http.files_per_tenant, bytes: config.http.file_megabytes_per_tenant * 1_048_576 },
      }),
      createConversationRoutes({ conversations, responses }),
      createHistoryRoutes({ tenants, histories: createArchivedHistories({ database }) }),
      createResponsesRoutes({
        ...answering,
        responses,
        conversations,
        inputTokensOf(model) {
          const { contextWindow, maxOutputTokens } = resolveModel(live.current(), model);
          return contextWindow - Math.min(maxOutputTokens, contextWindow / 2);
        },
      }),
      createHealthRoutes(checks),
      createModelRoutes({
        models: async (tenantId) => modelsOfTenant(live.current(), (await overlays.of(tenantId)).overlay),
        startedAtMs: Date.now(),
      }),
      createAdminRoutes({ tenants, reports, database, verifyBilling: verifyBills }),
      createUsageRoutes({ reports }),
      createTenantStateRoutes({ tenants, changes, operations, defaultQuota: defaultQuota(config) }),
      createOperationRoutes({ operations }),
      createInvoiceRoutes({
        invoices: createInvoices({ database, settings: () => config.billing.stripe }),
        changes,
        client: createInvoiceClient(temporal),
        wake,
      }),
      createOverlayRoutes({ tenants, overlays }),
      createRateCardRoutes({ live, rateCards, database, tenants, overlays }),
      createSandboxRoutes({ tenants, changes, sandboxes }),
      createAdminKeyRoutes({ database, changes }),
      createKeyRoutes({ changes }),
      createAuditRoutes({
        database,
        verify: async (options) => await verifyAudit({ database, home, flush: relay.flush, stateOf, anchors }, options),
      }),
      createMetricsRoutes(metrics),
      createRpcRoutes({ endpoint, tenants }),
      createRpcSocketRoutes({ endpoint, authenticateCredential: authentication.authenticateCredential, tokens }),
      createPageRoutes(),
      createAdminLoginRoutes({ sessions, authenticate: authentication.authenticateCredential, log }),
      createTemporalUiRoutes({ uiUrl: temporalUiUrl, changes, log }),
      createCodecRoutes({ decoder: createPayloadDecoder(keys), changes }),
    ],
  });
  resources.add(app, async (opened) => await closeGateway(opened, drainMs));
  return {
    ...(await listen(app, environment.host, environment.port)),
    async drain({ isReplaced }) {
      const patienceMs = config.http.drain_seconds * 1_000;
      const noticeMs = isReplaced ? Math.min(config.http.drain_notice_seconds * 1_000, patienceMs) : 0;
      checks["draining"] = async () => {
        throw new AppError("unavailable", { why: "this gateway ends" });
      };
      await sleep(noticeMs);
      await closeGateway(app, patienceMs - noticeMs);
    },
  };
}

/** Signed anchors go to the database, to a directory of the home, and to one that the operator names. */
async function startAnchors({ database, home, environment, log }: GatewayParts): Promise<AnchorKeeper> {
  const key = await openSigningKey({ database, home, seed: environment.auditKey, log });
  const directories = [join(home, "audit-anchors"), ...(environment.auditAnchors === undefined ? [] : [environment.auditAnchors])];
  return await startAnchorKeeper({ database, key, places: directories.map((path) => directoryPlace(path, key)), log });
}

/** How long `audit verify` waits for one workflow to tell its end. */
const stateQueryMs = 5_000;

/** How long answers that are on their way may take before their connections are cut. */
const drainMs = 1_000;

async function closeGateway(app: FastifyInstance, patienceMs: number): Promise<void> {
  const cut = setTimeout(() => app.server.closeAllConnections(), patienceMs);
  await app.close();
  clearTimeout(cut);
}

/** A port that was asked for must be free; the default one gives way to any free one. */
async function listen(app: FastifyInstance, host: string, port: number | undefined): Promise<Omit<StartedGateway, "drain">> {
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
