import type { TenantId } from "../domain/tenant.ts";
import type { ControlTx } from "./database.ts";

/** SHA-256 of the empty text. */
const emptyDigest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/**
 * Ends a deleted tenant whose data key was erased: what stands of its own in the control schema goes, sealed or not, and only its
 * bills and its audit are left. Safe to repeat.
 */
export async function endErasedTenant(tx: ControlTx, tenantId: TenantId): Promise<void> {
  const ended = await tx.execute("update control.tenant set erased_at = coalesce(erased_at, now()) where id = $1 and state = 'deleted'", [
    tenantId,
  ]);
  if (ended === 0) return;
  await tx.execute("delete from control.sealed_answer where owner = $1 or subject = $2", [tenantId, `tenant:${tenantId}`]);
  await tx.execute("delete from control.overlay_text where tenant_id = $1", [tenantId]);
  await tx.execute("delete from control.overlay_file where tenant_id = $1", [tenantId]);
  // A fault quotes the tenant's keys, and a digest would confirm a guess at its text.
  await tx.execute("update control.overlay set fault = null, digest = $2 where tenant_id = $1", [tenantId, emptyDigest]);
}

/** Which of these are tenants that have been erased. */
export async function erasedAmong(tx: ControlTx, names: readonly string[]): Promise<readonly TenantId[]> {
  const rows = await tx.query<{ id: TenantId }>("select id from control.tenant where id = any ($1) and erased_at is not null", [names]);
  return rows.map(({ id }) => id);
}
