import {
  type BpfInstruction,
  encodeBpf,
  ifAnyBit,
  ifAtLeast,
  ifEqual,
  keepBits,
  loadArchitecture,
  loadArgument,
  loadSyscallNumber,
  oneOf,
  rangeTree,
  verdict,
} from "./bpf-program.ts";
// Numbers by name, from libseccomp 2.5.4's resolver; 451 and above added by hand from later kernels. Equal to linux-libc-dev 6.1's
// asm/unistd.h of both machines as far as those go.
import aarch64Syscalls from "./syscalls-aarch64.json" with { type: "json" };
import x8664Syscalls from "./syscalls-x86_64.json" with { type: "json" };

export type Machine = "x86_64" | "aarch64";

/** What a filter is assembled from; `SeccompProfile` is one. */
export type SeccompRules = {
  readonly allowed: readonly string[];
  readonly ipSockets: boolean;
  readonly denied: "refuse" | "log";
};

export type SeccompOptions = {
  /** False takes away what nothing counts without a cgroup: a memfd that is not mapped, and shared memory of System V. Default true. */
  readonly uncountedMemory?: boolean;
};

export const syscallTables: Readonly<Record<Machine, Readonly<Record<string, number>>>> = {
  x86_64: x8664Syscalls,
  aarch64: aarch64Syscalls,
};

/** AUDIT_ARCH_X86_64 and AUDIT_ARCH_AARCH64 of linux/audit.h. */
export const auditArchitectures: Readonly<Record<Machine, number>> = { x86_64: 0xc000003e, aarch64: 0xc00000b7 };

const EPERM = 1;
const ENOSYS = 38;
const EPROTONOSUPPORT = 93;
const EAFNOSUPPORT = 97;
const ALLOW = 0x7fff0000;
const LOG = 0x7ffc0000;
const KILL_PROCESS = 0x80000000;
const failWith = (errno: number): number => 0x00050000 | errno;

/** What ordinary programs need, grouped so that a reviewer can judge each group. Names that a machine lacks are skipped. */
const allowed: Readonly<Record<string, string>> = {
  io: `read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek sendfile splice tee vmsplice copy_file_range
    readahead fadvise64 sync syncfs fsync fdatasync sync_file_range`,
  files: `open openat openat2 creat close close_range dup dup2 dup3 stat lstat fstat newfstatat statx statfs fstatfs access faccessat
    faccessat2 readlink readlinkat getdents getdents64 getcwd chdir fchdir mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2
    link linkat symlink symlinkat truncate ftruncate fallocate chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat umask utime
    utimes utimensat futimesat flock fcntl getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr setxattr lsetxattr fsetxattr
    removexattr lremovexattr fremovexattr inotify_init inotify_init1 inotify_add_watch inotify_rm_watch memfd_create`,
  poll: `poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_wait epoll_wait_old epoll_pwait epoll_pwait2
    eventfd eventfd2 pipe pipe2 signalfd signalfd4 timerfd_create timerfd_settime timerfd_gettime`,
  memory: `brk mmap munmap mprotect mremap madvise msync mincore mlock mlock2 munlock mlockall munlockall membarrier pkey_alloc pkey_free
    pkey_mprotect map_shadow_stack mseal get_mempolicy set_mempolicy mbind`,
  process: `execve execveat exit exit_group fork vfork wait4 waitid kill tkill tgkill getpid getppid gettid getpgid getpgrp setpgid getsid
    setsid getuid geteuid getgid getegid getgroups getresuid getresgid setuid setgid setreuid setregid setresuid setresgid setgroups
    setfsuid setfsgid capget capset prctl arch_prctl set_tid_address set_robust_list get_robust_list futex futex_waitv futex_wake
    futex_wait futex_requeue rseq sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_setparam sched_getscheduler
    sched_setscheduler sched_getattr sched_setattr sched_get_priority_max sched_get_priority_min sched_rr_get_interval getpriority
    setpriority ioprio_get ioprio_set getrlimit setrlimit prlimit64 getrusage times pidfd_open pidfd_send_signal getcpu restart_syscall
    landlock_create_ruleset landlock_add_rule landlock_restrict_self seccomp`,
  signals: `rt_sigaction rt_sigprocmask rt_sigpending rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigqueueinfo rt_tgsigqueueinfo
    sigaltstack pause alarm getitimer setitimer`,
  time: `time gettimeofday clock_gettime clock_getres clock_nanosleep nanosleep timer_create timer_settime timer_gettime
    timer_getoverrun timer_delete`,
  information: "uname sysinfo getrandom",
  sockets:
    "connect bind listen accept accept4 getsockname getpeername getsockopt setsockopt sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg shutdown",
};

