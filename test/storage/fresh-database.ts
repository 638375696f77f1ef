import { createHash, randomBytes } from "node:crypto";
import { chmodSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import pg from "pg";
import { inject, onTestFinished } from "vitest";
import { parseTenantId, type TenantContext } from "../../domain/tenant.ts";
import { openDatabase, type Database } from "../../storage/database.ts";

export const quiet = (): void => undefined;

/** A home below the system's temporary directory, open to other users as a real one of root's is. */
export function temporaryHome(): { readonly home: string; readonly remove: () => void } {
  const home = mkdtempSync(join(tmpdir(), "openclaw-test-"));
  chmodSync(home, 0o711);
  return { home, remove: () => rmSync(home, { recursive: true, force: true }) };
}

/** Runs one statement per string as the user of `url`. */
export async function runSql(url: string, ...statements: string[]): Promise<pg.QueryResult> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    let last: pg.QueryResult | undefined;
    for (const statement of statements) last = await client.query(statement);
    return last as pg.QueryResult;
  } finally {
    await client.end();
  }
}

/** A new, empty database on the server; its owner's URL. */
export async function freshDatabase(url?: string, owner?: string): Promise<string> {
  const server = url ?? inject("postgresUrl"); // the run's one server
  const name = `test_${randomBytes(6).toString("hex")}`;
  await runSql(server, `create database ${name}${owner === undefined ? "" : ` owner ${owner}`}`);
  const fresh = new URL(server);
  fresh.pathname = name;
  return fresh.href;
}

/** The key-encryption key of a database that several processes of a test share: `OPENCLAW_KEK`. */
export const sharedKek = (databaseUrl: string): string => createHash("sha256").update(databaseUrl).digest("base64");

/** Tenant names are roles of the whole server, which test files share: each test has its own. */
export const someTenant = (name: string): TenantContext => ({
  tenantId: parseTenantId(`${name}-${randomBytes(4).toString("hex")}`),
  requestId: "req_test",
});

/** An open database with some tenants, closed when the test ends. */
export async function databaseWith<Names extends readonly string[]>(
  options: { readonly poolSize?: number } = {},
  ...names: Names
): Promise<{ database: Database; ownerUrl: string; tenants: { [Index in keyof Names]: TenantContext } }> {
  const ownerUrl = await freshDatabase();
  const database = await openDatabase({ ownerUrl, log: quiet, ...options });
  onTestFinished(() => database.close());
  const tenants = names.map(someTenant);
  for (const [index, { tenantId }] of tenants.entries()) {
    await database.withControl((tx) => tx.execute("insert into tenant (id, os_uid_index) values ($1, $2)", [tenantId, index]));
    await database.createTenantSchema(tenantId);
  }
  return { database, ownerUrl, tenants: tenants as { [Index in keyof Names]: TenantContext } };
}
