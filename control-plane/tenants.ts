import { AppError } from "../domain/app-error.ts";
import type { TenantFacts } from "../domain/audit.ts";
import { parseNanoUsd } from "../domain/money.ts";
import type { QuotaLimits } from "../domain/quota-ledger.ts";
import type { TenantQuota } from "../domain/tenant-quota.ts";
import { systemOwner, type Owner, type TenantId } from "../domain/tenant.ts";
import type { ControlTx, Database } from "../storage/database.ts";
import { hashPrefixOf } from "./credentials.ts";

export type TenantState = "active" | "suspended" | "deleted";

/** A tenant as operators see it. */
export type Tenant = {
  readonly id: TenantId;
  readonly displayName: string | undefined;
  readonly state: TenantState;
  /** Its files and sandboxes belong to the uid that `tenantUidOf` makes of this. */
  readonly osUidIndex: number;
  /** The home that has its directory; undefined: not known yet. */
  readonly homeId: string | undefined;
  /** In millionths; undefined: the one of `config.yaml`. */
  readonly markupPpm: number | undefined;
  readonly quota: TenantQuota;
  readonly createdAtMs: number;
};

/** How far the deletion of a tenant has come. */
export type Deletion = "none" | "running" | "done";

/** A tenant's live token as it may be shown: the token itself is known only as its hash. */
export type TokenFacts = {
  readonly tenantId: TenantId;
  /** First 8 hex of the hash. */
  readonly hashPrefix: string;
  readonly createdAtMs: number;
  readonly lastUsedAtMs: number | undefined;
};

export type Tenants = {
  /** All but the deleted ones, by id. */
  list(): Promise<readonly Tenant[]>;
  /** @throws {AppError} `not_found`, also for a deleted tenant. */
  get(tenantId: TenantId): Promise<Tenant>;
  /** @throws {AppError} `not_found` when there has never been such a tenant. */
  deletionOf(tenantId: TenantId): Promise<Deletion>;
  /** @throws {AppError} `not_found` when the tenant has no live token. */
  tokenOf(tenantId: TenantId): Promise<TokenFacts>;
};

export type TenantsDeps = { readonly database: Pick<Database, "withControl"> };

type TenantRow = {
  id: string;
  display_name: string | null;
  state: TenantState;
  os_uid_index: number;
  home_id: string | null;
  markup_ppm: bigint | null;
  created_at: Date;
} & QuotaRow;

/** The ceilings of a row of `control.tenant`. */
type QuotaRow = { tokens_per_day: bigint | null; cost_per_day_nano_usd: bigint | null; requests_per_minute: number | null };
const quotaColumns = "tokens_per_day, cost_per_day_nano_usd, requests_per_minute";

const toQuota = ({ tokens_per_day, cost_per_day_nano_usd, requests_per_minute }: QuotaRow): TenantQuota => ({
  tokensPerDay: tokens_per_day === null ? null : Number(tokens_per_day),
  costPerDayNanoUsd: cost_per_day_nano_usd === null ? null : cost_per_day_nano_usd.toString(),
  requestsPerMinute: requests_per_minute,
});

const columns = `id, display_name, state, os_uid_index, home_id, markup_ppm, ${quotaColumns}, created_at`;
const longestDisplayName = 200;

const toTenant = (row: TenantRow): Tenant => ({
  id: row.id as TenantId,
  displayName: row.display_name ?? undefined,
  state: row.state,
  osUidIndex: row.os_uid_index,
  homeId: row.home_id ?? undefined,
  markupPpm: row.markup_ppm === null ? undefined : Number(row.markup_ppm),
  quota: toQuota(row),
  createdAtMs: row.created_at.getTime(),
});

/** The ceilings as leases count them. */
const quotaLimitsOf = ({ quota: { tokensPerDay, costPerDayNanoUsd, requestsPerMinute } }: Pick<Tenant, "quota">): QuotaLimits => ({
  tokensPerDay: tokensPerDay ?? undefined,
  nanoUsdPerDay: costPerDayNanoUsd === null ? undefined : parseNanoUsd(costPerDayNanoUsd),
  requestsPerMinute: requestsPerMinute ?? undefined,
});

