import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdir, realpath, rename } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { claimDataDir, type DataDirClaim } from "./data-dir-claim.ts";
import { type ClaimedPort, claimPort } from "./free-port.ts";
import { listensOn } from "./listening-process.ts";
import { connectWhenServing, ensureNamespace } from "./namespace-setup.ts";
import { identifyProcess } from "./process-identity.mjs";
import { type SearchAttributeType, serverArguments } from "./server-settings.ts";

export type TemporalServerOptions = {
  /** From `findTemporalBinary`. */
  readonly binaryPath: string;
  /** Holds the database and the pid file; created when missing. One owner at a time. */
  readonly dataDir: string;
  readonly namespace: string;
  /** Preferred; another is taken, and logged, when it is not free. Default 7233. */
  readonly port?: number;
  /** Preferred port of the Web UI. Default 8233. */
  readonly uiPort?: number;
  readonly searchAttributes: Readonly<Record<string, SearchAttributeType>>;
  /** Path under which a reverse proxy serves the Web UI, e.g. `/temporal`. Default `/`. */
  readonly uiPublicPath?: string;
  /** Where the Web UI has payloads decoded, also as a path of the origin that shows it. */
  readonly uiCodecEndpoint?: string;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
};

export type TemporalServer = {
  /** `host:port` of the gRPC service; stays the same when the server is restarted. */
  readonly address: string;
  readonly uiUrl: string;
  readonly namespace: string;
  /** Of the server that runs now; changes when a killed one is replaced. */
  readonly pid: number;
  /** Resolves when the process has gone: SIGTERM, and SIGKILL after 4 s. */
  stop(): Promise<void>;
};

const readyWithinMs = 30_000;
const firstStartAttempts = 3;
const stopPatienceMs = 4000;
/** First and last ones: a panic says why in its first line, a slow death in its last. */
const keptErrorLines = 40;
const restartDelayMs = { first: 50, longest: 5000 };
/** A server that lived this long was healthy; its end starts the back-off anew. */
const steadyAfterMs = 30_000;

/**
 * Starts the dev server and resolves when it serves the namespace with our retention and search attributes. Until
 * `stop`, a server that ends by itself is started again on the same ports; when this process is killed, the server
 * gets SIGTERM from the kernel (Linux with setpriv) or is ended by the next start on the same data directory.
 * Call it on the main thread: the kernel sends that signal when the calling thread ends.
 * @throws {Error} when the data directory belongs to a live process, or the server does not get ready; the text says why.
 */
export async function startTemporalServer(options: TemporalServerOptions): Promise<TemporalServer> {
  await mkdir(options.dataDir, { recursive: true, mode: 0o700 });
  const dataDir = await realpath(options.dataDir); // one spelling, so that an orphan is recognised by its command line
  const dbFile = join(dataDir, "temporal.db");
  const claim = await claimDataDir({ dataDir, dbFile, log: options.log });
  const supervisor = new Supervisor(options, claim, dbFile);
  try {
    await supervisor.start();
  } catch (error) {
    await supervisor.stop();
    throw error;
  }
  return {
    address: `127.0.0.1:${supervisor.port}`,
    uiUrl: `http://127.0.0.1:${supervisor.uiPort}${options.uiPublicPath ?? ""}`,
    namespace: options.namespace,
    get pid() {
      return supervisor.pid;
    },
    stop: () => supervisor.stop(),
  };
}

class Supervisor {
  #ports: readonly ClaimedPort[] = [];
  readonly #options: TemporalServerOptions;
  readonly #claim: DataDirClaim;
  readonly #dbFile: string;
  readonly #stopping = new AbortController();
  #child: ChildProcess | undefined;
  #errorLines: string[] = [];
  #watch: Promise<void> = Promise.resolve();
  #stopped: Promise<void> | undefined;

  constructor(options: TemporalServerOptions, claim: DataDirClaim, dbFile: string) {
    this.#options = options;
    this.#claim = claim;
    this.#dbFile = dbFile;
  }

  get pid(): number {
    return this.#child?.pid ?? 0;
  }

  get port(): number {
    return this.#ports[0]?.port ?? 0;
  }

  get uiPort(): number {
    return this.#ports[1]?.port ?? 0;
  }

