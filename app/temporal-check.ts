import type { AdminConfig, KeySource } from "../control-plane/admin-config.ts";
import { type Checked, type Finding, oneLine } from "../control-plane/doctor-finding.ts";
import type { Environment } from "../control-plane/environment.ts";
import { runningGateway } from "../control-plane/gateway-record.ts";
import { searchAttributeTypes } from "../domain/search-attributes.ts";
import { findTemporalBinary } from "../temporal-dev/temporal-binary.mjs";
import { temporalApiKeyOf, temporalTlsOf } from "../control-plane/temporal-tls.ts";
import { describeTemporal, type TemporalReport } from "../temporal/server-report.ts";

const check = "temporal";
const wantedRetentionDays = 30;

/** The server that a start here would use: one of the operator's, the running gateway's, or else the binary to start one with. */
export async function checkTemporal(
  { temporalAddress, temporalNamespace, temporalCliPath, home }: Environment,
  config: AdminConfig | undefined,
  variables: KeySource,
): Promise<Checked> {
  const running = runningGateway(home)?.temporal;
  const given = temporalAddress ?? config?.temporal.address;
  const address = given ?? running?.address;
  if (address === undefined) return { finding: checkTemporalBinary(temporalCliPath, variables) };
  const namespace = temporalNamespace ?? config?.temporal.namespace ?? running?.namespace ?? "default";
  try {
    const tls = config === undefined ? undefined : temporalTlsOf(config, home);
    const apiKey = config === undefined ? undefined : temporalApiKeyOf(config, variables);
    return {
      finding: judgeTemporal(address, namespace, await describeTemporal({ address, namespace, tls, apiKey }, searchAttributeTypes)),
    };
  } catch (error) {
    return {
      finding: {
        check,
        state: "failed",
        says: `no Temporal server answers at ${address} (${oneLine((error as Error).message)})`,
        mend: given === undefined ? "restart the gateway" : "start that server, or correct TEMPORAL_ADDRESS or temporal.address",
      },
    };
  }
}

function judgeTemporal(
  address: string,
  namespace: string,
  { serverVersion, retentionDays, missingSearchAttributes }: TemporalReport,
): Finding {
  const at = `at ${address}`;
  const temporal = `temporal operator`;
  if (retentionDays === undefined)
    return {
      check,
      state: "failed",
      says: `the server ${at} has no namespace ${namespace}`,
      mend: `${temporal} namespace create --address ${address} --namespace ${namespace} --retention ${wantedRetentionDays * 24}h`,
    };
  const [missing] = missingSearchAttributes ?? [];
  if (missing !== undefined) {
    const words = (missingSearchAttributes ?? []).map(
      (name) => `--name ${name} --type ${searchAttributeTypes[name as keyof typeof searchAttributeTypes]}`,
    );
    return {
      check,
      state: "failed",
      says: `the namespace ${namespace} ${at} lacks the search attributes ${(missingSearchAttributes ?? []).join(", ")}`,
      mend: `${temporal} search-attribute create --address ${address} --namespace ${namespace} ${words.join(" ")}`,
    };
  }
  if (retentionDays < wantedRetentionDays)
    return {
      check,
      state: "warning",
      says: `the namespace ${namespace} ${at} keeps histories for ${Math.floor(retentionDays)} days: audit verify compares no more`,
      mend: `${temporal} namespace update --address ${address} --namespace ${namespace} --retention ${wantedRetentionDays * 24}h`,
    };
  return { check, state: "ok", says: `Temporal ${serverVersion} ${at}, namespace ${namespace}` };
}

function checkTemporalBinary(given: string | undefined, variables: KeySource): Finding {
  const skipped = new Map<string, string>();
  const found = findTemporalBinary({ env: variables, onSkip: (path, reason) => skipped.set(path, reason) });
  const passedOver = [...skipped].map(([path, reason]) => `${path}: ${oneLine(reason)}`).join("; ");
  if (found !== undefined && (given === undefined || found.source === "TEMPORAL_CLI_PATH"))
    return { check, state: "ok", says: `${found.path} (${found.version})` };
  if (found !== undefined)
    return { check, state: "warning", says: `${found.path} is used instead of ${passedOver}`, mend: "correct or unset TEMPORAL_CLI_PATH" };
  if (given !== undefined)
    return { check, state: "failed", says: `TEMPORAL_CLI_PATH cannot be used: ${passedOver}`, mend: "correct or unset it" };
  return {
    check,
    state: "warning",
    says: skipped.size === 0 ? "no Temporal CLI found yet" : `no Temporal CLI that can be used: ${passedOver}`,
    mend: '"npm start" obtains one, or put temporal on PATH',
  };
}
