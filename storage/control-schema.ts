import pg from "pg";
import { sqlStateOf } from "./database-error.ts";
import { gatewayRole, gatewayUrlOf, scramVerifierOf } from "./gateway-login.ts";
import { controlMigrations, migrate, tenantMigrations, tenantTemplate } from "./migrations.ts";
import { inOwnerTransaction, retryOnRoleRace, tenantGroupRole, type OwnerClient } from "./tenant-schemas.ts";

const oldestServer = 160_000; // GRANT … WITH INHERIT, SET
const extensionSchema = "extensions";
const makeVector = `create schema if not exists ${extensionSchema}; grant usage on schema ${extensionSchema} to public; create extension vector schema ${extensionSchema}`;

type ControlSchema = {
  /** The schema that holds pgvector's types and operators; on every tenant's search_path. */
  readonly sharedSchema: string;
};

/** Prepares a database for our processes: server version, gateway role, pgvector, control tables. Safe to repeat and to race. */
export async function prepareControlSchema(client: OwnerClient, ownerUrl: string): Promise<ControlSchema> {
  await refuseOldServer(client);
  await client.query("select pg_advisory_lock(hashtext('openclaw'), hashtext('control schema'))");
  try {
    await makeRoles(client, ownerUrl);
    const sharedSchema = await inOwnerTransaction(client, async () => {
      const schema = await ensureVector(client);
      await client.query("create schema if not exists control");
      await migrate(client, { schema: "control", migrations: controlMigrations, sharedSchema: schema });
      await client.query(
        `insert into control.tenant_template (version, shared_schema, statements) values ($1, $2, $3)
         on conflict (only_one) do update set version = excluded.version, shared_schema = excluded.shared_schema, statements = excluded.statements`,
        [tenantMigrations.length, schema, tenantTemplate],
      );
      return schema;
    });
    return { sharedSchema };
  } finally {
    await client.query("select pg_advisory_unlock(hashtext('openclaw'), hashtext('control schema'))").catch(() => undefined);
  }
}

async function refuseOldServer(client: OwnerClient): Promise<void> {
  const { rows } = await client.query<{ version: string }>("select current_setting('server_version_num') as version");
  const version = Number(rows[0]?.version);
  if (version < oldestServer)
    throw new Error(`Postgres 16 or newer is needed, 17 is what we test; this server is ${Math.floor(version / 10_000)}`);
}

async function makeRoles(client: OwnerClient, ownerUrl: string): Promise<void> {
  const { rows } = await client.query<{ gateway: boolean; group: boolean; database: string }>(
    "select to_regrole($1) is not null as gateway, to_regrole($2) is not null as group, current_database() as database",
    [gatewayRole, tenantGroupRole],
  );
  const found = rows[0];
  const url = gatewayUrlOf(ownerUrl);
  if (found?.group === false) {
    await ignoringExisting(client, `create role ${tenantGroupRole} nologin nosuperuser nocreatedb nocreaterole noinherit`);
  }
  if (found?.gateway === false) {
    await ignoringExisting(client, `create role ${gatewayRole} login nosuperuser nocreatedb nocreaterole noinherit`);
  }
  const database = pg.escapeIdentifier(found?.database ?? "");
  // Nobody but the owner makes objects: no temporary tables, nothing in public.
  await client.query(`grant connect on database ${database} to ${gatewayRole}; revoke temporary on database ${database} from public`);
  await client.query("revoke all on schema public from public").catch(() => undefined); // public may belong to somebody else
  if (await canLogIn(url)) return;
  const password = new URL(url).password;
  try {
    await retryOnRoleRace(() => client.query(`alter role ${gatewayRole} login noinherit password '${scramVerifierOf(password)}'`));
  } catch (cause) {
    if (sqlStateOf(cause) !== "42501") throw cause;
    throw new Error(
      `the role ${gatewayRole} exists and DATABASE_URL's user may not set its password: use the user that made it, or one database server per installation`,
      { cause },
    );
  }
}

const ignoringExisting = (client: OwnerClient, statement: string): Promise<unknown> =>
  client.query(statement).catch((error: unknown) => {
    if (sqlStateOf(error) === "42501") {
      throw new Error("DATABASE_URL's user must be allowed to make roles: alter role <user> createrole", { cause: error });
    }
    if (!["42710", "23505"].includes(sqlStateOf(error) ?? "")) throw error; // made by another database's process just now
  });

async function canLogIn(url: string): Promise<boolean> {
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: 5_000 });
  client.on("error", () => undefined);
  try {
    await client.connect();
    return true;
  } catch (error) {
    if (sqlStateOf(error)?.startsWith("28")) return false; // no such role, or another password
    throw error;
  } finally {
    await client.end().catch(() => undefined);
  }
}

/** @returns the schema where pgvector is; makes it where that is permitted. */
async function ensureVector(client: OwnerClient): Promise<string> {
  const find = async (): Promise<string | undefined> => {
    const { rows } = await client.query<{ schema: string }>(
      "select quote_ident(nspname) as schema from pg_extension e join pg_namespace n on n.oid = e.extnamespace where extname = 'vector'",
    );
    return rows[0]?.schema;
  };
  let schema = await find();
  if (schema === undefined) {
    try {
      await client.query(makeVector);
    } catch (cause) {
      const state = sqlStateOf(cause);
      const remedy =
        state === "42501"
          ? `run as a superuser in this database: ${makeVector}`
          : "install pgvector 0.8 for this server (Debian's package is named postgresql-17-pgvector; the image pgvector/pgvector:pg17 has it)";
      throw new Error(`the database has no pgvector, and DATABASE_URL's user could not add it: ${remedy}`, { cause });
    }
    schema = await find();
  }
  if (schema === undefined) throw new Error("pgvector was made but cannot be found");
  return schema;
}

/** Tenants' roles must reach pgvector's types; only its present owner can grant that, and `public` may be such a schema. */
export async function openSharedSchema(client: OwnerClient, { sharedSchema }: ControlSchema): Promise<void> {
  const { rows } = await client.query<{ open: boolean }>("select has_schema_privilege($1, $2, 'usage') as open", [
    tenantGroupRole,
    sharedSchema,
  ]);
  if (rows[0]?.open) return;
  await client.query(`grant usage on schema ${sharedSchema} to ${tenantGroupRole}, ${gatewayRole}`).catch((cause: unknown) => {
    throw new Error(`run as the owner of the schema: grant usage on schema ${sharedSchema} to ${tenantGroupRole}, ${gatewayRole}`, {
      cause,
    });
  });
}
