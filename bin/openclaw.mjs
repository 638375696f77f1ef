#!/usr/bin/env node
// The openclaw command. Plain JavaScript without dependencies: it runs on any Node from 20 on, finds the Node that the product
// is made for, and hands over to control-plane/cli.
import { spawn, spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import nodeModule, { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const require = createRequire(import.meta.url);

/** @param {string} message @returns {never} */
function fail(message) {
  process.stderr.write(`openclaw: ${message}\n`);
  process.exit(1);
}

/** @param {string} name */
function isInstalled(name) {
  try {
    require.resolve(name);
    return true;
  } catch {
    return false;
  }
}

/** The pinned Node of our arch package, wherever npm has put it. */
function packagedNode() {
  const platform = process.platform === "win32" ? "win" : process.platform;
  try {
    const folder = dirname(require.resolve(`node-${platform}-${process.arch}/package.json`));
    const binary = join(folder, "bin", process.platform === "win32" ? "node.exe" : "node");
    return existsSync(binary) ? binary : undefined;
  } catch {
    return undefined;
  }
}

/** Whether this very Node can run TypeScript as the product needs it. */
function isNewEnough() {
  const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
  return major > 22 || (major === 22 && minor >= 18);
}

/**
 * Runs the command in a child that has our terminal, and ends as it ends.
 * @param {string} node
 * @param {string} entry
 */
function handOver(node, entry) {
  const child = spawn(node, [entry, ...process.argv.slice(2)], {
    stdio: "inherit",
    env: { NODE_COMPILE_CACHE: compileCache, ...process.env },
  });
  for (const signal of /** @type {const} */ (["SIGTERM", "SIGHUP", "SIGINT"])) {
    // Ctrl-C reaches the whole foreground group by itself: passed on, it would come twice.
    process.on(signal, () => (signal === "SIGINT" && process.stdin.isTTY ? undefined : child.kill(signal)));
  }
  child.once("error", (error) => fail(`${node} does not start: ${error.message}`));
  child.once("exit", (code, signal) => {
    if (signal === null) process.exit(code ?? 1);
    for (const name of /** @type {const} */ (["SIGTERM", "SIGHUP", "SIGINT"])) process.removeAllListeners(name);
    process.kill(process.pid, signal);
  });
}

if (!isInstalled("commander")) {
  const setup = join(root, "scripts", "setup.mjs");
  if (!existsSync(setup)) fail("its packages are not installed: install openclaw again.");
  const { status } = spawnSync(process.execPath, [setup], { cwd: root, stdio: ["inherit", 2, "inherit"] });
  if (status !== 0) fail("set-up did not finish; what it needs stands above.");
}

const source = join(root, "control-plane", "cli", "main.ts");
const entry = existsSync(source) ? source : join(root, "control-plane", "cli", "main.js");
const node = packagedNode();
// Half of a short command's time is the parsing of its modules. Without the right to write here, it stays so.
const compileCache = join(root, "node_modules", ".cache", "openclaw");
if (isNewEnough() && (node === undefined || Number(process.versions.node.split(".")[0]) >= 24)) {
  nodeModule.enableCompileCache?.(compileCache); // from Node 22.1 on
  await import(pathToFileURL(entry).href);
} else if (node !== undefined) {
  handOver(node, entry);
} else {
  fail(
    `Node ${process.versions.node} is too old and none was installed with openclaw for ${process.platform}-${process.arch}: install Node 24.`,
  );
}