/** Answered "no such call" so that libc takes the older way. clone3 keeps its flags behind a pointer, which a filter cannot read. */
export const unknownToPrograms: readonly string[] =
  `clone3 io_uring_setup io_uring_enter io_uring_register setxattrat getxattrat listxattrat removexattrat
  cachestat statmount listmount lsm_get_self_attr lsm_set_self_attr lsm_list_modules open_tree_attr set_mempolicy_home_node`.split(/\s+/);

/** NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET and NEWTIME of linux/sched.h. */
export const NAMESPACE_FLAGS = 0x7e020080;
const AF_UNIX = 1;
const AF_INET = 2;
const AF_INET6 = 10;
export const socketFamilies = (ipSockets: boolean): readonly number[] => (ipSockets ? [AF_UNIX, AF_INET, AF_INET6] : [AF_UNIX]);
export const SOCKET_TYPE_MASK = 0xf;
/** STREAM, DGRAM and SEQPACKET: not RAW, not PACKET. */
export const socketTypes = [1, 2, 5];
/** The default one, TCP and UDP: not SCTP, MPTCP, UDP-Lite and whatever else would load a kernel module. */
export const socketProtocols = [0, 6, 17];
/** TIOCSTI, TIOCLINUX, TIOCSETD and TIOCCONS: they type into, paste into or take over a terminal. */
export const refusedIoctls = [0x5412, 0x541c, 0x5423, 0x541d];
/** PER_LINUX, PER_LINUX32, UNAME26 with each, ADDR_NO_RANDOMIZE (debuggers), and "tell me". */
export const personalities = [0x0, 0x8, 0x20000, 0x20008, 0x40000, 0xffffffff];
export const FILE_TYPE_MASK = 0xf000;
/** An ordinary file (also written 0), a FIFO, a socket: never a device. */
export const nodeTypes = [0x0, 0x1000, 0x8000, 0xc000];
/** The bit that marks a call of the x32 ABI on x86_64. */
const X32_BIT = 0x40000000;

const names = (text: string): string[] => text.split(/\s+/);

/** Judged by their arguments; allowed or not, these rules stay. */
export const ruledSyscalls: ReadonlySet<string> = new Set(["clone", "socket", "socketpair", "ioctl", "personality", "mknod", "mknodat"]);

/**
 * What `strict` leaves out, with every socket but UNIX ones: what a script, a compiler or an interpreter of a language does not need, and
 * exploits of the kernel have begun with (pipes that share pages, memory policy, protection keys, other ABIs' personalities).
 */
const notInStrict = `splice tee vmsplice memfd_create execveat personality mknod mknodat seccomp landlock_create_ruleset landlock_add_rule
  landlock_restrict_self pidfd_open pidfd_send_signal get_mempolicy set_mempolicy mbind pkey_alloc pkey_free pkey_mprotect
  map_shadow_stack mlock mlock2 mlockall munlock munlockall inotify_init inotify_init1 inotify_add_watch inotify_rm_watch
  sched_setaffinity sched_setparam sched_setscheduler sched_setattr setpriority ioprio_set sync syncfs utime futimesat epoll_ctl_old
  epoll_wait_old sendmmsg recvmmsg bind listen accept accept4`;

/** What a profile of ours allows, calls with a rule among it. */
export function builtInSyscalls(profile: "default" | "strict"): ReadonlySet<string> {
  const all = new Set([...Object.values(allowed).flatMap(names), ...ruledSyscalls]);
  return profile === "default" ? all : all.difference(new Set(names(notInStrict)));
}

/** Where no group counts memory, these make some that nobody counts. */
const uncounted = ["memfd_create", "shmget"];

