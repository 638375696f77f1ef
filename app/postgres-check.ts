import { join } from "node:path";
import type { AdminConfig } from "../control-plane/admin-config.ts";
import { type Checked, type Finding, oneLine, readingOf } from "../control-plane/doctor-finding.ts";
import type { Environment } from "../control-plane/environment.ts";
import { runningGateway } from "../control-plane/gateway-record.ts";
import { describeDatabase, type DatabaseReport } from "../storage/database-report.ts";
import { describeEmbeddedPostgres, embeddedOwnerUrl } from "../storage/embedded-postgres.ts";

const check = "postgres";
const wantedMajor = 17;
const oldestMajor = 16;

/** The database that a start here would use: one of the operator's, the running gateway's, or else the built-in one. */
export async function checkPostgres(
  { databaseUrl, home }: Environment,
  config: AdminConfig | undefined,
): Promise<Checked & { readonly report?: DatabaseReport }> {
  const external = databaseUrl ?? config?.database.url;
  const running = runningGateway(home)?.database;
  if (external === undefined && running?.kind === "external") {
    const says = `the gateway runs on ${running.url}, which was not looked at`;
    return { finding: { check, state: "warning", says, mend: "set DATABASE_URL here as for the gateway" } };
  }
  if (external === undefined && running === undefined) {
    try {
      return { finding: { check, state: "ok", says: describeEmbeddedPostgres(join(home, "postgres")) } };
    } catch (error) {
      return {
        finding: {
          check,
          state: "failed",
          says: (error as Error).message,
          mend: `set DATABASE_URL to a Postgres ${wantedMajor} with pgvector`,
        },
      };
    }
  }
  const where = external === undefined ? "the built-in server" : `the server at ${placeOf(external)}`;
  try {
    const answer = await describeDatabase(external ?? embeddedOwnerUrl(join(home, "postgres")));
    return { finding: judgePostgres(where, answer), clock: readingOf("the database's clock", answer.clock, 0), report: answer };
  } catch (error) {
    return {
      finding: {
        check,
        state: "failed",
        says: `${where}: ${oneLine((error as Error).message)}`,
        mend: external === undefined ? "restart the gateway" : "start that server, or correct DATABASE_URL or database.url",
      },
    };
  }
}

function judgePostgres(where: string, { major, version, vector, hasRoles, mayMakeSchemas }: DatabaseReport): Finding {
  const failed = (says: string, mend: string): Finding => ({ check, state: "failed", says: `${where} ${says}`, mend });
  if (major < oldestMajor) return failed(`is Postgres ${version}`, `move to Postgres ${wantedMajor}`);
  if (vector === "not_installed") return failed("has no pgvector", `install its package (Debian: postgresql-${major}-pgvector)`);
  if (vector === "for_superuser")
    return failed(
      "has pgvector, but not in this database",
      "as a superuser there: create schema if not exists extensions; create extension vector schema extensions",
    );
  if (!hasRoles) return failed("does not let this user make roles", "as a superuser: alter role <user> createrole");
  if (!mayMakeSchemas) return failed("does not let this user make schemas", "as its owner: grant create on database <database> to <user>");
  return major === wantedMajor
    ? { check, state: "ok", says: `${where} is Postgres ${version} with pgvector` }
    : {
        check,
        state: "warning",
        says: `${where} is Postgres ${version}; ${wantedMajor} is what we test`,
        mend: `move to Postgres ${wantedMajor}`,
      };
}

function placeOf(url: string): string {
  const { hostname, port, pathname } = new URL(url);
  return `${hostname || "localhost"}:${port || 5432}${pathname}`;
}
