import { type AdminConfig, type KeySource, loadAdminConfig } from "../control-plane/admin-config.ts";
import type { HostReport } from "../control-plane/doctor-finding.ts";
import { readEnvironment } from "../control-plane/environment.ts";
import { AppError } from "../domain/app-error.ts";
import { checkAuditKey, checkKeyEncryption } from "./key-check.ts";
import { checkPostgres } from "./postgres-check.ts";
import { checkProcesses } from "./process-check.ts";
import { checkProvider } from "./provider-check.ts";
import { checkBubblewrap, checkCgroup, checkSandboxModes } from "./sandbox-check.ts";
import { checkTemporalUi } from "./temporal-ui-check.ts";
import { checkTemporal } from "./temporal-check.ts";

/**
 * The part of `openclaw doctor` whose rooms the CLI may not enter: what a start on this machine would find of its servers, its
 * sandbox and its providers. Prints one `HostReport` and changes nothing.
 */
async function hostReport(variables: KeySource): Promise<HostReport> {
  const environment = readEnvironment(variables);
  const config = usableConfig(environment.home);
  const providers = [...(config?.providers.values() ?? [])].filter(({ kind }) => kind !== "demo");
  const [{ report, ...postgres }, ui, modes, answers, ...others] = await Promise.all([
    checkPostgres(environment, config),
    environment.temporalUiUrl === undefined ? undefined : checkTemporalUi(environment.temporalUiUrl),
    checkSandboxModes(config, environment.home),
    Promise.all(config === undefined ? [] : providers.map(async (provider) => await checkProvider(provider, config, variables))),
    checkTemporal(environment, config, variables),
    checkBubblewrap(),
    checkCgroup(config),
  ]);
  const checked = [...others, ...answers.flat()];
  return {
    findings: [
      ...[postgres, ...checked].map(({ finding }) => finding),
      ...(modes === undefined ? [] : [modes.finding]),
      ...(report?.placement === undefined ? [] : [checkProcesses(report.placement)]),
      ...(ui === undefined ? [] : [ui]),
      checkKeyEncryption(environment, report),
      checkAuditKey(environment, report),
    ],
    clocks: [postgres, ...checked].flatMap(({ clock }) => (clock === undefined ? [] : [clock])),
  };
}

/** A configuration that is not there or cannot be read is the finding of another check. */
function usableConfig(home: string): AdminConfig | undefined {
  try {
    return loadAdminConfig(home);
  } catch (error) {
    if (error instanceof AppError) return undefined;
    throw error;
  }
}

process.stdout.write(JSON.stringify(await hostReport({ ...process.env })));
process.exit(0); // a client that gave up may still hold a socket
