import { createArchiveActivities } from "../activities/archive-activities.ts";
import { createAuditActivities } from "../activities/audit-activities.ts";
import { createQuotaActivities } from "../activities/quota-activities.ts";
import { createTenantLifeActivities } from "../activities/tenant-life-activities.ts";
import { createKeyActivities } from "../activities/key-activities.ts";
import { createInvoiceActivities } from "../activities/invoice-activities.ts";
import { createReconcileActivities } from "../activities/reconcile-activities.ts";
import { createTurnActivities } from "../activities/turn-activities.ts";
import { type AdminConfig, hasKey, missingKey, providerKeysOf } from "../control-plane/admin-config.ts";
import { type InvoiceSenderDeps, createInvoiceSender } from "../control-plane/invoices.ts";
import { createHistoryArchive } from "../control-plane/history-archive.ts";
import { createQuotaBooks } from "../control-plane/quota-books.ts";
import { loadRateCard } from "../control-plane/rate-cards.ts";
import { createReconciler } from "../control-plane/reconciler.ts";
import { tokenChannel } from "../control-plane/commands.ts";
import { requireStripeKey } from "../control-plane/stripe-key.ts";
import { type StripeMeters, openStripeMeters } from "../control-plane/stripe-meters.ts";
import { createTenants, grantableLimitsOf } from "../control-plane/tenants.ts";
import { createUsageAlarms } from "../control-plane/usage-alarms.ts";
import { AppError } from "../domain/app-error.ts";
import type { MarkupPpm } from "../domain/money.ts";
import { type Owner, parseTenantId } from "../domain/tenant.ts";
import type { KeyRest } from "../providers/key-ring.ts";
import type { ModelProvider } from "../providers/model-provider.ts";
import { createProviders } from "../providers/provider-registry.ts";
import { createBuiltinTools } from "../sandbox/builtin-tools.ts";
import { createPauseGuard } from "../sandbox/pause-guard.ts";
import type { Tool } from "../sandbox/tool.ts";
import { adoptTenants, holdPlacement } from "../storage/placement-repository.ts";
import { readPromptFiles } from "../storage/prompt-files.ts";
import { hasTenantDirectory, sandboxDirectory, tenantDirectoryNames } from "../storage/tenant-paths.ts";
import { ensureArchiveSchedule } from "../temporal/archive-client.ts";
import { forSystem } from "../temporal/chain-client.ts";
import { createClosedRuns } from "../temporal/closed-runs.ts";
import { listDueOwners } from "../temporal/due-owners.ts";
import { createInvoiceClient } from "../temporal/invoice-client.ts";
import { createOperationClient } from "../temporal/operation-client.ts";
import { ensureReconcileSchedule } from "../temporal/reconcile-client.ts";
import { rekeyStarter } from "../temporal/rekey-client.ts";
import { startInvoiceSchedules } from "../workers/invoice-schedules.ts";
import { startKeyRotationRelay } from "../workers/key-rotation-relay.ts";
import { startOpenTurnRelay } from "../workers/open-turn-relay.ts";
import { startSystemSchedules } from "../workers/system-schedules.ts";
import { type PlacedWorkers, placeWorkers } from "../workers/placed-workers.ts";
import { createTenantLifeRuns } from "../workers/tenant-life-runs.ts";
import { type TenantWorkerPool, createTenantWorkerPool } from "../workers/tenant-worker-pool.ts";
import { startWaker } from "../workers/waker.ts";
import { forgetChannel } from "./erased-files.ts";
import type { ProductParts } from "./product.ts";
import type { Resources } from "./resources.ts";
import { createSandboxPlaces } from "./sandbox-places.ts";

