import { AppError } from "../domain/app-error.ts";
import { parseMarkup } from "../domain/money.ts";
import { parseTenantId, type TenantId } from "../domain/tenant.ts";
import type { ControlTx, Database } from "../storage/database.ts";
import { createTenantDirectory } from "../storage/tenant-paths.ts";
import { mintTenantToken, type MintedToken } from "./credentials.ts";

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

export type NewTenant = {
  readonly id: string;
  readonly displayName?: string | undefined;
  /** Decimal text, `"0.10"` for 10 %. */
  readonly markup?: string | undefined;
};

/** `token` is known now and never again. */
export type CreatedTenant = { readonly tenant: Tenant; readonly token: string };

export type Tenants = {
  /**
   * Makes a tenant with its schema, directories and first token. What an interrupted attempt left behind is used by the next.
   * @throws {AppError} `invalid_tenant_id`; `conflict` when the id is taken or was a deleted tenant's; `invalid_rate`;
   * `invalid_request` for a display name over 200 characters or with control characters.
   */
  create(tenant: NewTenant): Promise<CreatedTenant>;
  /** All but the deleted ones, by id. */
  list(): Promise<readonly Tenant[]>;
  /** @throws {AppError} `not_found`, also for a deleted tenant. */
  get(tenantId: TenantId): Promise<Tenant>;
};

export type TenantsDeps = {
  readonly database: Pick<Database, "withControl" | "createTenantSchema">;
  readonly home: string;
};

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

export function createTenants({ database, home }: TenantsDeps): Tenants {
  return {
    async create(tenant) {
      const id = parseTenantId(tenant.id);
      return createWithToken({ database, home }, { ...tenant, id }, mintTenantToken(id));
    },
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
  };
}

/** Schema first, then one transaction with the row, the directories and the token: a tenant that is seen can be used. */
export async function createWithToken(
  { database, home }: TenantsDeps,
  { id, displayName, markup }: NewTenant & { readonly id: TenantId },
  { token, hash }: MintedToken,
): Promise<CreatedTenant> {
  const markupPpm = markup === undefined ? null : parseMarkup(markup, "markup");
  checkDisplayName(displayName);
  if (await database.withControl((tx) => exists(tx, id), { readOnly: true })) throw taken(id);
  await database.createTenantSchema(id);
  return database.withControl(async (tx) => {
    // One creation at a time from here: it makes the next uid index unique and lets the second of two see the first.
    await tx.query("select pg_advisory_xact_lock(hashtext('openclaw tenant creation'))");
    if (await exists(tx, id)) throw taken(id);
    // Rows of deleted tenants stay, so an index is never given again and files of the dead have no new owner.
    const [row] = await tx.query<TenantRow>(
      `insert into control.tenant (id, display_name, markup_ppm, os_uid_index)
       select $1, $2, $3, coalesce(max(os_uid_index) + 1, 0) from control.tenant returning ${columns}`,
      [id, displayName ?? null, markupPpm],
    );
    if (row === undefined) throw new AppError("internal", { reason: "an insert returned nothing" });
    createTenantDirectory(home, { tenantId: id, osUidIndex: row.os_uid_index });
    await tx.execute("insert into control.tenant_token (hash, tenant_id) values ($1, $2)", [hash, id]);
    return { tenant: toTenant(row), token };
  });
}

const taken = (id: TenantId): AppError =>
  new AppError("conflict", {
    client: { message: `The tenant id "${id}" is taken. Ids of deleted tenants are not given again.`, param: "id" },
  });

async function exists(tx: ControlTx, id: TenantId): Promise<boolean> {
  return (await tx.query("select from control.tenant where id = $1", [id])).length > 0;
}

function checkDisplayName(displayName: string | undefined): void {
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
