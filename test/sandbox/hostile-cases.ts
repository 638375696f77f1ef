import type { SandboxLimits, SandboxResult } from "../../sandbox/sandbox-driver.ts";
import { type Machine, machineOf, syscallTables } from "../../sandbox/seccomp-filter.ts";
import type { HostileBeacon, HostileWorld } from "./hostile-world.ts";

export type HostileArea = "files" | "secrets" | "processes" | "kernel" | "ipc" | "network" | "resources" | "tenants";

/**
 * One attack: a bash script, run in an empty directory of the work directory, that prints BROKEN where it got what it is after and HELD
 * where it was refused. A script that a limit ends prints neither.
 */
export type HostileCase = {
  readonly area: HostileArea;
  readonly name: string;
  readonly script: string;
  /**
   * Who gets there with nothing around the script: `anyone`, or only `root`. Undefined where a host may hold it by itself (a kernel
   * without the feature, a machine without a network).
   */
  readonly control?: "anyone" | "root";
  readonly limits?: Partial<SandboxLimits>;
  /** What may end the run in place of the word HELD; where it is there, one of these must be the reason unless the script was refused. */
  readonly endedBy?: readonly SandboxResult["reason"][];
  /** Judged by the error of a syscall, which tells of the filter only where the host's own kernel answers (not gVisor's). */
  readonly asksHostKernel?: true;
};

const MiB = 1024 * 1024;
const machine: Machine = machineOf(process.arch) ?? "x86_64";
const numbers = syscallTables[machine];

/** BROKEN when `command` succeeds. */
const probe = (command: string): string => `if { ${command}; } >/dev/null 2>&1; then echo BROKEN; else echo HELD; fi`;
/** Perl without a single quote in it; its exit status tells. */
const perl = (code: string): string => `perl -e '${code}'`;
/** True when the call got past whatever refuses it by its name: EPERM, ENOSYS, EPROTONOSUPPORT and EAFNOSUPPORT are refusals. */
const reaches = (name: string, args: string): string =>
  perl(
    `$! = 0; $x = "\\0" x 64; $r = syscall(${numbers[name]}, ${args}); $e = $! + 0; exit($r == -1 && grep({ $e == $_ } 1, 38, 93, 97) ? 1 : 0)`,
  );
/** True when the call succeeds. */
const succeeds = (name: string, args: string): string => perl(`exit(syscall(${numbers[name]}, ${args}) == -1 ? 1 : 0)`);
/** A word that the command line of the script itself does not hold. */
const apart = (word: string): string => `"${word.slice(0, 4)}""${word.slice(4)}"`;
/** True when a process's command line holds `word`; the one that looks does not. */
const seesCommandLine = (word: string, pid: number | "[0-9]*" = "[0-9]*"): string =>
  perl(
    `for (glob "/proc/${pid}/cmdline") { open F, "<", $_ or next; read F, $t, 9999; exit 0 if $t =~ /[${word.slice(0, 1)}]${word.slice(1)}/ } exit 1`,
  );

type Row = readonly [name: string, command: string, control?: HostileCase["control"]];
const casesOf = (area: HostileArea, rows: readonly Row[]): HostileCase[] =>
  rows.map(([name, command, control]) => ({ area, name, script: probe(command), ...(control === undefined ? {} : { control }) }));

