import { randomUUID } from "node:crypto";
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { basename } from "node:path";

/** A process as `/proc` shows it; only processes that we may look into (our own, or all as root) are ever returned. */
const readLinkOrNothing = (path: string): string | undefined => {
  try {
    return readlinkSync(path);
  } catch {
    return undefined; // gone, a zombie, or another user's
  }
};

/**
 * Living Postgres processes (postmaster and backends) that work in `dataDirectory`: each of them makes it its working
 * directory, so this is proof where a pid in a file is only a hint. Zombies have no working directory and do not count.
 */
export function postgresProcessesIn(dataDirectory: string): number[] {
  return readdirSync("/proc")
    .filter((entry) => /^\d+$/.test(entry))
    .map(Number)
    .filter((pid) => {
      if (readLinkOrNothing(`/proc/${pid}/cwd`) !== dataDirectory) return false;
      const executable = readLinkOrNothing(`/proc/${pid}/exe`);
      return executable !== undefined && basename(executable.replace(/ \(deleted\)$/, "")) === "postgres";
    });
}

/** The command line of a living process, of any user; undefined when there is none. */
export function commandLineOf(pid: number): string[] | undefined {
  try {
    const words = readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
    return words[0] === "" ? undefined : words;
  } catch {
    return undefined;
  }
}

/** A process by its pid, the moment it started (pids are used again) and where both mean something: the boot and the pid namespace. */
export type ProcessIdentity = { readonly machine: string; readonly pid: number; readonly startedAtTicks: string };

/** This process. Where there is no `/proc`, it shares no machine with anybody. */
export function ownIdentity(): ProcessIdentity {
  const boot = readTextOrNothing("/proc/sys/kernel/random/boot_id");
  const namespace = readLinkOrNothing("/proc/self/ns/pid");
  const machine = boot === undefined || namespace === undefined ? `unknown:${randomUUID()}` : `${boot.trim()}:${namespace}`;
  return { machine, pid: process.pid, startedAtTicks: statOf(process.pid)?.startedAtTicks ?? "" };
}

/** True for a process of this machine (`here`) that is gone or a zombie; of another machine's nothing is known. */
export function isKnownDead({ machine, pid, startedAtTicks }: ProcessIdentity, here: string): boolean {
  if (machine !== here) return false;
  const now = statOf(pid);
  return now?.startedAtTicks !== startedAtTicks || now.state === "Z" || now.state === "X";
}

/** Fields 3 and 22 of `/proc/<pid>/stat`; the name before them may hold spaces and brackets. */
function statOf(pid: number): { readonly state: string; readonly startedAtTicks: string } | undefined {
  const stat = readTextOrNothing(`/proc/${pid}/stat`);
  const fields = stat?.slice(stat.lastIndexOf(")") + 2).split(" ");
  return fields === undefined ? undefined : { state: fields[0] ?? "", startedAtTicks: fields[19] ?? "" };
}

function readTextOrNothing(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return undefined;
  }
}
