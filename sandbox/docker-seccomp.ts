import {
  NAMESPACE_FLAGS,
  nodeTypes,
  FILE_TYPE_MASK,
  type Machine,
  personalities,
  refusedIoctls,
  type SeccompRules,
  socketFamilies,
  socketProtocols,
  SOCKET_TYPE_MASK,
  socketTypes,
  syscallTables,
  unknownToPrograms,
} from "./seccomp-filter.ts";

type Argument = { readonly index: number; readonly value: number; readonly valueTwo: number; readonly op: "SCMP_CMP_MASKED_EQ" };
type Rule = {
  readonly names: readonly string[];
  readonly action: "SCMP_ACT_ALLOW" | "SCMP_ACT_ERRNO" | "SCMP_ACT_LOG";
  readonly errnoRet?: number;
  readonly args?: readonly Argument[];
};

const EPERM = 1;
const ENOSYS = 38;
const INT = 0xffff_ffff;

/** Only the bits of `mask` count: the kernel looks at no others, and what a program puts into them must not matter. */
const argument = (index: number, mask: number, wanted: number): Argument => ({
  index,
  value: mask,
  valueTwo: wanted,
  op: "SCMP_CMP_MASKED_EQ",
});

/**
 * Every number of 32 bits but these, as few masked comparisons: where the path to a refused number turns one way, all that lies the other
 * way is allowed. libseccomp has no rule with two comparisons of one argument.
 */
function allBut(refused: readonly number[]): { readonly mask: number; readonly wanted: number }[] {
  const found: { mask: number; wanted: number }[] = [];
  const walk = (depth: number, prefix: number, below: readonly number[]): void => {
    const mask = depth === 0 ? 0 : (INT << (32 - depth)) >>> 0;
    if (below.length === 0) return void found.push({ mask, wanted: prefix });
    if (depth === 32) return;
    const bit = (1 << (31 - depth)) >>> 0;
    for (const branch of [prefix, (prefix | bit) >>> 0])
      walk(
        depth + 1,
        branch,
        below.filter((number) => (number & bit) >>> 0 === (branch & bit) >>> 0),
      );
  };
  walk(0, 0, refused);
  return found;
}

/** Allowed where one of these lists of comparisons holds; all others of the call are refused. */
function allowedArguments(name: string, ipSockets: boolean): readonly (readonly Argument[])[] | undefined {
  const node = (index: number) => nodeTypes.map((type) => [argument(index, FILE_TYPE_MASK, type)]);
  switch (name) {
    case "clone":
      return [[argument(0, NAMESPACE_FLAGS, 0)]];
    case "socket":
      return socketFamilies(ipSockets).flatMap((family) =>
        socketTypes.flatMap((type) =>
          socketProtocols.map((protocol) => [argument(0, INT, family), argument(1, SOCKET_TYPE_MASK, type), argument(2, INT, protocol)]),
        ),
      );
    case "socketpair":
      return socketFamilies(false).map((family) => [argument(0, INT, family)]);
    case "ioctl":
      return allBut(refusedIoctls).map(({ mask, wanted }) => [argument(1, mask, wanted)]);
    case "personality":
      return personalities.map((persona) => [argument(0, INT, persona)]);
    case "mknod":
      return node(1);
    case "mknodat":
      return node(2);
    default:
      return undefined;
  }
}

/**
 * The filter of `compileSeccompFilter` as Docker takes it. Calls newer than its libseccomp knows get ENOSYS from runc, another ABI is
 * killed; each refusal names its error, for what the daemon takes by itself depends on its age. One thing is coarser: a refused socket
 * says EPERM whatever is wrong with it.
 */
export function dockerSeccomp(machine: Machine, { allowed, ipSockets, denied }: SeccompRules): string {
  const known = (names: readonly string[]): string[] => names.filter((name) => Object.hasOwn(syscallTables[machine], name));
  const hidden = known(unknownToPrograms);
  const granted = known(allowed).filter((name) => !hidden.includes(name));
  const plain = granted.filter((name) => allowedArguments(name, ipSockets) === undefined);
  const judged = granted.filter((name) => !plain.includes(name));
  const others = Object.keys(syscallTables[machine]).filter((name) => !granted.includes(name) && !hidden.includes(name));
  const rules: Rule[] = [
    { names: plain, action: "SCMP_ACT_ALLOW" },
    { names: hidden, action: "SCMP_ACT_ERRNO", errnoRet: ENOSYS },
    ...(denied === "refuse" && others.length > 0 ? [{ names: others, action: "SCMP_ACT_ERRNO" as const, errnoRet: EPERM }] : []),
    ...judged.flatMap((name) =>
      (allowedArguments(name, ipSockets) ?? []).map((args) => ({ names: [name], action: "SCMP_ACT_ALLOW" as const, args })),
    ),
  ];
  return JSON.stringify({
    defaultAction: denied === "log" ? "SCMP_ACT_LOG" : "SCMP_ACT_ERRNO",
    architectures: [machine === "x86_64" ? "SCMP_ARCH_X86_64" : "SCMP_ARCH_AARCH64"],
    syscalls: rules,
  });
}