/** Arguments with which a call that gets through does no harm outside: most are refused as nonsense, after the gate. */
const escapeCalls: Readonly<Record<string, readonly [args: string, control?: HostileCase["control"]]>> = {
  mount: ["0, 0, 0, 0, 0", "root"],
  umount2: ["0, 0", "root"],
  pivot_root: ["0, 0", "root"],
  chroot: ["0", "root"],
  unshare: ["0x20000000", "root"],
  setns: ["-1, 0", "anyone"],
  open_tree: ["-1, 0, 0", "anyone"],
  move_mount: ["-1, 0, -1, 0, 0", "root"],
  fsopen: ["0, 0", "root"],
  fsconfig: ["-1, 0, 0, 0, 0", "anyone"],
  fsmount: ["-1, 0, 0", "root"],
  fspick: ["-1, 0, 0", "root"],
  mount_setattr: ["-1, 0, 0, 0, 0", "anyone"],
  ptrace: ["0, 0, 0, 0", "anyone"],
  process_vm_readv: ["$$, 0, 0, 0, 0, 0", "anyone"],
  process_vm_writev: ["$$, 0, 0, 0, 0, 0", "anyone"],
  process_madvise: ["-1, 0, 0, 0, 0", "anyone"],
  pidfd_getfd: ["-1, 0, 0", "anyone"],
  kcmp: ["$$, $$, 99, 0, 0"],
  keyctl: ["0, -3, 0", "anyone"],
  add_key: ["0, 0, 0, 0, 0", "anyone"],
  request_key: ["0, 0, 0, 0", "anyone"],
  bpf: ["0, 0, 0"],
  perf_event_open: ["0, 0, -1, -1, 0"],
  userfaultfd: ["1", "root"],
  memfd_secret: ["0"],
  io_uring_setup: ["4, 0"],
  open_by_handle_at: ["-1, 0, 0", "root"],
  name_to_handle_at: ["-1, 0, 0, 0, 0", "anyone"],
  fanotify_init: ["0, 0"],
  init_module: ["0, 0, 0"],
  finit_module: ["-1, 0, 0"],
  delete_module: ["0, 0"],
  kexec_load: ["0, 0, 0, 0xffff"],
  kexec_file_load: ["-1, -1, 0, 0, 0"],
  reboot: ["0, 0, 0, 0", "root"],
  swapon: ["0, 0", "root"],
  swapoff: ["0", "root"],
  acct: ["1"],
  quotactl: ["0x7fffff00, 0, 0, 0"],
  syslog: ["10, 0, 0", "root"],
  sethostname: ["0, 65", "root"],
  setdomainname: ["0, 65", "root"],
  clock_settime: ["0, 1"],
  clock_adjtime: ["0, 1"],
  iopl: ["0"],
  ioperm: ["0, 1, 0"],
  modify_ldt: ["0, 0, 0"],
  personality: ["0x0400000", "anyone"],
  migrate_pages: ["0, 0, 0, 0"],
  move_pages: ["0, 0, 0, 0, 0, 0"],
  lookup_dcookie: ["0, 0, 0"],
  mq_open: ["0, 0, 0, 0", "anyone"],
  shmget: ["0x7f123456, 4096, 0", "anyone"],
  semget: ["0x7f123456, 1, 0", "anyone"],
  msgget: ["0x7f123456, 0", "anyone"],
};

const kernelCases: HostileCase[] = [
  ...Object.entries(escapeCalls)
    .filter(([name]) => numbers[name] !== undefined)
    .map(([name, [args, control]]) => ({ name: `the call ${name}`, command: reaches(name, args), control })),
  { name: "a user namespace by clone", command: cloneReaches("0x10000011"), control: "anyone" as const },
  { name: "a network namespace by clone", command: cloneReaches("0x40000011"), control: "root" as const },
  { name: "a mount namespace by clone", command: cloneReaches("0x00020011"), control: "root" as const },
  { name: "clone3, whose flags no filter can read", command: reaches("clone3", "0, 0"), control: "anyone" as const },
  { name: "typing into a terminal (TIOCSTI)", command: reaches("ioctl", "0, 0x5412, $x"), control: "anyone" as const },
  { name: "TIOCSTI behind high bits", command: reaches("ioctl", "0, $n = 0x100005412, $x"), control: "anyone" as const },
  { name: "pasting into a terminal (TIOCLINUX)", command: reaches("ioctl", "0, 0x541c, $x"), control: "anyone" as const },
  { name: "a user namespace by unshare(1)", command: "unshare -U true", control: undefined },
  { name: "a nested mount by a program", command: "unshare -m mount -t tmpfs none .", control: undefined },
].map(({ name, command, control }) => ({
  area: "kernel" as const,
  name,
  script: probe(command),
  asksHostKernel: true as const,
  ...(control === undefined ? {} : { control }),
}));

