import { accessSync, constants, readFileSync } from "node:fs";
import { join } from "node:path";
import { EgressDoors, type EgressDoorsOptions, sweepOrphanedDoors } from "./egress-door.ts";
import { goScript, groupFile, lastRunFd, parseHardLimits, passwdFile } from "./bwrap-arguments.ts";
import { createCgroupEnforcer } from "./cgroup-enforcer.ts";
import { findCgroupPlaces, reapOrphanedGroups } from "./cgroup-place.ts";
import { inheritedDescriptors } from "./inherited-descriptors.ts";
import { type ConstantFile, createConstantFile } from "./nameless-file.ts";
import { Leaving } from "./leaving.ts";
import { PipePool } from "./pipe-pool.ts";
import type { ResourceEnforcer } from "./resource-enforcer.ts";
import { createRlimitEnforcer } from "./rlimit-enforcer.ts";
import { sweepOrphanedProcesses } from "./run-owner.ts";
import { machineOf } from "./seccomp-filter.ts";
import { createSeccompFiles, type SeccompFiles } from "./seccomp-files.ts";
import type { WarmLimits } from "./warm-slots.ts";

export type BwrapDriverOptions = {
  /** `cgroup` refuses a host without a group that we may make; `any` (default) takes rlimits and a polled sum there; `rlimit` takes those always. */
  readonly enforcer?: "any" | "cgroup" | "rlimit";
  /** A delegated cgroup v2 directory to make the groups in; default: the group of this process. */
  readonly cgroupParent?: string;
  /** Sandboxes that are started ahead of their runs; default: none. */
  readonly warm?: WarmLimits;
  /** How the outside looks from the ways out of sandboxes; default: as this host sees it. */
  readonly egress?: EgressDoorsOptions;
};

/** What is found out and made once for all runs. */
export type BwrapHost = {
  readonly bwrap: string;
  readonly enforcer: ResourceEnforcer;
  readonly hardLimits: ReadonlyMap<string, number>;
  /** Descriptors to close before anything else is done; usually none. */
  readonly inherited: readonly number[];
  readonly seccomp: SeccompFiles;
  readonly passwd: ConstantFile;
  readonly group: ConstantFile;
  readonly pipes: PipePool;
  readonly doors: EgressDoors;
  readonly leaving: Leaving;
};

/** What this host gives, or one sentence on what it lacks. */
export function prepareHost({ enforcer = "any", cgroupParent, egress }: BwrapDriverOptions): BwrapHost | string {
  const machine = machineOf(process.arch);
  if (process.platform !== "linux" || machine === undefined)
    return `The bwrap sandbox needs Linux on x86_64 or arm64; this is ${process.platform} on ${process.arch}.`;
  const bwrap = findProgram("bwrap");
  if (bwrap === undefined) return "bubblewrap is missing: apt-get install -y bubblewrap";
  const places = enforcer === "rlimit" ? undefined : findCgroupPlaces(cgroupParent);
  if (places) reapOrphanedGroups(places);
  sweepOrphanedProcesses(goScript);
  sweepOrphanedDoors();
  const inherited = inheritedDescriptors(lastRunFd);
  if (inherited.length > 0 && !isExecutable("/bin/bash"))
    return `Descriptors ${inherited.join(", ")} were left open by whoever started us, and there is no bash to close them.`;
  if (!places && enforcer === "cgroup")
    return "The sandbox is set to require a cgroup, and this process may not make one (systemd: Delegate=yes).";
  return {
    inherited,
    bwrap,
    enforcer: places ? createCgroupEnforcer(places) : createRlimitEnforcer(),
    hardLimits: parseHardLimits(readFileSync("/proc/self/limits", "utf8")),
    seccomp: createSeccompFiles(machine, { uncountedMemory: places !== undefined }),
    passwd: createConstantFile(passwdFile),
    group: createConstantFile(groupFile),
    pipes: new PipePool(),
    doors: new EgressDoors(egress),
    leaving: new Leaving(),
  };
}

/** Only places that root alone writes are looked at, never PATH. */
function findProgram(name: string): string | undefined {
  return ["/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin"].map((directory) => join(directory, name)).find((path) => isExecutable(path));
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}
