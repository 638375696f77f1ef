import { createAnthropicProvider } from "./anthropic-provider.ts";
import type { CallTimeouts } from "./call-deadline.ts";
import { createDemoProvider } from "./demo-provider.ts";
import { type KeyRest, type ProviderKey, createKeyRing } from "./key-ring.ts";
import { createKeyedProvider } from "./keyed-provider.ts";
import type { LimitsOf } from "./model-limits.ts";
import type { ModelProvider } from "./model-provider.ts";
import { createOpenAiProvider, type OpenAiApi } from "./openai-provider.ts";
import type { TokenCounter } from "./token-estimate.ts";

/** A provider as `config.yaml` describes it. It holds no key, so it may be printed. */
export type ProviderConfig = {
  readonly name: string;
  readonly kind: "openai" | "anthropic" | "openai-compatible" | "demo";
  readonly baseUrl?: string | undefined;
  /** Of the two OpenAI kinds. */
  readonly api?: OpenAiApi | undefined;
  /** Its own limits, where they are not everybody's. */
  readonly timeouts?: Partial<CallTimeouts> | undefined;
};

export type ProviderSettings = {
  readonly limitsOf?: LimitsOf | undefined;
  readonly timeouts?: Partial<CallTimeouts> | undefined;
  readonly countTokens?: TokenCounter | undefined;
  readonly onKeyRest?: ((rest: KeyRest) => void) | undefined;
  readonly now?: (() => number) | undefined;
};

/**
 * The configured providers by name.
 * @param apiKeys the keys of each provider by its name; none for one that takes none
 * @throws {AppError} `invalid_configuration` naming the key path of a missing or malformed key or address
 */
export function createProviders(
  configs: readonly ProviderConfig[],
  apiKeys: ReadonlyMap<string, readonly ProviderKey[]>,
  settings: ProviderSettings = {},
): ReadonlyMap<string, ModelProvider> {
  return new Map(configs.map((config) => [config.name, createKeyed(config, apiKeys.get(config.name) ?? [], settings)]));
}

function createKeyed(config: ProviderConfig, keys: readonly ProviderKey[], settings: ProviderSettings): ModelProvider {
  const [first, ...others] = keys;
  const memberOf = (key: ProviderKey | undefined): ModelProvider => createProvider(config, key?.secret, settings);
  const ring = createKeyRing({
    provider: config.name,
    keys: first === undefined ? ["none"] : keys.map(({ name }) => name),
    onRest: settings.onKeyRest ?? (() => {}),
    now: settings.now ?? (() => performance.now()),
  });
  return createKeyedProvider([memberOf(first), ...others.map(memberOf)], ring);
}

function createProvider(
  { name, kind, baseUrl, api, timeouts }: ProviderConfig,
  apiKey: string | undefined,
  { limitsOf, countTokens, timeouts: everybodys }: ProviderSettings,
): ModelProvider {
  const settings = { limitsOf, countTokens, timeouts: { ...everybodys, ...timeouts } };
  switch (kind) {
    case "openai":
    case "openai-compatible":
      return createOpenAiProvider({ name, kind, api, baseUrl, apiKey, ...settings });
    case "anthropic":
      return createAnthropicProvider({ name, baseUrl, apiKey, ...settings });
    case "demo":
      return createDemoProvider({ name });
  }
}
