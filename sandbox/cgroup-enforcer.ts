import { mkdirSync, writeFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  type CgroupPlaces,
  countIn,
  directoriesOf,
  type GroupFiles,
  killMembers,
  membersOf,
  numberIn,
  removeGroup,
  wakeGroups,
} from "./cgroup-place.ts";
import { growingPause } from "./growing-pause.ts";
import { BWRAP_PROCESSES, type Exceeded, type ResourceEnforcer, type ResourceHold, type Usage } from "./resource-enforcer.ts";
import { newRunName } from "./run-owner.ts";

/** Long enough for a process that the kernel holds in a disk wait; nothing but that outlives SIGKILL. */
const RELEASE_WITHIN_MS = 10_000;

type Group = {
  readonly directories: readonly string[];
  kill(): void;
  read(): Exceeded & Usage;
  /** Of its CPU share, where that is held: whether it was ever used up, and what makes it stand behind others from then on. */
  readonly cpu: { isUsedUp(): boolean; giveWay(): void } | undefined;
};
type Limits = Parameters<ResourceEnforcer["hold"]>[0];

/** The kernel's default period of a CPU share. */
const CPU_PERIOD_US = 100_000;
/** The kernel takes no smaller share of a period than a millisecond. */
const cpuQuotaUs = (cpus: number): number => Math.max(1_000, Math.round(cpus * CPU_PERIOD_US));

/** How often a run is looked at that may use up its CPU share, and its weight from then on; others have 1,024 and 100. */
const CPU_LOOK_MS = 50;
const HOG_SHARES = 64;
const HOG_WEIGHT = 6;

/** Memory and processes held by the kernel for the whole run: what a run starts can never leave its group. */
export function createCgroupEnforcer(places: CgroupPlaces): ResourceEnforcer {
  return {
    kind: places.version === 1 ? "cgroup1" : "cgroup2",
    memory: "group",
    processes: "group",
    cpu: places.cpu === undefined || places.cpu === false ? "per-process" : "group",
    hold(limits) {
      const awake = wakeGroups(places);
      return holdOf(places.version === 1 ? makeV1(places, limits) : makeV2(places, limits), awake);
    },
  };
}

function makeV1(places: CgroupPlaces & { version: 1 }, { memoryBytes, processes, cpus }: Limits): Group {
  const name = newRunName();
  const memory = join(places.memory, name);
  const pids = join(places.pids, name);
  const directories = directoriesOf(places).map((place) => join(place, name));
  makeGroup(directories, () => {
    writeFileSync(join(memory, "memory.limit_in_bytes"), String(memoryBytes));
    writeIfThere(join(memory, "memory.memsw.limit_in_bytes"), String(memoryBytes));
    writeFileSync(join(pids, "pids.max"), String(processes + BWRAP_PROCESSES));
    if (places.cpu !== undefined && cpus !== undefined) {
      writeFileSync(join(places.cpu, name, "cpu.cfs_period_us"), String(CPU_PERIOD_US));
      writeFileSync(join(places.cpu, name, "cpu.cfs_quota_us"), String(cpuQuotaUs(cpus)));
    }
  });
  return {
    directories,
    kill: () => {
      // No new one may be born between the reading of the list and the killing.
      writeIfThere(join(pids, "pids.max"), "0");
      killMembers(memory);
      killMembers(pids);
    },
    cpu: places.cpu === undefined || cpus === undefined ? undefined : shareOf(join(places.cpu, name), "cpu.shares", HOG_SHARES),
    read: () => readGroup({ version: 1, memory, pids, cpuacct: places.cpuacct === undefined ? undefined : join(places.cpuacct, name) }),
  };
}

function makeV2({ parent, cpu }: CgroupPlaces & { version: 2 }, { memoryBytes, processes, cpus }: Limits): Group {
  const group = join(parent, newRunName());
  makeGroup([group], () => {
    writeFileSync(join(group, "memory.max"), String(memoryBytes));
    writeIfThere(join(group, "memory.swap.max"), "0");
    writeIfThere(join(group, "memory.oom.group"), "1");
    writeFileSync(join(group, "pids.max"), String(processes + BWRAP_PROCESSES));
    if (cpu && cpus !== undefined) writeFileSync(join(group, "cpu.max"), `${cpuQuotaUs(cpus)} ${CPU_PERIOD_US}`);
  });
  return {
    directories: [group],
    kill: () => {
      // cgroup.kill came with Linux 5.14; before it, the list is killed, and release() repeats that until it stays empty.
      if (!writeIfThere(join(group, "cgroup.kill"), "1")) killMembers(group);
    },
    cpu: !cpu || cpus === undefined ? undefined : shareOf(group, "cpu.weight", HOG_WEIGHT),
    read: () => readGroup({ version: 2, parent: group }),
  };
}

/** What a group went over and used until now. */
export function readGroup(files: GroupFiles): Exceeded & Usage {
  if (files.version === 1) {
    const cpuNs = files.cpuacct === undefined ? undefined : numberIn(join(files.cpuacct, "cpuacct.usage"));
    return {
      memory: countIn(join(files.memory, "memory.oom_control"), "oom_kill") > 0,
      processes: countIn(join(files.pids, "pids.events"), "max") > 0,
      peakMemoryBytes: numberIn(join(files.memory, "memory.max_usage_in_bytes")),
      cpuMs: cpuNs === undefined ? undefined : Math.round(cpuNs / 1e6),
    };
  }
  return {
    memory: countIn(join(files.parent, "memory.events"), "oom_kill") > 0,
    processes: countIn(join(files.parent, "pids.events"), "max") > 0,
    // memory.peak came with Linux 5.19.
    peakMemoryBytes: numberIn(join(files.parent, "memory.peak")),
    cpuMs: Math.round(countIn(join(files.parent, "cpu.stat"), "usage_usec") / 1e3),
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

/**
 * A run that uses up its share in a part of each period has all cores for that part, and whoever shares them waits. From the first time
 * on it has only what others leave: its share is the same, but a quiet neighbour no longer feels it.
 */
const shareOf = (group: string, file: string, weight: number) => ({
  isUsedUp: () => countIn(join(group, "cpu.stat"), "nr_throttled") > 0,
  giveWay: () => void writeIfThere(join(group, file), String(weight)),
});

function holdOf({ directories, kill, read, cpu }: Group, awake: Promise<void>): ResourceHold {
  let look: NodeJS.Timeout | undefined;
  return {
    async takeIn(pids) {
      // Not by a synchronous call: moving a process may wait.
      await awake;
      for (const pid of pids) await Promise.all(directories.map(async (directory) => await moveProcess(pid, directory)));
    },
    born: () => undefined,
    watch() {
      if (cpu === undefined) return;
      look = setInterval(() => {
        if (!cpu.isUsedUp()) return;
        cpu.giveWay();
        clearInterval(look);
      }, CPU_LOOK_MS);
      look.unref();
    },
    kill,
    holdsOnly: (pids) => directories.every((directory) => membersOf(directory).every((pid) => pids.includes(pid))),
    read,
    async release() {
      clearInterval(look);
      const deadline = Date.now() + RELEASE_WITHIN_MS;
      for (const pause = growingPause(); directories.some((directory) => membersOf(directory).length > 0); await pause()) {
        if (Date.now() > deadline) throw new Error(`Processes of ${directories.join(" and ")} do not end.`);
        kill();
      }
      const result = read();
      for (const directory of directories) {
        for (const pause = growingPause(); !removeGroup(directory); await pause()) {
          if (Date.now() > deadline) throw new Error(`The cgroup ${directory} cannot be removed.`);
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
