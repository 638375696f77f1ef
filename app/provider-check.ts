import { type AdminConfig, type KeySource, type ProviderSettings, hasKey, providerKeysOf } from "../control-plane/admin-config.ts";
import { type Checked, readingOf } from "../control-plane/doctor-finding.ts";
import { AppError } from "../domain/app-error.ts";
import type { ProviderKey } from "../providers/key-ring.ts";
import { askProvider } from "../providers/provider-reachability.ts";

/** Whether a configured provider answers and takes its keys: a finding for each, and for each that is not there. */
export async function checkProvider(provider: ProviderSettings, config: AdminConfig, variables: KeySource): Promise<readonly Checked[]> {
  const serves = config.models.get(config.defaultModel)?.provider === provider.name;
  const missing = provider.apiKeyEnvs
    .filter((name) => !variables[name])
    .map((name): Checked => ({
      finding: {
        check: `provider ${provider.name}`,
        state: serves && !hasKey(provider, variables) ? "failed" : "warning",
        says: hasKey(provider, variables) ? `is used without a key: ${name} is not set here` : `has no key: ${name} is not set here`,
        mend: `set ${name} where the gateway is started`,
      },
    }));
  const keys = providerKeysOf(provider, variables);
  const asked = await Promise.all(
    provider.apiKeyEnvs.length === 0 ? [checkKey(provider, undefined)] : keys.map(async (key) => await checkKey(provider, key)),
  );
  return [...missing, ...asked];
}

async function checkKey(provider: ProviderSettings, key: ProviderKey | undefined): Promise<Checked> {
  const { name, apiKeyEnvs } = provider;
  const check = apiKeyEnvs.length > 1 ? `provider ${name}, key ${key?.name}` : `provider ${name}`;
  try {
    const { state, says, clock } = await askProvider(provider, key?.secret);
    const mend = {
      refused: `put another key in ${key?.name ?? "api_key_env"}`,
      failing: `look at providers.${name}.base_url and at the provider's status page`,
      unreachable: `look at providers.${name}.base_url, the name server and the firewall`,
    };
    return {
      finding: {
        check,
        says,
        ...(state === "reachable" ? { state: "ok" } : { state: state === "failing" ? "warning" : "failed", mend: mend[state] }),
      },
      // HTTP tells whole seconds, cut off.
      ...(clock === undefined ? {} : { clock: readingOf(`the clock of the provider ${name}`, { ...clock, atMs: clock.atMs + 500 }, 500) }),
    };
  } catch (error) {
    if (!(error instanceof AppError)) throw error;
    return { finding: { check, state: "failed", says: error.message, mend: `correct providers.${name} or the variable it names` } };
  }
}
