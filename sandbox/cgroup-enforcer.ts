import { mkdirSync, writeFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type CgroupPlaces, countIn, killMembers, membersOf, newGroupName, removeGroup } from "./cgroup-place.ts";
import { BWRAP_PROCESSES, type Exceeded, type ResourceEnforcer, type ResourceHold } from "./resource-enforcer.ts";

/** Long enough for a process that the kernel holds in a disk wait; nothing but that outlives SIGKILL. */
const RELEASE_WITHIN_MS = 10_000;

type Group = { readonly directories: readonly string[]; kill(): void; exceeded(): Exceeded };
type Limits = { readonly memoryBytes: number; readonly processes: number };

/** Memory and processes held by the kernel for the whole run: what a run starts can never leave its group. */
export function createCgroupEnforcer(places: CgroupPlaces): ResourceEnforcer {
  return {
    kind: places.version === 1 ? "cgroup1" : "cgroup2",
    memory: "group",
    processes: "group",
    hold: (limits) => holdOf(places.version === 1 ? makeV1(places, limits) : makeV2(places.parent, limits)),
  };
}

function makeV1(places: CgroupPlaces & { version: 1 }, { memoryBytes, processes }: Limits): Group {
  const name = newGroupName();
  const memory = join(places.memory, name);
  const pids = join(places.pids, name);
  makeGroup([memory, pids], () => {
    writeFileSync(join(memory, "memory.limit_in_bytes"), String(memoryBytes));
    writeIfThere(join(memory, "memory.memsw.limit_in_bytes"), String(memoryBytes));
    writeFileSync(join(pids, "pids.max"), String(processes + BWRAP_PROCESSES));
  });
  return {
    directories: [memory, pids],
    kill: () => {
      // No new one may be born between the reading of the list and the killing.
      writeIfThere(join(pids, "pids.max"), "0");
      killMembers(memory);
      killMembers(pids);
    },
    exceeded: () => ({
      memory: countIn(join(memory, "memory.oom_control"), "oom_kill") > 0,
      processes: countIn(join(pids, "pids.events"), "max") > 0,
    }),
  };
}

function makeV2(parent: string, { memoryBytes, processes }: Limits): Group {
  const group = join(parent, newGroupName());
  makeGroup([group], () => {
    writeFileSync(join(group, "memory.max"), String(memoryBytes));
    writeIfThere(join(group, "memory.swap.max"), "0");
    writeIfThere(join(group, "memory.oom.group"), "1");
    writeFileSync(join(group, "pids.max"), String(processes + BWRAP_PROCESSES));
  });
  return {
    directories: [group],
    kill: () => {
      // cgroup.kill came with Linux 5.14; before it, the list is killed, and release() repeats that until it stays empty.
      if (!writeIfThere(join(group, "cgroup.kill"), "1")) killMembers(group);
    },
    exceeded: () => ({
      memory: countIn(join(group, "memory.events"), "oom_kill") > 0,
      processes: countIn(join(group, "pids.events"), "max") > 0,
    }),
  };
}

/** Makes the directories and sets the limits, or leaves nothing behind. */
function makeGroup(directories: readonly string[], setLimits: () => void): void {
  try {
    for (const directory of directories) mkdirSync(directory);
    setLimits();
  } catch (error) {
    for (const directory of directories) removeGroup(directory);
    throw error;
  }
}

function holdOf({ directories, kill, exceeded }: Group): ResourceHold {
  return {
    async takeIn(pids) {
      // Not by a synchronous call: moving a process waits for an RCU grace period.
      for (const pid of pids) for (const directory of directories) await moveProcess(pid, directory);
    },
    watch: () => undefined,
    kill,
    async release() {
      const deadline = Date.now() + RELEASE_WITHIN_MS;
      for (let pauseMs = 1; directories.some((directory) => membersOf(directory).length > 0); pauseMs = Math.min(50, pauseMs * 2)) {
        if (Date.now() > deadline) throw new Error(`Processes of ${directories.join(" and ")} do not end.`);
        kill();
        await sleep(pauseMs);
      }
      const result = exceeded();
      for (const directory of directories) {
        while (!removeGroup(directory)) {
          if (Date.now() > deadline) throw new Error(`The cgroup ${directory} cannot be removed.`);
          await sleep(1);
        }
      }
      return result;
    },
  };
}

async function moveProcess(pid: number, directory: string): Promise<void> {
  try {
    await writeFile(join(directory, "cgroup.procs"), String(pid));
  } catch (error) {
    // ESRCH: it has ended.
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}

/** For files that only some kernels have; false where it could not be written. */
function writeIfThere(file: string, text: string): boolean {
  try {
    writeFileSync(file, text, { flag: "r+" });
    return true;
  } catch {
    return false;
  }
}
