import { join } from "node:path";
import type { AdminConfig, KeySource } from "../control-plane/admin-config.ts";
import type { Environment } from "../control-plane/environment.ts";
import { AppError } from "../domain/app-error.ts";
import { searchAttributeTypes } from "../domain/search-attributes.ts";
import { startEmbeddedPostgres } from "../storage/embedded-postgres.ts";
import { findTemporalBinary } from "../temporal-dev/temporal-binary.mjs";
import { startTemporalServer } from "../temporal-dev/temporal-server.ts";
import type { TemporalTls } from "../temporal/temporal-connection.ts";
import { workflowBundle } from "../workers/workflow-bundle.ts";
import type { Log } from "./log.ts";
import type { Resources } from "./resources.ts";
import type { Role } from "./start-arguments.ts";
import { temporalApiKeyOf, temporalTlsOf } from "../control-plane/temporal-tls.ts";

/** The servers that the product stands on: its own children, or ones of the operator's. */
export type Backends = {
  readonly databaseUrl: string;
  readonly databaseKind: "embedded" | "external";
  readonly temporal: {
    readonly address: string;
    readonly tls: TemporalTls | undefined;
    readonly apiKey: string | undefined;
    readonly namespace: string;
    /** Of Temporal's Web UI itself, which asks nobody who they are: people go through the gateway. */
    readonly uiUrl: string | undefined;
    readonly cliPath: string | undefined;
  };
  readonly bundle: { readonly codePath: string; readonly buildId: string };
  readonly warnings: readonly string[];
};

export type BackendOptions = {
  readonly environment: Environment;
  readonly config: AdminConfig;
  readonly home: string;
  /** The process's environment. */
  readonly variables: KeySource;
  readonly role: Role;
  readonly log: Log;
  readonly resources: Resources;
};

/** Starts Postgres, Temporal and the workflow bundle side by side; what is started is added to `resources`, in one step. */
export async function startBackends({ environment, config, home, variables, role, log, resources }: BackendOptions): Promise<Backends> {
  const databaseUrl = environment.databaseUrl ?? config.database.url;
  const temporalAddress = environment.temporalAddress ?? config.temporal.address;
  const namespace = environment.temporalNamespace ?? config.temporal.namespace ?? "default";
  if (role !== "all" && (databaseUrl === undefined || temporalAddress === undefined)) {
    throw new AppError("invalid_configuration", {
      client: { message: `--role ${role} shares its servers with other processes: set DATABASE_URL and TEMPORAL_ADDRESS` },
    });
  }
  const tls = temporalTlsOf(config, home);
  const apiKey = temporalApiKeyOf(config, variables);
  if (tls !== undefined && temporalAddress === undefined) {
    throw new AppError("invalid_configuration", {
      client: {
        message:
          "temporal.tls is for a Temporal server of your own: set temporal.address or TEMPORAL_ADDRESS, or remove the temporal.tls and api_key_env keys",
        param: "temporal.tls",
      },
    });
  }
  const servers: { stop(): Promise<void> }[] = [];
  resources.add(servers, async (started) => await Promise.all(started.map(async (server) => await server.stop())));
  const keep = <T extends { stop(): Promise<void> }>(server: T): T => (servers.push(server), server);

  const outcomes = await Promise.allSettled([
    databaseUrl === undefined ? startEmbeddedPostgres({ dataDir: join(home, "postgres"), log }).then(keep) : undefined,
    temporalAddress === undefined ? startTemporal({ environment, home, namespace, log }).then(keep) : undefined,
    workflowBundle(join(home, "cache")),
  ]);
  for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
  const [postgres, temporal, bundle] = outcomes.map((outcome) => (outcome as PromiseFulfilledResult<unknown>).value) as [
    Awaited<ReturnType<typeof startEmbeddedPostgres>> | undefined,
    Awaited<ReturnType<typeof startTemporal>> | undefined,
    Backends["bundle"],
  ];
  return {
    databaseUrl: postgres?.ownerUrl ?? databaseUrl ?? "",
    databaseKind: postgres === undefined ? "external" : "embedded",
    temporal: {
      address: temporal?.address ?? temporalAddress ?? "",
      tls,
      apiKey,
      namespace,
      uiUrl: temporal?.uiUrl ?? environment.temporalUiUrl,
      cliPath: temporal?.cliPath,
    },
    bundle,
    warnings: temporal === undefined ? [] : portWarnings(temporal),
  };
}

async function startTemporal({
  environment,
  home,
  namespace,
  log,
}: {
  environment: Environment;
  home: string;
  namespace: string;
  log: Log;
}) {
  const binary = findTemporalBinary({
    env: { ...process.env, ...(environment.temporalCliPath === undefined ? {} : { TEMPORAL_CLI_PATH: environment.temporalCliPath }) },
  });
  if (binary === undefined) {
    throw new AppError("invalid_configuration", {
      client: { message: "no Temporal command line was found: run `node scripts/setup.mjs`, or set TEMPORAL_CLI_PATH or TEMPORAL_ADDRESS" },
    });
  }
  const server = await startTemporalServer({
    binaryPath: binary.path,
    dataDir: join(home, "temporal"),
    namespace,
    searchAttributes: searchAttributeTypes,
    uiPublicPath: "/temporal",
    uiCodecEndpoint: "/temporal-codec",
    log,
  });
  return { ...pickServer(server), cliPath: binary.path };
}

const defaultPort = 7233;
const defaultUiPort = 8233;

/** Ports that somebody else has, said where an operator sees it. */
function portWarnings({ address, uiUrl }: { address: string; uiUrl: string }): string[] {
  return [
    ...(address.endsWith(`:${defaultPort}`) ? [] : [`Port ${defaultPort} is taken, so Temporal listens on ${address}.`]),
    ...(uiUrl.includes(`:${defaultUiPort}`) ? [] : [`Port ${defaultUiPort} is taken, so Temporal's Web UI is at ${uiUrl}.`]),
  ];
}

const pickServer = ({ address, uiUrl, stop }: { address: string; uiUrl: string; stop: () => Promise<void> }) => ({ address, uiUrl, stop });
