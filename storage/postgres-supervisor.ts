import { spawn, type ChildProcess } from "node:child_process";
import { chmodSync, closeSync, existsSync, openSync, readFileSync, readSync, renameSync, statSync, writeFileSync } from "node:fs";
import type { Server } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import pg from "pg";
import { anyFreePort, isFree } from "./free-port.ts";
import { postgresProcessesIn } from "./linux-process.ts";
import { endOrphans } from "./postgres-orphans.ts";
import { writeState, type Place, type State } from "./postgres-place.ts";
import type { PostgresServerFiles } from "./postgres-server-files.ts";
import { asServerUser, serverEnvironment } from "./postgres-user.ts";

/** The superuser that owns the database. */
export const ownerName = "openclaw";
const databaseName = "openclaw";

export const ownerUrlOf = ({ port, password }: State, database = databaseName): string =>
  `postgres://${ownerName}:${password}@127.0.0.1:${port}/${database}`;
const logSizeLimitBytes = 10 * 1024 * 1024;

/** Rewritten at each start, outside the data directory: our settings follow our version, a user's go into `tuning.conf`. */
function writeConfiguration({ directory }: Place): string[] {
  const settings = `# Written by OpenClawMU at each start. Put your own settings into tuning.conf beside this file.
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 100
shared_buffers = 64MB
maintenance_work_mem = 64MB
min_wal_size = 80MB
max_wal_size = 512MB
# A recycled segment would keep what a deleted tenant wrote until it is overwritten.
wal_recycle = off
fsync = on
synchronous_commit = on
full_page_writes = on
autovacuum = on
jit = off
timezone = 'UTC'
log_timezone = 'UTC'
log_destination = 'stderr'
log_line_prefix = '%m [%p] '
# Statements and their values are customers' text: they never reach the log.
log_min_messages = log
log_min_error_statement = panic
log_error_verbosity = terse
log_parameter_max_length_on_error = 0
log_checkpoints = off
# A caller that was killed holds its locks no longer than this.
client_connection_check_interval = '2s'
idle_in_transaction_session_timeout = '5min'
${existsSync(join(directory, "tuning.conf")) ? "include 'tuning.conf'\n" : ""}`;
  const access = "host all all 127.0.0.1/32 scram-sha-256\n";
  const paths = { config_file: join(directory, "postgresql.conf"), hba_file: join(directory, "pg_hba.conf") };
  for (const [path, text] of [
    [paths.config_file, settings],
    [paths.hba_file, access],
  ] as const) {
    writeFileSync(path, text);
    chmodSync(path, 0o644);
  }
  return Object.entries(paths).flatMap(([name, value]) => ["-c", `${name}=${value}`]);
}

/** The server ended before it was ready. */
class StartFailure extends Error {
  readonly portTaken: boolean;
  constructor(data: string, lines: string) {
    const reason = /No space left on device/.test(lines)
      ? "the disk is full"
      : /Permission denied/.test(lines)
        ? "a permission is missing"
        : "it ended while starting";
    super(`Postgres in ${data} did not start: ${reason}. Its last words:\n${lines}`);
    this.portTaken = /could not bind|could not create any TCP/.test(lines);
  }
}

type SupervisorParts = {
  readonly place: Place;
  readonly files: PostgresServerFiles;
  readonly state: State;
  readonly lock: Server;
  readonly givenPort: number | undefined;
};

/** Keeps one postmaster alive: state with a lifetime, hence a class. */
export class Supervisor {
  readonly #parts: SupervisorParts;
  #port = 0;
  #child: ChildProcess | undefined;
  #lastPid = 0;
  #stopping = false;
  #restarting: Promise<void> | undefined;
  #wakeUp = new AbortController();

  constructor(parts: SupervisorParts) {
    this.#parts = parts;
  }

  get port(): number {
    return this.#port;
  }

  get pid(): number {
    return this.#child?.pid ?? this.#lastPid;
  }

  get ownerUrl(): string {
    return this.#urlOf(databaseName);
  }