function cloneReaches(flags: string): string {
  // The child of a clone that works ends at once, by its own way out.
  return perl(
    `$! = 0; $r = syscall(${numbers["clone"]}, ${flags}, 0, 0, 0, 0); $e = $! + 0; if ($r == 0) { exec "/bin/true" } exit($r == -1 && $e == 1 ? 1 : 0)`,
  );
}

const connectUnix = (address: string): string =>
  perl(`use Socket; socket(S, AF_UNIX, SOCK_STREAM, 0) or exit 1; exit(connect(S, ${address}) ? 0 : 1)`);
const abstractAddress = (name: string): string => `pack("S a*", AF_UNIX, "\\0${name}")`;
const connectTcp = (port: number): string => `timeout 5 bash -c 'exec 3<>/dev/tcp/127.0.0.1/${port} && head -c 5 <&3 | grep -q hello'`;
const socketReaches = (family: number, type: number, protocol: number): string => reaches("socket", `${family}, ${type}, ${protocol}`);

/** Allocates `each` MiB in each of `processes` processes and touches it all. */
const allocate = (each: number): string => `$x = "x" x (${each} << 20); $x =~ tr/x/y/`;

function resourceCases(): HostileCase[] {
  const waits = { control: "anyone", limits: { wallMs: 1_500 }, endedBy: ["wall"] } as const;
  const memory = { control: "anyone", limits: { memoryBytes: 64 * MiB }, endedBy: ["memory", "ok"] } as const;
  const output = { control: "anyone", limits: { outputBytes: 64 * 1024 }, endedBy: ["output"] } as const;
  const disk = { control: "anyone", endedBy: ["disk"] } as const;
  const rows: readonly Omit<HostileCase, "area">[] = [
    { ...waits, name: "a program that sleeps on", script: "sleep 3; echo BROKEN" },
    { ...waits, name: "a program that ignores every signal", script: "trap '' TERM INT HUP QUIT XCPU ALRM; sleep 1; sleep 2; echo BROKEN" },
    { ...waits, name: "a program that stops itself", script: "(sleep 3; kill -CONT $$) & kill -STOP $$; echo BROKEN" },
    { ...waits, name: "a program that hides in sessions of its own", script: "setsid -w setsid -w sleep 3; echo BROKEN" },
    {
      name: "processor time of one process",
      script: perl("do { @t = times } until $t[0] + $t[1] > 2.5; print qq(BROKEN\\n)"),
      control: "anyone",
      // gVisor has no such limit; the clock and the share of the processor bound what it may use.
      asksHostKernel: true,
      limits: { cpuSeconds: 1, wallMs: 30_000 },
      endedBy: ["ok", "wall"],
    },
    { ...memory, name: "memory of one process", script: perl(`${allocate(256)}; print qq(BROKEN\\n)`) },
    {
      ...memory,
      name: "memory over children, each within the limit",
      script: `for i in $(seq 8); do ${perl(`${allocate(20)}; sleep 3`)} & p="$p $!"; done; for q in $p; do wait $q || exit 1; done; echo BROKEN`,
    },
    {
      ...memory,
      name: "memory that no process maps (memfd)",
      script: perl(
        `for (1 .. 24) { $d = syscall(${numbers["memfd_create"]}, $name = "m", 0); if ($d < 0) { print qq(HELD\\n); exit } open my $h, ">&=", $d or exit 7; push @f, $h; syswrite($h, "x" x (8 << 20)) == 8 << 20 or exit 8 } print qq(BROKEN\\n)`,
      ),
    },
    {
      ...memory,
      name: "memory in /tmp",
      script: probe(
        "head -c 100M /dev/zero > /tmp/hostile-fill || { rm -f /tmp/hostile-fill; false; }; s=$(stat -c %s /tmp/hostile-fill); rm -f /tmp/hostile-fill; test $s = 104857600",
      ),
    },
    {
      ...memory,
      name: "memory in /dev/shm",
      script: probe(
        "head -c 30M /dev/zero > /dev/shm/hostile-fill; s=$(stat -c %s /dev/shm/hostile-fill); rm -f /dev/shm/hostile-fill; test $s = 31457280",
      ),
    },
    {
      name: "processes",
      script: perl(
        `while (@p < 120) { $p = fork; last if !defined $p; if (!$p) { select undef, undef, undef, 20; exit } push @p, $p } kill 9, @p; print @p == 120 ? qq(BROKEN\\n) : qq(HELD\\n)`,
      ),
      control: "anyone",
      limits: { processes: 20 },
      endedBy: ["pids"],
    },
    {
      name: "a bomb of processes that make processes",
      script: `${perl(`$end = time + 2; for (1 .. 7) { fork } select undef, undef, undef, 1; exit`)}; ${probe(perl(`for (1 .. 60) { defined($p = fork) or exit 1; if (!$p) { sleep 5; exit } push @p, $p } kill 9, @p; exit 0`))}`,
      control: "anyone",
      limits: { processes: 20 },
      endedBy: ["pids", "wall"],
    },
    { ...output, name: "output", script: "head -c 1000000 /dev/zero | tr '\\0' x; echo; echo BROKEN" },
    { ...output, name: "output of errors", script: "head -c 1000000 /dev/zero | tr '\\0' x >&2; echo BROKEN" },
    { name: "one large file", script: probe("head -c 40M /dev/zero > big; test $(stat -c %s big) = 41943040"), control: "anyone" },
    { name: "one large file with a hole", script: probe("truncate -s 1G hole"), control: "anyone" },
    { name: "open files", script: probe(perl(`for (1 .. 200) { open $f[$_], "<", "/dev/null" or exit 1 } exit 0`)), control: "anyone" },
    { name: "a higher limit of open files", script: probe("ulimit -n 1024") },
    { name: "core files", script: probe("ulimit -c 1") },
    {
      name: "memory that is never swapped",
      script: probe(perl(`$x = "x" x (4 << 20); exit(syscall(${numbers["mlock"]}, $x, 4 << 20) == 0 ? 0 : 1)`)),
      control: "root",
    },
    {
      name: "a better place in the queue of the processor",
      script: probe("test $(nice -n -5 nice) = -5"),
      control: "root",
      asksHostKernel: true,
    },
    {
      ...disk,
      name: "bytes in many files",
      script: "for i in $(seq 12); do head -c 1M /dev/zero > f$i; done; sleep 1; echo BROKEN",
      limits: { diskBytes: 4 * MiB },
    },
    {
      ...disk,
      name: "a flood of files",
      script: `${perl(`for (1 .. 1500) { open F, ">", "f$_" } sleep 1`)}; echo BROKEN`,
      limits: { inodes: 500 },
    },
    {
      ...disk,
      name: "a flood of directories",
      script: `${perl(`for (1 .. 1500) { mkdir "d$_" } sleep 1`)}; echo BROKEN`,
      limits: { inodes: 500 },
    },
  ];
  return rows.map((row) => ({ area: "resources", ...row }));
}

