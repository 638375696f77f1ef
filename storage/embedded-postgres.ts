import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { chownSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { promisify } from "node:util";
import { endOrphans } from "./postgres-orphans.ts";
import { holdPlace, readState, writeState, type Log, type Place, type State } from "./postgres-place.ts";
import { embeddedPlatform, findPackage, postgresMajor, preparePostgresServer, type PostgresServerFiles } from "./postgres-server-files.ts";
import { ownerName, ownerUrlOf, Supervisor } from "./postgres-supervisor.ts";
import { asServerUser, findOrMakeSystemUser, serverEnvironment } from "./postgres-user.ts";
import { runsAsRoot, traversableDirectory } from "./traversable-directory.ts";

export type EmbeddedPostgresOptions = {
  /** `<home>/postgres`: holds the server's private copy, its data, its log and the remembered port and password. */
  readonly dataDir: string;
  /** A port that must be taken; default: the remembered one, else any free one. */
  readonly port?: number;
  readonly log: Log;
};

export type EmbeddedPostgres = {
  /** URL of the owner of the database "openclaw", password included. */
  readonly ownerUrl: string;
  readonly port: number;
  /** Of the current postmaster: another one after a crash. */
  readonly pid: number;
  /** Resolves when the server process has gone. */
  stop(): Promise<void>;
};

const run = promisify(execFile);

/**
 * Starts the embedded Postgres of a home as a direct child of this process and keeps it running until `stop()`.
 * @throws {Error} in plain words when it cannot: no binaries for this platform, already run by another process, a data
 * directory of another major version, a taken `port`, a full disk.
 */
export async function startEmbeddedPostgres({ dataDir, port, log }: EmbeddedPostgresOptions): Promise<EmbeddedPostgres> {
  const platform = embeddedPlatform();
  const user = runsAsRoot() ? await findOrMakeSystemUser() : undefined;
  const directory = traversableDirectory(dirname(dataDir), basename(dataDir), user);
  const place: Place = {
    directory,
    data: join(directory, "data"),
    logFile: join(directory, "server.log"),
    stateFile: join(directory, "state.json"),
    user,
    log,
  };
  const lock = await holdPlace(place);
  try {
    refuseOtherMajor(place);
    const files = preparePostgresServer(directory, platform);
    await endOrphans(place);
    const state = await initialise(place, files);
    const supervisor = new Supervisor({ place, files, state, lock, givenPort: port });
    await supervisor.start();
    return supervisor;
  } catch (error) {
    lock.close();
    throw error;
  }
}

/** The owner's URL of a server that another process of ours runs on `dataDir`. @throws {Error} when there is none. */
export const embeddedOwnerUrl = (dataDir: string): string => ownerUrlOf(readState(join(dataDir, "state.json")));

/**
 * Which server a start on `dataDir` would run; changes nothing.
 * @throws {Error} in plain words when it would not start: no binaries for this platform, a data directory of another major version.
 */
export function describeEmbeddedPostgres(dataDir: string): string {
  const platform = embeddedPlatform();
  refuseOtherMajor({ data: join(dataDir, "data") });
  return `Postgres ${findPackage(platform).version.replace(/-.*/, "")} with pgvector, built in`;
}

function refuseOtherMajor({ data }: Pick<Place, "data">): void {
  if (!existsSync(join(data, "PG_VERSION"))) return;
  const major = readFileSync(join(data, "PG_VERSION"), "utf8").trim();
  if (major === postgresMajor) return;
  throw new Error(
    `${data} was made by Postgres ${major}, and this version carries Postgres ${postgresMajor}: ` +
      `restore a backup into an empty home, or run the old server yourself and set DATABASE_URL`,
  );
}

/** Makes the data directory where there is none, under another name until it is complete. */
async function initialise(place: Place, files: PostgresServerFiles): Promise<State> {
  const { data, stateFile, user } = place;
  if (existsSync(join(data, "PG_VERSION"))) return readState(stateFile);

  const state: State = { port: 0, password: randomBytes(24).toString("hex") };
  const draft = `${data}.draft`;
  const passwordFile = `${data}.password`;
  rmSync(draft, { recursive: true, force: true });
  mkdirSync(draft, { mode: 0o700 });
  writeFileSync(passwordFile, state.password, { mode: 0o600 });
  if (user !== undefined) for (const path of [draft, passwordFile]) chownSync(path, user.uid, user.gid);

  const words = ["--pgdata", draft, "--username", ownerName, "--pwfile", passwordFile, "--auth", "scram-sha-256", "--encoding", "UTF8"];
  const locale = ["--locale-provider", "builtin", "--builtin-locale", "C.UTF-8", "--locale", "C", "--text-search-config", "simple"];
  // Synced in one go: file by file is slow, and the rename below only happens after it.
  const sync = ["--sync-method", "syncfs", "--no-instructions"];
  const command = await asServerUser(files.initdb, [...words, ...locale, ...sync], place.user);
  try {
    const { file, words: all, ...credentials } = command;
    await run(file, all, { ...credentials, cwd: place.directory, env: serverEnvironment });
  } catch (cause) {
    const { stderr = "", message } = cause as Error & { stderr?: string };
    throw new Error(`initdb failed in ${place.directory}: ${stderr.trim() || message}`, { cause });
  } finally {
    rmSync(passwordFile, { force: true });
  }
  writeState(stateFile, state);
  rmSync(data, { recursive: true, force: true }); // at most an empty directory: it has no PG_VERSION
  renameSync(draft, data);
  return state;
}
