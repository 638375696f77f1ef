import { readdirSync, readFileSync } from "node:fs";

/** `root` and everything below it; the first process of a pid namespace is the ancestor of all others in it, daemons too. */
export function processTree(root: number): number[] {
  const found = [root];
  for (const pid of found) found.push(...childrenOf(pid));
  return found;
}

function childrenOf(pid: number): number[] {
  const tasks = `/proc/${pid}/task`;
  return namesIn(tasks).flatMap((task) => textOf(`${tasks}/${task}/children`).split(" ").filter(Boolean).map(Number));
}

/** Threads count as processes, as they do for the kernel's own limits. */
export const taskCount = (pids: readonly number[]): number => pids.reduce((sum, pid) => sum + namesIn(`/proc/${pid}/task`).length, 0);

/**
 * The memory of all of them together. The quick sum counts a page once for each process that maps it, so only a sum over `enough`
 * is looked at closely, with each shared page divided among its users (where the kernel lets us: else the quick sum stands).
 */
export function memoryOf(pids: readonly number[], enough: number): number {
  const quick = pids.reduce((sum, pid) => sum + residentBytes(pid), 0);
  if (quick <= enough) return quick;
  return pids.reduce((sum, pid) => sum + (proportionalBytes(pid) ?? residentBytes(pid)), 0);
}

const residentBytes = (pid: number): number => kibibytesIn(`/proc/${pid}/status`, "VmRSS") ?? 0;

const proportionalBytes = (pid: number): number | undefined => kibibytesIn(`/proc/${pid}/smaps_rollup`, "Pss");

function kibibytesIn(file: string, name: string): number | undefined {
  const kibibytes = new RegExp(`^${name}:\\s+(\\d+) kB$`, "m").exec(textOf(file))?.[1];
  return kibibytes === undefined ? undefined : Number(kibibytes) * 1024;
}

/** A process by its pid and the moment it started, for pids are used again. */
export type ProcessIdentity = { readonly pid: number; readonly startedAtTicks: string };

export const identify = (pid: number): ProcessIdentity => ({ pid, startedAtTicks: statOf(pid).startedAtTicks });

/** True once the process is gone or a zombie: a dead first process of a pid namespace has outlived all others in it. */
export function hasEnded({ pid, startedAtTicks }: ProcessIdentity): boolean {
  const now = statOf(pid);
  return now.startedAtTicks !== startedAtTicks || now.state === "" || now.state === "Z" || now.state === "X";
}

/** The kernel's USER_HZ on both of our machines. */
const TICKS_PER_SECOND = 100;

/** CPU time of processes and of the children that they have reaped: fields 14 to 17 of /proc/<pid>/stat. */
export function cpuMsOf(pids: readonly number[]): number {
  const ticks = pids.flatMap((pid) => statFields(pid).slice(11, 15).map(Number)).reduce((sum, value) => sum + value, 0);
  return (ticks * 1_000) / TICKS_PER_SECOND;
}

/** Fields 3 and 22 of /proc/<pid>/stat; the name before them may hold spaces and brackets. */
function statOf(pid: number): { readonly state: string; readonly startedAtTicks: string } {
  const fields = statFields(pid);
  return { state: fields[0] ?? "", startedAtTicks: fields[19] ?? "" };
}

/** The fields from the third on; none of a process that is gone. */
function statFields(pid: number): string[] {
  const stat = textOf(`/proc/${pid}/stat`);
  return stat.slice(stat.lastIndexOf(")") + 2).split(" ");
}

function namesIn(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch {
    return [];
  }
}

function textOf(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch {
    return "";
  }
}
