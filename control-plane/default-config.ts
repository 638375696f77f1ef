import { readFileSync, readdirSync } from "node:fs";
import { z } from "zod";
import { modelSchema, ratesSchema } from "./admin-config-schema.ts";
import { adminConfigPath, type KeySource } from "./admin-config.ts";
import type { ModelKind } from "../domain/service-request.ts";
import { readConfigurationText } from "./configuration-text.ts";
import { createPrivateFile } from "./private-file.ts";

/** A file of `rate-cards/`: published prices of a day, with the pages they were read from. */
const shippedCardSchema = z.strictObject({
  date: z.iso.date(),
  sources: z.record(z.string(), z.url()),
  providers: z.record(
    z.string(),
    z.strictObject({
      default_model: z.string(),
      models: z.record(
        z.string(),
        z.strictObject({ source: z.url(), ...modelSchema.omit({ provider: true, fallbacks: true }).shape, ...ratesSchema.shape }),
      ),
    }),
  ),
});

export type ShippedCard = z.infer<typeof shippedCardSchema>;

/** The newest card that this version ships. */
export function readShippedCard(): ShippedCard {
  const folder = new URL("./rate-cards/", import.meta.url);
  const newest = readdirSync(folder)
    .filter((name) => name.endsWith(".yaml"))
    .toSorted()
    .at(-1);
  if (newest === undefined) throw new Error("control-plane/rate-cards/ is empty");
  return shippedCardSchema.parse(
    readConfigurationText(readFileSync(new URL(newest, folder), "utf8"), { file: newest, maxBytes: 1024 * 1024 }).value,
  );
}

/** Providers that the first start sets up when their key is there. */
const knownProviders = [
  { name: "openai", kind: "openai", apiKeyEnv: "OPENAI_API_KEY" },
  { name: "anthropic", kind: "anthropic", apiKeyEnv: "ANTHROPIC_API_KEY" },
] as const;

type DraftModel = {
  readonly provider: string;
  readonly kind: ModelKind;
  readonly context_window: number;
  readonly max_output_tokens: number;
  readonly rates: Readonly<Record<string, string>>;
};
type Draft = {
  readonly defaultModel: string;
  readonly providers: readonly string[];
  readonly models: ReadonlyMap<string, DraftModel>;
  readonly prices: string;
};

const demoDraft: Draft = {
  defaultModel: "demo",
  providers: ["  demo:", "    kind: demo   # built in and offline; its answers say that they are a demonstration"],
  models: new Map([
    ["demo", { provider: "demo", kind: "chat", context_window: 128_000, max_output_tokens: 8_192, rates: { input: "1", output: "2" } }],
    [
      "demo-embedding",
      { provider: "demo", kind: "embedding", context_window: 8_192, max_output_tokens: 1, rates: { input: "1", output: "0" } },
    ],
  ]),
  prices: "# The demonstration model costs nothing; these prices only show what a bill looks like.",
};

function draftFor(variables: KeySource): Draft {
  const usable = knownProviders.filter(({ apiKeyEnv }) => variables[apiKeyEnv]);
  const [first] = usable;
  if (first === undefined) return demoDraft;
  const card = readShippedCard();
  const models = usable.flatMap(({ name }) =>
    Object.entries(card.providers[name]?.models ?? {}).map(
      ([id, { source: _source, kind, context_window, max_output_tokens, ...rates }]): [string, DraftModel] => [
        id,
        { provider: name, kind, context_window, max_output_tokens, rates: rates as Record<string, string> },
      ],
    ),
  );
  return {
    defaultModel: card.providers[first.name]?.default_model ?? "",
    providers: usable.flatMap(({ name, kind, apiKeyEnv }) => [`  ${name}:`, `    kind: ${kind}`, `    api_key_env: ${apiKeyEnv}`]),
    models: new Map(models),
    prices: `# List prices as published on ${card.date} (${usable.map(({ name }) => card.sources[name]).join(", ")}).\n    # Providers change them: compare before you bill. A price counts from the moment you save it, never backwards.`,
  };
}

/** The text of the first `config.yaml`. */
export function defaultConfigText(variables: KeySource): string {
  const { defaultModel, providers, models, prices } = draftFor(variables);
  const modelLines = [...models].map(
    ([id, model]) =>
      `  ${id}: { provider: ${model.provider}, ${model.kind === "chat" ? "" : `kind: ${model.kind}, `}context_window: ${model.context_window}, max_output_tokens: ${model.max_output_tokens} }`,
  );
  const rateLines = [...models].map(
    ([id, { rates }]) =>
      `    ${id}: { ${Object.entries(rates)
        .map(([name, rate]) => `${name}: ${rate}`)
        .join(", ")} }`,
  );
  return `# OpenClawMU: the administrator's configuration. Tenants cannot see or change it.
# Unknown or misspelt keys stop the gateway and are named with their line. Secrets do not belong here: name the environment
# variable that holds them.

# The model of whoever asks for "default" or "openclaw".
default_model: ${defaultModel}

providers:
${providers.join("\n")}
  # Any server that speaks the OpenAI API:
  # local:
  #   kind: openai-compatible
  #   base_url: http://127.0.0.1:11434/v1
  # "api: responses" beside a kind of openai or openai-compatible speaks OpenAI's Responses instead of its Chat Completions.

# What may be called. A model without a price below is refused. Its kind is chat unless it says embedding, transcription or moderation.
models:
${modelLines.join("\n")}

billing:
  currency: USD
  markup: 0          # 0.10 adds 10 % to every call
  # USD per 1M tokens, at most 6 decimals. Without them cache_read and cache_write cost what input does, reasoning what output does.
  rate_card:
    ${prices}
${rateLines.join("\n")}

# Ceilings of a tenant that has none of its own; leave out or null means none.
# quotas:
#   default: { tokens_per_day: 1_000_000, cost_per_day_usd: 25, requests_per_minute: 60 }

# A Postgres or Temporal of your own; without these, both run inside the gateway's home.
# database: { url: postgres://openclaw@host:5432/openclaw }   # or, with a password, DATABASE_URL in the environment
# temporal: { address: 127.0.0.1:7233, namespace: default }
`;
}

/**
 * Writes `<home>/config.yaml` (mode 0600) if there is none: a provider for each of OPENAI_API_KEY and ANTHROPIC_API_KEY that is
 * set, else the built-in demonstration model. The home must exist.
 * @returns whether it was written; an existing file is never touched.
 */
export const writeDefaultConfig = (home: string, variables: KeySource): boolean =>
  createPrivateFile(adminConfigPath(home), defaultConfigText(variables));
