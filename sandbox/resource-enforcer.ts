import type { Enforcement, SandboxLimits } from "./sandbox-driver.ts";

/** What a run went over. */
export type Exceeded = { readonly memory: boolean; readonly processes: boolean };

/** What a run used; undefined where nothing tells. */
export type Usage = { readonly peakMemoryBytes: number | undefined; readonly cpuMs: number | undefined };

/** The hold on one run's processes: made before the first of them starts, released when the last of them is gone. */
export interface ResourceHold {
  /**
   * Puts processes into the hold; what they start afterwards is in it too. The kernel may take 10 ms for it, so the first process is
   * put in while bubblewrap still builds the sandbox, and all of them once more before the program is let go.
   * @throws when a living one could not be put in
   */
  takeIn(pids: readonly number[]): Promise<void>;
  /** Told of the first process of the sandbox's pid namespace: its end is the end of all others in it. */
  born(initPid: number): void;
  /** Watches the program from now on, where the kernel does not. */
  watch(exceeded: (what: "memory" | "processes") => void): void;
  /** Kills what is in the hold at this moment. */
  kill(): void;
  /** Whether the kernel says that no others than these are in the hold; false where it does not say. */
  holdsOnly(pids: readonly number[]): boolean;
  /** What it went over and used until now. */
  read(): Exceeded & Usage;
  /** Kills until nothing is left, removes what was made for the run and tells what it went over and used. @throws when something cannot be killed */
  release(): Promise<Exceeded & Usage>;
}

export interface ResourceEnforcer {
  readonly kind: "cgroup1" | "cgroup2" | "rlimit";
  readonly memory: Enforcement;
  readonly processes: Enforcement;
  readonly cpu: Enforcement;
  hold(limits: Pick<SandboxLimits, "memoryBytes" | "processes" | "cpus">): ResourceHold;
}

/** bubblewrap itself is two processes: the one outside that waits and the first one inside. */
export const BWRAP_PROCESSES = 2;
