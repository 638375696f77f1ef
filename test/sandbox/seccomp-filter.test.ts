import { describe, expect, test } from "vitest";
import { type BpfInstruction, encodeBpf, ifEqual, interpretBpf, loadSyscallNumber, rangeTree, verdict } from "../../sandbox/bpf-program.ts";
import {
  auditArchitectures,
  compileSeccompFilter,
  type Machine,
  type SeccompOptions,
  seccompFilterBytes,
  type SeccompRules,
  syscallTables,
} from "../../sandbox/seccomp-filter.ts";
import {
  builtInProfile,
  defaultSeccompProfile,
  neverAllowed as neverInProfiles,
  parseSeccompProfile,
  type SeccompProfile,
  tightestOf,
} from "../../sandbox/seccomp-profile.ts";

const machines: readonly Machine[] = ["x86_64", "aarch64"];
const compile = (machine: Machine, rules: SeccompRules = defaultSeccompProfile, options?: SeccompOptions): BpfInstruction[] =>
  compileSeccompFilter(machine, rules, options);
const builtIn = (name: string): SeccompProfile => builtInProfile(name) ?? expect.fail(`there is no profile ${name}`);
const parsed = (file: object): SeccompProfile => {
  const profile = parseSeccompProfile(JSON.stringify(file));
  return typeof profile === "string" ? expect.fail(profile) : profile;
};
const verdictNames: ReadonlyMap<number, string> = new Map([
  [0x7fff0000, "allow"],
  [0x7ffc0000, "log"],
  [0x80000000, "kill"],
  [0x00050001, "EPERM"],
  [0x00050026, "ENOSYS"],
  [0x0005005d, "EPROTONOSUPPORT"],
  [0x00050061, "EAFNOSUPPORT"],
]);

function judge(program: readonly BpfInstruction[], machine: Machine, number: number, args: readonly bigint[] = []): string {
  const verdictOf = interpretBpf(program, { number, auditArchitecture: auditArchitectures[machine], args });
  return verdictNames.get(verdictOf) ?? `unknown ${verdictOf.toString(16)}`;
}

/** Calls that no program in the sandbox may make, whatever its arguments: the ones that a kernel exploit or an escape begins with. */
const neverAllowed = `mount umount2 pivot_root chroot unshare setns move_mount open_tree fsopen fsconfig fsmount fspick mount_setattr ptrace
  process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp keyctl add_key request_key bpf perf_event_open userfaultfd memfd_secret
  open_by_handle_at name_to_handle_at fanotify_init fanotify_mark init_module finit_module delete_module kexec_load kexec_file_load reboot
  swapon swapoff acct quotactl quotactl_fd syslog sethostname setdomainname settimeofday clock_settime clock_adjtime adjtimex iopl ioperm
  modify_ldt vhangup uselib ustat sysfs _sysctl lookup_dcookie nfsservctl shmget shmat shmctl msgget msgsnd msgctl semget semop semctl
  mq_open mq_unlink move_pages migrate_pages get_kernel_syms create_module query_module`.split(/\s+/);

/** Arguments that every rule of ours judges: plain, a namespace, a raw IPv4 socket, a netlink socket, typing into a terminal. */
const argumentsToTry = [
  [0n, 0n, 0n],
  [1n, 1n, 0n],
  [0x10000000n, 3n, 0n],
  [2n, 1n, 6n],
  [16n, 3n, 0n],
  [0n, 0x5412n, 0n],
  [0n, 0x2000n, 0x2000n],
];
const loosest = ["kill", "refused", "log", "allow"];
const loosenessOf = (verdictName: string): number => loosest.indexOf(verdictName.startsWith("E") ? "refused" : verdictName);

/** A name that a profile may allow, found out by asking. */
const allowable = (name: string): boolean => typeof parseSeccompProfile(JSON.stringify({ extends: "default", allow: [name] })) !== "string";

