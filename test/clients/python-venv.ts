import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";

/** An interpreter with the packages of a requirements file, or why there is none here. */
export type PythonClients = { readonly python: string } | { readonly missing: string };

const run = promisify(execFile);
/** For whoever installs the packages, and whoever waits for that. */
const longestMs = 900_000;

/** Installs the packages of a file beside this one, once for all test runs and outside the checkout. */
export async function pythonClients(file = "requirements.txt"): Promise<PythonClients> {
  const requirements = join(import.meta.dirname, file);
  try {
    const { stdout } = await run("python3", ["-c", "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"]);
    const venv = join(cacheDirectory(), `python-${stdout.trim()}-${digestOf(requirements)}`);
    if (!existsSync(venv)) await alone(`${venv}.lock`, async () => await install(venv, requirements));
    return { python: join(venv, "bin", "python") };
  } catch (error) {
    return { missing: `no Python clients: ${String(error).split("\n", 3).join(" ")}` };
  }
}

function cacheDirectory(): string {
  const xdg = process.env["XDG_CACHE_HOME"];
  const directory = join(xdg?.startsWith("/") === true ? xdg : join(homedir(), ".cache"), "openclaw", "test-clients");
  mkdirSync(directory, { recursive: true });
  return directory;
}

const digestOf = (path: string): string => createHash("sha256").update(readFileSync(path)).digest("hex").slice(0, 12);

/** A directory under this name is whole: an installation that ends early leaves another one. */
async function install(venv: string, requirements: string): Promise<void> {
  if (existsSync(venv)) return; // whoever held the lock before us made it
  const unfinished = `${venv}.unfinished`;
  rmSync(unfinished, { recursive: true, force: true });
  const options = { timeout: longestMs, maxBuffer: 16 * 1024 * 1024 };
  await run("python3", ["-m", "venv", unfinished], options);
  const pip = ["-m", "pip", "install", "--disable-pip-version-check", "--only-binary", ":all:", "--retries", "1", "--timeout", "30"];
  await run(join(unfinished, "bin", "python"), [...pip, "--requirement", requirements], options);
  renameSync(unfinished, venv);
}

/** Runs `work` while no other process does; a lock whose holder died is nobody's. */
async function alone(lock: string, work: () => Promise<void>): Promise<void> {
  const deadlineMs = Date.now() + longestMs;
  while (!isTaken(lock)) {
    if (Date.now() > deadlineMs) throw new Error(`${lock} is held by another process`);
    await delay(500);
  }
  try {
    await work();
  } finally {
    rmSync(lock, { force: true });
  }
}

/** @returns whether the lock is ours now */
function isTaken(lock: string): boolean {
  try {
    writeFileSync(lock, String(process.pid), { flag: "wx" });
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    if (!isAlive(holderOf(lock))) rmSync(lock, { force: true });
    return false;
  }
}

function holderOf(lock: string): number {
  try {
    return Number(readFileSync(lock, "utf8"));
  } catch {
    return process.pid; // it was given back just now
  }
}

/** A process id that is not written yet (0) is alive: its file is an instant old. */
function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== "ESRCH";
  }
}
