import type { SandboxLimits } from "./sandbox-driver.ts";

const mib = 1024 * 1024;

/** Limits of a tool's run unless the administrator's modes say otherwise */
export const defaultToolLimits: SandboxLimits = {
  wallMs: 30_000,
  cpuSeconds: 30,
  memoryBytes: 512 * mib,
  processes: 128,
  outputBytes: mib,
  fileBytes: 128 * mib,
  openFiles: 256,
  tmpBytes: 64 * mib,
};
