import { writeFile } from "node:fs/promises";
import { mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { isOrphaned, newRunName } from "./run-owner.ts";

/** Where a controller's groups may be made: the group that this process is in. `own` is a group that it is in for certain. */
export type CgroupPlaces = { readonly own?: string | undefined } &
  /** `cpu` and `cpuacct` may be one directory; undefined where we may not make groups there. */
  (
    | {
        readonly version: 1;
        readonly memory: string;
        readonly pids: string;
        readonly cpu: string | undefined;
        readonly cpuacct: string | undefined;
      }
    | { readonly version: 2; readonly parent: string; readonly cpu: boolean }
  );

/** Where one group's numbers are read. */
export type GroupFiles =
  | { readonly version: 1; readonly memory: string; readonly pids: string; readonly cpuacct: string | undefined }
  | { readonly version: 2; readonly parent: string };

/**
 * The groups of this process, where new ones can be made below them; undefined where the host has none that we may write.
 * @param parent a cgroup v2 directory that was delegated to us, instead of the one that we are in
 */
export function findCgroupPlaces(parent?: string): CgroupPlaces | undefined {
  const places = usablePlaces(parent);
  return places && { ...places, own: ownGroup() };
}

/** A group that lists this process: the mounts of a container may show others under the path that is ours outside. */
function ownGroup(): string | undefined {
  const [mounts, own] = [cgroupMounts(), ownGroups()];
  return ["memory", ""]
    .map((controller) => directoryOf(mounts, own, controller))
    .find((group) => group !== undefined && membersOf(group).includes(process.pid));
}

function usablePlaces(parent: string | undefined): CgroupPlaces | undefined {
  if (parent !== undefined) return usableV2(parent) ? placeV2(parent) : undefined;
  const mounts = cgroupMounts();
  const own = ownGroups();
  const memory = directoryOf(mounts, own, "memory");
  const pids = directoryOf(mounts, own, "pids");
  if (memory !== undefined && pids !== undefined) {
    if (!writable(memory) || !writable(pids)) return undefined;
    const [cpu, cpuacct] = ["cpu", "cpuacct"].map((controller) => {
      const place = directoryOf(mounts, own, controller);
      return place !== undefined && writable(place) ? place : undefined;
    });
    return { version: 1, memory, pids, cpu, cpuacct };
  }
  const unified = mounts.find((mount) => mount.type === "cgroup2");
  const place = directoryOf(mounts, own, "");
  // Root may also use the top: systemd leaves memory and pids switched on there.
  const candidates = [place, process.getuid?.() === 0 ? unified?.mountPoint : undefined];
  const found = candidates.find((candidate) => candidate !== undefined && usableV2(candidate));
  return found === undefined ? undefined : placeV2(found);
}

type CgroupMount = { readonly mountPoint: string; readonly root: string; readonly type: string; readonly controllers: readonly string[] };

function cgroupMounts(): CgroupMount[] {
  return readLines("/proc/self/mountinfo").flatMap((line) => {
    const [before = "", after = ""] = line.split(" - ");
    const [, , , root = "", mountPoint = ""] = before.split(" ");
    const [type = "", , options = ""] = after.split(" ");
    return type === "cgroup" || type === "cgroup2" ? [{ mountPoint, root, type, controllers: options.split(",") }] : [];
  });
}

/** Controller (or the empty string for v2) → path of our group in its hierarchy. */
function ownGroups(pid: number | "self" = "self"): ReadonlyMap<string, string> {
  return new Map(
    readLines(`/proc/${pid}/cgroup`).flatMap((line) => {
      const [, controllers = "", ...path] = line.split(":");
      return controllers.split(",").map((controller): [string, string] => [controller, path.join(":")]);
    }),
  );
}

function directoryOf(mounts: readonly CgroupMount[], own: ReadonlyMap<string, string>, controller: string): string | undefined {
  const path = own.get(controller);
  const mount = mounts.find(({ type, controllers }) =>
    controller === "" ? type === "cgroup2" : type === "cgroup" && controllers.includes(controller),
  );
  if (path === undefined || !mount) return undefined;
  // In a container the mount may begin at our own group.
  return join(mount.mountPoint, path.startsWith(mount.root) ? path.slice(mount.root.length) : path);
}

/** Where the groups of another process are told of; undefined where we see none of them. */
export function groupsOfProcess(pid: number): GroupFiles | undefined {
  const [mounts, groups] = [cgroupMounts(), ownGroups(pid)];
  const [memory, pids, cpuacct] = ["memory", "pids", "cpuacct"].map((controller) => directoryOf(mounts, groups, controller));
  if (memory !== undefined && pids !== undefined) return { version: 1, memory, pids, cpuacct };
  const parent = directoryOf(mounts, groups, "");
  return parent === undefined ? undefined : { version: 2, parent };
}

/** Tried, not guessed: a read-only mount, a missing right and a full hierarchy all show only when a group is made. */
function writable(directory: string): boolean {
  try {
    const trial = join(directory, newRunName());
    mkdirSync(trial);
    rmdirSync(trial);
    return true;
  } catch {
    return false;
  }
}

function usableV2(directory: string): boolean {
  const has = (file: string): boolean => {
    const controllers = (readLines(join(directory, file))[0] ?? "").split(" ");
    return controllers.includes("memory") && controllers.includes("pids");
  };
  if (!has("cgroup.controllers")) return false;
  if (!has("cgroup.subtree_control")) {
    try {
      // Fails where the group holds processes (they may live in leaves only) and where it is not delegated to us.
      writeFileSync(join(directory, "cgroup.subtree_control"), "+memory +pids");
    } catch {
      return false;
    }
  }
  return has("cgroup.subtree_control") && writable(directory);
}

/** The CPU share is held where the controller is there too; memory and processes do not depend on it. */
function placeV2(parent: string): CgroupPlaces {
  const has = (): boolean => (readLines(join(parent, "cgroup.subtree_control"))[0] ?? "").split(" ").includes("cpu");
  try {
    if (!has()) writeFileSync(join(parent, "cgroup.subtree_control"), "+cpu");
  } catch {
    // Not delegated to us.
  }
  return { version: 2, parent, cpu: has() };
}

/** Kills and removes the groups of processes that are gone (a gateway that was ended by kill -9). */
export function reapOrphanedGroups(places: CgroupPlaces): void {
  for (const parent of directoriesOf(places)) {
    for (const name of readdirSync(parent).filter(isOrphaned)) {
      killMembers(join(parent, name));
      removeGroup(join(parent, name));
    }
  }
}

export const directoriesOf = (places: CgroupPlaces): string[] =>
  places.version === 1
    ? [...new Set([places.memory, places.pids, places.cpu, places.cpuacct].filter((place) => place !== undefined))]
    : [places.parent];

export const membersOf = (group: string): number[] => readLines(join(group, "cgroup.procs")).map(Number);

export function killMembers(group: string): void {
  for (const pid of membersOf(group)) {
    try {
      process.kill(pid, "SIGKILL");
    } catch {
      // Gone meanwhile.
    }
  }
}

/**
 * After a pause the first move of a process into a group waits some 10 ms for an RCU grace period, the next ones do not. Moving ourselves
 * to where we are changes nothing and makes that wait begin; best while something else has to be waited for.
 */
export async function wakeGroups(places: CgroupPlaces): Promise<void> {
  if (places.own === undefined) return;
  // Not by a synchronous call, for its wait. Where it is refused, the first move waits.
  await writeFile(join(places.own, "cgroup.procs"), String(process.pid)).catch(() => undefined);
}

/** True when the group is gone; false while the kernel still holds it. */
export function removeGroup(group: string): boolean {
  try {
    rmdirSync(group);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "ENOENT";
  }
}

/** The number behind `name` in a file of `name number` lines; 0 where there is none. */
export function countIn(file: string, name: string): number {
  const line = readLines(file).find((candidate) => candidate.startsWith(`${name} `));
  return line === undefined ? 0 : Number(line.slice(name.length + 1));
}

/** The number that a file holds alone. */
export function numberIn(file: string): number | undefined {
  const [line] = readLines(file);
  return line !== undefined && /^\d+$/.test(line) ? Number(line) : undefined;
}

function readLines(file: string): string[] {
  try {
    return readFileSync(file, "utf8")
      .split("\n")
      .filter((line) => line !== "");
  } catch {
    return [];
  }
}
