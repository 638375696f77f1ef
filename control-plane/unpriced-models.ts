import { AppError } from "../domain/app-error.ts";
import type { TenantId } from "../domain/tenant.ts";
import type { Database } from "../storage/database.ts";
import type { AdminConfig } from "./admin-config.ts";
import { type ConfigurationValue, readConfigurationText } from "./configuration-text.ts";
import { overlayMaxBytes } from "./overlay.ts";
import type { Overlays } from "./overlays.ts";
import type { Tenants } from "./tenants.ts";

/** A model that is in use and cannot be called, because the rate card has no price for it. */
export type UnpricedModel = {
  readonly model: string;
  /** `models` and `fallbacks` of config.yaml, overlays of tenants, billing rows of the last 31 days. */
  readonly used_by: readonly ("config" | "overlay" | "rows")[];
  /** Whose overlays and rows. */
  readonly tenants: readonly TenantId[];
};

export type ModelUseDeps = {
  readonly config: AdminConfig;
  readonly database: Pick<Database, "withControl">;
  readonly tenants: Pick<Tenants, "list">;
  readonly overlays: Pick<Overlays, "textOf">;
};

const overlaysAtOnce = 16;

/** The models in use without a price, by name. */
export async function findUnpricedModels({ config, database, tenants, overlays }: ModelUseDeps): Promise<readonly UnpricedModel[]> {
  const found = new Map<string, { readonly uses: Set<UnpricedModel["used_by"][number]>; readonly tenants: Set<TenantId> }>();
  const note = (model: string, use: UnpricedModel["used_by"][number], tenant?: TenantId): void => {
    if (config.rateCard.rates.has(model)) return;
    const entry = found.get(model) ?? { uses: new Set(), tenants: new Set() };
    found.set(model, entry);
    entry.uses.add(use);
    if (tenant !== undefined) entry.tenants.add(tenant);
  };

  for (const { id, fallbacks } of config.models.values()) for (const model of [id, ...fallbacks]) note(model, "config");
  const rows = await database.withControl(
    async (tx) =>
      await tx.query<{ tenant_id: TenantId; model: string }>(
        `select distinct tenant_id, model from control.usage_daily
         where day >= (now() at time zone 'UTC')::date - 31 and model <> all ($1)`,
        [[...config.rateCard.rates.keys()]],
      ),
    { readOnly: true },
  );
  for (const { tenant_id, model } of rows) note(model, "rows", tenant_id);
  const left = (await tenants.list()).values();
  const readers = Array.from({ length: overlaysAtOnce }, async () => {
    for (const { id } of left) for (const model of modelsNamedBy((await overlays.textOf(id)).text)) note(model, "overlay", id);
  });
  await Promise.all(readers);

  return [...found]
    .map(([model, { uses, tenants: whose }]) => ({ model, used_by: [...uses].toSorted(), tenants: [...whose].toSorted() }))
    .toSorted((a, b) => (a.model < b.model ? -1 : 1));
}

/** Every model that an overlay names, also where the overlay as a whole is refused by now. */
function modelsNamedBy(text: string): readonly string[] {
  try {
    const { model, fallbacks, aliases, api, heartbeat } = readConfigurationText(text, { file: "overlay", maxBytes: overlayMaxBytes }).value;
    return [
      model,
      ...listOf(fallbacks),
      ...Object.values(mappingOf(aliases)),
      ...listOf(mappingOf(api)["models"]),
      mappingOf(heartbeat)["model"],
    ].filter((name) => typeof name === "string");
  } catch (error) {
    if (error instanceof AppError) return [];
    throw error;
  }
}

const listOf = (value: ConfigurationValue | undefined): readonly ConfigurationValue[] => (Array.isArray(value) ? value : []);
const mappingOf = (value: ConfigurationValue | undefined): { readonly [key: string]: ConfigurationValue } =>
  typeof value === "object" && value !== null && !Array.isArray(value) ? (value as { readonly [key: string]: ConfigurationValue }) : {};
