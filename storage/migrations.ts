import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { Client, PoolClient } from "pg";

type Migration = { readonly version: number; readonly name: string; readonly sql: string; readonly checksum: string };

/** The numbered SQL files of a folder, in order and without gaps. */
function readMigrations(folder: "control" | "tenant"): readonly Migration[] {
  const directory = new URL(`./migrations/${folder}/`, import.meta.url);
  return readdirSync(fileURLToPath(directory))
    .filter((name) => name.endsWith(".sql"))
    .sort()
    .map((name, index) => {
      const version = Number(/^(\d{3})-/.exec(name)?.[1]);
      if (version !== index + 1) throw new Error(`storage/migrations/${folder}/${name} does not follow the file before it`);
      const sql = readFileSync(new URL(name, directory), "utf8").replaceAll("\r\n", "\n");
      return { version, name, sql, checksum: createHash("sha256").update(sql).digest("hex") };
    });
}

export const controlMigrations = readMigrations("control");
export const tenantMigrations = readMigrations("tenant");

type MigrateOptions = {
  /** A name that needs no quoting. */
  readonly schema: string;
  readonly migrations: readonly Migration[];
  /** Where shared types live (pgvector). */
  readonly sharedSchema: string;
};

/**
 * Brings a schema to the newest version. Call it inside a transaction of the owner and under a lock; the files' own objects are
 * made in `schema`, which must exist.
 * @returns the version reached.
 * @throws {Error} when the schema is newer than the code, or when a file that was applied has since been changed.
 */
export async function migrate(client: Client | PoolClient, { schema, migrations, sharedSchema }: MigrateOptions): Promise<number> {
  await client.query(`
    set local search_path = ${schema}, ${sharedSchema};
    create table if not exists ${schema}.schema_version (
      version int primary key, name text not null, checksum text not null, applied_at timestamptz not null default now())`);
  const { rows } = await client.query<{ version: number; name: string; checksum: string }>(
    `select version, name, checksum from ${schema}.schema_version order by version`,
  );
  for (const applied of rows) {
    const known = migrations[applied.version - 1];
    if (known === undefined) throw newerDatabase(schema, applied.version, migrations.length);
    if (known.checksum !== applied.checksum) {
      throw new Error(
        `migration ${applied.name} of schema ${schema} was applied with another content: add a new file instead of changing it`,
      );
    }
  }
  for (const { version, name, sql, checksum } of migrations.slice(rows.length)) {
    await client.query(sql);
    await client.query(`insert into ${schema}.schema_version (version, name, checksum) values ($1, $2, $3)`, [version, name, checksum]);
  }
  return migrations.length;
}

/** All that `migrate` does to a new tenant schema, as one text of statements for a search_path that begins with the schema. */
export const tenantTemplate: string = [
  "create table schema_version (version int primary key, name text not null, checksum text not null, applied_at timestamptz not null default now())",
  ...tenantMigrations.flatMap(({ version, name, sql, checksum }) => [
    sql,
    `insert into schema_version (version, name, checksum) values (${version}, '${name}', '${checksum}')`,
  ]),
].join("\n;\n");

export const newerDatabase = (schema: string, found: number, known: number): Error =>
  new Error(
    `the database schema ${schema} is at version ${found}, and this program knows only ${known}: start the newer program that made it`,
  );