/** Everything that runs turns: providers, tools, activities, a worker per tenant, the relay of open turns. */
export async function startWorkers(
  {
    config,
    live,
    variables,
    home,
    database,
    membership,
    files,
    keys,
    temporal,
    bus,
    overlays,
    clientOf,
    tenantOf,
    quota,
    sandbox,
    volumes,
    egressAudit,
    log,
    metrics,
    tracing,
  }: ProductParts,
  bundle: { readonly codePath: string; readonly buildId: string },
  resources: Resources,
): Promise<PlacedWorkers> {
  const missing = await sandbox.probe();
  if (missing !== undefined && config.sandbox.require === "cgroup") {
    throw new AppError("invalid_configuration", {
      client: { message: `sandbox.require is cgroup, and that cannot be had here: ${missing}`, param: "sandbox.require" },
    });
  }
  if (missing !== undefined) log("tools cannot run on this host", { missing });

  // Told of every change of a tenant's row: what waits for a suspended or deleted one ends at once, another one's starts anew.
  const dropSlots = (payload: string): void => {
    const workDirectory = sandboxDirectory(home, parseTenantId(payload));
    if (workDirectory !== undefined) void sandbox.drop(workDirectory);
  };
  const stopDropping = await database.listen(tokenChannel, dropSlots, { onReconnect: () => void sandbox.drop() });
  resources.add(stopDropping, (stop) => stop());

  const wake = async (owner: Owner): Promise<void> => await placed.wake(owner);
  const guard = resources.add(createPauseGuard(), (started) => started.close());
  resources.add(membership.listen({ onRenewal: guard.renew }), (stop) => stop());
  const alarms = createUsageAlarms({
    chainOf: (tenantId) => clientOf(tenantId).chain,
    wake,
    log,
    count: metrics.usageDoubted,
  });
  const turnActivities = createTurnActivities({
    database,
    files,
    bus,
    tools: missing === undefined ? observedTools(createBuiltinTools({ driver: sandbox }), tracing?.observeTool) : new Map(),
    overlayOf: async (tenantId, digest) =>
      digest === undefined ? (await overlays.of(tenantId)).overlay : await overlays.at(tenantId, digest),
    promptFilesOf: (tenantId) => readPromptFiles(home, tenantId, log),
    placeOf: createSandboxPlaces({ config, home, driver: sandbox, volumes, egressAudit, tenantOf }),
    enterDirectory(tenantId) {
      guard.arm();
      const { placement, signal, leave } = placed.enter(tenantId);
      const isOurs = (): boolean => membership.isHeld() && !signal.aborted;
      return { signal, leave, isOurs, hold: async (tx) => await holdPlacement(tx, placement) };
    },
    modelOf: servedModels(
      config,
      variables,
      (provider) => metrics.observeProvider(tracing?.observeProvider(provider) ?? provider),
      (rest) => {
        metrics.keyRested(rest);
        if (rest.why === "rejected") log("ALARM: a provider does not take a key, which rests", rest);
      },
    ),
    pricing: async (tenantId) => {
      const tenant = await tenantOf(tenantId);
      const { rateCard, billing } = live.current();
      return { rateCard, markupPpm: (tenant.markupPpm ?? billing.markupPpm) as MarkupPpm };
    },
    rateCardAt: async (hash) => await database.withControl(async (tx) => await loadRateCard(tx, hash), { readOnly: true }),
    quota,
    alarms,
    now: () => Date.now(),
    log,
  });
  const invoiceSettings = () => config.billing.stripe;
  const operations = createOperationClient({ connection: temporal, wake });
  const lifeActivities = createTenantLifeActivities({
    database,
    home,
    runs: createTenantLifeRuns({ clientOf, system: forSystem(temporal), operations, wake, log }),
    ensureDataKey: keys.dataKeys.ensure,
    eraseDataKey: keys.dataKeys.erase,
    forget: async (tenantId) => await database.notify(forgetChannel, tenantId),
  });
  const activities = {
    ...turnActivities,
    ...lifeActivities,
    ...createAuditActivities({ database, home, log }),
    ...createInvoiceActivities({
      sender: createInvoiceSender({ database, settings: invoiceSettings, metersOf: stripeMeters(variables), log }),
    }),
    ...createKeyActivities({ database, ...keys }),
    ...createReconcileActivities({
      reconciler: createReconciler({
        database,
        booksOf: createQuotaBooks({ database, tenants: createTenants({ database }), clientOf, wake }),
        chain: forSystem(temporal),
        log,
      }),
    }),
    ...createArchiveActivities({
      archive: createHistoryArchive({
        database,
        runs: createClosedRuns(temporal),
        tenants: async () => (await createTenants({ database }).list()).map(({ id }) => id),
        keepDays: config.temporal.archive_days,
        log,
      }),
    }),
    ...createQuotaActivities({
      database,
      limitsOf: async (tenantId) => grantableLimitsOf(await createTenants({ database }).get(tenantId)),
    }),
  };
  const ending = new AbortController();
  const pool: TenantWorkerPool = createTenantWorkerPool({
    connection: temporal,
    bundle,
    activities,
    log,
    onStopped: (owner) => placed.onStopped(owner),
    graceMs: config.http.drain_seconds * 1_000,
    callStacks: config.temporal.call_stacks ?? false,
    ending: ending.signal,
    around: tracing === undefined ? [] : [tracing.activities(database)],
  });
  await database.withControl(async (tx) => await adoptTenants(tx, membership.self.homeId, tenantDirectoryNames(home)));
  const placed: PlacedWorkers = await placeWorkers({
    database,
    membership,
    pool,
    hasDirectory: (tenantId) => hasTenantDirectory(home, tenantId),
    isVolume: (tenantId) => volumes.covers(tenantId),
    async leaveDirectory(tenantId) {
      const directory = sandboxDirectory(home, tenantId);
      if (directory !== undefined) await sandbox.drop(directory);
      await volumes.leave(tenantId);
    },
    log,
  });
  resources.add(placed, async (workers) => {
    const cut = setTimeout(() => ending.abort(), endingGraceMs);
    await workers.close();
    clearTimeout(cut);
  });
  metrics.observePlacements(placed.held);
  resources.add(alarms, (raised) => raised.close());
  const stopForgetting = await database.listen(
    forgetChannel,
    (payload) =>
      void pool
        .forget(parseTenantId(payload))
        .catch((error: unknown) => log("the worker of a deleted tenant was not stopped", { error: String(error) })),
  );
  resources.add(stopForgetting, (stop) => stop());
  const dueOwners = async (byMs: number) => await listDueOwners(temporal, byMs);
  resources.add(startWaker({ dueOwners, wake: placed.wakeHere, log }), (waker) => waker.stop());
  resources.add(startOpenTurnRelay({ database, clientOf, wake, log }), (relay) => relay.stop());
  resources.add(await startKeyRotationRelay({ database, start: rekeyStarter(temporal), wake, log }), (relay) => relay.stop());
  resources.add(
    startInvoiceSchedules({ database, settings: invoiceSettings, client: createInvoiceClient(temporal), wake, log }),
    (schedules) => schedules.stop(),
  );
  const ensureSchedules = async (): Promise<void> => {
    await ensureReconcileSchedule(temporal);
    await ensureArchiveSchedule(temporal, config.temporal.archive_days > 0);
  };
  resources.add(startSystemSchedules({ ensure: ensureSchedules, wake, log }), (schedules) => schedules.stop());
  return placed;
}

