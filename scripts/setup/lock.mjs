import { linkSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { identifyProcess, isSameProcess } from "../../temporal-dev/process-identity.mjs";

/**
 * Runs `work` while no other set-up holds the same lock file. A lock whose process has gone (killed, or its pid reused) is taken over.
 * @template T
 * @param {string} file
 * @param {() => Promise<T>} work
 * @param {(pid: number) => void} [onWait] called once when another process is at it
 * @returns {Promise<T>}
 */
export async function withLock(file, work, onWait) {
  mkdirSync(dirname(file), { recursive: true });
  let hasWaited = false;
  while (!tryTake(file)) {
    const holder = readHolder(file);
    if (holder === undefined || !isSameProcess(holder.pid, holder.startTime)) {
      removeIfStill(file, holder);
      continue;
    }
    if (!hasWaited) onWait?.(holder.pid);
    hasWaited = true;
    await sleep(200);
  }
  try {
    return await work();
  } finally {
    rmSync(file, { force: true });
  }
}

/** @typedef {{ readonly pid: number, readonly startTime: string }} Holder */

/** Takes the lock with its content in one step, so that nobody reads an empty one. @param {string} file */
function tryTake(file) {
  const temporary = `${file}.${process.pid}`;
  const holder = { pid: process.pid, startTime: identifyProcess(process.pid)?.startTime ?? "" };
  writeFileSync(temporary, JSON.stringify(holder));
  try {
    linkSync(temporary, file);
    return true;
  } catch (error) {
    if (/** @type {NodeJS.ErrnoException} */ (error).code === "EEXIST") return false;
    throw error;
  } finally {
    rmSync(temporary, { force: true });
  }
}

/** @param {string} file @returns {Holder | undefined} */
function readHolder(file) {
  try {
    return JSON.parse(readFileSync(file, "utf8"));
  } catch {
    return undefined;
  }
}

/**
 * Of several that found the same dead holder, one may already have taken the lock over: what was moved away is looked at, and put back if it lives.
 * @param {string} file
 * @param {Holder | undefined} dead
 */
function removeIfStill(file, dead) {
  const moved = `${file}.${process.pid}.stale`;
  try {
    renameSync(file, moved);
    const holder = readHolder(moved);
    if (holder?.pid !== dead?.pid || holder?.startTime !== dead?.startTime) linkSync(moved, file);
  } catch {
    // Another one was faster, in either step; the caller tries again.
  }
  rmSync(moved, { force: true });
}
