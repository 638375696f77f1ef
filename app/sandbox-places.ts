import type { AdminConfig } from "../control-plane/admin-config.ts";
import type { EgressAudit } from "../control-plane/egress-audit.ts";
import { resolveSandboxPolicy, type SandboxWish } from "../control-plane/sandbox-policy.ts";
import type { Tenant } from "../control-plane/tenants.ts";
import type { SandboxPolicy } from "../domain/sandbox-policy.ts";
import type { TenantId } from "../domain/tenant.ts";
import { egressOfPolicy, fitNetwork, limitsOfPolicy, refusePolicy } from "../sandbox/policy-run.ts";
import type { SandboxDriver } from "../sandbox/sandbox-driver.ts";
import type { ToolPlace } from "../sandbox/tool.ts";
import { containerOf } from "./sandbox-drivers.ts";
import { createSeccompProfiles } from "./seccomp-profiles.ts";
import { createTenantDirectory, tenantUidOf } from "../storage/tenant-paths.ts";

export type SandboxPlacesDeps = {
  readonly config: Pick<AdminConfig, "sandbox">;
  readonly home: string;
  readonly driver: Pick<SandboxDriver, "enforcement" | "probe">;
  readonly egressAudit: Pick<EgressAudit, "tell">;
  readonly tenantOf: (tenantId: TenantId) => Promise<Pick<Tenant, "osUidIndex">>;
};

export type SandboxPlace = {
  readonly policy: SandboxPolicy;
  /** Why nothing may run under this policy here. */
  readonly refused: string | undefined;
  readonly place: ToolPlace;
};

/** Where and within which limits a tenant's program runs. */
export function createSandboxPlaces({ config, home, driver, egressAudit, tenantOf }: SandboxPlacesDeps) {
  const profiles = createSeccompProfiles({ home });
  return async (tenantId: TenantId, wish: Omit<SandboxWish, "admin">): Promise<SandboxPlace> => {
    const asked = resolveSandboxPolicy({ ...wish, admin: config.sandbox });
    const [{ osUidIndex }, seccomp] = await Promise.all([tenantOf(tenantId), profiles.of(asked.seccomp.value)]);
    const policy = typeof seccomp === "string" ? asked : fitNetwork(asked, seccomp);
    const egress = egressOfPolicy(policy, config.sandbox.network);
    const container = containerOf(policy);
    const refused = refusePolicy(policy, driver) ?? (typeof seccomp === "string" ? `${seccomp} (${policy.seccomp.because})` : undefined);
    return {
      policy,
      refused: refused ?? (container === undefined ? undefined : await driver.probe(container)),
      place: {
        workDirectory: createTenantDirectory(home, { tenantId, osUidIndex }).sandbox,
        uid: tenantUidOf(osUidIndex),
        limits: limitsOfPolicy(policy),
        ...(typeof seccomp === "string" ? {} : { seccomp }),
        ...(container === undefined ? {} : { container }),
        ...(egress === undefined ? {} : { egress, onEgress: (event) => egressAudit.tell(tenantId, event) }),
      },
    };
  };
}