/** What a hostile program tries, over everything that the sandbox has to keep from it. */
export function hostileCases(world: HostileWorld): readonly HostileCase[] {
  const { base, planted, host, sandboxed, neighbourDirectory } = world;
  /** Where a neighbour offers the same thing twice, once on the bare host and once from its own sandbox. */
  const either = (command: (beacon: HostileBeacon) => string): string =>
    [host, sandboxed].map((beacon) => `{ ${command(beacon)}; }`).join(" || ");
  const secret = `${neighbourDirectory}/secret.txt`;

  return [
    ...casesOf("files", [
      ["the passwords of the host", "test -s /etc/shadow && grep -q : /etc/shadow", "root"],
      ["the users of the host", "grep -q ^daemon: /etc/passwd", "anyone"],
      ["root's home", "ls /root/", "root"],
      ["a readable file of the host", `grep -q secret ${base}/host-secret.txt`, "anyone"],
      ["a private key of the gateway", `grep -q . ${base}/master-key`, "root"],
      ["our own code", `test -r ${import.meta.filename}`, "anyone"],
      ["the host's temporary files", `ls -d ${base}`, "anyone"],
      ["the host's run and var directories", "ls /var/lib /run | grep -q .", "anyone"],
      ["a file of the host by dots", `cat ./../../../../../../../../../..${base}/host-secret.txt`, "anyone"],
      ["a file of the host through the first process's root", `cat /proc/1/root${base}/host-secret.txt`],
      ["a file of the host through the first process's directory", `cat /proc/1/cwd${base}/host-secret.txt`],
      ["a link out of the work directory, to read", `ln -s ${base} out && cat out/host-secret.txt`, "anyone"],
      ["a link out of the work directory, to write", `ln -s ${base} out && touch out/made-$$ && rm out/made-$$`, "root"],
      ["a second name of a host's file", `ln ${base}/host-secret.txt second`, "root"],
      ["writing in the root", "touch /hostile-$$ && rm /hostile-$$", "root"],
      ["writing in /usr", "touch /usr/hostile-$$ && rm /usr/hostile-$$", "root"],
      ["writing in /usr/local/bin", "touch /usr/local/bin/hostile-$$ && rm /usr/local/bin/hostile-$$", "root"],
      ["writing in /etc", "touch /etc/hostile-$$ && rm /etc/hostile-$$", "root"],
      ["writing in /dev", "touch /dev/hostile-$$ && rm /dev/hostile-$$", "root"],
      ["opening the list of users to write", ": >> /etc/passwd", "root"],
      ["opening a program of the host to write", ": >> /usr/bin/nproc", "root"],
      ["the kernel's settings", ": >> /proc/sys/kernel/core_pattern"],
      ["the kernel's emergency keys", ": >> /proc/sysrq-trigger"],
      ["the devices' tree", "ls /sys/devices | grep -q .", "anyone"],
      ["disks and kernel devices", "ls /dev | grep -qE '^(kmsg|mem|port|loop|vd|sd|nvme|dm-)'"],
      ["making a character device", "mknod c c 1 3", "root"],
      ["making a block device", "mknod b b 8 0", "root"],
      ["a file of root's", "touch mine && chown 0:0 mine && test $(stat -c %u mine) = 0", "root"],
      ["a program that makes its user root", "cp /usr/bin/id own && chmod 6755 own && test $(./own -u) = 0", "root"],
      [
        "a program with a capability",
        `touch able && ${succeeds("setxattr", '$f = "able", $n = "security.capability", $v = pack("V5", 0x02000001, 1 << 21, 0, 0, 0), 20, 0')}`,
        "root",
      ],
      ["the groups' directory", "ls /sys/fs/cgroup | grep -q ."],
    ]),
    ...casesOf("secrets", [
      ["our environment, inherited", `env | grep -q ${apart(planted)}`, "anyone"],
      ["our environment, in /proc", `cat /proc/[0-9]*/environ | tr '\\0' '\\n' | grep -q ${apart(planted)}`, "anyone"],
      ["a process's arguments", seesCommandLine(host.marker), "anyone"],
      ["a process's memory", `: < /proc/${host.pid}/mem && ${seesCommandLine(host.marker, host.pid)}`, "root"],
      ["a process's open files", `ls -l /proc/${host.pid}/fd | grep -q beacon`, "root"],
      ["a process's map of memory", `grep -q perl /proc/${host.pid}/maps`, "root"],
      ["the kernel's log", "dmesg | grep -q ."],
      ["the kernel's addresses", "head -1 /proc/kallsyms | grep -qv ^0000000000000000"],
      ["the host's name", `test "$(hostname)" = ${apart(world.hostName)}`, "anyone"],
      ["the host's list of hosts", `sha256sum /etc/hosts | grep -q ^${world.hostsDigest}`, "anyone"],
      ["the host's sockets", `grep -qi :${host.tcpPort.toString(16).padStart(4, "0")} /proc/net/tcp`, "anyone"],
    ]),
    ...casesOf("processes", [
      ["the host's process, seen", `grep -q node /proc/${process.pid}/cmdline`, "anyone"],
      ["the host's process, signalled", `kill -0 ${process.pid} && grep -q node /proc/${process.pid}/cmdline`, "root"],
      ["all of the host's processes", "test $(ls /proc | grep -c '^[0-9]') -gt 15", "anyone"],
      ["another's priority", `renice -n 1 -p ${host.pid} && grep -q perl /proc/${host.pid}/cmdline`, "root"],
      ["another's limits", `prlimit --pid ${host.pid} && grep -q perl /proc/${host.pid}/cmdline`, "root"],
      ["another's memory by ptrace", succeeds("ptrace", `0x4206, ${host.pid}, 0, 0`), "root"],
      ["a handle on another's process", succeeds("pidfd_open", `${host.pid}, 0`), "anyone"],
      ["another's network namespace", `nsenter -t ${host.pid} -n true`],
      ["another's mounts", `nsenter -t ${host.pid} -m true`],
      ["becoming root", perl("$> = 0; $< = 0; exit($> == 0 ? 0 : 1)"), "root"],
      ["becoming another user", perl("$> = 12345; exit($> == 12345 ? 0 : 1)"), "root"],
      ["a group more", perl(`$) = "0 4"; exit($) eq "0 4" ? 0 : 1)`), "root"],
      ["privileges of a setuid program", "grep -q 'NoNewPrivs:.*0' /proc/self/status", "anyone"],
      ["a capability", "grep CapEff /proc/self/status | grep -qv 0000000000000000", "root"],
      ["a capability to come", "grep CapBnd /proc/self/status | grep -qv 0000000000000000", "anyone"],
      ["a run without a filter", "grep -q 'Seccomp:.*0' /proc/self/status", "anyone"],
    ]),
    ...kernelCases,
    ...casesOf("ipc", [
      ["a shared memory segment", perl(`exit(defined shmget(${host.key}, 0, 0) ? 0 : 1)`), "anyone"],
      ["a message queue", perl(`exit(defined msgget(${host.key}, 0) ? 0 : 1)`), "anyone"],
      ["a semaphore", perl(`exit(defined semget(${host.key}, 0, 0) ? 0 : 1)`), "anyone"],
      ["a file in the host's shared memory", `grep -q beacon ${host.shmFile}`, "anyone"],
      ["an abstract socket", connectUnix(abstractAddress(host.abstractName)), "anyone"],
      ["a socket with a path", connectUnix(`pack_sockaddr_un("${host.socketPath}")`), "root"],
      ["a socket through the first process's root", connectUnix(`pack_sockaddr_un("/proc/1/root${host.socketPath}")`)],
      ["the list of the host's UNIX sockets", `grep -q ${apart(host.abstractName)} /proc/net/unix`, "anyone"],
      ["the list of shared memory", "tail -n +2 /proc/sysvipc/shm | grep -q .", "anyone"],
    ]),
    ...casesOf("network", [
      ["a server on the host's loopback", connectTcp(host.tcpPort), "anyone"],
      [
        "a datagram to the host",
        perl(
          `use IO::Socket::INET; $s = IO::Socket::INET->new(Proto => "udp", PeerAddr => "127.0.0.1:${host.udpPort}") or exit 1; $s->send("x") or exit 1; $r = ""; vec($r, fileno($s), 1) = 1; exit 1 unless select($r, undef, undef, 5); exit(defined $s->recv($b, 9) && $b eq "hello" ? 0 : 1)`,
        ),
        "anyone",
      ],
      ["an address of the internet", "timeout 2 bash -c 'exec 3<>/dev/tcp/1.1.1.1/80'"],
      ["the metadata service of a cloud", "timeout 2 bash -c 'exec 3<>/dev/tcp/169.254.169.254/80'"],
      ["another interface than the loopback", "tail -n +3 /proc/net/dev | grep -qv '^ *lo:'"],
      ["a route", "tail -n +2 /proc/net/route | grep -q ."],
      [
        "a port of the system",
        perl(`use IO::Socket::INET; exit(IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1:1023", ReuseAddr => 1) ? 0 : 1)`),
      ],
      ["a raw socket", socketReaches(2, 3, 1), "root"],
      ["a packet socket", socketReaches(17, 3, 0), "root"],
      ["a netlink socket", socketReaches(16, 3, 0), "anyone"],
      ["a netlink audit socket", socketReaches(16, 3, 9)],
      ["a socket to the hypervisor", socketReaches(40, 1, 0)],
      ["a socket of the kernel's cryptography", socketReaches(38, 5, 0)],
      ["a pair of netlink sockets", reaches("socketpair", "16, 3, 0, $x")],
      ["a multipath stream", socketReaches(2, 1, 262)],
      ["a tunnel device", "test -e /dev/net/tun"],
    ]).map((one) =>
      // gVisor's network and devices are its own: a low port and a tunnel of it reach nothing.
      (/socket|multipath/.test(one.name) && one.script.includes("syscall")) || /port of the system|tunnel/.test(one.name)
        ? { ...one, asksHostKernel: true as const }
        : one,
    ),
    ...resourceCases(),
    ...casesOf("tenants", [
      ["the neighbour's file by its path", `grep -q secret ${secret}`, "root"],
      ["the neighbour's file by dots", "cat ../../../globex/sandbox/secret.txt", "root"],
      ["the neighbour's file, to write", `: >> ${secret}`, "root"],
      ["the neighbour's directory, listed", `ls ${neighbourDirectory}/`, "root"],
      ["the neighbour's file through its process", either(({ pid }) => `grep -q secret /proc/${pid}/cwd/secret.txt`), "root"],
      ["the neighbour's temporary file", either(({ tmpFile }) => `grep -q beacon ${tmpFile}`), "anyone"],
      ["the neighbour's shared memory", either(({ shmFile }) => `grep -q beacon ${shmFile}`), "anyone"],
      ["the neighbour's segment", either(({ key }) => perl(`exit(defined shmget(${key}, 0, 0) ? 0 : 1)`)), "anyone"],
      ["the neighbour's abstract socket", either(({ abstractName }) => connectUnix(abstractAddress(abstractName))), "anyone"],
      ["the neighbour's server", either(({ tcpPort }) => connectTcp(tcpPort)), "anyone"],
      ["the neighbour's process, seen", either(({ marker }) => seesCommandLine(marker)), "anyone"],
      ["the neighbour's process, signalled", either(({ pid, marker }) => `${seesCommandLine(marker, pid)} && kill -0 ${pid}`), "root"],
      [
        "the neighbour's FIFO",
        `test -p ${neighbourDirectory}/beacon.fifo && timeout 2 head -c 5 ${neighbourDirectory}/beacon.fifo`,
        "root",
      ],
    ]),
  ];
}