/** What running activities get when the process is told to end at once. */
const endingGraceMs = 1_000;

/** One client per process, made when the first event is sent. */
function stripeMeters(variables: ProductParts["variables"]): InvoiceSenderDeps["metersOf"] {
  let opened: Promise<StripeMeters> | undefined;
  return async (settings) => {
    const apiKey = requireStripeKey(settings, variables);
    return await (opened ??= openStripeMeters({ apiKey, apiBase: settings.apiBase }));
  };
}

/** The models by id. A provider without its key stays out: a call of it fails by itself, and the others work. */
function servedModels(
  config: AdminConfig,
  variables: ProductParts["variables"],
  observe: (provider: ModelProvider) => ModelProvider,
  onKeyRest: (rest: KeyRest) => void,
) {
  const usable = [...config.providers.values()].filter((provider) => hasKey(provider, variables));
  const providers = createProviders(
    usable.map((provider) => {
      const silenceMs = (provider.idleSeconds ?? config.http.provider_idle_seconds) * 1_000;
      return { ...provider, timeouts: { headersMs: silenceMs, idleMs: silenceMs, totalMs: provider.totalSeconds * 1_000 } };
    }),
    new Map(usable.map((provider) => [provider.name, providerKeysOf(provider, variables)])),
    { limitsOf: (id) => config.models.get(id), onKeyRest },
  );
  const observed = new Map([...providers].map(([name, provider]) => [name, observe(provider)]));
  return (id: string) => {
    const model = config.models.get(id);
    const provider = model === undefined ? undefined : config.providers.get(model.provider);
    if (model === undefined || provider === undefined) throw new AppError("model_not_found", { model: id });
    const served = observed.get(provider.name);
    if (served === undefined) throw missingKey(provider);
    return { ...model, provider: served };
  };
}

const observedTools = (tools: ReadonlyMap<string, Tool>, observe: ((tool: Tool) => Tool) | undefined): ReadonlyMap<string, Tool> =>
  observe === undefined ? tools : new Map([...tools].map(([name, tool]) => [name, observe(tool)]));
