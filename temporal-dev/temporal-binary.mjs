import { spawnSync } from "node:child_process";
import { accessSync, constants, statSync } from "node:fs";
import { homedir } from "node:os";
import { delimiter, join, resolve } from "node:path";

/** The release that set-up builds when it finds none: the newest that `go install` accepts (later ones carry a local `replace`). */
export const temporalCliVersion = "1.5.1";

/** Oldest server whose settings and fairness this product was measured with. */
const minServer = [1, 29];
/** Oldest command line with the flags we pass. */
const minCli = [1, 5];

const executableName = process.platform === "win32" ? "temporal.exe" : "temporal";

/**
 * @typedef {"TEMPORAL_CLI_PATH" | "PATH" | "cache"} TemporalBinarySource
 * @typedef {{ readonly path: string, readonly source: TemporalBinarySource, readonly version: string }} TemporalBinary
 * @typedef {{ readonly usable: true, readonly version: string } | { readonly usable: false, readonly reason: string }} Probe
 * @typedef {Readonly<Record<string, string | undefined>>} Env
 */

/**
 * Where set-up keeps the binary it obtained: outside the checkout, so that a fresh clone finds it.
 * @param {Env} env
 */
export function temporalCacheDir(env) {
  const xdg = env["XDG_CACHE_HOME"];
  const base = xdg !== undefined && xdg.startsWith("/") ? xdg : join(env["HOME"] ?? homedir(), ".cache");
  return join(base, "openclaw", "temporal-cli", temporalCliVersion);
}

/**
 * The binary's place inside a cache directory.
 * @param {string} cacheDir
 */
export const cachedBinaryPath = (cacheDir) => join(cacheDir, executableName);

/**
 * Finds a usable Temporal command line without the network: `TEMPORAL_CLI_PATH`, then PATH, then the cache.
 * One that does not run or is too old is passed over, and `onSkip` is told why in half a sentence.
 * @param {{ env: Env, cacheDir?: string, onSkip?: (path: string, reason: string) => void }} options
 * @returns {TemporalBinary | undefined}
 */
export function findTemporalBinary({ env, cacheDir = temporalCacheDir(env), onSkip }) {
  for (const { path, source } of candidates(env, cacheDir)) {
    const probe = probeTemporalBinary(path);
    if (probe.usable) return { path, source, version: probe.version };
    onSkip?.(path, probe.reason);
  }
  return undefined;
}

/**
 * @param {Env} env
 * @param {string} cacheDir
 * @returns {{ path: string, source: TemporalBinarySource }[]}
 */
function candidates(env, cacheDir) {
  /** @type {{ path: string, source: TemporalBinarySource }[]} */
  const found = [];
  const named = env["TEMPORAL_CLI_PATH"];
  if (named !== undefined && named !== "") found.push({ path: resolve(named), source: "TEMPORAL_CLI_PATH" });
  const onPath = new Set(findOnPath(executableName, env));
  for (const path of onPath) found.push({ path, source: "PATH" });
  const cached = cachedBinaryPath(cacheDir);
  if (isExecutable(cached)) found.push({ path: cached, source: "cache" });
  return found;
}

/**
 * Every executable of that name on PATH, in PATH's order.
 * @param {string} name
 * @param {Env} env
 */
export function findOnPath(name, env) {
  return (env["PATH"] ?? "")
    .split(delimiter)
    .filter((directory) => directory !== "")
    .map((directory) => resolve(directory, name))
    .filter(isExecutable);
}

/** @param {string} path */
function isExecutable(path) {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile();
  } catch {
    return false;
  }
}

/**
 * Runs `temporal --version` and judges the answer. A plain `go install` calls itself 0.0.0-DEV, so there the server's version decides.
 * @param {string} path
 * @returns {Probe}
 */
export function probeTemporalBinary(path) {
  const run = spawnSync(path, ["--version"], { encoding: "utf8", timeout: 10_000, stdio: ["ignore", "pipe", "pipe"] });
  if (run.error) return { usable: false, reason: `it does not run (${run.error.message})` };
  const cli = /version v?(\d+)\.(\d+)\.(\d+)(\S*)/.exec(run.stdout);
  const server = /server v?(\d+)\.(\d+)\.(\d+)/i.exec(run.stdout);
  if (run.status !== 0 || !cli || !server) return { usable: false, reason: "it does not tell its version" };
  const isGoInstalled = cli[0].includes("0.0.0-DEV");
  if (!isAtLeast(server, minServer) || !(isGoInstalled || isAtLeast(cli, minCli))) {
    return { usable: false, reason: `it is too old (${run.stdout.trim()}; needs server ${minServer.join(".")} or newer)` };
  }
  return { usable: true, version: isGoInstalled ? `with server ${server.slice(1, 4).join(".")}` : cli.slice(1, 4).join(".") };
}

/**
 * @param {RegExpExecArray} version
 * @param {number[]} floor major and minor
 */
function isAtLeast(version, floor) {
  const [major = 0, minor = 0] = [Number(version[1]), Number(version[2])];
  const [floorMajor = 0, floorMinor = 0] = floor;
  return major > floorMajor || (major === floorMajor && minor >= floorMinor);
}
