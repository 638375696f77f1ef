import { type TenantQuota, noQuota, parseQuotaChange } from "../domain/tenant-quota.ts";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { AppError } from "../domain/app-error.ts";
import { parseMarkup, type MarkupPpm } from "../domain/money.ts";
import type { ModelKind } from "../domain/service-request.ts";
import type { RateCard, RateCardText, Rates } from "../domain/rate-card.ts";
import { adminConfigSchema, type AdminConfigFile } from "./admin-config-schema.ts";
import { issueToTell } from "./configuration-issue.ts";
import { configurationError, readConfigurationText, type KeyPath } from "./configuration-text.ts";
import type { InvoiceSettings } from "./invoices.ts";
import { createRateCard } from "./rate-cards.ts";

export type ProviderSettings = {
  readonly name: string;
  readonly kind: "openai" | "anthropic" | "openai-compatible" | "demo";
  readonly baseUrl: string | undefined;
  /** Which API of the two OpenAI kinds is spoken; undefined for Chat Completions. */
  readonly api: "chat" | "responses" | undefined;
  /** The environment variables that hold the provider's keys; none for one that takes none. */
  readonly apiKeyEnvs: readonly string[];
  /** Undefined: as `http.provider_idle_seconds` says. */
  readonly idleSeconds: number | undefined;
  readonly totalSeconds: number;
};

export type ModelSettings = {
  readonly id: string;
  /** A key of `AdminConfig.providers`. */
  readonly provider: string;
  readonly kind: ModelKind;
  readonly contextWindow: number;
  readonly maxOutputTokens: number;
  /** Configured models to try when this one is not available, in order. */
  readonly fallbacks: readonly string[];
};

/** `config.yaml`, read and checked. The blocks that are not spelt out here keep the file's own key names. */
export type AdminConfig = {
  readonly defaultModel: string;
  readonly providers: ReadonlyMap<string, ProviderSettings>;
  readonly models: ReadonlyMap<string, ModelSettings>;
  readonly billing: {
    readonly currency: "USD";
    readonly markupPpm: MarkupPpm;
    /** US dollars as decimal text. */
    readonly platformFeeUsdPerMonth: string | undefined;
    /** Undefined: no invoices are written. */
    readonly stripe: InvoiceSettings | undefined;
  };
  readonly rateCard: RateCard;
} & Pick<AdminConfigFile, "quotas" | "sandbox" | "backup" | "temporal" | "database" | "channels" | "http" | "telemetry">;

/** A model that can be called and priced. */
export type ResolvedModel = ModelSettings & { readonly rates: Rates };

export const adminConfigMaxBytes = 1024 * 1024;
/** What a client may call the default model. */
export const defaultModelNames: ReadonlySet<string> = new Set(["default", "openclaw"]);

export const adminConfigPath = (home: string): string => join(home, "config.yaml");

/**
 * Reads and checks `<home>/config.yaml`.
 * @throws {AppError} `invalid_configuration` naming file, line and key path; also when there is no such file.
 */
export function loadAdminConfig(home: string): AdminConfig {
  const path = adminConfigPath(home);
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    throw new AppError(
      "invalid_configuration",
      { client: { message: `${path} cannot be read: ${(error as Error).message}` } },
      { cause: error },
    );
  }
  return parseAdminConfig(text, path);
}

/** @throws {AppError} `invalid_configuration` naming `file`, line and key path. */
export function parseAdminConfig(text: string, file = "config.yaml"): AdminConfig {
  const source = readConfigurationText(text, { file, maxBytes: adminConfigMaxBytes });
  const parsed = adminConfigSchema.safeParse(source.value);
  if (!parsed.success) {
    const { path, says } = issueToTell(parsed.error.issues);
    throw configurationError(file, source.lineOf(path), path, says);
  }
  const config = toAdminConfig(parsed.data);
  checkReferences(config, (path, says) => configurationError(file, source.lineOf(path), path, says));
  return config;
}

