import { tokenChannel } from "../control-plane/commands.ts";
import type { Tenant } from "../control-plane/tenants.ts";
import { type TenantId, parseTenantId } from "../domain/tenant.ts";
import type { Database } from "../storage/database.ts";

/** How long a tenant's row (markup, uid, ceilings) is believed without another look; a change of it is told at once. */
const tenantMemoryMs = 5_000;
const rememberedTenants = 1_000;

export type RememberedTenants = { of(tenantId: TenantId): Promise<Tenant>; close(): Promise<void> };

export async function rememberTenants(
  database: Pick<Database, "listen">,
  read: (tenantId: TenantId) => Promise<Tenant>,
): Promise<RememberedTenants> {
  const remembered = new Map<TenantId, { readonly tenant: Promise<Tenant>; readonly untilMs: number }>();
  const close = await database.listen(tokenChannel, (payload) => void remembered.delete(parseTenantId(payload)), {
    onReconnect: () => remembered.clear(),
  });
  return {
    async of(tenantId) {
      const known = remembered.get(tenantId);
      if (known !== undefined && known.untilMs > performance.now()) return await known.tenant;
      const tenant = read(tenantId);
      const oldest = remembered.size >= rememberedTenants ? remembered.keys().next().value : undefined;
      if (oldest !== undefined) remembered.delete(oldest);
      remembered.set(tenantId, { tenant, untilMs: performance.now() + tenantMemoryMs });
      tenant.catch(() => remembered.delete(tenantId));
      return await tenant;
    },
    close,
  };
}
