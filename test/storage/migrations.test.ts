import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { parseTenantId, tenantSchemaOf } from "../../domain/tenant.ts";
import { openDatabase, type Database } from "../../storage/database.ts";
import { startEmbeddedPostgres } from "../../storage/embedded-postgres.ts";
import { databaseWith, freshDatabase, quiet, runSql, someTenant, temporaryHome } from "./fresh-database.ts";

const open = async (ownerUrl: string): Promise<Database> => {
  const database = await openDatabase({ ownerUrl, log: quiet });
  onTestFinished(() => database.close());
  return database;
};

describe("migrations", () => {
  test("are applied once, however often a database is opened", async () => {
    const { database, ownerUrl, tenants } = await databaseWith({}, "acme");
    const schema = tenantSchemaOf(tenants[0].tenantId);
    const versions = (): Promise<unknown> =>
      runSql(
        ownerUrl,
        `select 'control' as s, version, applied_at from control.schema_version union all select 't', version, applied_at from ${schema}.schema_version`,
      ).then(({ rows }) => rows);

    const before = await versions();
    const again = await open(ownerUrl);
    await again.createTenantSchema(tenants[0].tenantId);

    expect(await versions()).toEqual(before);
    expect(await again.migrateTenants()).toBe(0);
    expect(await database.migrateTenants()).toBe(0);
  });

  test("bring tenants that lag behind to the newest version", async () => {
    const { database, ownerUrl, tenants } = await databaseWith({}, "acme", "globex");
    const names = tenants.map(({ tenantId }) => tenantSchemaOf(tenantId));
    for (const name of names) await runSql(ownerUrl, `drop schema ${name} cascade`, `create schema ${name}`);
    await runSql(ownerUrl, "update control.tenant_schema set version = 0");

    const migrated = await database.migrateTenants();

    expect(migrated).toBe(2);
    for (const tenant of tenants) expect(await database.withTenant(tenant, (tx) => tx.query("select * from session"))).toEqual([]);
  });

  test("refuse a database that is newer than the program", async () => {
    const { database, ownerUrl, tenants } = await databaseWith({}, "acme");
    await runSql(ownerUrl, "update control.tenant_schema set version = 99");
    await expect(database.migrateTenants()).rejects.toThrow(/is at version 99, and this program knows only \d+/);
    await runSql(ownerUrl, `insert into ${tenantSchemaOf(tenants[0].tenantId)}.schema_version values (99, 'x', 'x')`);
    await expect(database.createTenantSchema(tenants[0].tenantId)).rejects.toThrow(/is at version 99/);
    await runSql(ownerUrl, "insert into control.schema_version values (99, '099-future.sql', 'x')");

    await expect(openDatabase({ ownerUrl, log: quiet })).rejects.toThrow(
      /schema control is at version 99, and this program knows only \d+/,
    );
  });

  test("refuse a file that was changed after it was applied", async () => {
    const { ownerUrl } = await databaseWith();
    await runSql(ownerUrl, "update control.schema_version set checksum = 'other'");

    await expect(openDatabase({ ownerUrl, log: quiet })).rejects.toThrow(/was applied with another content/);
  });

  test("slugs that differ by their hyphens only keep apart", async () => {
    const ownerUrl = await freshDatabase();
    const database = await open(ownerUrl);
    const names = [someTenant("a-b").tenantId, someTenant("ab").tenantId, parseTenantId(`x${"y".repeat(31)}`)];

    for (const name of names) await database.createTenantSchema(name);
    for (const tenantId of names) {
      await database.withTenant({ tenantId, requestId: "r" }, (tx) =>
        tx.execute("insert into session (id, channel) values ($1, 'api')", [tenantId]),
      );
    }

    for (const tenantId of names) {
      expect(await database.withTenant({ tenantId, requestId: "r" }, (tx) => tx.query("select id from session"))).toEqual([
        { id: tenantId },
      ]);
    }
  });
});

describe("a real server by DATABASE_URL", () => {
  test("needs no superuser: an owner who may make roles is enough, once pgvector is there", async () => {
    const { home, remove } = temporaryHome();
    onTestFinished(remove);
    const server = await startEmbeddedPostgres({ dataDir: join(home, "postgres"), log: quiet });
    onTestFinished(() => server.stop());
    await runSql(server.ownerUrl, "create role customer login createrole password 'pass word/1'");
    const superUrl = await freshDatabase(server.ownerUrl, "customer");
    const customer = new URL(superUrl);
    customer.username = "customer";
    customer.password = encodeURIComponent("pass word/1");

    await expect(openDatabase({ ownerUrl: customer.href, log: quiet })).rejects.toThrow(
      /run as a superuser in this database: .*create extension vector/,
    );
    await runSql(
      superUrl,
      "create schema if not exists extensions; grant usage on schema extensions to public; create extension vector schema extensions",
    );
    const database = await openDatabase({ ownerUrl: customer.href, log: quiet });
    onTestFinished(() => database.close());
    const tenants = [someTenant("acme"), someTenant("globex")] as const;
    for (const tenant of tenants) {
      await database.createTenantSchema(tenant.tenantId);
      await database.createTenantSchema(tenant.tenantId);
      await database.withTenant(tenant, (tx) => tx.execute("insert into session (id, channel) values ($1, 'api')", [tenant.tenantId]));
    }

    for (const tenant of tenants) {
      expect(await database.withTenant(tenant, (tx) => tx.query("select id, '[1,2]'::vector <-> '[1,3]' as d from session"))).toEqual([
        { id: tenant.tenantId, d: 1 },
      ]);
    }
    await expect(
      database.withTenant(tenants[0], (tx) => tx.query(`select * from ${tenantSchemaOf(tenants[1].tenantId)}.session`)),
    ).rejects.toMatchObject({ code: "42501" });
    const again = await openDatabase({ ownerUrl: customer.href, log: quiet });
    await again.close();
  });

  test("says what is missing: a password, a right, a server", async () => {
    const ownerUrl = await freshDatabase();
    const noPassword = new URL(ownerUrl);
    noPassword.password = "";
    const nobody = new URL(ownerUrl);
    nobody.port = "1";

    await expect(openDatabase({ ownerUrl: noPassword.href, log: quiet })).rejects.toThrow(/password/);
    await expect(openDatabase({ ownerUrl: nobody.href, log: quiet })).rejects.toMatchObject({ name: "AppError", code: "unavailable" });
  });
});