function expectNoLooser(machine: Machine, tighter: readonly BpfInstruction[], looser: readonly BpfInstruction[]): void {
  for (let number = 0; number <= 600; number += 1) {
    for (const args of argumentsToTry) {
      const [one, other] = [judge(tighter, machine, number, args), judge(looser, machine, number, args)];
      if (loosenessOf(one) > loosenessOf(other)) expect.fail(`${machine} ${number} ${args.join()}: ${one} is looser than ${other}`);
    }
  }
}

describe.each(machines)("the seccomp filter of %s", (machine) => {
  const program = compile(machine);
  const table = syscallTables[machine];
  const numberOf = (name: string): number => table[name] ?? expect.fail(`${machine} has no ${name}`);
  const ask = (name: string, ...args: (number | bigint)[]): string => judge(program, machine, numberOf(name), args.map(BigInt));
  const newest = Math.max(...Object.values(table));

  test("gives every syscall number a verdict, and the known ones the golden one", () => {
    const verdicts = Object.entries(table).map(([name, number]) => `${judge(program, machine, number)} ${name}`);

    expect(verdicts.toSorted().join("\n")).toMatchSnapshot();
    expect(verdicts.some((line) => line.startsWith("unknown"))).toBe(false);
  });

  test("denies the numbers between and above the known ones", () => {
    const known = new Set(Object.values(table));

    for (let number = 0; number <= newest; number += 1) if (!known.has(number)) expect(judge(program, machine, number)).toBe("EPERM");
    for (let number = newest + 1; number < newest + 3000; number += 1) expect(judge(program, machine, number)).toBe("ENOSYS");
    expect(judge(program, machine, 0x3fffffff)).toBe("ENOSYS");
  });

  test("never lets the dangerous calls through", () => {
    for (const name of neverAllowed.filter((candidate) => candidate in table)) {
      for (const argument of [0, 1, 0xffffffff]) expect([name, ask(name, argument, argument, argument)]).toEqual([name, "EPERM"]);
    }
  });

  test("sends libc the older way where flags hide behind a pointer, and io_uring away", () => {
    for (const name of ["clone3", "io_uring_setup", "io_uring_enter", "io_uring_register"]) expect(ask(name)).toBe("ENOSYS");
  });

  test("lets clone make threads and processes, never namespaces", () => {
    const threadFlags = 0x003d0f00;

    expect(ask("clone", threadFlags)).toBe("allow");
    expect(ask("clone", 17)).toBe("allow");
    for (const flag of [0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000]) {
      expect(ask("clone", flag | 17)).toBe("EPERM");
      expect(ask("clone", (1n << 40n) | BigInt(flag))).toBe("EPERM");
    }
  });

  test("lets sockets be UNIX, IPv4 and IPv6 streams and datagrams only", () => {
    for (const family of [1, 2, 10]) {
      for (const type of [1, 2, 5, 1 | 0o2000000 | 0o4000]) expect(ask("socket", family, type, 0)).toBe("allow");
      for (const type of [3, 4, 6, 10, 3 | 0o2000000]) expect(ask("socket", family, type, 0)).toBe("EPERM");
    }
    for (let family = 0; family < 50; family += 1)
      if (![1, 2, 10].includes(family)) expect(ask("socket", family, 1, 0)).toBe("EAFNOSUPPORT");
    for (const protocol of [1, 33, 132, 136, 255, 262]) expect(ask("socket", 2, 1, protocol)).toBe("EPROTONOSUPPORT");
    expect(ask("socket", 2, 1, 6)).toBe("allow");
    expect(ask("socketpair", 1, 1, 0)).toBe("allow");
    expect(ask("socketpair", 16, 3, 0)).toBe("EAFNOSUPPORT");
  });

  test("keeps programs from typing into a terminal, also with bits above 32", () => {
    for (const command of [0x5412, 0x541c, 0x5423, 0x541d]) {
      expect(ask("ioctl", 0, command)).toBe("EPERM");
      expect(ask("ioctl", 0, (1n << 32n) | BigInt(command))).toBe("EPERM");
    }
    for (const command of [0x5401, 0x5413, 0x541b]) expect(ask("ioctl", 0, command)).toBe("allow");
  });

  test("lets mknodat make FIFOs, files and sockets, never devices; personality only the harmless ones", () => {
    for (const type of [0x1000, 0x8000, 0xc000, 0]) expect(ask("mknodat", 0, 0, type | 0o644)).toBe("allow");
    for (const type of [0x2000, 0x6000, 0x4000, 0xa000]) expect(ask("mknodat", 0, 0, type | 0o644)).toBe("EPERM");
    expect(ask("personality", 0xffffffff)).toBe("allow");
    expect(ask("personality", 0x0400000)).toBe("EPERM");
  });

  test("kills calls of another machine's ABI", () => {
    for (const number of [0, 1, 59, 400]) {
      expect(interpretBpf(program, { number, auditArchitecture: 0x40000003, args: [] })).toBe(0x80000000);
      const other = machine === "x86_64" ? "aarch64" : "x86_64";
      expect(interpretBpf(program, { number, auditArchitecture: auditArchitectures[other], args: [] })).toBe(0x80000000);
    }
  });

  test("has a log mode that refuses nothing but other ABIs and new calls, and takes uncounted memory away", () => {
    const logging = compile(machine, builtIn("log"));
    const counted = compile(machine, parsed({ extends: "default", allow: ["shmget"] }), { uncountedMemory: false });

    expect(judge(logging, machine, numberOf("ptrace"))).toBe("log");
    expect(judge(logging, machine, numberOf("socket"), [16n, 3n, 0n])).toBe("log");
    for (const name of ["memfd_create", "shmget"]) expect(judge(counted, machine, numberOf(name))).toBe("ENOSYS");
    expect(judge(compile(machine, defaultSeccompProfile, { uncountedMemory: false }), machine, numberOf("shmget"))).toBe("EPERM");
    expect(judge(program, machine, numberOf("memfd_create"))).toBe("allow");
  });

  test("strict gives every number a golden verdict too, and never a looser one", () => {
    const strict = compile(machine, builtIn("strict"));
    const verdicts = Object.entries(table).map(([name, number]) => `${judge(strict, machine, number)} ${name}`);

    expect(verdicts.toSorted().join("\n")).toMatchSnapshot();
    expectNoLooser(machine, strict, program);
    for (const family of [2, 10]) expect(judge(strict, machine, numberOf("socket"), [BigInt(family), 1n, 0n])).toBe("EAFNOSUPPORT");
    expect(judge(strict, machine, numberOf("socket"), [1n, 1n, 0n])).toBe("allow");
  });

  test("a profile from a file changes the verdicts of the numbers that it names, and no other", () => {
    const profile = parsed({ extends: "default", allow: ["shmget", "cachestat"], deny: ["socket", "symlinkat", "mknodat"] });
    const custom = compile(machine, profile);
    const changed = new Map(["shmget", "cachestat", "socket", "symlinkat", "mknodat"].map((name) => [numberOf(name), name]));

    for (let number = 0; number <= newest + 50; number += 1) {
      for (const args of argumentsToTry) {
        const name = changed.get(number);
        const expected =
          name === undefined ? judge(program, machine, number, args) : name === "shmget" || name === "cachestat" ? "allow" : "EPERM";
        expect([number, judge(custom, machine, number, args)]).toEqual([number, expected]);
      }
    }
  });

  test("what no profile may allow is refused by every filter, with a profile that allows all it may", () => {
    const names = [...new Set(Object.values(syscallTables).flatMap((of) => Object.keys(of)))];
    const most = parsed({ extends: "default", allow: names.filter((name) => allowable(name)) });
    const widest = compile(machine, most);

    for (const name of neverInProfiles) {
      const number = table[name];
      if (number === undefined) continue;
      for (const args of argumentsToTry) expect([name, judge(widest, machine, number, args)]).toEqual([name, expect.stringMatching(/^E/)]);
    }
    for (const flag of [0x20000, 0x10000000]) expect(judge(widest, machine, numberOf("clone"), [BigInt(flag)])).toBe("EPERM");
    expect(judge(widest, machine, numberOf("ioctl"), [0n, 0x5412n])).toBe("EPERM");
  });

  test("of several profiles only what all allow is allowed", () => {
    const profiles = [
      builtIn("default"),
      builtIn("strict"),
      builtIn("log"),
      parsed({ extends: "default", allow: ["shmget"], deny: ["symlink", "symlinkat"] }),
      parsed({ extends: "strict", allow: ["memfd_create"], deny: ["getrandom"] }),
    ];
    for (const one of profiles) {
      for (const other of profiles) {
        const both = compile(machine, tightestOf([one, other]));
        expectNoLooser(machine, both, compile(machine, one));
        expectNoLooser(machine, both, compile(machine, other));
      }
    }
  });

  test("is well-formed: every jump lands inside, every path ends in a verdict, within the kernel's size", () => {
    for (const [at, { code, jt, jf, k }] of program.entries()) {
      const furthest = code === 0x05 ? at + k + 1 : code === 0x15 || code === 0x35 || code === 0x45 ? at + 1 + Math.max(jt, jf) : at;
      expect(furthest).toBeLessThan(program.length);
    }
    expect(program.at(-1)?.code).toBe(0x06);
    expect(seccompFilterBytes(machine, defaultSeccompProfile).length).toBe(program.length * 8);
  });
});

