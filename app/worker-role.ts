import { createAuditActivities } from "../activities/audit-activities.ts";
import { createQuotaActivities } from "../activities/quota-activities.ts";
import { createTenantLifeActivities } from "../activities/tenant-life-activities.ts";
import { createKeyActivities } from "../activities/key-activities.ts";
import { createTurnActivities } from "../activities/turn-activities.ts";
import { type AdminConfig, providerKeyOf, requireProviderKey } from "../control-plane/admin-config.ts";
import { createTenants, quotaLimitsOf } from "../control-plane/tenants.ts";
import { AppError } from "../domain/app-error.ts";
import type { MarkupPpm } from "../domain/money.ts";
import { type Owner, parseTenantId } from "../domain/tenant.ts";
import { createProviders } from "../providers/provider-registry.ts";
import { createBuiltinTools } from "../sandbox/builtin-tools.ts";
import { createBwrapDriver } from "../sandbox/bwrap-driver.ts";
import { readPromptFiles } from "../storage/prompt-files.ts";
import { forSystem } from "../temporal/chain-client.ts";
import { createOperationClient } from "../temporal/operation-client.ts";
import { rekeyStarter } from "../temporal/rekey-client.ts";
import { startKeyRotationRelay } from "../workers/key-rotation-relay.ts";
import { startOpenTurnRelay } from "../workers/open-turn-relay.ts";
import { createTenantLifeRuns } from "../workers/tenant-life-runs.ts";
import { type TenantWorkerPool, createTenantWorkerPool } from "../workers/tenant-worker-pool.ts";
import type { ProductParts } from "./product.ts";
import type { Resources } from "./resources.ts";
import { createSandboxPlaces } from "./sandbox-places.ts";

/** The channel that tells every worker process that a tenant is gone; the payload is its id. */
const forgetChannel = "openclaw_forget";

/** Everything that runs turns: providers, tools, activities, a worker per tenant, the relay of open turns. */
export async function startWorkers(
  { config, variables, home, database, keys, temporal, bus, overlays, clientOf, tenantOf, quota, log, metrics }: ProductParts,
  bundle: { readonly codePath: string; readonly buildId: string },
  resources: Resources,
): Promise<TenantWorkerPool> {
  const driver = metrics.observeSandbox(createBwrapDriver());
  const missing = await driver.probe();
  if (missing !== undefined) log("tools cannot run on this host", { missing });

  const turnActivities = createTurnActivities({
    database,
    bus,
    tools: missing === undefined ? createBuiltinTools({ driver }) : new Map(),
    overlayOf: async (tenantId, digest) =>
      digest === undefined ? (await overlays.of(tenantId)).overlay : await overlays.at(tenantId, digest),
    promptFilesOf: (tenantId) => readPromptFiles(home, tenantId, log),
    placeOf: createSandboxPlaces({ config, home, driver, tenantOf }),
    modelOf: servedModels(config, variables),
    pricing: async (tenantId) => ({
      rateCard: config.rateCard,
      markupPpm: ((await tenantOf(tenantId)).markupPpm ?? config.billing.markupPpm) as MarkupPpm,
    }),
    quota,
    now: () => Date.now(),
    log,
  });
  const wake = async (owner: Owner): Promise<void> => await pool.wake(owner);
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
    ...createKeyActivities({ database, ...keys }),
    ...createQuotaActivities({ database, limitsOf: async (tenantId) => quotaLimitsOf(await createTenants({ database }).get(tenantId)) }),
  };
  const pool = resources.add(createTenantWorkerPool({ connection: temporal, bundle, activities, log }), (workers) => workers.close());
  const stopForgetting = await database.listen(
    forgetChannel,
    (payload) =>
      void pool
        .forget(parseTenantId(payload))
        .catch((error: unknown) => log("the worker of a deleted tenant was not stopped", { error: String(error) })),
  );
  resources.add(stopForgetting, (stop) => stop());
  resources.add(startOpenTurnRelay({ database, clientOf, wake: pool.wake, log }), (relay) => relay.stop());
  resources.add(await startKeyRotationRelay({ database, start: rekeyStarter(temporal), wake: pool.wake, log }), (relay) => relay.stop());
  return pool;
}

/** The models by id. A provider without its key stays out: a call of it fails by itself, and the others work. */
function servedModels(config: AdminConfig, variables: ProductParts["variables"]) {
  const settings = [...config.providers.values()];
  const keys = new Map(
    settings
      .flatMap((provider) => [[provider.name, providerKeyOf(provider, variables)] as const])
      .filter((entry): entry is [string, string] => entry[1] !== undefined),
  );
  const usable = settings.filter(({ name, apiKeyEnv }) => apiKeyEnv === undefined || keys.has(name));
  const silenceMs = config.http.provider_idle_seconds * 1_000;
  const providers = createProviders(usable, keys, {
    limitsOf: (id) => config.models.get(id),
    timeouts: { headersMs: silenceMs, idleMs: silenceMs },
  });
  return (id: string) => {
    const model = config.models.get(id);
    const provider = model === undefined ? undefined : config.providers.get(model.provider);
    if (model === undefined || provider === undefined) throw new AppError("model_not_found", { model: id });
    const served = providers.get(provider.name);
    if (served === undefined) throw new AppError("provider_error", { model: id, missing: requireProviderKey(provider, variables) });
    return { id, provider: served, contextWindow: model.contextWindow, maxOutputTokens: model.maxOutputTokens };
  };
}