/** The ceilings as the tenant's workflow grants under them: a suspended tenant gets nothing. */
export const grantableLimitsOf = (tenant: Pick<Tenant, "quota" | "state">): QuotaLimits =>
  tenant.state === "suspended" ? { tokensPerDay: 0, nanoUsdPerDay: parseNanoUsd("0"), requestsPerMinute: 0 } : quotaLimitsOf(tenant);

/** The ceilings of a tenant that may spend at all. @throws {AppError} `tenant_suspended` */
export function spendableLimitsOf(tenant: Pick<Tenant, "id" | "quota" | "state">): QuotaLimits {
  if (tenant.state === "suspended") throw new AppError("tenant_suspended", { tenantId: tenant.id });
  return quotaLimitsOf(tenant);
}

export const notFound = (tenantId: TenantId): AppError =>
  new AppError("not_found", { client: { message: `There is no tenant "${tenantId}".` } });

/** What is known of the tenants. They are made and changed by audited changes only (control-plane/commands.ts). */
export function createTenants({ database }: TenantsDeps): Tenants {
  return {
    async list() {
      const rows = await database.withControl(
        (tx) => tx.query<TenantRow>(`select ${columns} from control.tenant where state <> 'deleted' order by id collate "C"`),
        { readOnly: true },
      );
      return rows.map(toTenant);
    },
    async get(tenantId) {
      const [row] = await database.withControl(
        (tx) => tx.query<TenantRow>(`select ${columns} from control.tenant where id = $1 and state <> 'deleted'`, [tenantId]),
        { readOnly: true },
      );
      if (row === undefined) throw notFound(tenantId);
      return toTenant(row);
    },
    async deletionOf(tenantId) {
      const [row] = await database.withControl(
        (tx) =>
          tx.query<{ state: TenantState; erased: boolean }>(
            "select state, erased_at is not null as erased from control.tenant where id = $1",
            [tenantId],
          ),
        { readOnly: true },
      );
      if (row === undefined) throw notFound(tenantId);
      return row.state !== "deleted" ? "none" : row.erased ? "done" : "running";
    },
    async tokenOf(tenantId) {
      const [row] = await database.withControl(
        (tx) =>
          tx.query<{ hash: Buffer; created_at: Date; last_used_at: Date | null }>(
            "select hash, created_at, last_used_at from control.tenant_token where tenant_id = $1 and revoked_at is null order by created_at desc",
            [tenantId],
          ),
        { readOnly: true },
      );
      if (row === undefined) throw new AppError("not_found", { client: { message: `"${tenantId}" has no live token: rotate makes one.` } });
      return {
        tenantId,
        hashPrefix: hashPrefixOf(row.hash),
        createdAtMs: row.created_at.getTime(),
        lastUsedAtMs: row.last_used_at?.getTime(),
      };
    },
  };
}

/** What a tenant's own workflow shows of it; nothing for the system's chain. */
export async function factsOf(tx: ControlTx, owner: Owner): Promise<{ readonly facts?: TenantFacts }> {
  if (owner === systemOwner) return {};
  const [row] = await tx.query<QuotaRow & { state: TenantState; token_epoch: number }>(
    `select state, token_epoch, ${quotaColumns} from control.tenant where id = $1`,
    [owner],
  );
  return row === undefined ? {} : { facts: { state: row.state, tokenEpoch: row.token_epoch, quota: toQuota(row) } };
}

/** Also for a deleted tenant. */
export async function tenantExists(tx: ControlTx, id: TenantId): Promise<boolean> {
  return (await tx.query("select from control.tenant where id = $1", [id])).length > 0;
}

/** @throws {AppError} `invalid_request` for more than 200 characters, and for control characters. */
export function checkDisplayName(displayName: string | undefined): void {
  if (displayName === undefined) return;
  if (displayName.length > longestDisplayName || !displayName.isWellFormed() || /\p{Cc}/u.test(displayName)) {
    throw new AppError("invalid_request", {
      client: {
        message: `display_name must have at most ${longestDisplayName} characters, none of them a control character.`,
        param: "display_name",
      },
    });
  }
}
