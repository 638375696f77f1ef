import type { ResourceEnforcer } from "./resource-enforcer.ts";
import type { SandboxResult } from "./sandbox-driver.ts";

/** The result of a run that had no program. */
export const notStarted = (why: string): SandboxResult => ({
  exitCode: undefined,
  signal: undefined,
  reason: "failed_to_start",
  stdout: new Uint8Array(),
  stderr: Buffer.from(why),
  truncated: false,
  wallMs: 0,
  peakMemoryBytes: undefined,
  cpuMs: undefined,
  enforcement: { wall: "none", memory: "none", processes: "none", output: "none", cpu: "none", disk: "none", inodes: "none" },
});

export const enforcementOf = ({
  memory,
  processes,
  cpu,
}: Pick<ResourceEnforcer, "memory" | "processes" | "cpu">): SandboxResult["enforcement"] => ({
  wall: "group",
  memory,
  processes,
  output: "group",
  cpu,
  disk: "polled",
  inodes: "polled",
});
