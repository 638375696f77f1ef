import type { EgressEvent } from "../domain/egress-event.ts";
import type { EgressGrant } from "./egress-grant.ts";
import type { SeccompProfile } from "./seccomp-profile.ts";

/** What one run may use. Units are in the names; every limit is enforced or the run is refused. */
export type SandboxLimits = {
  readonly wallMs: number;
  /** Of the whole group where a cgroup is there, else of each process. */
  readonly memoryBytes: number;
  readonly processes: number;
  /** Kept of each of stdout and stderr; a program that writes four times as much is killed. */
  readonly outputBytes: number;
  readonly fileBytes: number;
  readonly openFiles: number;
  readonly tmpBytes: number;
  /** Of each process. */
  readonly cpuSeconds: number;
  /** CPUs that all processes together may keep busy; where no cgroup holds them only `cpuSeconds` does. Default: as many as there are. */
  readonly cpus?: number;
  /** What the work directory may hold, with what is in it at the start: one that holds more already may not grow. Default: no limit. */
  readonly diskBytes?: number;
  /** As `diskBytes`, for files and directories. */
  readonly inodes?: number;
};

/** A container in place of bubblewrap. */
export type SandboxContainer = {
  /** `sha256:…` or `name@sha256:…`; it has to be here already. */
  readonly image: string;
  /** The name by which the Docker daemon knows it: `runc`, `runsc`. */
  readonly runtimeClass: string;
};

/** What a sandbox is made from, before it is known what will run in it. */
export type SandboxSpec = {
  /** The only directory that the program may write; a real directory, no link in any component. Seen as /work inside. */
  readonly workDirectory: string;
  /** The host uid and gid that the program runs as; undefined where the gateway is not root. */
  readonly uid: number | undefined;
  readonly limits: SandboxLimits;
  /** Default: the profile `default`. */
  readonly seccomp?: SeccompProfile;
  /** What it may reach over the network; default: nothing. */
  readonly egress?: EgressGrant;
  /** The limits that the work directory's own file system holds, being no larger: they are not watched. Default: none. */
  readonly heldByVolume?: readonly ("diskBytes" | "inodes")[];
  /** Default: none, bubblewrap. */
  readonly container?: SandboxContainer | undefined;
};

export type SandboxJob = SandboxSpec & {
  readonly argv: readonly string[];
  readonly stdin: Uint8Array | string;
  /** Told of what is kept of the output, as it comes. */
  readonly onOutput?: (stream: "stdout" | "stderr", chunk: Uint8Array) => void;
  /** Told of each destination that the program asks for, and of the ends of its connections. */
  readonly onEgress?: (event: EgressEvent) => void;
};

/** How a limit was held: by the kernel for all processes together (a cgroup; a file system of its own), by rlimits plus a polled sum, by polling alone, or not at all. */
export type Enforcement = "group" | "per-process" | "per-uid" | "polled" | "none";

export type SandboxResult = {
  /** The program's exit status; undefined when a signal ended it. */
  readonly exitCode: number | undefined;
  readonly signal: string | undefined;
  /** `denied`: refused before anything ran, or ended by the filter of syscalls. */
  readonly reason: "ok" | "wall" | "memory" | "pids" | "output" | "disk" | "denied" | "cancelled" | "failed_to_start";
  readonly stdout: Uint8Array;
  readonly stderr: Uint8Array;
  readonly truncated: boolean;
  readonly wallMs: number;
  /** Undefined where the kernel does not tell; polled values may miss the end of a short run. */
  readonly peakMemoryBytes: number | undefined;
  readonly cpuMs: number | undefined;
  readonly enforcement: {
    readonly wall: Enforcement;
    readonly memory: Enforcement;
    readonly processes: Enforcement;
    readonly output: Enforcement;
    readonly cpu: Enforcement;
    readonly disk: Enforcement;
    readonly inodes: Enforcement;
  };
};

/** The port that every way of running untrusted programs stands behind. It knows a directory and a uid, never a tenant. */
export interface SandboxDriver {
  readonly name: string;
  /** How this host would hold the limits; undefined when it cannot run the driver. */
  enforcement(container?: SandboxContainer): SandboxResult["enforcement"] | undefined;
  /** Undefined when this host can run the driver, in this container where one is given, else one sentence that says what is missing. */
  probe(container?: SandboxContainer): Promise<string | undefined>;
  /** Starts a sandbox ahead of a run that is expected, where the driver keeps any ready. */
  prepare(spec: SandboxSpec): void;
  /** Runs one program to its end; nothing that it started outlives the call. */
  run(job: SandboxJob, signal: AbortSignal): Promise<SandboxResult>;
  /** Ends what waits for a run in this directory, because its tenant is suspended or gone; without one, in any. */
  drop(workDirectory?: string): Promise<void>;
  /** Ends what waits for a run and gives back what was made for all of them. */
  dispose(): Promise<void>;
}
