import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { resolveSandboxPolicy, type SandboxWish } from "../../control-plane/sandbox-policy.ts";
import { isWithinRules } from "../../domain/egress-rule.ts";
import { builtInSandboxLimits, sandboxLimitNames, seccompProfileNames } from "../../domain/sandbox-policy.ts";
import { egressOfPolicy, fitNetwork, refusePolicy } from "../../sandbox/policy-run.ts";
import { builtInProfile, parseSeccompProfile, type SeccompProfile } from "../../sandbox/seccomp-profile.ts";
import type { Enforcement, SandboxResult } from "../../sandbox/sandbox-driver.ts";

type Admin = SandboxWish["admin"];
type Tenant = SandboxWish["overlay"];

const modeNames = ["default", "small", "large", "__proto__", "constructor"];
const tools = ["exec", "read", "toString"];
const hosts = [
  "*.example.org:443",
  "example.org:443",
  "a.example.org:443",
  "*.a.example.org:443",
  "a.example.org:80",
  "api.test:8080",
  "10.0.0.1:443",
  "evil-example.org:443",
];

const limitValues = fc.record(Object.fromEntries(sandboxLimitNames.map((name) => [name, fc.integer({ min: 1, max: 100_000 })])), {
  requiredKeys: [],
});
const adminMode = fc
  .tuple(
    limitValues,
    fc.record(
      {
        runtime: fc.constantFrom("bwrap" as const, "docker" as const),
        runtime_class: fc.constantFrom("runc", "runsc"),
        seccomp: fc.constantFrom("default", "log", "strict", "./profiles/one.json", "./profiles/two.json"),
        network: fc.constantFrom("none", "allow-list"),
      },
      { requiredKeys: [] },
    ),
  )
  .map(([limits, rest]) => {
    const { cpu_quota: cpuQuota, ...others } = limits as Record<string, number>;
    return { ...others, ...(cpuQuota === undefined ? {} : { cpu_quota: String(cpuQuota) }), ...rest };
  });
const modesOf = <Mode>(mode: fc.Arbitrary<Mode>) => fc.dictionary(fc.constantFrom(...modeNames), mode);
const admins = fc.record(
  {
    default_mode: fc.constantFrom(...modeNames),
    modes: modesOf(adminMode),
    network: fc.record({ allow: fc.subarray(hosts) }),
    tenant_may_allow: fc.subarray(hosts),
  },
  { requiredKeys: [] },
) as fc.Arbitrary<Admin>;
const overlays = fc.record(
  {
    default_mode: fc.constantFrom(...modeNames),
    modes: modesOf(limitValues),
    tools: fc.dictionary(fc.constantFrom(...tools), fc.constantFrom(...modeNames)),
    network: fc.record({ allow: fc.subarray(hosts) }),
  },
  { requiredKeys: [] },
) as fc.Arbitrary<NonNullable<Tenant>>;

const strength = ({ runtime, runtimeClass }: ReturnType<typeof resolveSandboxPolicy>): number =>
  runtime.value === "bwrap" ? 0 : runtimeClass.value === "runsc" ? 2 : 1;

/** Every filter of the administrator's stands, or a built-in one that is tighter. */
function expectNoLooserFilter(both: readonly string[], alone: readonly string[]): void {
  const rank = (name: string): number => seccompProfileNames.findIndex((known) => known === name);
  for (const name of alone) {
    const stands = both.some((other) => other === name || (rank(name) >= 0 && rank(other) >= 0 && rank(other) <= rank(name)));
    expect(stands, `${name} is missing in ${both.join()}`).toBe(true);
  }
}

describe("whatever an overlay says", () => {
  test("no limit, runtime, filter or destination goes beyond the administrator's", () => {
    fc.assert(
      fc.property(
        admins,
        overlays,
        fc.constantFrom(...tools),
        fc.option(fc.constantFrom(...modeNames), { nil: undefined }),
        (admin, overlay, tool, annotation) => {
          const alone = resolveSandboxPolicy({ admin, overlay: undefined, tool, annotation });
          const both = resolveSandboxPolicy({ admin, overlay, tool, annotation });

          for (const name of sandboxLimitNames) expect(both.limits[name].value, name).toBeLessThanOrEqual(alone.limits[name].value);
          expect(strength(both)).toBeGreaterThanOrEqual(strength(alone));
          expectNoLooserFilter(both.seccomp.value, alone.seccomp.value);
          if (alone.fault?.includes("not configured") === true) expect(both.fault).toBeDefined();
          const bounds = [...(admin.network?.allow ?? []), ...(admin.tenant_may_allow ?? [])];
          for (const rule of both.network.value) expect(isWithinRules(bounds, rule), rule).toBe(true);
        },
      ),
      { numRuns: 2_000 },
    );
  });
});

