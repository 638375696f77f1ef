import { bootstrapAdminKey } from "../control-plane/admin-keys.ts";
import { type AdminConfig, configurationWarnings, loadAdminConfig } from "../control-plane/admin-config.ts";
import { writeDefaultConfig } from "../control-plane/default-config.ts";
import { ensureDemoTenant } from "../control-plane/demo-tenant.ts";
import type { Environment } from "../control-plane/environment.ts";
import { createEgressAudit, type EgressAudit } from "../control-plane/egress-audit.ts";
import { claimGateway, removeGatewayRecord, writeGatewayRecord } from "../control-plane/gateway-record.ts";
import { createSlowTurns } from "../control-plane/slow-turns.ts";
import { createChanges } from "../control-plane/changes.ts";
import { type LiveConfiguration, openLiveConfiguration } from "../control-plane/live-configuration.ts";
import { type OverlayReader, openOverlayReader } from "../control-plane/overlays.ts";
import { type QuotaLeases, createQuotaLeases } from "../control-plane/quota-leases.ts";
import { storePlatformFee } from "../control-plane/platform-fees.ts";
import { type Membership, openMembership } from "../control-plane/membership.ts";
import { type Tenant, createTenants, spendableLimitsOf } from "../control-plane/tenants.ts";
import { AppError } from "../domain/app-error.ts";
import { type Owner, type TenantId, parseTenantId, systemOwner } from "../domain/tenant.ts";
import { type Database, openDatabase } from "../storage/database.ts";
import type { FieldEncryption } from "../storage/field-encryption.ts";
import { type OpenedDataKeys, openDataKeys } from "../storage/open-data-keys.ts";
import { createHome } from "../storage/tenant-paths.ts";
import { readUsedToday } from "../storage/usage-totals.ts";
import { homeIdOf } from "../storage/home-id.ts";
import { wakeChannel } from "../storage/placement-repository.ts";
import { openNotifyTokenBus } from "../streams/notify-token-bus.ts";
import type { TokenBus } from "../streams/token-bus.ts";
import { type ChainClient, forSystem } from "../temporal/chain-client.ts";
import { connectTemporal, type TemporalConnection } from "../temporal/temporal-connection.ts";
import { type LaneSettings, type TenantClient, forTenant } from "../temporal/tenant-client.ts";
import type { ProductFacts } from "./console-output.ts";
import { gateRuns } from "../sandbox/fair-gate.ts";
import type { SandboxDriver } from "../sandbox/sandbox-driver.ts";
import { warmDefaults } from "../sandbox/warm-slots.ts";
import { type TenantFiles, createTenantFiles } from "../storage/tenant-files.ts";
import { createFieldEncryption } from "../storage/tenant-field-encryption.ts";
import { rememberTenants } from "./remembered-tenants.ts";
import { startErasedFiles } from "./erased-files.ts";
import { startGateway } from "./gateway-role.ts";
import { createMetrics, type Metrics } from "./metrics.ts";
import { asLog, createLog, type Log } from "./log.ts";
import { createSdkMetrics } from "./sdk-metrics.ts";
import { Resources } from "./resources.ts";
import { createSandboxDrivers } from "./sandbox-drivers.ts";
import { volumeSizeOf } from "./sandbox-places.ts";
import { SandboxVolumes } from "../storage/sandbox-volume.ts";
import { type Backends, startBackends } from "./backends.ts";
import type { Role } from "./start-arguments.ts";
import { installTemporalRuntime } from "./temporal-runtime.ts";
import { startWorkerMetrics } from "./worker-metrics.ts";
import { openTracing, type Tracing } from "./tracing/tracing.ts";
import { startWorkers } from "./worker-role.ts";

/** `drain`: what runs is waited for and what is held is handed over, within `drainMs`; `now`: a second or two. */
export type StopMode = "drain" | "now";

export type Product = { readonly facts: ProductFacts; readonly drainMs: number; stop(mode: StopMode): Promise<void> };

export type StartOptions = {
  readonly role: Role;
  /** The process's environment: provider keys are read from it by the names in `config.yaml`. */
  readonly variables: Readonly<Record<string, string | undefined>>;
};

/** What both roles are made of. */
export type ProductParts = {
  readonly environment: Environment;
  readonly variables: StartOptions["variables"];
  readonly home: string;
  /** As the process started with it. */
  readonly config: AdminConfig;
  /** The same with the rate card and the markup of now. */
  readonly live: LiveConfiguration;
  readonly database: Database;
  /** The live processes of the database. */
  readonly membership: Membership;
  readonly keys: OpenedDataKeys;
  readonly temporal: TemporalConnection;
  readonly bus: TokenBus;
  readonly encryption: FieldEncryption;
  readonly files: TenantFiles;
  readonly overlays: OverlayReader;
  readonly clientOf: (tenantId: TenantId) => TenantClient;
  /** From memory; a change is seen at once. */
  readonly tenantOf: (tenantId: TenantId) => Promise<Tenant>;
  readonly quota: QuotaLeases;
  /** Of tools and of administrators' commands. */
  readonly sandbox: SandboxDriver;
  readonly volumes: SandboxVolumes;
  readonly egressAudit: EgressAudit;
  readonly log: Log;
  readonly metrics: Metrics;
  /** Undefined where nothing is traced. */
  readonly tracing: Tracing | undefined;
};

