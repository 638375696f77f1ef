import { isWithinRules } from "../domain/egress-rule.ts";
import {
  builtInSandboxLimits,
  type Reasoned,
  type SandboxLimitName,
  sandboxLimitNames,
  type SandboxPolicy,
  seccompProfileNames,
} from "../domain/sandbox-policy.ts";
import type { AdminConfig } from "./admin-config.ts";
import type { Overlay } from "./overlay.ts";

type AdminSandbox = AdminConfig["sandbox"];
type AdminMode = NonNullable<AdminSandbox["modes"]>[string];

export type SandboxWish = {
  readonly admin: AdminSandbox;
  /** The tenant's, already accepted; what of it would loosen anything has no effect here all the same. */
  readonly overlay: Overlay["sandbox"];
  /** Undefined for a command that no tool runs. */
  readonly tool?: string | undefined;
  /** The mode that the tool itself asks for, `@sandbox("…")`. */
  readonly annotation?: string | undefined;
  /** The mode that an administrator asks for. */
  readonly mode?: string | undefined;
};

/** The mode of a configuration that has none. */
const builtInMode = "built-in";

/**
 * What applies to a run and why. The administrator's part gives every value; a tenant may choose another of the administrator's modes
 * and lower its limits, and then each value is the tighter one of the two.
 */
export function resolveSandboxPolicy({ admin, overlay, tool, annotation, mode }: SandboxWish): SandboxPolicy {
  const given = adminModeOf(admin, { tool, annotation, mode });
  const chosen = mode === undefined ? (tenantModeOf(overlay, tool) ?? given) : given;
  const [adminMode, chosenMode] = [modeOf(admin, given.value), modeOf(admin, chosen.value)];
  const fault = [given, chosen].find(({ value }) => modeOf(admin, value) === undefined);
  const own = ownEntry(overlay?.modes, chosen.value);
  const [outer, inner] = [adminMode ?? {}, chosenMode ?? {}];
  // Of runtimes and filters the stronger one stands.
  const from = strengthOf(inner) >= strengthOf(outer) ? { name: chosen.value, mode: inner } : { name: given.value, mode: outer };
  const seccomp = filtersOf({ name: given.value, mode: outer }, { name: chosen.value, mode: inner });
  const said = <Value>(value: Value | undefined, otherwise: Value, name: string): Reasoned<Value> =>
    value === undefined ? { value: otherwise, because: "built in" } : { value, because: `the administrator's mode ${name}` };
  return {
    mode: chosen,
    limits: limitsOf({ name: given.value, mode: outer }, { name: chosen.value, mode: inner }, own),
    runtime: said(from.mode.runtime, "bwrap", from.name),
    runtimeClass: said(from.mode.runtime_class, undefined, from.name),
    image: said(from.mode.image, undefined, from.name),
    seccomp,
    network: networkOf(admin, [outer, inner], overlay),
    networkAsked: [outer, inner].some(({ network }) => network === "allow-list"),
    asked: new Set(sandboxLimitNames.filter((name) => outer[name] !== undefined || inner[name] !== undefined || own?.[name] !== undefined)),
    require: admin.require ?? "any",
    fault:
      fault === undefined
        ? logFault(seccomp, mode)
        : `the sandbox mode ${JSON.stringify(fault.value)} is not configured (${fault.because})`,
  };
}

/** A name of a mode or tool may be that of something every object has. */
const ownEntry = <Value>(entries: Readonly<Record<string, Value>> | undefined, name: string): Value | undefined =>
  entries !== undefined && Object.hasOwn(entries, name) ? entries[name] : undefined;

const modeOf = ({ modes }: AdminSandbox, name: string): AdminMode | undefined =>
  ownEntry(modes, name) ?? (name === builtInMode ? {} : undefined);

function adminModeOf(admin: AdminSandbox, { tool, annotation, mode }: Pick<SandboxWish, "tool" | "annotation" | "mode">): Reasoned<string> {
  if (mode !== undefined) return { value: mode, because: "asked for by the administrator" };
  if (annotation !== undefined) return { value: annotation, because: `the tool ${tool ?? ""} asks for it` };
  if (admin.default_mode !== undefined) return { value: admin.default_mode, because: "the administrator's default_mode" };
  return { value: builtInMode, because: "the administrator set no default_mode" };
}

