import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { promisify } from "node:util";
import type { OsUser } from "./traversable-directory.ts";

const systemUser = "openclaw-postgres";
const run = promisify(execFile);

/** Postgres refuses to run as root. */
export async function findOrMakeSystemUser(): Promise<OsUser> {
  const found = findSystemUser();
  if (found !== undefined) return found;
  const failure = await run("useradd", ["--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", systemUser]).then(
    () => undefined,
    (error: Error) => error,
  );
  const made = findSystemUser(); // another process may have been faster, so only this counts
  if (made === undefined) {
    throw new Error(`Postgres cannot run as root and its user is missing: useradd --system ${systemUser}`, { cause: failure });
  }
  return made;
}

function findSystemUser(): OsUser | undefined {
  const line = readFileSync("/etc/passwd", "utf8")
    .split("\n")
    .find((entry) => entry.startsWith(`${systemUser}:`));
  const [, , uid, gid] = line?.split(":") ?? [];
  return uid === undefined || gid === undefined ? undefined : { uid: Number(uid), gid: Number(gid) };
}

/** The command that becomes `program`: it is told (SIGINT: fast shutdown) when our process dies, however it dies. */
export async function asServerUser(
  program: string,
  words: readonly string[],
  user: OsUser | undefined,
): Promise<{ file: string; words: string[] } & Partial<OsUser>> {
  const deathSignal = await run("setpriv", ["--pdeathsig", "INT", "true"]).then(
    () => true,
    () => false, // no util-linux, or an old one: orphans are then found and ended by the next start
  );
  if (!deathSignal) return { file: program, words: [...words], ...user };
  // A change of credentials clears the signal, so setpriv does both, in the right order.
  const drop = user === undefined ? [] : [`--reuid=${user.uid}`, `--regid=${user.gid}`, "--clear-groups"];
  return { file: "setpriv", words: ["--pdeathsig", "INT", ...drop, "--", program, ...words] };
}

export const serverEnvironment = { PATH: process.env["PATH"] ?? "/usr/bin:/bin", LC_ALL: "C", TZ: "UTC" };