test("x32 calls are killed on x86_64", () => {
  for (const number of [0x40000000, 0x40000001, 0x40000200, 0x7fffffff, 0xffffffff])
    expect(judge(compile("x86_64"), "x86_64", number)).toBe("kill");
});

test("a tree over ranges finds the right one also where branches are far apart", () => {
  const padding = Array.from({ length: 200 }, () => loadSyscallNumber());
  const ranges = Array.from({ length: 40 }, (_, index) => ({ from: index * 10, then: [...padding, verdict(index)] }));
  const program = [loadSyscallNumber(), ...rangeTree(ranges)];

  for (let number = 0; number < 400; number += 1)
    expect(interpretBpf(program, { number, auditArchitecture: 0, args: [] })).toBe(Math.floor(number / 10));
});

test("a program that the kernel would refuse is refused here", () => {
  expect(() => encodeBpf(Array.from({ length: 4097 }, () => verdict(0)))).toThrow("4097");
  expect(() => encodeBpf([ifEqual(1, 256, 0)])).toThrow("too far");
});

test.each([
  ["", "it is not JSON"],
  ["[]", "expected object"],
  ["{}", "extends: must be default or strict"],
  ['{"extends":"log"}', "extends: must be default or strict"],
  ['{"extends":"default","allows":["getpid"]}', "allows"],
  ['{"extends":"default","allow":"getpid"}', "allow: "],
  ['{"extends":"default","deny":["getpidd"]}', "there is no syscall getpidd"],
  ['{"extends":"default","deny":["toString"]}', "is not the name of a syscall"],
  ['{"extends":"default","deny":["constructor"]}', "there is no syscall constructor"],
  ['{"extends":"default","allow":["mount"]}', "no profile may allow mount"],
  ['{"extends":"default","allow":["io_uring_setup"]}', "no profile may allow io_uring_setup"],
  ['{"extends":"default","allow":["clone3"]}', "no profile may allow clone3"],
  ['{"extends":"strict","allow":["socket"]}', "socket has a rule of its own"],
  ['{"extends":"strict","allow":["ioctl"]}', "ioctl has a rule of its own"],
  ['{"extends":"default","deny":["execve"]}', "no program runs without execve"],
  ['{"extends":"default","allow":["shmget"],"deny":["shmget"]}', "shmget is allowed and denied"],
])("the profile %s is refused with the reason", (text, reason) => {
  expect(parseSeccompProfile(text)).toEqual(expect.stringContaining(reason));
});

test("the same profile has the same id, another one another", () => {
  const one = parsed({ extends: "default", deny: ["symlink", "link"] });

  expect(parsed({ extends: "default", deny: ["link", "symlink"] }).id).toBe(one.id);
  expect(new Set([one.id, ...["default", "strict", "log"].map((name) => builtIn(name).id)]).size).toBe(4);
});
