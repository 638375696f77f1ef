import pg from "pg";
import { tenantSchemaOf, type TenantId } from "../domain/tenant.ts";
import { sqlStateOf } from "./database-error.ts";
import { gatewayRole } from "./gateway-login.ts";
import { migrate, newerDatabase, tenantMigrations } from "./migrations.ts";

/** What every tenant's role inherits: its rights on the control schema. */
export const tenantGroupRole = "openclaw_tenant";

export type OwnerClient = pg.Client | pg.PoolClient;

/** Runs statements as one transaction of the owner. */
export async function inOwnerTransaction<T>(client: OwnerClient, work: () => Promise<T>): Promise<T> {
  await client.query("begin");
  try {
    const result = await work();
    await client.query("commit");
    return result;
  } catch (error) {
    await client.query("rollback").catch(() => undefined);
    throw error;
  }
}

/**
 * Roles belong to the whole server, so another database's process may be at the same role in the same moment; the server then
 * refuses one of the two instead of waiting.
 */
export async function retryOnRoleRace<T>(work: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await work();
    } catch (error) {
      const raced = ["XX000", "23505", "42710"].includes(sqlStateOf(error) ?? "");
      if (!raced || attempt === 10) throw error;
      await new Promise((resolve) => setTimeout(resolve, 20 * attempt));
    }
  }
}

/** Makes or migrates one tenant's role and schema; safe to repeat and to race. `sharedSchema` holds pgvector. */
export async function createTenantSchema(client: OwnerClient, tenantId: TenantId, sharedSchema: string): Promise<void> {
  const name = tenantSchemaOf(tenantId); // [a-z0-9_] only: role and schema
  await retryOnRoleRace(() =>
    inOwnerTransaction(client, async () => {
      await client.query("select pg_advisory_xact_lock(hashtext('openclaw tenant schema'), hashtext($1))", [name]);
      const { rows } = await client.query<{ has_role: boolean; has_schema: boolean }>(
        "select to_regrole($1) is not null as has_role, to_regnamespace($1) is not null as has_schema",
        [name],
      );
      if (!rows[0]?.has_role) await client.query(`create role ${name} nologin nosuperuser nocreatedb nocreaterole noinherit`);
      // Given again each time: a role outlives its database, and a repeated grant changes nothing.
      await client.query(
        `grant ${tenantGroupRole} to ${name} with inherit true, set false; grant ${name} to ${gatewayRole} with inherit false, set true`,
      );
      if (!rows[0]?.has_schema) await client.query(`create schema ${name}`);
      const version = await migrate(client, { schema: name, migrations: tenantMigrations, sharedSchema });
      await client.query(`
        grant usage on schema ${name} to ${name};
        grant select, insert, update, delete on all tables in schema ${name} to ${name};
        grant usage on all sequences in schema ${name} to ${name};
        revoke insert, update, delete on ${name}.schema_version from ${name}`);
      await client.query(
        "insert into control.tenant_schema (tenant_id, version) values ($1, $2) on conflict (tenant_id) do update set version = excluded.version",
        [tenantId, version],
      );
    }),
  );
}

/**
 * Lets no new turn of a deleted tenant in: those that are on their way are waited for, and seen by who asks after this. What runs
 * goes on, to be ended and billed. Safe to repeat; nothing is done to a tenant that is not deleted.
 */
export async function closeTenantSchema(client: OwnerClient, tenantId: TenantId): Promise<void> {
  const name = tenantSchemaOf(tenantId);
  await inOwnerTransaction(client, async () => {
    const { rows } = await client.query(
      "select from control.tenant where id = $1 and state = 'deleted' and to_regclass($2) is not null and to_regrole($3) is not null",
      [tenantId, `${name}.turn`, name],
    );
    if (rows.length === 0) return;
    await client.query("set local lock_timeout = '3s'");
    await client.query(`lock table ${name}.turn in share row exclusive mode; revoke insert on ${name}.turn from ${name}`);
  });
}

/** Removes a deleted tenant's schema and role, and its lines in the outbox. Safe to repeat; a tenant that is not deleted is refused. */
export async function dropTenantSchema(client: OwnerClient, tenantId: TenantId): Promise<void> {
  const name = tenantSchemaOf(tenantId);
  await inOwnerTransaction(client, async () => {
    const { rows } = await client.query("select from control.tenant where id = $1 and state = 'deleted'", [tenantId]);
    if (rows.length === 0) throw new Error(`${tenantId} is not deleted`);
    await client.query("select pg_advisory_xact_lock(hashtext('openclaw tenant schema'), hashtext($1))", [name]);
    await client.query(`set local lock_timeout = '3s'; drop schema if exists ${name} cascade`);
    await client.query("delete from control.open_turn where tenant_id = $1", [tenantId]);
    await client.query("delete from control.tenant_schema where tenant_id = $1", [tenantId]);
  });
  await retryOnRoleRace(() => client.query(`drop role if exists ${name}`)).catch((error: unknown) => {
    if (sqlStateOf(error) !== "2BP01") throw error; // another database of this server has a tenant of that name: the role is also its
  });
}

/**
 * What a dropped schema held stands in the write-ahead log too: a server of ours, which recycles no segment, removes it at this
 * checkpoint. On a server of the operator's the log is the operator's.
 */
export async function forgetWriteAheadLog(client: OwnerClient): Promise<void> {
  const { rows } = await client.query<{ is_ours: boolean }>(
    "select rolsuper and current_setting('wal_recycle') = 'off' as is_ours from pg_roles where rolname = current_user",
  );
  if (rows[0]?.is_ours !== true) return;
  await client.query("select pg_switch_wal()");
  await client.query("checkpoint");
}

const batchSize = 100;

/** Brings every existing tenant schema to the newest version, one transaction each; one query when there is nothing to do. @returns how many. */
export async function migrateTenantSchemas(client: OwnerClient, sharedSchema: string): Promise<number> {
  for (let migrated = 0; ;) {
    const { rows } = await client.query<{ tenant_id: TenantId; version: number }>(
      "select tenant_id, version from control.tenant_schema where version <> $1 order by version desc, tenant_id limit $2",
      [tenantMigrations.length, batchSize],
    );
    for (const { tenant_id, version } of rows) {
      if (version > tenantMigrations.length) throw newerDatabase(tenantSchemaOf(tenant_id), version, tenantMigrations.length);
      await createTenantSchema(client, tenant_id, sharedSchema);
      migrated++;
    }
    if (rows.length < batchSize) return migrated;
  }
}
