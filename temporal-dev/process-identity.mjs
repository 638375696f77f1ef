import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";

/**
 * What tells one process from a later one that was given the same pid.
 * @typedef {{ readonly startTime: string, readonly commandLine: readonly string[] }} ProcessIdentity
 */

/**
 * Who runs under `pid` now, or undefined when nobody does. A zombie counts as nobody.
 * @param {number} pid
 * @returns {ProcessIdentity | undefined}
 */
export function identifyProcess(pid) {
  return process.platform === "linux" ? identifyByProc(pid) : identifyByPs(pid);
}

/**
 * True while the very process that had `startTime` under `pid` is running.
 * @param {number} pid
 * @param {string} startTime
 */
export function isSameProcess(pid, startTime) {
  return identifyProcess(pid)?.startTime === startTime;
}

/**
 * @param {number} pid
 * @returns {ProcessIdentity | undefined}
 */
function identifyByProc(pid) {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    // The name in parentheses may itself hold spaces and parentheses; the fields after it never do.
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    const [state, startTime] = [fields[0], fields[19]]; // fields 3 and 22 of proc(5)
    if (state === undefined || startTime === undefined) return undefined;
    // A zombie whose other threads are still ending holds its ports and files for a moment yet.
    if ("ZXx".includes(state) && readdirSync(`/proc/${pid}/task`).length <= 1) return undefined;
    const commandLine = readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
    return { startTime, commandLine };
  } catch {
    return undefined;
  }
}

/**
 * @param {number} pid
 * @returns {ProcessIdentity | undefined}
 */
function identifyByPs(pid) {
  const ps = spawnSync("ps", ["-o", "stat=,lstart=,command=", "-p", String(pid)], {
    encoding: "utf8",
    env: { ...process.env, LC_ALL: "C" },
  });
  // "Ss   Mon Jun  1 10:00:00 2026 /usr/bin/thing --flag"
  const found = /^\s*(\S+)\s+(\S+\s+\S+\s+\d+\s+[\d:]+\s+\d+)\s+(.*)$/m.exec(ps.stdout ?? "");
  if (!found || found[1]?.startsWith("Z")) return undefined;
  return { startTime: found[2] ?? "", commandLine: (found[3] ?? "").split(" ") };
}
