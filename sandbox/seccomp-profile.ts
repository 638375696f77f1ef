import { createHash } from "node:crypto";
import { z } from "zod";
import type { SeccompProfileName } from "../domain/sandbox-policy.ts";
import { builtInSyscalls, ruledSyscalls, syscallTables } from "./seccomp-filter.ts";

/** Which syscalls a program may make. Where a call has a rule of its own for its arguments (clone, socket, ioctl …), that rule stays. */
export type SeccompProfile = {
  /** The same for the same profile: what is kept ready for one must not serve another. */
  readonly id: string;
  readonly allowed: readonly string[];
  /** False leaves UNIX sockets only. */
  readonly ipSockets: boolean;
  /** `log` lets what is not allowed happen, and has the kernel log it. */
  readonly denied: "refuse" | "log";
};

function profileOf({
  allowed: names,
  ipSockets,
  denied,
}: Omit<SeccompProfile, "id" | "allowed"> & { readonly allowed: Iterable<string> }): SeccompProfile {
  const allowed = [...new Set(names)].toSorted();
  const text = JSON.stringify([allowed, ipSockets, denied]);
  return { allowed, ipSockets, denied, id: createHash("sha256").update(text).digest("hex").slice(0, 16) };
}

const builtIn: Readonly<Record<SeccompProfileName, SeccompProfile>> = {
  strict: profileOf({ allowed: builtInSyscalls("strict"), ipSockets: false, denied: "refuse" }),
  default: profileOf({ allowed: builtInSyscalls("default"), ipSockets: true, denied: "refuse" }),
  log: profileOf({ allowed: builtInSyscalls("default"), ipSockets: true, denied: "log" }),
};
export const defaultSeccompProfile = builtIn.default;

/** Undefined for a name that is not built in. */
export const builtInProfile = (name: string): SeccompProfile | undefined =>
  Object.hasOwn(builtIn, name) ? builtIn[name as SeccompProfileName] : undefined;

/**
 * What no profile may allow, whoever wrote it: what an escape begins with, what a filter cannot judge because the flags lie behind a
 * pointer, and what reads or changes the machine itself.
 */
export const neverAllowed: ReadonlySet<string> = new Set(
  `mount umount umount2 pivot_root chroot unshare setns move_mount open_tree open_tree_attr fsopen fsconfig fsmount fspick mount_setattr
  statmount listmount clone3 ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp keyctl add_key request_key bpf perf_event_open
  userfaultfd memfd_secret io_uring_setup io_uring_enter io_uring_register open_by_handle_at fanotify_init fanotify_mark init_module
  finit_module delete_module create_module query_module get_kernel_syms kexec_load kexec_file_load reboot swapon swapoff acct quotactl
  quotactl_fd syslog sethostname setdomainname settimeofday clock_settime clock_adjtime adjtimex stime iopl ioperm vhangup uselib sysfs
  _sysctl lookup_dcookie nfsservctl lsm_set_self_attr afs_syscall security tuxcall vserver`.split(/\s+/),
);

/** Without these no program begins or ends. */
const alwaysNeeded: ReadonlySet<string> = new Set(
  "execve exit exit_group read write openat close brk mmap munmap mprotect rt_sigreturn rt_sigaction futex wait4 clone".split(" "),
);

const syscallName = z.string().regex(/^[a-z_][a-z0-9_]{0,63}$/, "is not the name of a syscall");
const profileFile = z.strictObject({
  extends: z.enum(["default", "strict"], "must be default or strict"),
  allow: z.array(syscallName).max(500).default([]),
  deny: z.array(syscallName).max(500).default([]),
});

export const maxProfileBytes = 64 * 1024;

/** The profile that a file describes, or why it describes none, as a clause. Nothing of a file with a fault is used. */
export function parseSeccompProfile(text: string): SeccompProfile | string {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    return `it is not JSON (${(error as Error).message})`;
  }
  const parsed = profileFile.safeParse(value);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    return `${issue?.path.join(".") || "the profile"}: ${issue?.message ?? "is not valid"}`;
  }
  const { extends: base, allow, deny } = parsed.data;
  const fault = faultOf(allow, deny);
  if (fault !== undefined) return fault;
  const denied = new Set(deny);
  const from = builtIn[base];
  return profileOf({ ...from, allowed: [...from.allowed, ...allow].filter((name) => !denied.has(name)) });
}

/** A misspelt name would deny nothing: it is a fault, as is a name that both lists hold. */
function faultOf(allow: readonly string[], deny: readonly string[]): string | undefined {
  const unknown = [...allow, ...deny].find((name) => !Object.values(syscallTables).some((table) => Object.hasOwn(table, name)));
  if (unknown !== undefined) return `there is no syscall ${unknown}`;
  const never = allow.find((name) => neverAllowed.has(name));
  if (never !== undefined) return `no profile may allow ${never}`;
  const ruled = allow.find((name) => ruledSyscalls.has(name));
  if (ruled !== undefined) return `${ruled} has a rule of its own for its arguments, which no profile lifts`;
  const needed = deny.find((name) => alwaysNeeded.has(name));
  if (needed !== undefined) return `no program runs without ${needed}`;
  const both = allow.find((name) => deny.includes(name));
  return both === undefined ? undefined : `${both} is allowed and denied`;
}

/** What all of the profiles allow: none of them is loosened by another. */
export function tightestOf(profiles: readonly [SeccompProfile, ...SeccompProfile[]]): SeccompProfile {
  return profiles.reduce((one, other) =>
    profileOf({
      allowed: new Set(one.allowed).intersection(new Set(other.allowed)),
      ipSockets: one.ipSockets && other.ipSockets,
      denied: one.denied === "log" && other.denied === "log" ? "log" : "refuse",
    }),
  );
}
