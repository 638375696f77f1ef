import { AppError } from "./app-error.ts";
import type { Branded } from "./branded.ts";

export type TenantId = Branded<string, "TenantId">;

/** Who a call acts for. Passed explicitly as the first argument; never read from a global. */
export type TenantContext = { readonly tenantId: TenantId; readonly requestId: string };

const tenantIdPattern = /^(?=.{1,32}$)[a-z0-9](-?[a-z0-9])*$/;

/** @throws {AppError} `invalid_tenant_id` unless `raw` is a slug: 1 to 32 lower-case letters, digits and single inner hyphens. */
export function parseTenantId(raw: string): TenantId {
  if (!tenantIdPattern.test(raw)) throw new AppError("invalid_tenant_id", { raw: raw.slice(0, 64) });
  return raw as TenantId; // the only cast; everyone else receives the type
}

/** The tenant's Postgres schema and role; slugs hold no `_`, so two tenants never share one. */
export const tenantSchemaOf = (tenantId: TenantId): string => `tenant_${tenantId.replaceAll("-", "_")}`;

/** The one task queue on which a tenant's workflow and activity tasks run. */
export const taskQueueOf = (tenantId: TenantId): string => `tenant:${tenantId}`;

/**
 * The tenant of a workflow id (`<kind>:<tenant>:<rest>`) or of a task queue (`tenant:<tenant>`).
 * @throws {AppError} `tenant_violation` when there is none.
 */
export function tenantOfName(name: string): TenantId {
  const tenant = name.split(":")[1] ?? "";
  if (!tenantIdPattern.test(tenant)) throw new AppError("tenant_violation", { name: name.slice(0, 128) });
  return tenant as TenantId;
}