export type HostileVerdict = {
  /** The script printed its mark: whatever is said of it, it began. */
  readonly ran: boolean;
  readonly broken: boolean;
  readonly held: boolean;
  /** For whoever reads a failure. */
  readonly said: string;
};

let marks = 0;

/** The script as it is run, and the mark that it prints first. */
export function hostileScript({ script }: Pick<HostileCase, "script">): { readonly mark: string; readonly command: string } {
  const mark = `ran-${process.pid}-${(marks += 1)}`;
  // The directory goes away afterwards, except where the run is ended.
  return { mark, command: `echo ${mark}; cd "$(mktemp -d ./case-XXXXXX)" || exit 1; trap 'cd ..; rm -rf "$OLDPWD"' EXIT\n${script}` };
}

/** What a run's output tells. */
export function hostileVerdict(
  { endedBy }: Pick<HostileCase, "endedBy">,
  {
    mark,
    stdout,
    reason,
    exitCode,
    detail,
  }: {
    readonly mark: string;
    readonly stdout: string;
    readonly reason: string;
    readonly exitCode: number | undefined;
    readonly detail: string;
  },
): HostileVerdict {
  const lines = stdout.split("\n");
  const ran = lines[0] === mark;
  const [broken, refused] = [lines.includes("BROKEN"), lines.includes("HELD")];
  // `ok`: the program was refused something and gave up.
  const isEnded = endedBy?.some((one) => one === reason && (one !== "ok" || (exitCode !== 0 && !broken))) ?? false;
  // What is counted from outside may be past its limit for a moment; the run ends for it all the same.
  const isLate = isEnded && (reason === "disk" || reason === "output");
  return {
    ran,
    broken: broken && !isLate,
    held: ran && (isEnded || (refused && !broken)),
    said: `${reason}: ${stdout.slice(0, 300)} ${detail.slice(0, 300)}`,
  };
}
