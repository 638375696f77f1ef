/** The limits of a sandbox mode, in the units of the administrator's `config.yaml` (contract §8). */
export const sandboxLimitNames = [
  "memory_limit_mb",
  "cpu_quota",
  "pids",
  "wall_seconds",
  "output_kb",
  "disk_mb",
  "inodes",
  "tmp_mb",
  "open_files",
] as const;
export type SandboxLimitName = (typeof sandboxLimitNames)[number];

/** What holds where neither a mode nor an overlay says anything. `cpu_quota` in CPUs. */
export const builtInSandboxLimits: Readonly<Record<SandboxLimitName, number>> = {
  memory_limit_mb: 512,
  cpu_quota: 1,
  pids: 128,
  wall_seconds: 60,
  output_kb: 1_024,
  disk_mb: 1_024,
  inodes: 100_000,
  tmp_mb: 64,
  open_files: 256,
};

/** What one run may do over the network where `sandbox.network` says nothing else. */
export const builtInNetworkLimits = { max_up_mb: 64, max_down_mb: 1_024, max_connections: 32, max_requests: 1_000 } as const;

/** The filters of syscalls that need no file, the tightest first; any other is a file of the administrator's. */
export const seccompProfileNames = ["strict", "default", "log"] as const;
export type SeccompProfileName = (typeof seccompProfileNames)[number];

/** A value and, for people, where it comes from. */
export type Reasoned<Value> = { readonly value: Value; readonly because: string };

/** What applies to one run of a tool, or of a command of the administrator's. */
export type SandboxPolicy = {
  readonly mode: Reasoned<string>;
  readonly limits: Readonly<Record<SandboxLimitName, Reasoned<number>>>;
  readonly runtime: Reasoned<"bwrap" | "docker">;
  readonly runtimeClass: Reasoned<string | undefined>;
  readonly image: Reasoned<string | undefined>;
  /** All of these hold: what one of them refuses is refused. */
  readonly seccomp: Reasoned<readonly string[]>;
  /** What the program may reach, as `EgressRule`s in their one spelling; empty: nothing. */
  readonly network: Reasoned<readonly string[]>;
  /** The mode says in so many words that it has a network: where it cannot, the mode is refused. */
  readonly networkAsked: boolean;
  /** Limits that the administrator set for this mode: where they must hold by cgroup and cannot, the mode is refused. */
  readonly asked: ReadonlySet<SandboxLimitName>;
  readonly require: "cgroup" | "any";
  /** Why the configuration itself cannot be applied. */
  readonly fault: string | undefined;
};