function tenantModeOf(overlay: SandboxWish["overlay"], tool: string | undefined): Reasoned<string> | undefined {
  const ofTool = tool === undefined ? undefined : ownEntry(overlay?.tools, tool);
  if (ofTool !== undefined) return { value: ofTool, because: `the overlay's tools.${tool}` };
  return overlay?.default_mode === undefined ? undefined : { value: overlay.default_mode, because: "the overlay's default_mode" };
}

type NamedMode = { readonly name: string; readonly mode: AdminMode };
type OwnLimits = Partial<Record<SandboxLimitName, number | undefined>> | undefined;

function limitsOf(given: NamedMode, chosen: NamedMode, own: OwnLimits): SandboxPolicy["limits"] {
  const ofMode = ({ name, mode }: NamedMode, limit: SandboxLimitName): Reasoned<number> => {
    const value = mode[limit];
    return value === undefined
      ? { value: builtInSandboxLimits[limit], because: "built in" }
      : { value: Number(value), because: `the administrator's mode ${name}` };
  };
  const limitOf = (limit: SandboxLimitName): Reasoned<number> => {
    const candidates = [ofMode(given, limit), ofMode(chosen, limit)];
    const lowered = own?.[limit];
    if (lowered !== undefined) candidates.push({ value: lowered, because: `the overlay's modes.${chosen.name}` });
    return candidates.reduce((least, next) => (next.value < least.value ? next : least));
  };
  return Object.fromEntries(sandboxLimitNames.map((limit) => [limit, limitOf(limit)])) as SandboxPolicy["limits"];
}

/** A container has a kernel interface of its own making where runsc stands behind it. */
const strengthOf = ({ runtime, runtime_class: runtimeClass }: AdminMode): number =>
  runtime === "docker" ? (runtimeClass === undefined || runtimeClass === "runc" ? 1 : 2) : 0;

/** A tenant who chooses another mode gets what both modes' filters let through; of two built-in ones that is the tighter one. */
function filtersOf(given: NamedMode, chosen: NamedMode): SandboxPolicy["seccomp"] {
  const of = ({ name, mode: { seccomp } }: NamedMode): Reasoned<string> =>
    seccomp === undefined ? { value: "default", because: "built in" } : { value: seccomp, because: `the administrator's mode ${name}` };
  const [outer, inner] = [of(given), of(chosen)];
  const rankOf = ({ value }: Reasoned<string>): number => seccompProfileNames.findIndex((name) => name === value);
  const [outerRank, innerRank] = [rankOf(outer), rankOf(inner)];
  if (outer.value === inner.value || (outerRank >= 0 && innerRank >= 0)) {
    const one = innerRank < outerRank ? inner : outer;
    return { value: [one.value], because: one.because };
  }
  return { value: [outer.value, inner.value], because: `${outer.because}, and ${inner.because}` };
}

/** The filter is what keeps a program from the kernel: one that lets everything through is for the commands of whoever runs the host. */
function logFault({ value, because }: SandboxPolicy["seccomp"], mode: string | undefined): string | undefined {
  if (mode !== undefined || value.some((name) => name !== "log")) return undefined;
  return `seccomp: log refuses nothing, so only an administrator's \`openclaw sandbox exec --mode\` runs with it (${because})`;
}

function networkOf(admin: AdminSandbox, modes: readonly AdminMode[], overlay: SandboxWish["overlay"]): Reasoned<readonly string[]> {
  if (modes.some(({ network }) => network === "none")) return { value: [], because: "the mode's network: none" };
  const allowed = admin.network?.allow ?? [];
  const wishes = overlay?.network?.allow;
  if (wishes === undefined) return { value: allowed, because: allowed.length === 0 ? "denied by default" : "the administrator's allow" };
  const bounds = [...allowed, ...(admin.tenant_may_allow ?? [])];
  return {
    value: wishes.filter((wish) => isWithinRules(bounds, wish)),
    because: "the overlay's network.allow, within the administrator's",
  };
}
