import { type AdminConfig, type KeySource, type ProviderSettings, providerKeyOf } from "../control-plane/admin-config.ts";
import { type Checked, readingOf } from "../control-plane/doctor-finding.ts";
import { AppError } from "../domain/app-error.ts";
import { askProvider } from "../providers/provider-reachability.ts";

/** Whether a configured provider answers and takes its key. */
export async function checkProvider(provider: ProviderSettings, config: AdminConfig, variables: KeySource): Promise<Checked> {
  const { name, apiKeyEnv } = provider;
  const check = `provider ${name}`;
  const serves = config.models.get(config.defaultModel)?.provider === name;
  const key = providerKeyOf(provider, variables);
  if (apiKeyEnv !== undefined && key === undefined)
    return {
      finding: {
        check,
        state: serves ? "failed" : "warning",
        says: `has no key: ${apiKeyEnv} is not set here`,
        mend: `set ${apiKeyEnv} where the gateway is started`,
      },
    };
  try {
    const { state, says, clock } = await askProvider(provider, key);
    const mend = {
      refused: `put another key in ${apiKeyEnv ?? "api_key_env"}`,
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