const admin: Admin = {
  default_mode: "default",
  modes: {
    default: { memory_limit_mb: 256, cpu_quota: "0.5", wall_seconds: 20 },
    strict: { memory_limit_mb: 64, network: "none" },
    large: { memory_limit_mb: 4_096, wall_seconds: 600 },
  },
  network: { allow: ["pypi.org:443"] },
  tenant_may_allow: ["*.example.org:443"],
};

test("every value says where it comes from", () => {
  const policy = resolveSandboxPolicy({
    admin,
    overlay: { tools: { exec: "strict" }, modes: { strict: { memory_limit_mb: 32 } } },
    tool: "exec",
  });

  expect(policy.mode).toEqual({ value: "strict", because: "the overlay's tools.exec" });
  expect(policy.limits.memory_limit_mb).toEqual({ value: 32, because: "the overlay's modes.strict" });
  expect(policy.limits.cpu_quota).toEqual({ value: 0.5, because: "the administrator's mode default" });
  expect(policy.limits.pids).toEqual({ value: builtInSandboxLimits.pids, because: "built in" });
  expect(policy.network).toEqual({ value: [], because: "the mode's network: none" });
});

test("a tenant that picks a larger mode keeps the smaller limits; the tool's own mode is the administrator's word", () => {
  const picked = resolveSandboxPolicy({ admin, overlay: { default_mode: "large" }, tool: "exec" });
  const annotated = resolveSandboxPolicy({ admin, overlay: undefined, tool: "build", annotation: "large" });

  expect([picked.mode.value, picked.limits.memory_limit_mb.value, picked.limits.wall_seconds.value]).toEqual(["large", 256, 20]);
  expect([annotated.limits.memory_limit_mb.value, annotated.limits.wall_seconds.value]).toEqual([4_096, 600]);
});

test("a tenant's list replaces the administrator's, within what it may allow", () => {
  const allowed = (...allow: string[]) => resolveSandboxPolicy({ admin, overlay: { network: { allow } }, tool: "exec" }).network.value;

  expect(allowed()).toEqual([]);
  expect(allowed("api.example.org:443", "pypi.org:443", "example.com:443")).toEqual(["api.example.org:443", "pypi.org:443"]);
  expect(resolveSandboxPolicy({ admin, overlay: undefined }).network.value).toEqual(["pypi.org:443"]);
});

test("a filter without sockets that listen takes the network away, and refuses a mode that asks for one", () => {
  const policyOf = (network: "allow-list" | undefined, seccomp: string) =>
    resolveSandboxPolicy({ admin: { ...admin, modes: { default: { seccomp, ...(network ? { network } : {}) } } }, overlay: undefined });
  const deaf = parseSeccompProfile('{ "extends": "default", "deny": ["listen"] }') as SeccompProfile;
  const [strict, usual] = [builtInProfile("strict"), builtInProfile("default")] as [SeccompProfile, SeccompProfile];

  expect(fitNetwork(policyOf(undefined, "default"), usual).network.value).toEqual(["pypi.org:443"]);
  for (const profile of [strict, deaf]) {
    const fitted = fitNetwork(policyOf(undefined, "strict"), profile);
    expect(fitted).toMatchObject({ network: { value: [], because: expect.stringContaining("no IP sockets") }, fault: undefined });
    expect(egressOfPolicy(fitted)).toBeUndefined();
    expect(fitNetwork(policyOf("allow-list", "strict"), profile).fault).toContain("asks for network: allow-list");
  }
});

test("what a run may do over the network is the administrator's word, with defaults", () => {
  const policy = resolveSandboxPolicy({ admin, overlay: undefined });
  const MiB = 1_024 * 1_024;

  expect(egressOfPolicy(policy)).toEqual({
    rules: ["pypi.org:443"],
    allowPrivate: [],
    limits: { upBytes: 64 * MiB, downBytes: 1_024 * MiB, connections: 32, requests: 1_000 },
  });
  expect(egressOfPolicy(policy, { max_up_mb: 1, allow_private: ["10.0.0.0/8"] })).toMatchObject({
    allowPrivate: ["10.0.0.0/8"],
    limits: { upBytes: MiB, connections: 32 },
  });
});