/** The default-deny filter for one machine: what is not allowed fails with EPERM, a call newer than the table with ENOSYS, another ABI kills. */
export function compileSeccompFilter(
  machine: Machine,
  { allowed: allowedNames, ipSockets, denied }: SeccompRules,
  { uncountedMemory = true }: SeccompOptions = {},
): BpfInstruction[] {
  const table = syscallTables[machine];
  const refuse = (errno: number): BpfInstruction => verdict(denied === "log" ? LOG : failWith(errno));
  const leaves = new Map<number, readonly BpfInstruction[]>();
  const put = (name: string, leaf: readonly BpfInstruction[]): void => {
    const number = table[name];
    if (number !== undefined) leaves.set(number, leaf);
  };
  const rules: Readonly<Record<string, readonly BpfInstruction[]>> = argumentRules(refuse, { ipSockets });

  for (const name of unknownToPrograms) put(name, [verdict(failWith(ENOSYS))]);
  for (const name of allowedNames) put(name, rules[name] ?? [verdict(ALLOW)]);
  if (!uncountedMemory) for (const name of uncounted.filter((one) => allowedNames.includes(one))) put(name, [verdict(failWith(ENOSYS))]);

  const newest = Math.max(...Object.values(table));
  const ranges: { from: number; then: readonly BpfInstruction[] }[] = [];
  const sameAsLast = (leaf: readonly BpfInstruction[]): boolean => JSON.stringify(ranges.at(-1)?.then) === JSON.stringify(leaf);
  for (let number = 0; number <= newest; number += 1) {
    const then = leaves.get(number) ?? [refuse(EPERM)];
    if (!sameAsLast(then)) ranges.push({ from: number, then });
  }
  ranges.push({ from: newest + 1, then: [verdict(failWith(ENOSYS))] });

  return [
    loadArchitecture(),
    ifEqual(auditArchitectures[machine], 1, 0),
    verdict(KILL_PROCESS),
    loadSyscallNumber(),
    ...(machine === "x86_64" ? [ifAtLeast(X32_BIT, 0, 1), verdict(KILL_PROCESS)] : []),
    ...rangeTree(ranges),
  ];
}

function argumentRules(refuse: (errno: number) => BpfInstruction, { ipSockets }: Pick<SeccompRules, "ipSockets">) {
  const node = [keepBits(FILE_TYPE_MASK), ...oneOf(nodeTypes, [verdict(ALLOW)], [refuse(EPERM)])];
  const byProtocol = [loadArgument(2), ...oneOf(socketProtocols, [verdict(ALLOW)], [refuse(EPROTONOSUPPORT)])];
  const byType = [loadArgument(1), keepBits(SOCKET_TYPE_MASK), ...oneOf(socketTypes, byProtocol, [refuse(EPERM)])];
  const families = socketFamilies(ipSockets);
  return {
    clone: [loadArgument(0), ifAnyBit(NAMESPACE_FLAGS, 1, 0), verdict(ALLOW), refuse(EPERM)],
    socket: [loadArgument(0), ...oneOf(families, byType, [refuse(EAFNOSUPPORT)])],
    socketpair: [loadArgument(0), ...oneOf([AF_UNIX], [verdict(ALLOW)], [refuse(EAFNOSUPPORT)])],
    ioctl: [loadArgument(1), ...oneOf(refusedIoctls, [refuse(EPERM)], [verdict(ALLOW)])],
    personality: [loadArgument(0), ...oneOf(personalities, [verdict(ALLOW)], [refuse(EPERM)])],
    mknod: [loadArgument(1), ...node],
    mknodat: [loadArgument(2), ...node],
  };
}

/** The machine that this process runs on; undefined where we have no filter for it. */
export function machineOf(architecture: string): Machine | undefined {
  if (architecture === "x64") return "x86_64";
  return architecture === "arm64" ? "aarch64" : undefined;
}

/** The filter's bytes, as bubblewrap reads them. */
export const seccompFilterBytes = (machine: Machine, rules: SeccompRules, options: SeccompOptions = {}): Buffer =>
  encodeBpf(compileSeccompFilter(machine, rules, options));
