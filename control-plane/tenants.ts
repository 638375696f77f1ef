import { AppError } from "../domain/app-error.ts";
import type { TenantId } from "../domain/tenant.ts";
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
  /** In millionths; undefined: the one of `config.yaml`. */
  readonly markupPpm: number | undefined;
  readonly createdAtMs: number;
};

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
  /** @throws {AppError} `not_found` when the tenant has no live token. */
  tokenOf(tenantId: TenantId): Promise<TokenFacts>;
};

export type TenantsDeps = { readonly database: Pick<Database, "withControl"> };

type TenantRow = {
  id: string;
  display_name: string | null;
  state: TenantState;
  os_uid_index: number;
  markup_ppm: number | null;
  created_at: Date;
};

const columns = "id, display_name, state, os_uid_index, markup_ppm, created_at";
const longestDisplayName = 200;

const toTenant = (row: TenantRow): Tenant => ({
  id: row.id as TenantId,
  displayName: row.display_name ?? undefined,
  state: row.state,
  osUidIndex: row.os_uid_index,
  markupPpm: row.markup_ppm ?? undefined,
  createdAtMs: row.created_at.getTime(),
});

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
      if (row === undefined) throw new AppError("not_found", { client: { message: `There is no tenant "${tenantId}".` } });
      return toTenant(row);
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
