import type { AdminConfig } from "../control-plane/admin-config.ts";
import type { EgressAudit } from "../control-plane/egress-audit.ts";
import { resolveSandboxPolicy, type SandboxWish } from "../control-plane/sandbox-policy.ts";
import type { Tenant } from "../control-plane/tenants.ts";
import type { SandboxPolicy } from "../domain/sandbox-policy.ts";
import { AppError } from "../domain/app-error.ts";
import type { TenantId } from "../domain/tenant.ts";
import { egressOfPolicy, fitNetwork, limitsOfPolicy, refusePolicy } from "../sandbox/policy-run.ts";
import type { SandboxDriver, SandboxLimits } from "../sandbox/sandbox-driver.ts";
import type { ToolPlace } from "../sandbox/tool.ts";
import { containerOf } from "./sandbox-drivers.ts";
import { createSeccompProfiles } from "./seccomp-profiles.ts";
import type { SandboxVolumes, VolumeSize } from "../storage/sandbox-volume.ts";
import { homeIdOf } from "../storage/home-id.ts";
import { createTenantDirectory, tenantUidOf } from "../storage/tenant-paths.ts";

export type SandboxPlacesDeps = {
  readonly config: Pick<AdminConfig, "sandbox">;
  readonly home: string;
  readonly driver: Pick<SandboxDriver, "enforcement" | "probe">;
  readonly volumes: SandboxVolumes;
  readonly egressAudit: Pick<EgressAudit, "tell">;
  readonly tenantOf: (tenantId: TenantId) => Promise<Pick<Tenant, "osUidIndex" | "homeId">>;
};

export type SandboxPlace = {
  readonly policy: SandboxPolicy;
  /** Why nothing may run under this policy here. */
  readonly refused: string | undefined;
  readonly place: ToolPlace;
};

/** Where and within which limits a tenant's program runs. */
export function createSandboxPlaces({ config, home, driver, volumes, egressAudit, tenantOf }: SandboxPlacesDeps) {
  const profiles = createSeccompProfiles({ home });
  return async (tenantId: TenantId, wish: Omit<SandboxWish, "admin">): Promise<SandboxPlace> => {
    const asked = resolveSandboxPolicy({ ...wish, admin: config.sandbox });
    const [{ osUidIndex, homeId }, seccomp] = await Promise.all([tenantOf(tenantId), profiles.of(asked.seccomp.value)]);
    const policy = typeof seccomp === "string" ? asked : fitNetwork(asked, seccomp);
    const egress = egressOfPolicy(policy, config.sandbox.network);
    const container = containerOf(policy);
    // An empty directory would be made, and taken for the tenant's.
    if (homeId !== undefined && homeId !== homeIdOf(home)) throw elsewhere(tenantId);
    const refused = refusePolicy(policy, driver) ?? (typeof seccomp === "string" ? `${seccomp} (${policy.seccomp.because})` : undefined);
    const workDirectory = createTenantDirectory(home, { tenantId, osUidIndex }).sandbox;
    const uid = tenantUidOf(osUidIndex);
    const limits = limitsOfPolicy(policy);
    const unmounted = await volumes.ensure({ tenantId, directory: workDirectory, uid });
    return {
      policy,
      refused: refused ?? unmounted ?? (container === undefined ? undefined : await driver.probe(container)),
      place: {
        workDirectory,
        uid,
        limits,
        heldByVolume: heldBy(volumes.size, limits),
        ...(typeof seccomp === "string" ? {} : { seccomp }),
        ...(container === undefined ? {} : { container }),
        ...(egress === undefined ? {} : { egress, onEgress: (event) => egressAudit.tell(tenantId, event) }),
      },
    };
  };
}

const elsewhere = (tenantId: TenantId): AppError =>
  new AppError("unavailable", {
    tenantId,
    client: { message: "The tenant's directory is in the home of another process, not in this one's." },
  });

/** The size of the tenants' volumes: what the roomiest mode allows. Undefined where there are to be none. */
export function volumeSizeOf({ sandbox }: Pick<AdminConfig, "sandbox">): VolumeSize | undefined {
  if (sandbox.disk_quota !== "image") return undefined;
  const modes = [undefined, ...Object.keys(sandbox.modes ?? {})];
  const limits = modes.map((mode) => limitsOfPolicy(resolveSandboxPolicy({ admin: sandbox, overlay: undefined, mode })));
  const largest = (name: "diskBytes" | "inodes"): number => Math.max(...limits.map((one) => one[name] ?? 0));
  return { bytes: largest("diskBytes"), inodes: largest("inodes") };
}

const heldBy = (size: VolumeSize | undefined, limits: SandboxLimits): readonly ("diskBytes" | "inodes")[] => [
  ...(size !== undefined && size.bytes <= (limits.diskBytes ?? 0) ? (["diskBytes"] as const) : []),
  ...(size !== undefined && size.inodes <= (limits.inodes ?? 0) ? (["inodes"] as const) : []),
];