const defaultLaneWindowSeconds = 10;

/**
 * Starts everything that a role needs, in order, and stops what was started when a later part fails.
 * @throws {AppError} `conflict` when a gateway runs on this home, `invalid_configuration` for what the administrator has to mend
 */
export async function startProduct(environment: Environment, { role, variables }: StartOptions): Promise<Product> {
  const startedAtMs = performance.now();
  const home = createHome(environment.home);
  const resources = new Resources();
  try {
    if (role !== "worker") takeHome(home, resources);
    const logger = await createLog(home);
    const log = asLog(logger);
    writeDefaultConfig(home, variables);
    const config = loadAdminConfig(home);
    const sdk = config.telemetry.temporal_metrics ? resources.add(createSdkMetrics(), (metrics) => metrics.stop()) : undefined;
    const { otlp_endpoint: endpoint, service_name: serviceName, trace_sample_ratio: sampleRatio } = config.telemetry;
    const tracing = await openTracing({ endpoint, serviceName, sampleRatio, role, log });
    if (tracing !== undefined) resources.add(tracing, (opened) => opened.close());
    installTemporalRuntime(log, sdk?.buffer);
    const backends = await startBackends({ environment, config, home, variables, role, log, resources });

    const database = resources.add(await openDatabase({ ownerUrl: backends.databaseUrl, log }), (opened) => opened.close());
    await database.migrateTenants();
    const membership = resources.add(await openMembership({ database, role, homeId: homeIdOf(home), log }), (joined) => joined.close());
    const live = await openLiveConfiguration({ database, home, config, log });
    const keys = resources.add(
      await openDataKeys({ database, home, keyEncryptionKey: environment.keyEncryptionKey, log }),
      async (opened) => await opened.close(),
    );
    await database.withControl(async (tx) => await storePlatformFee(tx, config.billing));
    const temporal = resources.add(await connectTemporal({ ...backends.temporal, dataKeys: keys.dataKeys }), (connection) =>
      connection.close(),
    );
    const hasOthers = (): boolean => membership.live().some(({ id }) => id !== membership.self.id);
    // A gateway's events come from workers always; a worker's are for gateways that may not have been seen yet.
    const isShared = role === "all" ? hasOthers : () => true;
    const { bus } = resources.add(await openNotifyTokenBus(database, log, isShared), (opened) => opened.close());
    const encryption = createFieldEncryption(keys.dataKeys);
    const files = createTenantFiles({ database, encryption });
    const overlays = resources.add(await openOverlayReader({ database, encryption, ground: live.current }), (opened) => opened.close());
    const lane: LaneSettings = {
      windowMs: (config.temporal.lane_window_seconds ?? defaultLaneWindowSeconds) * 1_000,
      modelCall: config.temporal.model_call ?? "remote",
    };
    const clientOf = rememberClients((tenantId) => forTenant({ tenantId }, temporal, lane));
    const tenants = createTenants({ database });
    const remembered = resources.add(await rememberTenants(database, tenants.get), (opened) => opened.close());
    let wake = async (owner: Owner): Promise<void> => await database.notify(wakeChannel, owner);
    const quota = resources.add(
      createQuotaLeases({
        limitsOf: async (tenantId) => spendableLimitsOf(await remembered.of(tenantId)),
        clientOf,
        wake: async (tenantId) => await wake(tenantId),
        usedTokens: async (tenantId) =>
          Number((await database.withControl((tx) => readUsedToday(tx, tenantId), { readOnly: true })).tokens),
        log,
      }),
      (leases) => leases.close(),
    );
    const metrics = createMetrics({ database, sdk, tracing });
    const slowTurns = createSlowTurns({ database, seconds: config.telemetry.slow_turn_seconds, log });
    metrics.onTurnEnded((...ended) => void slowTurns.ended(...ended));
    // Other processes of this home may use what is mounted.
    const volumes = resources.add(new SandboxVolumes({ home, size: volumeSizeOf(config) }), async (kept) => {
      if (role === "all") await kept.close();
    });
    // A gateway alone runs a sandbox when an administrator asks for it, a worker for every tool.
    const drivers = createSandboxDrivers(role === "gateway" ? { config } : { config, warm: warmDefaults });
    const sandbox = resources.add(metrics.observeSandbox(gateRuns(drivers)), (driver) => driver.dispose());
    const egressAudit = createEgressAudit({
      chainOf: (tenantId) => clientOf(tenantId).chain,
      wake: async (owner) => await wake(owner),
      log,
    });
    const parts: ProductParts = {
      environment,
      variables,
      home,
      config,
      live,
      database,
      membership,
      keys,
      temporal,
      bus,
      encryption,
      files,
      overlays,
      clientOf,
      tenantOf: remembered.of,
      quota,
      sandbox,
      volumes,
      egressAudit,
      log,
      metrics,
      tracing,
    };

    const workers = role === "gateway" ? undefined : await startWorkers(parts, backends.bundle, resources);
    if (workers !== undefined) {
      wake = workers.wake;
      if (role === "worker") {
        const chainOf = (owner: Owner): ChainClient => (owner === systemOwner ? forSystem(temporal) : clientOf(owner).chain);
        // No gateway need run on this home, so an edit of its file is recorded from here too.
        const changes = createChanges({ database, dataKeys: keys.dataKeys, chainOf, wake, obstacle: () => undefined, log });
        resources.add(await live.follow({ changes, isWriter: false }), (follower) => follower.stop());
        await startWorkerMetrics({ ...parts, logger }, resources);
      }
    }
    // Behind the workers, because it ends before them: they write what it has left.
    resources.add(egressAudit, (audit) => audit.close());
    resources.add(await startErasedFiles({ database, home, log }), (started) => started.stop());
    const adminKey = role === "worker" ? undefined : await bootstrapAdminKey({ database, home });
    const demo = role === "worker" ? undefined : await ensureDemoTenant({ database, home, config });
    const gateway =
      role === "worker"
        ? undefined
        : await startGateway({ ...parts, logger, wake, tenants, temporalUiUrl: backends.temporal.uiUrl }, resources);
    if (gateway !== undefined) recordGateway(home, gateway.url, backends);
    if (role === "all") void warmUp(database, wake).catch((error: unknown) => log("no worker was started ahead", { error: String(error) }));
    log("ready", { role, url: gateway?.url });
    return {
      facts: {
        role,
        url: gateway?.url,
        temporalUi: gateway === undefined || backends.temporal.uiUrl === undefined ? undefined : `${gateway.url}/temporal`,
        home,
        adminKeyPath: adminKey === undefined || adminKey.state === "elsewhere" ? undefined : adminKey.path,
        demo,
        warnings: [...configurationWarnings(config, variables), ...backends.warnings, ...(gateway?.warnings ?? [])],
        startedInMs: performance.now() - startedAtMs,
      },
      drainMs: config.http.drain_seconds * 1_000,
      async stop(mode) {
        log("stopping", { mode });
        // One process that is everything has nobody to hand anything to.
        if (mode === "drain" && (role !== "all" || hasOthers())) {
          const isReplaced = hasOtherGateway(membership);
          await membership.drain();
          await Promise.all([gateway?.drain({ isReplaced }), workers?.drain(config.http.drain_seconds * 1_000)]);
        }
        await resources.close();
      },
    };
  } catch (error) {
    await resources.close();
    throw error;
  }
}

