import type { SandboxJob, SandboxSpec } from "./sandbox-driver.ts";
import { defaultSeccompProfile } from "./seccomp-profile.ts";

export const specOf = ({ argv: _argv, stdin: _stdin, onOutput: _onOutput, onEgress: _onEgress, ...spec }: SandboxJob): SandboxSpec => spec;

/** Runs with the same key may have each other's sandboxes: all that a sandbox is made from, but not what we hold from outside during the run. */
export function slotKeyOf({ limits, seccomp = defaultSeccompProfile, ...rest }: SandboxSpec): string {
  const { wallMs: _wallMs, outputBytes: _outputBytes, diskBytes: _diskBytes, inodes: _inodes, ...held } = limits;
  return JSON.stringify({ ...rest, held, seccomp: seccomp.id });
}

/** The kernel's limit of one argument, its closing NUL included. */
const MAX_ARGUMENT_BYTES = 128 * 1024;
/** Of all together; the kernel takes a quarter of the stack's limit, which is 2 MiB nearly everywhere. */
const MAX_ARGUMENTS_BYTES = 1024 * 1024;

export function refuseProgram({ argv }: SandboxJob): string | undefined {
  if (argv.length === 0 || argv.some((argument) => argument.includes("\0"))) return "The program's arguments are empty or hold a NUL.";
  const sizes = argv.map((argument) => Buffer.byteLength(argument) + 1);
  const POINTER_BYTES = 8;
  const total = sizes.reduce((sum, size) => sum + size + POINTER_BYTES, 0);
  const isTooLong = total > MAX_ARGUMENTS_BYTES || sizes.some((size) => size > MAX_ARGUMENT_BYTES);
  return isTooLong ? "The program's arguments are too long for the system." : undefined;
}

export function refuseOwner({ uid }: SandboxSpec): string | undefined {
  if (process.getuid?.() === 0)
    return Number.isInteger(uid) && Number(uid) > 0
      ? undefined
      : "A sandbox started by root needs the tenant's own uid: it never runs as root.";
  return uid === undefined || uid === process.getuid?.() ? undefined : "Only root can run a sandbox as another uid.";
}
