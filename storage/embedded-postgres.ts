import { execFile, spawn, type ChildProcess } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import {
  chmodSync,
  chownSync,
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { createServer, type Server } from "node:net";
import { basename, dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import pg from "pg";
import { commandLineOf, postgresProcessesIn } from "./linux-process.ts";
import { embeddedPlatform, postgresMajor, preparePostgresServer, type PostgresServerFiles } from "./postgres-server-files.ts";
import { runsAsRoot, traversableDirectory, type OsUser } from "./traversable-directory.ts";

type Log = (message: string, fields?: Record<string, unknown>) => void;

export type EmbeddedPostgresOptions = {
  /** `<home>/postgres`: holds the server's private copy, its data, its log and the remembered port and password. */
  readonly dataDir: string;
  /** A port that must be taken; default: the remembered one, else any free one. */
  readonly port?: number;
  readonly log: Log;
};

export type EmbeddedPostgres = {
  /** URL of the owner of the database "openclaw", password included. */
  readonly ownerUrl: string;
  readonly port: number;
  /** Of the current postmaster: another one after a crash. */
  readonly pid: number;
  /** Resolves when the server process has gone. */
  stop(): Promise<void>;
};

const systemUser = "openclaw-postgres";
const ownerName = "openclaw";
const databaseName = "openclaw";
const logSizeLimitBytes = 10 * 1024 * 1024;
const run = promisify(execFile);

/** What the launcher knows of its place; all paths are real paths. */
type Place = {
  readonly directory: string;
  readonly data: string;
  readonly logFile: string;
  readonly stateFile: string;
  /** As root: the user that the server runs as. */
  readonly user: OsUser | undefined;
  readonly log: Log;
};

type State = { readonly port: number; readonly password: string };

/**
 * Starts the embedded Postgres of a home as a direct child of this process and keeps it running until `stop()`.
 * @throws {Error} in plain words when it cannot: no binaries for this platform, already run by another process, a data
 * directory of another major version, a taken `port`, a full disk.
 */
export async function startEmbeddedPostgres({ dataDir, port, log }: EmbeddedPostgresOptions): Promise<EmbeddedPostgres> {
  const platform = embeddedPlatform();
  const user = runsAsRoot() ? await findOrMakeSystemUser() : undefined;
  const directory = traversableDirectory(dirname(dataDir), basename(dataDir), user);
  const place: Place = {
    directory,
    data: join(directory, "data"),
    logFile: join(directory, "server.log"),
    stateFile: join(directory, "state.json"),
    user,
    log,
  };
  const lock = await holdPlace(place);
  try {
    refuseOtherMajor(place);
    const files = preparePostgresServer(directory, platform);
    await endOrphans(place);
    const state = await initialise(place, files);
    const supervisor = new Supervisor({ place, files, state, lock, givenPort: port });
    await supervisor.start();
    return supervisor;
  } catch (error) {
    lock.close();
    throw error;
  }
}

// ---- One launcher per place -------------------------------------------------------------------------------------------------

/** An abstract socket is held exactly as long as its process lives, so a lock is never stale and needs no cleaning. */
async function holdPlace({ directory }: Place): Promise<Server> {
  const name = `\0openclaw-postgres-${createHash("sha256").update(directory).digest("hex")}`;
  for (let attempt = 1; ; attempt++) {
    const server = createServer((socket) => void socket.destroy()).unref();
    try {
      await new Promise<void>((resolve, reject) => void server.once("error", reject).listen(name, resolve));
      return server;
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== "EADDRINUSE") throw cause;
      if (attempt === 10) throw new Error(`another process already runs the Postgres of ${directory}`, { cause });
      await sleep(100); // a process that was killed just now takes a moment to be gone
    }
  }
}

// ---- The user ---------------------------------------------------------------------------------------------------------------

/** Postgres refuses to run as root. */
async function findOrMakeSystemUser(): Promise<OsUser> {
  const found = findSystemUser();
  if (found !== undefined) return found;
  const failure = await run("useradd", ["--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", systemUser]).then(
    () => undefined,
    (error: Error) => error,
  );
  const made = findSystemUser(); // another process may have been faster, so only this counts
  if (made === undefined) {
    throw new Error(`Postgres cannot run as root and its user is missing: useradd --system ${systemUser}`, { cause: failure });
  }
  return made;
}

function findSystemUser(): OsUser | undefined {
  const line = readFileSync("/etc/passwd", "utf8")
    .split("\n")
    .find((entry) => entry.startsWith(`${systemUser}:`));
  const [, , uid, gid] = line?.split(":") ?? [];
  return uid === undefined || gid === undefined ? undefined : { uid: Number(uid), gid: Number(gid) };
}

/** The command that becomes `program`: it is told (SIGINT: fast shutdown) when our process dies, however it dies. */
async function asServerUser(
  program: string,
  words: readonly string[],
  { user }: Place,
): Promise<{ file: string; words: string[] } & Partial<OsUser>> {
  const deathSignal = await run("setpriv", ["--pdeathsig", "INT", "true"]).then(
    () => true,
    () => false, // no util-linux, or an old one: orphans are then found and ended by the next start
  );
  if (!deathSignal) return { file: program, words: [...words], ...user };
  // A change of credentials clears the signal, so setpriv does both, in the right order.
  const drop = user === undefined ? [] : [`--reuid=${user.uid}`, `--regid=${user.gid}`, "--clear-groups"];
  return { file: "setpriv", words: ["--pdeathsig", "INT", ...drop, "--", program, ...words] };
}

const serverEnvironment = { PATH: process.env["PATH"] ?? "/usr/bin:/bin", LC_ALL: "C", TZ: "UTC" };

// ---- The data directory -----------------------------------------------------------------------------------------------------

function refuseOtherMajor({ data }: Place): void {
  if (!existsSync(join(data, "PG_VERSION"))) return;
  const major = readFileSync(join(data, "PG_VERSION"), "utf8").trim();
  if (major === postgresMajor) return;
  throw new Error(
    `${data} was made by Postgres ${major}, and this version carries Postgres ${postgresMajor}: ` +
      `restore a backup into an empty home, or run the old server yourself and set DATABASE_URL`,
  );
}

/** Makes the data directory where there is none, under another name until it is complete. */
async function initialise(place: Place, files: PostgresServerFiles): Promise<State> {
  const { data, stateFile, user } = place;
  if (existsSync(join(data, "PG_VERSION"))) return readState(stateFile);

  const state: State = { port: 0, password: randomBytes(24).toString("hex") };
  const draft = `${data}.draft`;
  const passwordFile = `${data}.password`;
  rmSync(draft, { recursive: true, force: true });
  mkdirSync(draft, { mode: 0o700 });
  writeFileSync(passwordFile, state.password, { mode: 0o600 });
  if (user !== undefined) for (const path of [draft, passwordFile]) chownSync(path, user.uid, user.gid);

  const words = ["--pgdata", draft, "--username", ownerName, "--pwfile", passwordFile, "--auth", "scram-sha-256", "--encoding", "UTF8"];
  const locale = ["--locale-provider", "builtin", "--builtin-locale", "C.UTF-8", "--locale", "C", "--text-search-config", "simple"];
  // Synced in one go: file by file is slow, and the rename below only happens after it.
  const sync = ["--sync-method", "syncfs", "--no-instructions"];
  const command = await asServerUser(files.initdb, [...words, ...locale, ...sync], place);
  try {
    const { file, words: all, ...credentials } = command;
    await run(file, all, { ...credentials, cwd: place.directory, env: serverEnvironment });
  } catch (cause) {
    const { stderr = "", message } = cause as Error & { stderr?: string };
    throw new Error(`initdb failed in ${place.directory}: ${stderr.trim() || message}`, { cause });
  } finally {
    rmSync(passwordFile, { force: true });
  }
  writeState(stateFile, state);
  rmSync(data, { recursive: true, force: true }); // at most an empty directory: it has no PG_VERSION
  renameSync(draft, data);
  return state;
}

function readState(stateFile: string): State {
  try {
    return JSON.parse(readFileSync(stateFile, "utf8")) as State;
  } catch (cause) {
    throw new Error(`${stateFile}, which holds the password of the database beside it, is missing or damaged`, { cause });
  }
}

function writeState(stateFile: string, state: State): void {
  writeFileSync(`${stateFile}.draft`, `${JSON.stringify(state)}\n`, { mode: 0o600, flush: true });
  renameSync(`${stateFile}.draft`, stateFile);
}

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

// ---- Orphans and stale locks ------------------------------------------------------------------------------------------------

/**
 * Ends whatever Postgres still works in the data directory (we hold the place, so nobody supervises it), then removes the lock
 * file. Only after that is the file proven stale: its pid may by now be an innocent process, or a zombie, which Postgres itself
 * takes for a living server.
 */
async function endOrphans({ data, log }: Place): Promise<void> {
  const lockFile = join(data, "postmaster.pid");
  const lockedPid = existsSync(lockFile) ? Math.abs(Number(readFileSync(lockFile, "utf8").split("\n")[0])) : undefined;
  const orphans = postgresProcessesIn(data);
  if (orphans.length > 0) {
    log("ending an orphaned Postgres", { pids: orphans });
    const postmaster = orphans.find((pid) => pid === lockedPid);
    // Without its postmaster a backend has nobody to be told by, and none of its work can be committed in order any more.
    if (postmaster !== undefined) signal([postmaster], "SIGINT");
    const gone =
      (postmaster !== undefined && (await haveGone(data, 5_000))) ||
      (signal(postgresProcessesIn(data), "SIGQUIT"), await haveGone(data, 3_000)) ||
      (signal(postgresProcessesIn(data), "SIGKILL"), await haveGone(data, 5_000));
    if (!gone) throw new Error(`Postgres processes ${postgresProcessesIn(data).join(", ")} in ${data} do not end`);
  }
  if (lockedPid === undefined) return;
  const words = commandLineOf(lockedPid);
  if (words !== undefined && basename(words[0] ?? "") === "postgres" && words.includes(data) && !runsAsRoot()) {
    throw new Error(`${data} is in use by the Postgres with pid ${lockedPid}, which belongs to another user`);
  }
  rmSync(lockFile, { force: true });
}

function signal(pids: readonly number[], name: NodeJS.Signals): void {
  for (const pid of pids) {
    try {
      process.kill(pid, name);
    } catch {
      // It went by itself.
    }
  }
}

async function haveGone(data: string, timeoutMs: number): Promise<boolean> {
  for (const end = Date.now() + timeoutMs; Date.now() < end; await sleep(20)) {
    if (postgresProcessesIn(data).length === 0) return true;
  }
  return false;
}

// ---- Ports ------------------------------------------------------------------------------------------------------------------

const isFree = (port: number): Promise<boolean> =>
  new Promise((resolve) => {
    const probe = createServer();
    probe.once("error", () => resolve(false)).listen({ port, host: "127.0.0.1" }, () => probe.close(() => resolve(true)));
  });

const anyFreePort = (): Promise<number> =>
  new Promise((resolve, reject) => {
    const probe = createServer();
    probe.once("error", reject).listen({ port: 0, host: "127.0.0.1" }, () => {
      const address = probe.address();
      probe.close(() => (address !== null && typeof address === "object" ? resolve(address.port) : reject(new Error("no port"))));
    });
  });

// ---- The server process -----------------------------------------------------------------------------------------------------

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
class Supervisor implements EmbeddedPostgres {
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
    return `postgres://${ownerName}:${this.#parts.state.password}@127.0.0.1:${this.#port}/${database}`;
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
    const { file, words: all, ...credentials } = await asServerUser(files.postgres, words, place);
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
