import type { Enforcement, SandboxLimits } from "./sandbox-driver.ts";

/** What a run went over. */
export type Exceeded = { readonly memory: boolean; readonly processes: boolean };

/** The hold on one run's processes: made before the first of them starts, released when the last of them is gone. */
export interface ResourceHold {
  /** `cgroup.procs` files, two at most, that the first process writes itself into before it does anything else. */
  readonly joinFiles: readonly string[];
  /** Watches a started run where the kernel does not; `initPid` is the first process of the sandbox's pid namespace. */
  watch(initPid: number, exceeded: (what: "memory" | "processes") => void): void;
  /** Kills what is in the hold at this moment. */
  kill(): void;
  /** Kills until nothing is left, removes what was made for the run and tells what it went over. @throws when something cannot be killed */
  release(): Promise<Exceeded>;
}

export interface ResourceEnforcer {
  readonly kind: "cgroup1" | "cgroup2" | "rlimit";
  readonly memory: Enforcement;
  readonly processes: Enforcement;
  hold(limits: Pick<SandboxLimits, "memoryBytes" | "processes">): ResourceHold;
}

/** bubblewrap itself is two processes: the one outside that waits and the first one inside. */
export const BWRAP_PROCESSES = 2;
