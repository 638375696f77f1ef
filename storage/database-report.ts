import pg from "pg";
import { sqlStateOf } from "./database-error.ts";
import { gatewayRole, gatewayUrlOf } from "./gateway-login.ts";
import { type PlacementReport, readPlacementReport } from "./placement-report.ts";
import { knownKeyIds } from "./open-data-keys.ts";
import { tenantGroupRole } from "./tenant-schemas.ts";

/** What a Postgres server tells about itself and about the user of the URL. */
export type DatabaseReport = {
  readonly major: number;
  readonly version: string;
  /** Whether pgvector is in the database, could be added to it by this user, or is missing. */
  readonly vector: "present" | "addable" | "for_superuser" | "not_installed";
  /** Whether our two roles are there or this user may make them. */
  readonly hasRoles: boolean;
  readonly mayMakeSchemas: boolean;
  /** Ids of the key-encryption keys without which something of this database could not be read; empty before the first start. */
  readonly keyIds: readonly string[];
  /** Ids of the keys that have signed anchors of its audit. */
  readonly auditKeyIds: readonly string[];
  /** Undefined before the first start, and where an earlier version made the database. */
  readonly placement: PlacementReport | undefined;
  /** The server's clock, and when we asked and had the answer. */
  readonly clock: { readonly atMs: number; readonly askedAtMs: number; readonly answeredAtMs: number };
};

const timeoutMs = 5_000;

const question = `
  select current_setting('server_version_num')::int as version_number,
         split_part(current_setting('server_version'), ' ', 1) as version,
         exists (select from pg_extension where extname = 'vector') as has_vector,
         exists (select from pg_available_extensions where name = 'vector') as knows_vector,
         r.rolsuper as is_superuser,
         r.rolsuper or r.rolcreaterole or (to_regrole($1) is not null and to_regrole($2) is not null) as has_roles,
         has_database_privilege(current_database(), 'create') as may_make_schemas,
         extract(epoch from clock_timestamp())::float8 * 1000 as at_ms
  from pg_roles r where r.rolname = current_user`;

type Row = {
  readonly version_number: number;
  readonly version: string;
  readonly has_vector: boolean;
  readonly knows_vector: boolean;
  readonly is_superuser: boolean;
  readonly has_roles: boolean;
  readonly may_make_schemas: boolean;
  readonly at_ms: number;
};

/** Changes nothing there. @throws {Error} that says in half a sentence why the server cannot be used; never with the password */
export async function describeDatabase(ownerUrl: string): Promise<DatabaseReport> {
  gatewayUrlOf(ownerUrl); // refuses a URL without a password
  const client = new pg.Client({ connectionString: ownerUrl, connectionTimeoutMillis: timeoutMs, query_timeout: timeoutMs });
  client.on("error", () => undefined); // seen by the query that meets it
  try {
    await client.connect();
    const askedAtMs = Date.now();
    const { rows } = await client.query<Row>(question, [gatewayRole, tenantGroupRole]);
    const answeredAtMs = Date.now();
    const [row] = rows;
    if (row === undefined) throw new Error("the server does not know the user of DATABASE_URL");
    return {
      major: Math.floor(row.version_number / 10_000),
      version: row.version,
      vector: vectorOf(row),
      hasRoles: row.has_roles,
      mayMakeSchemas: row.may_make_schemas,
      keyIds: await idsOf(client, "control.key_encryption", knownKeyIds),
      auditKeyIds: await idsOf(client, "control.audit_key", "select id from control.audit_key order by created_at desc"),
      placement: await placementOf(client),
      clock: { atMs: row.at_ms, askedAtMs, answeredAtMs },
    };
  } catch (error) {
    throw new Error(reasonOf(error), { cause: error });
  } finally {
    await client.end().catch(() => undefined);
  }
}

/** Nothing, where an earlier version made the database, or none yet. */
async function idsOf(client: pg.Client, table: string, text: string): Promise<readonly string[]> {
  const { rows } = await client.query<{ present: boolean }>("select to_regclass($1) is not null as present", [table]);
  if (rows[0]?.present !== true) return [];
  return (await client.query<{ id: string }>(text)).rows.map(({ id }) => id);
}

async function placementOf(client: pg.Client): Promise<PlacementReport | undefined> {
  const { rows } = await client.query<{ present: boolean }>("select to_regclass('control.process') is not null as present");
  if (rows[0]?.present !== true) return undefined;
  return await readPlacementReport({
    query: async <Row extends pg.QueryResultRow>(text: string) => (await client.query<Row>(text)).rows,
  });
}

function vectorOf({ has_vector, knows_vector, is_superuser }: Row): DatabaseReport["vector"] {
  if (has_vector) return "present";
  if (!knows_vector) return "not_installed";
  return is_superuser ? "addable" : "for_superuser";
}

function reasonOf(error: unknown): string {
  const state = sqlStateOf(error);
  if (state?.startsWith("28")) return "the server refuses the user or the password";
  if (state === "3D000") return "the server has no such database";
  const { code, message } = error as NodeJS.ErrnoException;
  if (/^(timeout e|Query read timeout)/.test(message)) return "the server did not answer in time";
  return state === undefined && code !== undefined ? `nothing answers there (${code})` : message;
}