function toAdminConfig({ default_model, providers, models, billing, ...blocks }: AdminConfigFile): AdminConfig {
  return {
    ...blocks,
    defaultModel: default_model,
    providers: new Map(
      Object.entries(providers).map(([name, { kind, base_url, api, api_key_env, idle_seconds, total_seconds }]) => [
        name,
        {
          name,
          kind,
          baseUrl: base_url,
          api,
          apiKeyEnvs: api_key_env ?? [],
          idleSeconds: idle_seconds,
          totalSeconds: total_seconds,
        },
      ]),
    ),
    models: new Map(
      Object.entries(models).map(([id, model]) => [
        id,
        {
          id,
          provider: model.provider,
          kind: model.kind,
          contextWindow: model.context_window,
          maxOutputTokens: model.max_output_tokens,
          fallbacks: model.fallbacks,
        },
      ]),
    ),
    billing: {
      currency: billing.currency,
      markupPpm: parseMarkup(billing.markup, "billing.markup"),
      platformFeeUsdPerMonth: billing.platform_fee_usd_per_month,
      stripe: billing.stripe === undefined ? undefined : toInvoiceSettings(billing.stripe),
    },
    rateCard: createRateCard(billing.rate_card as RateCardText),
  };
}

const toInvoiceSettings = ({
  api_key_env,
  api_base,
  mode,
  meter_event_names,
  first_day,
  customers,
}: NonNullable<AdminConfigFile["billing"]["stripe"]>): InvoiceSettings => ({
  apiKeyEnv: api_key_env,
  apiBase: api_base,
  mode,
  eventNames: meter_event_names,
  firstDay: first_day,
  customers: new Map(Object.entries(customers)),
});

/** A customer's sums at Stripe must be one tenant's, and of one kind: they tell what has arrived. */
function checkInvoices(stripe: InvoiceSettings | undefined, error: (path: KeyPath, says: string) => AppError): void {
  if (stripe === undefined) return;
  if (stripe.eventNames.usage === stripe.eventNames.platform_fee)
    throw error(["billing", "stripe", "meter_event_names", "platform_fee"], "must be another meter than usage");
  const tenants = new Map<string, string>();
  for (const [tenant, customer] of stripe.customers) {
    const other = tenants.get(customer);
    if (other !== undefined) throw error(["billing", "stripe", "customers", tenant], `"${customer}" is the customer of ${other} already`);
    tenants.set(customer, tenant);
  }
}

/** What the schema cannot see: names that point at other entries. */
function checkReferences(
  { defaultModel, providers, models, temporal, billing }: AdminConfig,
  error: (path: KeyPath, says: string) => AppError,
): void {
  checkInvoices(billing.stripe, error);
  for (const { name, kind, baseUrl, api, apiKeyEnvs } of providers.values()) {
    const path = ["providers", name];
    if (kind === "openai-compatible" && baseUrl === undefined) throw error(path, "needs a base_url: its kind is openai-compatible");
    if ((kind === "openai" || kind === "anthropic") && apiKeyEnvs.length === 0)
      throw error(path, `needs api_key_env, the environment variable with its key`);
    if (api !== undefined && kind !== "openai" && kind !== "openai-compatible")
      throw error([...path, "api"], "belongs to the kinds openai and openai-compatible only");
  }
  for (const { id, provider, kind, fallbacks, contextWindow, maxOutputTokens } of models.values()) {
    const served = providers.get(provider);
    if (served === undefined) throw error(["models", id, "provider"], `"${provider}" is not one of providers`);
    if (served.kind === "anthropic" && kind !== "chat")
      throw error(["models", id, "kind"], "must be chat: its provider has no other models");
    if (served.kind === "demo" && kind !== "chat" && kind !== "embedding")
      throw error(["models", id, "kind"], "must be chat or embedding: the demo provider has no other models");
    if (kind !== "chat" && fallbacks.length > 0) throw error(["models", id, "fallbacks"], "belong to chat models only");
    if (maxOutputTokens > contextWindow) throw error(["models", id, "max_output_tokens"], "must not be larger than context_window");
    const unknown = fallbacks.findIndex((fallback) => !models.has(fallback) || fallback === id);
    if (unknown >= 0) throw error(["models", id, "fallbacks", unknown], `"${fallbacks[unknown]}" is not another one of models`);
    const other = fallbacks.findIndex((fallback) => models.get(fallback)?.kind !== "chat");
    if (other >= 0) throw error(["models", id, "fallbacks", other], `"${fallbacks[other]}" is not a chat model`);
  }
  if (!models.has(defaultModel)) throw error(["default_model"], `"${defaultModel}" is not one of models`);
  if (models.get(defaultModel)?.kind !== "chat") throw error(["default_model"], `"${defaultModel}" is not a chat model`);
  for (const [key, other] of [
    ["tls_cert_file", "tls_key_file"],
    ["tls_key_file", "tls_cert_file"],
  ] as const)
    if (temporal[key] !== undefined && temporal[other] === undefined) throw error(["temporal", key], `needs ${other}`);
  const unused = (["tls_server_name", "tls_ca_file", "tls_cert_file"] as const).find((key) => temporal[key] !== undefined);
  if (temporal.tls === false && unused !== undefined) throw error(["temporal", unused], "is of no use while temporal.tls is false");
}

