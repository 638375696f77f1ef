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

/** The part of the product that belongs to no tenant: `_` is in no slug, so no tenant can be taken for it. */
export const systemOwner = "_system";
const systemTaskQueue = "system";

/** Whose workflows, queues and audit chain: a tenant's, or the system's. */
export type Owner = TenantId | typeof systemOwner;

/** @throws {AppError} `invalid_tenant_id` for anything but `_system` and a slug. */
export const parseOwner = (raw: string): Owner => (raw === systemOwner ? systemOwner : parseTenantId(raw));

/** The one task queue on which an owner's workflow and activity tasks run. */
export const taskQueueOf = (owner: Owner): string => (owner === systemOwner ? systemTaskQueue : `tenant:${owner}`);

/**
 * The tenant of a workflow id (`<kind>:<tenant>:<rest>`) or of a task queue (`tenant:<tenant>`).
 * @throws {AppError} `tenant_violation` when there is none.
 */
export function tenantOfName(name: string): TenantId {
  const tenant = name.split(":")[1] ?? "";
  if (!tenantIdPattern.test(tenant)) throw new AppError("tenant_violation", { name: name.slice(0, 128) });
  return tenant as TenantId;
}

/**
 * Whose task queue this is. Only the exact name `system` is the system's.
 * @throws {AppError} `tenant_violation` when it is nobody's.
 */
export const ownerOfTaskQueue = (taskQueue: string): Owner => (taskQueue === systemTaskQueue ? systemOwner : tenantOfName(taskQueue));

/** How a tenant begins and ends. These workflows are about a tenant and belong to the system: they outlive the tenant's own. */
export type LifeKind = "provision" | "erase";

/** The one name of a tenant's `provision:` or `erase:` workflow. */
export const lifeWorkflowIdOf = (kind: LifeKind, tenantId: TenantId): string => `${kind}:${tenantId}`;

/**
 * The tenant that a workflow `provision:<tenant>` or `erase:<tenant>` is about.
 * @throws {AppError} `tenant_violation` for any other name.
 */
export function tenantOfLifeWorkflow(workflowId: string): TenantId {
  const tenantId = tenantOfName(workflowId);
  if (workflowId !== lifeWorkflowIdOf("provision", tenantId) && workflowId !== lifeWorkflowIdOf("erase", tenantId)) {
    throw new AppError("tenant_violation", { name: workflowId.slice(0, 128) });
  }
  return tenantId;
}

/** One run of a tenant's invoicing. It is about a tenant and belongs to the system too: the last one comes after the tenant's end. */
export const invoiceWorkflowIdOf = (tenantId: TenantId, rest: string): string => `invoice:${tenantId}:${rest}`;

/**
 * The tenant that a workflow `invoice:<tenant>:<rest>` is about.
 * @throws {AppError} `tenant_violation` for any other name.
 */
export function tenantOfInvoiceWorkflow(workflowId: string): TenantId {
  const tenantId = tenantOfName(workflowId);
  if (!workflowId.startsWith(invoiceWorkflowIdOf(tenantId, ""))) throw new AppError("tenant_violation", { name: workflowId.slice(0, 128) });
  return tenantId;
}

/**
 * Whose workflow this is: `<kind>:_system…`, `provision:<tenant>`, `erase:<tenant>` and `invoice:<tenant>:…` are the system's.
 * @throws {AppError} `tenant_violation` when it is nobody's.
 */
export function ownerOfWorkflowId(workflowId: string): Owner {
  if (/^[a-z-]+:_system(?::|$)/.test(workflowId)) return systemOwner;
  if (workflowId.startsWith("invoice:")) tenantOfInvoiceWorkflow(workflowId);
  else if (/^(?:provision|erase):/.test(workflowId)) tenantOfLifeWorkflow(workflowId);
  else return tenantOfName(workflowId);
  return systemOwner;
}
