/** Everything we ask of the dev server beyond its defaults, in one place. */

/** Keys as in `common/dynamicconfig/constants.go` of server 1.29.1; an unknown key would be ignored silently, so each was looked up there. */
export const dynamicConfig: Readonly<Record<string, string | number | boolean>> = {
  // Default 1 s: a continue-as-new within a run's first second would wait it out.
  "history.workflowIdReuseMinimalInterval": "0s",
  // Default 20 a second and shard, and the dev server has one shard: every hand-over would wait for a 50 ms slot.
  "history.transferProcessorMaxPollRPS": 2000,
  "history.timerProcessorMaxPollRPS": 2000,
  // Default 10: more Updates in flight on one workflow are refused, and the client retries that silently for seconds.
  "history.maxInFlightUpdates": 100,
  // Default 2000 in one run; lanes and tenant workflows continue-as-new when the server suggests it, which is earlier.
  "history.maxTotalUpdates": 10_000,
  // Default false: an activity would always travel through its task queue, though its worker asked to run it at once.
  "system.enableActivityEagerExecution": true,
  // Default false: fairness keys are accepted and ignored.
  "matching.enableFairness": true,
  // Default 1200 long polls for each method and namespace: about 600 live tenant workers.
  "frontend.namespaceCount": 10_000,
};

/**
 * SQLite's own defaults sync several times for each commit: 50 starts a second at 16 callers, against 107 with WAL and 179 with WAL
 * and `synchronous=NORMAL` (2 cores). The last one survives `kill -9` of anything; a power cut may take the newest seconds of
 * history, never the file. Whoever needs more runs Temporal on Postgres.
 */
const sqlitePragmas: Readonly<Record<string, string>> = { journal_mode: "WAL", synchronous: "NORMAL" };

/** Histories are the second record of the audit; the dev server's own default is one day. */
export const retentionDays = 30;

export type SearchAttributeType = "Keyword" | "KeywordList";

export type ServerArguments = {
  readonly dbFile: string;
  readonly namespace: string;
  readonly port: number;
  readonly uiPort: number;
  readonly searchAttributes: Readonly<Record<string, SearchAttributeType>>;
  readonly uiPublicPath?: string | undefined;
  readonly uiCodecEndpoint?: string | undefined;
};

/** The command line of `temporal`. Loopback only: neither the server nor its Web UI asks who is there. */
export function serverArguments(settings: ServerArguments): readonly string[] {
  return [
    "server",
    "start-dev",
    // The operator's own Temporal profile must not change what we start.
    "--disable-config-env",
    "--disable-config-file",
    "--db-filename",
    settings.dbFile,
    "--ip",
    "127.0.0.1",
    "--port",
    String(settings.port),
    "--ui-ip",
    "127.0.0.1",
    "--ui-port",
    String(settings.uiPort),
    ...(settings.uiPublicPath === undefined ? [] : ["--ui-public-path", settings.uiPublicPath]),
    ...(settings.uiCodecEndpoint === undefined ? [] : ["--ui-codec-endpoint", settings.uiCodecEndpoint]),
    "--namespace",
    settings.namespace,
    ...Object.entries(settings.searchAttributes).flatMap(([name, type]) => ["--search-attribute", `${name}=${type}`]),
    ...Object.entries(sqlitePragmas).flatMap(([name, value]) => ["--sqlite-pragma", `${name}=${value}`]),
    // Values are JSON: JSON.stringify gives "0s" the quotes it needs.
    ...Object.entries(dynamicConfig).flatMap(([key, value]) => ["--dynamic-config-value", `${key}=${JSON.stringify(value)}`]),
    "--log-level",
    "error",
    "--log-format",
    "json",
  ];
}
