import { accessSync, chmodSync, constants, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import {
  cachedBinaryPath,
  findOnPath,
  findTemporalBinary,
  probeTemporalBinary,
  temporalCacheDir,
  temporalCliVersion,
} from "../../temporal-dev/temporal-binary.mjs";
import { downloadTo, fetchJson } from "./download.mjs";
import { withLock } from "./lock.mjs";
import { runCommand, tellingLine } from "./run-command.mjs";
import { isUnchanged, markOf } from "./stamp.mjs";

/** Where Temporal's SDKs download the command line from, too. `OPENCLAW_TEMPORAL_DOWNLOAD_URL` names a mirror. */
const defaultDownloadUrl = "https://temporal.download";
/** Without it the binary would call itself 0.0.0-DEV. */
const goLinkerFlags = `-X github.com/temporalio/cli/temporalcli.Version=${temporalCliVersion}`;
const goModule = `github.com/temporalio/cli/cmd/temporal@v${temporalCliVersion}`;
/** The first Go that fetches a newer toolchain by itself; the module wants 1.25. */
const minGo = [1, 21];
const partialPrefix = "partial-";

/**
 * @typedef {import("./packages.mjs").Setup} Setup
 * @typedef {{ readonly env: NodeJS.ProcessEnv, readonly report: import("./report.mjs").Report, readonly cacheDir: string, readonly workDir: string }} Obtaining
 */

/**
 * Finds the Temporal command line, or obtains it: by download, else by building it.
 * @param {Setup} setup
 */
export async function prepareTemporalCli({ env, report, stamp }) {
  const known = stamp.parts.temporal;
  if (known?.named === (env["TEMPORAL_CLI_PATH"] ?? "") && isUnchanged(known)) return;

  const cacheDir = temporalCacheDir(env);
  const found = findTemporalBinary({
    env,
    cacheDir,
    onSkip: (path, reason) => report.warn(`Not using the Temporal CLI at ${path}: ${reason}.`),
  });
  if (found) report.done(`Temporal CLI ${found.version} (${found.source === "cache" ? "cache" : found.path})`);
  const path = found?.path ?? (await obtain({ env, report, cacheDir }));
  const mark = path === undefined ? undefined : markOf(path);
  if (mark) stamp.parts.temporal = { ...mark, named: env["TEMPORAL_CLI_PATH"] ?? "" };
}

/**
 * @param {Omit<Obtaining, "workDir">} options
 * @returns {Promise<string | undefined>} the path in the cache; undefined when a problem was reported
 */
async function obtain({ env, report, cacheDir }) {
  try {
    mkdirSync(cacheDir, { recursive: true });
    accessSync(cacheDir, constants.W_OK);
  } catch {
    report.problem(
      `The cache ${cacheDir} is not writable: make it so, or point XDG_CACHE_HOME elsewhere, or TEMPORAL_CLI_PATH at a Temporal CLI.`,
    );
    return undefined;
  }
  return withLock(
    join(dirname(cacheDir), `${temporalCliVersion}.lock`),
    async () => {
      const finished = findTemporalBinary({ env: {}, cacheDir }); // by the one we waited for
      if (finished) return finished.path;
      removeLeftovers(cacheDir);
      const workDir = mkdtempSync(join(cacheDir, partialPrefix)); // beside the target, so that the rename is atomic
      try {
        return await downloadOrBuild({ env, report, cacheDir, workDir });
      } finally {
        rmSync(workDir, { recursive: true, force: true });
      }
    },
    (pid) => report.warn(`Waiting for process ${pid}, which is getting the Temporal CLI.`),
  );
}

/** What killed set-ups left; safe under the lock. @param {string} cacheDir */
function removeLeftovers(cacheDir) {
  for (const name of readdirSync(cacheDir)) {
    if (name.startsWith(partialPrefix)) rmSync(join(cacheDir, name), { recursive: true, force: true });
  }
}

/** @param {Obtaining} obtaining */
async function downloadOrBuild(obtaining) {
  const { report } = obtaining;
  const downloaded = await download(obtaining);
  if ("path" in downloaded) return adopt(downloaded.path, "downloaded", obtaining);

  const built = await build(obtaining);
  if ("path" in built) return adopt(built.path, "built with Go", obtaining);

  report.problem(
    `The Temporal CLI is missing: install it (https://docs.temporal.io/cli) or Go ${minGo.join(".")} or newer (https://go.dev/dl), or point TEMPORAL_CLI_PATH at one; ` +
      `the download failed (${downloaded.failure}) and ${built.failure}.`,
  );
  return undefined;
}

/**
 * The last step: only what runs, and is new enough, gets the name under which it is found.
 * @param {string} path
 * @param {string} how
 * @param {Obtaining} obtaining
 */
function adopt(path, how, { report, cacheDir }) {
  const target = cachedBinaryPath(cacheDir);
  const probe = probeTemporalBinary(path);
  if (!probe.usable) {
    report.problem(`The Temporal CLI that was ${how} cannot be used: ${probe.reason}. Point TEMPORAL_CLI_PATH at one that can.`);
    return undefined;
  }
  renameSync(path, target);
  report.done(`Temporal CLI ${probe.version} (${how}, kept in ${cacheDir})`);
  return target;
}

/**
 * @param {Obtaining} obtaining
 * @returns {Promise<{ path: string } | { failure: string }>}
 */
async function download({ env, report, workDir }) {
  const platform = { linux: "linux", darwin: "darwin", win32: "windows" }[/** @type {string} */ (process.platform)];
  const arch = { x64: "amd64", arm64: "arm64" }[/** @type {string} */ (process.arch)];
  if (platform === undefined || arch === undefined) return { failure: `there is none for ${process.platform}-${process.arch}` };
  const progress = report.progress("Downloading the Temporal CLI");
  try {
    const { archiveUrl, fileToExtract } = await findArchive(env, { platform, arch });
    const archive = join(workDir, "archive.tar.gz");
    await downloadTo(new URL(archiveUrl), archive, (sizeBytes, ofBytes) => {
      progress.note(`${megabytes(sizeBytes)}${ofBytes === undefined ? "" : ` of ${megabytes(ofBytes)}`} MB`);
    });
    const unpacked = await runCommand("tar", ["-xzf", archive, "-C", workDir, fileToExtract]);
    if (!unpacked.ok) return { failure: `unpacking: ${tellingLine(unpacked.output)}` };
    const path = join(workDir, fileToExtract);
    chmodSync(path, 0o755);
    const probe = probeTemporalBinary(path);
    return probe.usable ? { path } : { failure: `what came cannot be used: ${probe.reason}` };
  } catch (error) {
    return { failure: reasonOf(error) };
  } finally {
    progress.end();
  }
}

/**
 * Asks for our own version first, so that every machine has the same, then for what Temporal thinks best for the SDK.
 * @param {NodeJS.ProcessEnv} env
 * @param {{ platform: string, arch: string }} machine
 */
async function findArchive(env, { platform, arch }) {
  const base = env["OPENCLAW_TEMPORAL_DOWNLOAD_URL"] ?? defaultDownloadUrl;
  /** @param {string} version @param {Record<string, string>} more */
  const ask = async (version, more) => {
    const url = new URL(`${base.replace(/\/$/, "")}/cli/${version}`);
    url.search = new URLSearchParams({ arch, platform, format: "tar.gz", ...more }).toString();
    const { archiveUrl, fileToExtract } = /** @type {Record<string, unknown>} */ (await fetchJson(url));
    if (typeof archiveUrl !== "string" || typeof fileToExtract !== "string" || /^\/|\.\./.test(fileToExtract)) {
      throw new Error(`${url.host} answered something else than an archive`);
    }
    return { archiveUrl, fileToExtract };
  };
  try {
    return await ask(`v${temporalCliVersion}`, {});
  } catch (error) {
    if (!/ answered /.test(reasonOf(error))) throw error; // nobody there: asking again would only take time
    return ask("default", { "sdk-name": "sdk-typescript", "sdk-version": "1.24.0" });
  }
}

/**
 * @param {Obtaining} obtaining
 * @returns {Promise<{ path: string } | { failure: string }>}
 */
async function build({ env, report, workDir }) {
  const go = findOnPath(process.platform === "win32" ? "go.exe" : "go", env)[0];
  if (go === undefined) return { failure: "there is no Go on PATH" };
  const { output: version } = await runCommand(go, ["version"], { env: { ...env, GOTOOLCHAIN: "local" } });
  const [, major = 0, minor = 0] = /go(\d+)\.(\d+)/.exec(version)?.map(Number) ?? [];
  const [minMajor = 0, minMinor = 0] = minGo;
  if (major < minMajor || (major === minMajor && minor < minMinor)) return { failure: `the Go on PATH is ${major}.${minor}` };

  const progress = report.progress("Building the Temporal CLI with Go; this takes 3 to 5 minutes, once");
  // GOOS and GOARCH of a cross-compiling shell would build for another machine; with GOBIN they are refused anyway.
  const { GOOS: _os, GOARCH: _arch, ...rest } = env;
  const { ok, output } = await runCommand(go, ["install", "-v", "-ldflags", goLinkerFlags, goModule], {
    env: { ...rest, GOTOOLCHAIN: "auto", GOBIN: workDir },
    onLine: progress.note,
  });
  progress.end();
  return ok ? { path: cachedBinaryPath(workDir) } : { failure: `go install failed (${tellingLine(output)})` };
}

/** @param {number} sizeBytes */
const megabytes = (sizeBytes) => Math.round(sizeBytes / 1e6);

/** @param {unknown} error */
function reasonOf(error) {
  if (!(error instanceof Error)) return String(error);
  return error.message || /** @type {NodeJS.ErrnoException} */ (error).code || error.name; // an AggregateError has no message
}
