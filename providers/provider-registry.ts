import { createAnthropicProvider } from "./anthropic-provider.ts";
import type { CallTimeouts } from "./call-deadline.ts";
import { createDemoProvider } from "./demo-provider.ts";
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
};

export type ProviderSettings = {
  readonly limitsOf?: LimitsOf | undefined;
  readonly timeouts?: Partial<CallTimeouts> | undefined;
  readonly countTokens?: TokenCounter | undefined;
};

/**
 * The configured providers by name.
 * @param apiKeys the key of each provider by its name
 * @throws {AppError} `invalid_configuration` naming the key path of a missing or malformed key or address
 */
export function createProviders(
  configs: readonly ProviderConfig[],
  apiKeys: ReadonlyMap<string, string>,
  settings: ProviderSettings = {},
): ReadonlyMap<string, ModelProvider> {
  return new Map(configs.map((config) => [config.name, createProvider(config, apiKeys.get(config.name), settings)]));
}

function createProvider(
  { name, kind, baseUrl, api }: ProviderConfig,
  apiKey: string | undefined,
  settings: ProviderSettings,
): ModelProvider {
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