/** Clients are made once per tenant; beyond a thousand the oldest goes. */
function rememberClients(make: (tenantId: TenantId) => TenantClient): (tenantId: TenantId) => TenantClient {
  const clients = new Map<TenantId, TenantClient>();
  return (tenantId) => {
    const known = clients.get(tenantId);
    if (known !== undefined) return known;
    const client = make(tenantId);
    clients.set(tenantId, client);
    const oldest = clients.size > 1_000 ? clients.keys().next().value : undefined;
    if (oldest !== undefined) clients.delete(oldest);
    return client;
  };
}

/** The first Worker of a process boots the workflow thread, which costs half a second: better now than in somebody's first turn. */
async function warmUp(database: Database, wake: (owner: Owner) => Promise<void>): Promise<void> {
  const [tenant] = await database.withControl(
    async (tx) => await tx.query<{ id: string }>("select id from tenant where state = 'active' order by created_at desc limit 1"),
  );
  await wake(systemOwner);
  if (tenant !== undefined) await wake(parseTenantId(tenant.id));
}

function takeHome(home: string, resources: Resources): void {
  const running = claimGateway(home, { pid: process.pid });
  if (running !== undefined) {
    throw new AppError("conflict", {
      client: { message: `a gateway already runs on ${home}: ${running.url ?? "starting"} (pid ${running.pid})` },
    });
  }
  resources.add(process.pid, (pid) => removeGatewayRecord(home, pid));
}

const hasOtherGateway = ({ self, live }: Membership): boolean =>
  live().some(({ id, role, isDraining }) => id !== self.id && role !== "worker" && !isDraining);

function recordGateway(home: string, url: string, { temporal, databaseKind, databaseUrl }: Backends): void {
  const shownUrl = new URL(databaseUrl);
  shownUrl.password = "";
  writeGatewayRecord(home, {
    pid: process.pid,
    url,
    temporal: { address: temporal.address, namespace: temporal.namespace, ui: temporal.uiUrl ?? null, cli: temporal.cliPath ?? null },
    database: { kind: databaseKind, url: shownUrl.href },
  });
}