  async start(): Promise<void> {
    process.once("exit", this.#endWithUs);
    await this.#startFirst();
    this.#watch = this.#keepRunning();
  }

  stop(): Promise<void> {
    return (this.#stopped ??= this.#stop());
  }

  async #stop(): Promise<void> {
    this.#stopping.abort(new Error("The Temporal server is being stopped."));
    await this.#watch;
    if (this.#child) await end(this.#child);
    process.off("exit", this.#endWithUs);
    this.#releasePorts();
    this.#claim.release();
  }

  readonly #endWithUs = (): void => void this.#child?.kill("SIGTERM");

  /** A start that ends early is worth another: one of the server's ports may have been taken in between, or a kill left its database half-made. */
  async #startFirst(): Promise<void> {
    for (let attempt = 1; ; attempt += 1) {
      await this.#choosePorts();
      const isExisting = existsSync(this.#dbFile);
      this.#spawn();
      try {
        return await this.#untilReady();
      } catch (error) {
        const mayHelp = error instanceof PortTaken || this.#child === undefined || hasExited(this.#child);
        if (this.#child) await end(this.#child);
        if (attempt === firstStartAttempts || !mayHelp || this.#stopping.signal.aborted) throw error;
        this.#options.log("The Temporal server did not start; trying again.", { error: String(error) });
        const isHalfMade = /no such table|table .* already exists|file is not a database/i.test(this.#errorLines.join("\n"));
        if (isExisting && isHalfMade) await this.#setDatabaseAside();
      }
    }
  }

  async #choosePorts(): Promise<void> {
    const { earlier } = this.#claim;
    const { port = 7233, uiPort = 8233, log } = this.#options;
    this.#releasePorts();
    this.#ports = [await claimPort(earlier ? [earlier.port, port] : [port])];
    this.#ports = [...this.#ports, await claimPort(earlier ? [earlier.uiPort, uiPort] : [uiPort])];
    if (this.port !== port) log(`Port ${port} is taken: Temporal listens on ${this.port}.`, { port: this.port });
    if (this.uiPort !== uiPort) log(`Port ${uiPort} is taken: Temporal's Web UI is on ${this.uiPort}.`, { uiPort: this.uiPort });
  }

  #releasePorts(): void {
    for (const claimed of this.#ports) claimed.release();
    this.#ports = [];
  }

  /** Nothing is deleted: the operator may look at it. */
  async #setDatabaseAside(): Promise<void> {
    const aside = `${this.#dbFile}.unusable-${Date.now()}`;
    for (const part of ["", "-wal", "-shm"]) {
      if (existsSync(this.#dbFile + part)) await rename(this.#dbFile + part, aside + part);
    }
    this.#options.log("Temporal's database was incomplete and has been set aside.", { aside });
  }

  #spawn(): void {
    const { binaryPath, namespace, searchAttributes, uiPublicPath, uiCodecEndpoint } = this.#options;
    const { port, uiPort } = this;
    const args = serverArguments({ dbFile: this.#dbFile, namespace, port, uiPort, searchAttributes, uiPublicPath, uiCodecEndpoint });
    const [command, ...rest] = [...endsWithParent(), binaryPath, ...args] as [string, ...string[]];
    // A group of its own: Ctrl-C on the terminal reaches us alone, and we stop the server last.
    const child = spawn(command, rest, { detached: true, env: serverEnv(), stdio: ["ignore", "ignore", "pipe"] });
    this.#child = child;
    this.#errorLines = [];
    child.on("error", (error) => this.#errorLines.push(error.message));
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      const lines = [...this.#errorLines, ...text.split("\n").filter((line) => line !== "")];
      this.#errorLines =
        lines.length <= keptErrorLines ? lines : [...lines.slice(0, keptErrorLines / 2), ...lines.slice(-keptErrorLines / 2)];
    });
    if (child.pid === undefined) return;
    const startTime = identifyProcess(child.pid)?.startTime ?? "";
    this.#claim.recordServer({ pid: child.pid, startTime, port, uiPort });
  }

  /** @throws {Error} when the child ends first, the time is over, or `stop` is called. */
  async #untilReady(): Promise<void> {
    const child = this.#child;
    if (!child) return;
    const ended = new AbortController();
    const watchEnd = exited(child).then(() => ended.abort(new Error(`The Temporal server ended: ${this.#lastWords(child)}`)));
    const signal = AbortSignal.any([ended.signal, this.#stopping.signal, AbortSignal.timeout(readyWithinMs)]);
    try {
      const connection = await connectWhenServing(`127.0.0.1:${this.port}`, this.#options.namespace, signal);
      try {
        if (hasExited(child) || listensOn(this.pid, this.port) === false) throw new PortTaken(this.port);
        await ensureNamespace(connection, this.#options);
      } finally {
        await connection.close();
      }
    } catch (error) {
      if (hasExited(child)) await watchEnd;
      throw ended.signal.aborted ? ended.signal.reason : signal.aborted ? this.#notReady(child, error) : error;
    }
  }

  #notReady(child: ChildProcess, cause: unknown): Error {
    if (this.#stopping.signal.aborted) return new Error("The Temporal server was stopped before it was ready.");
    return new Error(`The Temporal server was not ready within ${readyWithinMs / 1000} s: ${this.#lastWords(child)}`, { cause });
  }

  #lastWords(child: ChildProcess): string {
    const cause = this.#errorLines.filter((line) => /^panic|^fatal|^error|address already in use/i.test(line)).slice(0, 2);
    return (
      (cause.length > 0 ? cause : this.#errorLines.slice(-3)).join(" | ") ||
      `exit code ${child.exitCode}, signal ${child.signalCode}, no message`
    );
  }

  async #keepRunning(): Promise<void> {
    const { log } = this.#options;
    const { signal } = this.#stopping;
    let delayMs = restartDelayMs.first;
    while (this.#child) {
      const startedAt = performance.now();
      await Promise.race([exited(this.#child), aborted(signal)]);
      if (signal.aborted) return;
      if (performance.now() - startedAt > steadyAfterMs) delayMs = restartDelayMs.first;
      log("The Temporal server ended; starting it again.", { pid: this.pid, lastWords: this.#lastWords(this.#child), delayMs });
      await sleep(delayMs, undefined, { signal }).catch(() => undefined);
      if (signal.aborted) return;
      delayMs = Math.min(delayMs * 2, restartDelayMs.longest);
      this.#spawn();
      try {
        await this.#untilReady();
        log("The Temporal server serves again.", { pid: this.pid, port: this.port });
      } catch (error) {
        if (signal.aborted) return;
        log("The Temporal server did not come back.", { error: String(error) });
        await end(this.#child); // one that hangs before it is ready would hold the ports for ever
      }
    }
  }
}

/** Somebody else's server answers where ours should be; our workflows must not get there. */
class PortTaken extends Error {
  constructor(port: number) {
    super(`Another program's server listens on port ${port}.`);
  }
}

const hasExited = (child: ChildProcess): boolean => child.pid === undefined || child.exitCode !== null || child.signalCode !== null;

async function exited(child: ChildProcess): Promise<void> {
  if (!hasExited(child)) await once(child, "exit").catch(() => undefined);
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    signal.addEventListener("abort", () => resolve(), { once: true });
  });
}

async function end(child: ChildProcess): Promise<void> {
  if (hasExited(child)) return;
  const gone = exited(child);
  child.kill("SIGTERM");
  const force = setTimeout(() => child.kill("SIGKILL"), stopPatienceMs);
  await gone;
  clearTimeout(force);
}

/** The wrapper that lets the kernel end the server when we are killed; empty where it does not exist. */
function endsWithParent(): readonly string[] {
  if (process.platform !== "linux") return [];
  const wrapper = ["setpriv", "--pdeathsig", "TERM"] as const;
  const probe = spawnSync(wrapper[0], [...wrapper.slice(1), "true"], { stdio: "ignore" }); // BusyBox has no such option
  return probe.status === 0 ? wrapper : [];
}

/** The server needs none of our secrets, and a debugger or a crash dump must not find them there. */
function serverEnv(): NodeJS.ProcessEnv {
  const names = ["PATH", "HOME", "TMPDIR", "LANG", "TZ", "GOMAXPROCS", "GOMEMLIMIT", "GOGC"];
  return Object.fromEntries(names.flatMap((name) => (process.env[name] === undefined ? [] : [[name, process.env[name]]])));
}
