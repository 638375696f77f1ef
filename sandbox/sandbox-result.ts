import type { ResourceEnforcer } from "./resource-enforcer.ts";
import type { SandboxResult, SandboxSpec } from "./sandbox-driver.ts";

/** The result of a run that had no program, because this host could not start one. */
export const notStarted = (why: string): SandboxResult => withoutProgram("failed_to_start", why);

/** The result of a run that may not be: its owner, its program or its directory is refused. */
export const denied = (why: string): SandboxResult => withoutProgram("denied", why);

/** Such a result says in its stderr why. */
export const hadNoProgram = ({ reason, exitCode }: Pick<SandboxResult, "reason" | "exitCode">): boolean =>
  reason === "failed_to_start" || (reason === "denied" && exitCode === undefined);

const withoutProgram = (reason: SandboxResult["reason"], why: string): SandboxResult => ({
  exitCode: undefined,
  signal: undefined,
  reason,
  stdout: new Uint8Array(),
  stderr: Buffer.from(why),
  truncated: false,
  wallMs: 0,
  peakMemoryBytes: undefined,
  cpuMs: undefined,
  enforcement: { wall: "none", memory: "none", processes: "none", output: "none", cpu: "none", disk: "none", inodes: "none" },
});

export const enforcementOf = (
  { memory, processes, cpu }: Pick<ResourceEnforcer, "memory" | "processes" | "cpu">,
  heldByVolume: SandboxSpec["heldByVolume"] = [],
): SandboxResult["enforcement"] => ({
  wall: "group",
  memory,
  processes,
  output: "group",
  cpu,
  disk: heldByVolume.includes("diskBytes") ? "group" : "polled",
  inodes: heldByVolume.includes("inodes") ? "group" : "polled",
});
