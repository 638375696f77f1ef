import { createHash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { withLock } from "./lock.mjs";
import { runCommand, tellingLine } from "./run-command.mjs";
import { isUnchanged, markOf } from "./stamp.mjs";

/**
 * @typedef {{ readonly root: string, readonly env: NodeJS.ProcessEnv, readonly report: import("./report.mjs").Report, readonly stamp: import("./stamp.mjs").Stamp }} Setup
 */

/** Node strips types without a flag from this release of 22 on. */
const minSystemNode = [22, 18];
const nodePackage = `node-${process.platform === "win32" ? "win" : process.platform}-${process.arch}`;

/**
 * Installs what the lock file says, when something else (or nothing) is installed.
 * @param {Setup} setup
 * @returns {Promise<boolean>} false when nothing further makes sense
 */
export async function preparePackages({ root, env, report, stamp }) {
  const lockfile = join(root, "package-lock.json");
  if (!existsSync(lockfile)) {
    report.problem(`${lockfile} is missing: this is not a whole checkout. Clone the repository again.`);
    return false;
  }
  const hash = createHash("sha256").update(readFileSync(lockfile)).digest("hex");
  if (stamp.parts.lockfileHash === hash && existsSync(join(root, "node_modules", ".package-lock.json"))) return true;

  const lock = join(tmpdir(), `openclaw-npm-ci-${createHash("sha256").update(root).digest("hex").slice(0, 16)}.lock`);
  const ok = await withLock(
    lock,
    async () => isInstalled(root, lockfile) || npmCi({ root, env, report }),
    (pid) => report.warn(`Waiting for process ${pid}, which installs the npm packages of this checkout.`),
  );
  if (ok) stamp.parts.lockfileHash = hash;
  return ok;
}

/** @param {Pick<Setup, "root" | "env" | "report">} setup */
async function npmCi({ root, env, report }) {
  const progress = report.progress("Installing npm packages");
  // Both includes are said aloud: NODE_ENV=production or an `omit` in the user's .npmrc would leave out Node 24 or the tests' tools.
  const args = ["ci", "--no-audit", "--no-fund", "--include=dev", "--include=optional"];
  const npm = env["npm_execpath"];
  const { ok, output } =
    npm !== undefined && /npm-cli\.c?js$/.test(npm)
      ? await runCommand(process.execPath, [npm, ...args], { cwd: root, env, onLine: progress.note })
      : await runCommand(process.platform === "win32" ? "npm.cmd" : "npm", args, { cwd: root, env, onLine: progress.note });
  progress.end();
  if (ok) report.done("npm packages installed");
  else report.problem(`npm ci failed: ${npmReason(output)}. Put that right and run \`npm ci\` in ${root}.`);
  return ok;
}

/**
 * npm says what is wrong after the code and before the help text.
 * @param {string} output
 */
function npmReason(output) {
  const lines = output.split("\n").flatMap((line) => /^npm (?:error|ERR!) (?!code )(.+)$/.exec(line)?.[1]?.trim() ?? []);
  return lines.slice(0, 2).join(" ").slice(0, 400) || tellingLine(output);
}

/**
 * True when npm's own note in node_modules agrees with the lock file, so that an installation made by hand is not thrown away.
 * @param {string} root
 * @param {string} lockfile
 */
function isInstalled(root, lockfile) {
  const wanted = packagesOf(lockfile);
  const present = packagesOf(join(root, "node_modules", ".package-lock.json"));
  if (wanted === undefined || present === undefined) return false;
  const isMissing = Object.entries(wanted).some(([path, { version, optional, peer }]) => {
    if (path === "") return false;
    const found = present[path];
    return found === undefined ? !(optional || peer) : found.version !== version;
  });
  return !isMissing && Object.keys(present).every((path) => wanted[path] !== undefined);
}

/**
 * @param {string} file
 * @returns {Record<string, { version?: string, optional?: boolean, peer?: boolean }> | undefined}
 */
function packagesOf(file) {
  try {
    return JSON.parse(readFileSync(file, "utf8")).packages;
  } catch {
    return undefined;
  }
}

/**
 * Makes sure that the program will run on a Node that strips types: the bundled one, or the system's where none is bundled (macOS).
 * @param {Setup} setup
 */
export async function prepareNode({ root, report, stamp }) {
  const bundled = join(root, "node_modules", nodePackage, "bin", process.platform === "win32" ? "node.exe" : "node");
  if (existsSync(bundled)) {
    if (stamp.parts.node?.path === bundled && isUnchanged(stamp.parts.node)) return;
    const { ok, output } = await runCommand(bundled, ["--version"]);
    const mark = markOf(bundled);
    if (ok && mark) {
      stamp.parts.node = mark;
      report.done(`Node ${output.trim().slice(1)} (npm package)`);
      return;
    }
    report.problem(
      `The bundled Node does not run here (${tellingLine(output)}): it needs glibc; use Docker (docker-compose.yml) on this system.`,
    );
    return;
  }
  const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
  const [minMajor = 0, minMinor = 0] = minSystemNode;
  if (major > minMajor || (major === minMajor && minor >= minMinor)) return;
  report.problem(
    isBundledPlatform(root)
      ? `The npm package ${nodePackage} is missing: run \`npm ci --include=optional\` in ${root}.`
      : `No Node is bundled for ${process.platform}-${process.arch}: install Node ${minSystemNode.join(".")} or newer (this is ${process.versions.node}).`,
  );
}

/** @param {string} root */
function isBundledPlatform(root) {
  return packagesOf(join(root, "package-lock.json"))?.[`node_modules/${nodePackage}`] !== undefined;
}
