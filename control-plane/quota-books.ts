import { isUnlimited } from "../domain/quota-ledger.ts";
import type { QuotaBooks } from "../domain/quota-wire.ts";
import type { Owner, TenantId } from "../domain/tenant.ts";
import type { Database } from "../storage/database.ts";
import { hasUsageSinceYesterday } from "../storage/counted-rows.ts";
import type { QuotaClient } from "../temporal/quota-client.ts";
import { type Tenants, grantableLimitsOf } from "./tenants.ts";

export type QuotaBooksDeps = {
  readonly database: Pick<Database, "withControl">;
  readonly tenants: Pick<Tenants, "get">;
  readonly clientOf: (tenantId: TenantId) => { readonly quota: Pick<QuotaClient, "books"> };
  /** Makes sure that a worker polls the owner's queue. */
  readonly wake: (owner: Owner) => Promise<void>;
};

/**
 * Asks a tenant's workflow what it has counted. A tenant without any ceiling counts nothing, and one without usage since yesterday
 * has nothing to count: thousands of idle ones are not woken for it.
 */
export const createQuotaBooks =
  ({ database, tenants, clientOf, wake }: QuotaBooksDeps) =>
  async (tenantId: TenantId): Promise<QuotaBooks | undefined> => {
    if (isUnlimited(grantableLimitsOf(await tenants.get(tenantId)))) return undefined;
    if (!(await database.withControl(async (tx) => await hasUsageSinceYesterday(tx, tenantId), { readOnly: true }))) return undefined;
    await wake(tenantId);
    return await clientOf(tenantId).quota.books();
  };
