import { readdirSync, readFileSync, readlinkSync } from "node:fs";

/** With the pid namespace, for pids say nothing in another one (a container that shares the host's cgroups). */
const PREFIX = `openclaw-sandbox-${readlinkSync("/proc/self/ns/pid").replaceAll(/\D/g, "")}-`;

/** Names this process on what it makes for a run (a cgroup, the sandbox's first program), so that a later one knows whose it was. */
export const ownerName = `${PREFIX}${process.pid}`;

let made = 0;

/** A name that nothing else has, here or in another process that is alive. */
export function newRunName(): string {
  made += 1;
  return `${ownerName}-${made}`;
}

/** True for a name whose maker is gone: a gateway that was ended by kill -9. */
export function isOrphaned(name: string): boolean {
  const owner = name.startsWith(PREFIX) ? Number.parseInt(name.slice(PREFIX.length), 10) : Number.NaN;
  return !Number.isNaN(owner) && !isAlive(owner);
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

/**
 * Kills what a dead gateway left of a sandbox whose start it did not see through: bubblewrap waits for its other half for ever when
 * that one is killed at a certain moment. No program of a tenant runs in it.
 * @param script an argument that only our own command lines hold
 */
export const sweepOrphanedProcesses = (script: string): void =>
  void killWhere((argv) => argv.includes(script) && argv.some((argument) => isOrphaned(argument)));

/** Kills what has this run's name as an argument: all of a sandbox that has not gone over to its program. @returns how many there were */
export const killNamed = (name: string): number => killWhere((argv) => argv.includes(name));

function killWhere(isMeant: (argv: readonly string[]) => boolean): number {
  let count = 0;
  for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    try {
      if (!isMeant(readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0"))) continue;
      process.kill(Number(pid), "SIGKILL");
      count += 1;
    } catch {
      // Gone meanwhile, or another user's.
    }
  }
  return count;
}
