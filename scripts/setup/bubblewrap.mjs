import { readFileSync } from "node:fs";
import { findOnPath } from "../../temporal-dev/temporal-binary.mjs";
import { runCommand, tellingLine } from "./run-command.mjs";
import { isUnchanged, markOf } from "./stamp.mjs";

/** What the sandbox is made of, by the package that brings it. */
const packageOf = { bwrap: "bubblewrap", setpriv: "util-linux", prlimit: "util-linux" };
const toolsAreOff = "tools that run code (exec, read, write, edit, list) are off until then";

/** @type {readonly { readonly tool: string, readonly install: string }[]} */
const packageManagers = [
  { tool: "apt-get", install: "apt-get install -y --no-install-recommends" },
  { tool: "dnf", install: "dnf install -y" },
  { tool: "pacman", install: "pacman -S --noconfirm" },
  { tool: "apk", install: "apk add" },
];

/**
 * Looks for the sandbox's programs, installs them when it may, and tries whether they work. Without them the product runs, but no tool does.
 * @param {import("./packages.mjs").Setup} setup
 */
export async function prepareBubblewrap({ env, report, stamp }) {
  if (process.platform !== "linux") {
    report.warn(`bubblewrap exists on Linux only: ${toolsAreOff}; use the Docker sandbox or run in Docker.`);
    return;
  }
  if (isUnchanged(stamp.parts.bubblewrap) && missingPrograms(env).length === 0) return;

  const missing = missingPrograms(env);
  if (missing.length > 0 && !(await install(missing, { env, report }))) return;

  const bwrap = findOnPath("bwrap", env)[0];
  if (bwrap === undefined) return;
  const tried = await runCommand(bwrap, ["--ro-bind", "/", "/", "true"], { env });
  const mark = markOf(bwrap);
  if (tried.ok && mark) {
    stamp.parts.bubblewrap = mark;
    report.done(`bubblewrap (${bwrap})`);
  } else {
    report.warn(`bubblewrap is here but may not make a sandbox (${tellingLine(tried.output)}): ${howToAllow()}; ${toolsAreOff}.`);
  }
}

/** @param {NodeJS.ProcessEnv} env @returns {string[]} names of packages, each once */
function missingPrograms(env) {
  const missing = Object.entries(packageOf).filter(([program]) => findOnPath(program, env).length === 0);
  return [...new Set(missing.map(([, name]) => name))];
}

/**
 * @param {readonly string[]} packages
 * @param {{ env: NodeJS.ProcessEnv, report: import("./report.mjs").Report }} setup
 */
async function install(packages, { env, report }) {
  const names = packages.join(" ");
  const manager = packageManagers.find(({ tool }) => findOnPath(tool, env).length > 0);
  const isRoot = process.getuid?.() === 0;
  const command = manager && `${isRoot ? "" : "sudo "}${manager.install} ${names}`;
  if (!isRoot || manager?.tool !== "apt-get") {
    report.warn(`${names} is missing: ${command ? `run \`${command}\`` : "install it with your package manager"}; ${toolsAreOff}.`);
    return false;
  }

  const progress = report.progress(`Installing ${names} with apt-get`);
  const aptEnv = { ...env, DEBIAN_FRONTEND: "noninteractive" };
  const patience = ["-o", "DPkg::Lock::Timeout=120"];
  const run = (/** @type {string[]} */ args) => runCommand("apt-get", [...patience, ...args], { env: aptEnv, onLine: progress.note });
  await run(["update"]); // may fail for one of many sources; the installation tells whether it mattered
  const { ok, output } = await run(["install", "-y", "--no-install-recommends", ...packages]);
  progress.end();
  if (!ok) report.warn(`${names} could not be installed (${tellingLine(output)}): run \`${command}\`; ${toolsAreOff}.`);
  return ok;
}

/** The kernel's own switches say best what stands in the way of user namespaces. */
function howToAllow() {
  const switches = [
    { path: "/proc/sys/kernel/unprivileged_userns_clone", bad: "0", remedy: "sudo sysctl -w kernel.unprivileged_userns_clone=1" },
    { path: "/proc/sys/user/max_user_namespaces", bad: "0", remedy: "sudo sysctl -w user.max_user_namespaces=15000" },
    {
      path: "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
      bad: "1",
      remedy: "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    },
  ];
  const found = switches.find(({ path, bad }) => readTrimmed(path) === bad);
  return found ? `run \`${found.remedy}\`` : "in a container, start it with user namespaces allowed (see docker-compose.yml)";
}

/** @param {string} path */
function readTrimmed(path) {
  try {
    return readFileSync(path, "utf8").trim();
  } catch {
    return undefined;
  }
}