test("of two modes' filters the tighter one holds, and both where a file says what they are", () => {
  const modes = { plain: {}, strict: { seccomp: "strict" }, log: { seccomp: "log" }, build: { seccomp: "./profiles/build.json" } };
  const filters = (admins: keyof typeof modes, tenants?: keyof typeof modes) => {
    const sandbox: Admin = { default_mode: admins, modes };
    return resolveSandboxPolicy({ admin: sandbox, overlay: tenants === undefined ? undefined : { default_mode: tenants } }).seccomp;
  };

  expect(filters("plain")).toEqual({ value: ["default"], because: "built in" });
  expect(filters("plain", "strict")).toEqual({ value: ["strict"], because: "the administrator's mode strict" });
  expect(filters("strict", "plain").value).toEqual(["strict"]);
  expect(filters("plain", "log").value).toEqual(["default"]);
  expect(filters("strict", "log").value).toEqual(["strict"]);
  expect(filters("log", "plain").value).toEqual(["default"]);
  expect(filters("build", "build").value).toEqual(["./profiles/build.json"]);
  expect(filters("build", "log")).toEqual({
    value: ["./profiles/build.json", "log"],
    because: "the administrator's mode build, and the administrator's mode log",
  });
  expect(filters("strict", "build").value).toEqual(["strict", "./profiles/build.json"]);
});

test("a filter that refuses nothing is for an administrator's own command", () => {
  const sandbox: Admin = { default_mode: "log", modes: { log: { seccomp: "log" } } };

  expect(resolveSandboxPolicy({ admin: sandbox, overlay: undefined }).fault).toContain("refuses nothing");
  expect(resolveSandboxPolicy({ admin: sandbox, overlay: undefined, tool: "exec", annotation: "log" }).fault).toContain("refuses nothing");
  expect(resolveSandboxPolicy({ admin: sandbox, overlay: undefined, mode: "log" }).fault).toBeUndefined();
});

describe("a mode that cannot be held here is refused with the reason", () => {
  const host = (memory: Enforcement, cpu: Enforcement): { enforcement(): SandboxResult["enforcement"] | undefined } => ({
    enforcement: () => ({ wall: "group", output: "group", memory, processes: memory, cpu, disk: "polled", inodes: "polled" }),
  });
  const reasonFor = (sandbox: Admin, on = host("group", "group")) =>
    refusePolicy(resolveSandboxPolicy({ admin: sandbox, overlay: undefined }), on);
  const only = (mode: NonNullable<Admin["modes"]>[string], more: Admin = {}): Admin => ({ default_mode: "m", modes: { m: mode }, ...more });

  test.each([
    ["a container without an image", only({ runtime: "docker" }), "runtime docker needs an image"],
    ["a container of whatever a name means", only({ runtime: "docker", image: "debian:12" }), "neither by its id"],
    ["a runtime class", only({ runtime_class: "runsc" }), "runtime_class runsc"],
    ["an image", only({ image: "sha256:0" }), "image sha256:0"],
    ["a filter that refuses nothing, for a tool", only({ seccomp: "log" }), "seccomp: log refuses nothing"],
    ["a mode that is not configured", { default_mode: "absent" }, '"absent" is not configured'],
    ["a mode named like a property of every object", { default_mode: "toString", modes: {} }, '"toString" is not configured'],
  ] as const)("%s", (_name, sandbox, sentence) => {
    expect(reasonFor(sandbox)).toContain(sentence);
  });

  test("limits by process, where a cgroup is required", () => {
    const rlimits = host("per-process", "per-process");
    expect(reasonFor(only({}, { require: "cgroup" }), rlimits)).toContain("require is cgroup");
    expect(reasonFor(only({}), rlimits)).toBeUndefined();
    expect(reasonFor(only({ cpu_quota: "2" }, { require: "cgroup" }), host("group", "per-process"))).toContain("cpu_quota");
    expect(reasonFor(only({}, { require: "cgroup" }), host("group", "per-process"))).toBeUndefined();
    expect(reasonFor(only({}), { enforcement: () => undefined })).toContain("no sandbox can be started");
  });

  test("nothing else is", () => {
    expect(reasonFor({})).toBeUndefined();
    expect(reasonFor(admin)).toBeUndefined();
  });
});