  #urlOf(database: string): string {
    return ownerUrlOf({ port: this.#port, password: this.#parts.state.password }, database);
  }

  async start(): Promise<void> {
    const { state, givenPort, place } = this.#parts;
    for (let attempt = 1; ; attempt++) {
      this.#port = givenPort ?? (attempt === 1 && state.port !== 0 && (await isFree(state.port)) ? state.port : await anyFreePort());
      try {
        await this.#launch();
        break;
      } catch (error) {
        if (!(error instanceof StartFailure && error.portTaken)) throw error;
        if (givenPort !== undefined)
          throw new Error(`port ${givenPort} of 127.0.0.1, which was given for Postgres, is taken`, { cause: error });
        if (attempt === 5) throw error;
      }
    }
    if (state.port !== 0 && state.port !== this.#port) place.log("the Postgres port was taken", { was: state.port, now: this.#port });
    if (state.port !== this.#port) writeState(place.stateFile, { ...state, port: this.#port });
    await this.#createDatabase().catch(async (error: unknown) => {
      await this.#end();
      throw error;
    });
  }

  /** Starts the server and waits until it takes connections, or throws what it said last. */
  async #launch(): Promise<void> {
    const { place, files } = this.#parts;
    const { data, logFile, log } = place;
    const words = ["-D", data, "-p", String(this.#port), ...writeConfiguration(place)];
    const { file, words: all, ...credentials } = await asServerUser(files.postgres, words, place.user);
    if ((statSync(logFile, { throwIfNoEntry: false })?.size ?? 0) > logSizeLimitBytes) renameSync(logFile, `${logFile}.1`);
    const output = openSync(logFile, "a", 0o600);
    const logStart = statSync(logFile).size;
    // Its own process group: Ctrl-C in a terminal is for us, and we end the server when nobody needs it any more.
    const child = spawn(file, all, {
      ...credentials,
      cwd: place.directory,
      env: serverEnvironment,
      stdio: ["ignore", output, output],
      detached: true,
    });
    closeSync(output);
    const ended = new Promise<"ended">((resolve) => {
      child.once("exit", () => resolve("ended")).once("error", () => resolve("ended"));
    });
    this.#child = child;
    this.#lastPid = child.pid ?? 0;

    const launchedAt = Date.now();
    let saidAt = launchedAt;
    while ((await Promise.race([ended, sleep(10)])) !== "ended") {
      if (isReady(data, child.pid)) {
        child.once("exit", (code, killedBy) => this.#onExit(child, { code, killedBy, launchedAt }));
        if (child.exitCode !== null || child.signalCode !== null) break;
        return;
      }
      if (Date.now() - saidAt > 10_000) {
        saidAt = Date.now();
        log("Postgres is still starting (recovery of a large database can take minutes)", {
          seconds: Math.round((saidAt - launchedAt) / 1000),
        });
      }
    }
    this.#child = undefined;
    throw new StartFailure(data, lastLines(logFile, logStart));
  }

  #onExit(child: ChildProcess, exit: { code: number | null; killedBy: string | null; launchedAt: number }): void {
    if (this.#child !== child) return;
    this.#child = undefined;
    if (this.#stopping) return;
    const { launchedAt, ...how } = exit;
    this.#parts.place.log("Postgres ended unexpectedly, starting it again", { ...how, pid: child.pid });
    this.#restarting = this.#restart(Date.now() - launchedAt > 30_000 ? 0 : 100).finally(() => (this.#restarting = undefined));
  }

  async #restart(firstDelayMs: number): Promise<void> {
    const { place } = this.#parts;
    for (let delayMs = firstDelayMs; !this.#stopping; delayMs = Math.min(Math.max(100, delayMs * 2), 5_000)) {
      await sleep(delayMs, undefined, { signal: this.#wakeUp.signal }).catch(() => undefined);
      if (this.#stopping) return;
      try {
        await endOrphans(place); // backends outlive a killed postmaster for a moment
        await this.#launch();
        place.log("Postgres runs again", { pid: this.pid, port: this.#port });
        return;
      } catch (error) {
        place.log("Postgres could not be started again, trying on", { error: error instanceof Error ? error.message : String(error) });
      }
    }
  }

  async #createDatabase(): Promise<void> {
    const client = new pg.Client({ connectionString: this.#urlOf("postgres") });
    client.on("error", () => undefined); // seen by the query as well
    await client.connect();
    try {
      const { rowCount } = await client.query("select 1 from pg_database where datname = $1", [databaseName]);
      if (rowCount === 0) await client.query(`create database ${databaseName}`);
    } finally {
      await client.end();
    }
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    this.#wakeUp.abort();
    if (this.#restarting !== undefined) this.#child?.kill("SIGINT"); // it may be in the middle of a long recovery
    await this.#restarting;
    await this.#end();
  }

  async #end(): Promise<void> {
    this.#stopping = true;
    const child = this.#child;
    if (child !== undefined && child.exitCode === null && child.signalCode === null) {
      const gone = new Promise<void>((resolve) => void child.once("exit", () => resolve()));
      for (const [name, patienceMs] of [
        ["SIGINT", 3_000],
        ["SIGQUIT", 6_000],
        ["SIGKILL", 60_000],
      ] as const) {
        child.kill(name);
        const patience = new AbortController();
        const went = await Promise.race([gone.then(() => true), sleep(patienceMs, false, { signal: patience.signal }).catch(() => false)]);
        patience.abort();
        if (went) break;
      }
    }
    // A postmaster that ended in order waited for its backends; one that was killed did not.
    if (postgresProcessesIn(this.#parts.place.data).length > 0) await endOrphans(this.#parts.place);
    this.#parts.lock.close();
  }
}

/** The postmaster writes its state on the eighth line of its lock file. */
function isReady(data: string, pid: number | undefined): boolean {
  try {
    const lines = readFileSync(join(data, "postmaster.pid"), "utf8").split("\n");
    return Number(lines[0]) === pid && lines[7]?.trim() === "ready";
  } catch {
    return false;
  }
}

function lastLines(logFile: string, start: number): string {
  const file = openSync(logFile, "r");
  try {
    const buffer = Buffer.alloc(8_192);
    const size = statSync(logFile).size;
    const length = readSync(file, buffer, 0, buffer.length, Math.max(start, size - buffer.length));
    return buffer.toString("utf8", 0, length).trim().split("\n").slice(-12).join("\n") || "(nothing)";
  } finally {
    closeSync(file);
  }
}