/**
 * The model that a request names; `default` and `openclaw` mean the default model.
 * @throws {AppError} `model_not_found` (404), `model_not_priced` (400)
 */
export function resolveModel(config: AdminConfig, name: string): ResolvedModel {
  const id = defaultModelNames.has(name) && !config.models.has(name) ? config.defaultModel : name;
  const model = config.models.get(id);
  const shown = name.slice(0, 128);
  if (model === undefined)
    throw new AppError("model_not_found", { client: { message: `The model "${shown}" does not exist.`, param: "model" } });
  const rates = config.rateCard.rates.get(id);
  if (rates === undefined) {
    throw new AppError("model_not_priced", { client: { message: `The model "${id}" has no price in the rate card.`, param: "model" } });
  }
  return { ...model, rates };
}

/** Variables as the process was given them; the values are secrets. */
export type KeySource = Readonly<Record<string, string | undefined>>;

/** A provider's keys: those of the variables that are set. */
export const providerKeysOf = ({ apiKeyEnvs }: ProviderSettings, variables: KeySource): readonly { name: string; secret: string }[] =>
  apiKeyEnvs.flatMap((name) => (variables[name] ? [{ name, secret: variables[name] }] : []));

/** Whether a provider can be called: it takes no key, or has one. */
export const hasKey = (provider: ProviderSettings, variables: KeySource): boolean =>
  provider.apiKeyEnvs.length === 0 || providerKeysOf(provider, variables).length > 0;

/** What a tenant is told of a provider none of whose keys is set: not their names. */
export const missingKey = ({ name, apiKeyEnvs }: ProviderSettings): AppError =>
  new AppError("provider_error", {
    client: { message: "The model's provider has no API key on this server." },
    provider: name,
    missing: apiKeyEnvs,
  });

/** What an operator should know at start although the configuration is valid: one sentence each. */
export function configurationWarnings(config: AdminConfig, variables: KeySource): readonly string[] {
  const keyless = [...config.providers.values()].flatMap((provider) => {
    const unset = provider.apiKeyEnvs.filter((name) => !variables[name]);
    if (!hasKey(provider, variables))
      return [`The provider ${provider.name} cannot be used: ${unset.join(", ")} ${unset.length === 1 ? "is" : "are"} not set.`];
    return unset.map((name) => `The provider ${provider.name} is used without one of its keys: ${name} is not set.`);
  });
  const unpriced = [...config.models.keys()]
    .filter((id) => !config.rateCard.rates.has(id))
    .map((id) => `The model ${id} cannot be used: it has no price in billing.rate_card.`);
  const unused = [...config.rateCard.rates.keys()]
    .filter((id) => !config.models.has(id))
    .map((id) => `The price of ${id} is not used: it is not one of models.`);
  const { stripe } = config.billing;
  const noInvoices =
    stripe === undefined || variables[stripe.apiKeyEnv] ? [] : [`No usage can be told to Stripe: ${stripe.apiKeyEnv} is not set.`];
  return [...keyless, ...unpriced, ...unused, ...noInvoices];
}

/** The ceilings of a new tenant that is given none: copied when it is made, so that its audit tells what it has. */
export const defaultQuota = ({ quotas }: Pick<AdminConfig, "quotas">): TenantQuota => ({
  ...noQuota,
  ...parseQuotaChange(quotas.default ?? {}),
});
