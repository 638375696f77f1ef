import { describe, expect, test } from "vitest";
import { interpretBpf } from "../../sandbox/bpf-program.ts";
import { dockerSeccomp } from "../../sandbox/docker-seccomp.ts";
import { auditArchitectures, compileSeccompFilter, type Machine, syscallTables } from "../../sandbox/seccomp-filter.ts";
import { builtInProfile, neverAllowed, type SeccompProfile } from "../../sandbox/seccomp-profile.ts";

type Rule = { names: string[]; action: string; errnoRet?: number; args?: { index: number; value: number; valueTwo: number; op: string }[] };
type File = { defaultAction: string; syscalls: Rule[] };

/** As libseccomp judges: a rule without arguments before one with them, all comparisons of a rule together, else the default. */
function judgeFile({ defaultAction, syscalls }: File, name: string, args: readonly bigint[]): string {
  const rules = syscalls.filter(({ names }) => names.includes(name));
  const found =
    rules.find((rule) => rule.args === undefined) ??
    rules.find((rule) => rule.args?.every(({ index, value, valueTwo }) => ((args[index] ?? 0n) & BigInt(value)) === BigInt(valueTwo)));
  const action = found?.action ?? defaultAction;
  if (action === "SCMP_ACT_ALLOW") return "allow";
  return action === "SCMP_ACT_LOG" ? "log" : found?.errnoRet === 38 ? "ENOSYS" : "refuse";
}

const verdictOf = (word: number): string => {
  if (word === 0x7fff0000) return "allow";
  if (word === 0x7ffc0000) return "log";
  return word === 0x00050026 ? "ENOSYS" : "refuse";
};

const profileOf = (name: string): SeccompProfile => builtInProfile(name) ?? expect.fail(name);
const interesting = [0n, 1n, 2n, 3n, 5n, 6n, 8n, 10n, 16n, 17n, 40n, 0x1000n, 0x2000n, 0x6000n, 0x8000n, 0xc000n, 0x20000n, 0x40000n, 262n]
  .concat([0x5411n, 0x5412n, 0x5413n, 0x541cn, 0x541dn, 0x5423n, 0x5401n, 0xffffffffn, 0x10000000n, 0x20000000n, 0x40000n, 0x80n])
  .concat([0x80801n, 0x02000000n, 0x100005412n, 0x80000000n]);

describe.each(["x86_64", "aarch64"] as const satisfies readonly Machine[])("Docker's form of a filter, %s", (machine) => {
  test.each(["default", "strict", "log"])("of %s gives the verdict of our own for every call and argument", (name) => {
    const profile = profileOf(name);
    const file = JSON.parse(dockerSeccomp(machine, profile)) as File;
    const program = compileSeccompFilter(machine, profile);

    const differing = Object.entries(syscallTables[machine]).flatMap(([call, number]) =>
      interesting.flatMap((first) =>
        (call === "clone" || !["socket", "ioctl", "mknod", "mknodat", "personality", "socketpair"].includes(call)
          ? [0n]
          : interesting
        ).flatMap((second) =>
          (call === "socket" || call === "mknodat" ? interesting : [0n]).flatMap((third) => {
            const args = [first, second, third];
            const ours = verdictOf(interpretBpf(program, { number, auditArchitecture: auditArchitectures[machine], args }));
            const theirs = judgeFile(file, call, args);
            return ours === theirs ? [] : [`${call}(${args.join(", ")}): ${ours}, in Docker ${theirs}`];
          }),
        ),
      ),
    );

    expect(differing.slice(0, 10)).toEqual([]);
  });

  test("names no call that no profile may allow, and every refusal its error", () => {
    const { syscalls } = JSON.parse(dockerSeccomp(machine, profileOf("default"))) as File;

    expect(syscalls.filter(({ action, names }) => action === "SCMP_ACT_ALLOW" && names.some((name) => neverAllowed.has(name)))).toEqual([]);
    expect(syscalls.filter(({ action, errnoRet }) => action === "SCMP_ACT_ERRNO" && errnoRet === undefined)).toEqual([]);
    expect(syscalls.flatMap(({ names }) => names).length).toBeGreaterThan(300);
  });
});
