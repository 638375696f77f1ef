import type { AdminConfig } from "../control-plane/admin-config.ts";
import { type Checked, oneLine } from "../control-plane/doctor-finding.ts";
import { resolveSandboxPolicy } from "../control-plane/sandbox-policy.ts";
import { createBwrapDriver } from "../sandbox/bwrap-driver.ts";
import { findCgroupPlaces } from "../sandbox/cgroup-place.ts";
import { fitNetwork, refusePolicy } from "../sandbox/policy-run.ts";
import { containerOf, createSandboxDrivers } from "./sandbox-drivers.ts";
import { SandboxVolumes } from "../storage/sandbox-volume.ts";
import { createSeccompProfiles } from "./seccomp-profiles.ts";

/** Starts a sandbox, as the worker does at its start. */
export async function checkBubblewrap(): Promise<Checked> {
  const check = "bwrap";
  const driver = createBwrapDriver();
  try {
    const missing = await driver.probe().catch((error: unknown) => `the trial run of a sandbox failed: ${String(error)}`);
    return {
      finding:
        missing === undefined
          ? { check, state: "ok", says: "a sandbox starts" }
          : {
              check,
              state: "failed",
              says: oneLine(missing),
              mend: "apt-get install -y bubblewrap perl, and allow user namespaces; without a sandbox turns run no tools",
            },
    };
  } finally {
    await driver.dispose();
  }
}

/** Whether the limits of a sandbox can hold for all of its processes together. */
export async function checkCgroup(config: AdminConfig | undefined): Promise<Checked> {
  const check = "cgroup";
  const places = findCgroupPlaces();
  if (places !== undefined) return { finding: { check, state: "ok", says: `limits of a sandbox hold by cgroup v${places.version}` } };
  return {
    finding: {
      check,
      state: config?.sandbox.require === "cgroup" ? "failed" : "warning",
      says:
        config?.sandbox.require === "cgroup"
          ? "sandbox.require is cgroup, and this user may not make one here"
          : "this user may not make a cgroup here: limits of a sandbox hold by process and by polling",
      mend: "run under systemd with Delegate=yes, or give the container a cgroup that it may write",
    },
  };
}

/** Whether this host can hold what each of the configured modes asks for; undefined where none is configured. */
export async function checkSandboxModes(config: AdminConfig | undefined, home: string): Promise<Checked | undefined> {
  const modes = Object.keys(config?.sandbox.modes ?? {});
  if (config === undefined || modes.length === 0) return undefined;
  const check = "sandbox modes";
  const driver = createSandboxDrivers({ config });
  const profiles = createSeccompProfiles({ home });
  try {
    const refusals = await Promise.all(
      modes.map(async (mode) => {
        const policy = resolveSandboxPolicy({ admin: config.sandbox, overlay: undefined, mode });
        const profile = await profiles.of(policy.seccomp.value);
        const fitted = typeof profile === "string" ? policy : fitNetwork(policy, profile);
        const container = containerOf(fitted);
        const refused =
          refusePolicy(fitted, driver) ??
          (typeof profile === "string" ? profile : undefined) ??
          (container === undefined ? undefined : await driver.probe(container));
        return refused === undefined ? [] : [`${mode}: ${refused}`];
      }),
    );
    const unmountable = config.sandbox.disk_quota === "image" ? await new SandboxVolumes({ home, size: undefined }).probe() : undefined;
    const said = [...refusals.flat(), ...(unmountable === undefined ? [] : [`disk_quota: ${unmountable}`])];
    if (said.length === 0) return { finding: { check, state: "ok", says: `this host can hold ${modes.join(", ")}` } };
    const mend = "correct sandbox.modes in config.yaml, or what they name; until then nothing runs in these modes";
    return { finding: { check, state: "failed", says: said.map(oneLine).join("; "), mend } };
  } finally {
    await driver.dispose();
  }
}
