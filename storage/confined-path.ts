import { randomBytes } from "node:crypto";
import { constants, type Stats } from "node:fs";
import { chmod, type FileHandle, lstat, mkdir, open, readdir, rename, rmdir, unlink } from "node:fs/promises";
import { parseRelativePath, PathRefused, temporaryPrefix } from "../domain/relative-path.ts";

/*
 * Every path that came from outside ends here. A check of the text and of `realpath` would be true only until somebody puts a link
 * in the place of a directory, so nothing is checked by path: the walk opens one component after the other, each relative to the
 * descriptor of the directory before, and only what the descriptor says is believed. Node has no openat(2); Linux gives the same by
 * `/proc/self/fd/<directory>/<name>`, whose first part is a link of the kernel's to the open directory itself, wherever it was moved.
 * Every open has O_NOFOLLOW, so `name` is never followed when it is a link, and O_PATH, so that nothing happens to a FIFO or a device
 * before fstat(2) has told that it is one. A plain file is then opened for reading through its own descriptor.
 */
const { O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_NONBLOCK, O_RDONLY, O_WRONLY } = constants;
/** Not among Node's constants; the same number on every architecture that we run on. */
const O_PATH = 0o10000000;

/** Up to `maxBytes` bytes of a file, and whether there are more. */
export type ConfinedFile = { readonly bytes: Buffer; readonly isCut: boolean };

export type ConfinedKind = "file" | "directory" | "link" | "other";

export type ConfinedStat = {
  readonly kind: "file" | "directory";
  readonly sizeBytes: number;
  /** Permission bits. */
  readonly mode: number;
  readonly modifiedAtMs: number;
};

/**
 * Opens a plain file below `root` for reading; the caller closes it. `root` itself may not be a link; what stands before its last
 * component is the caller's.
 * @returns undefined where there is none
 * @throws {PathRefused} for whatever else is there, links of every kind among it
 */
export async function openConfined(root: string, relative: string): Promise<FileHandle | undefined> {
  await using found = await find(root, relative);
  if (found === undefined) return undefined;
  const stats = await found.stat();
  if (!stats.isFile()) throw new PathRefused(notPlain(stats), relative);
  // A second name may lie anywhere on the same file system, and belong to somebody else.
  if (stats.nlink > 1) throw new PathRefused("leads to a file with several names (hard links)", relative);
  return await open(behind(found), O_RDONLY | O_NONBLOCK).catch((error: unknown) => {
    throw refusalOf(error, relative);
  });
}

/** As `openConfined`, up to `maxBytes` of what is in it. */
export async function readConfined(
  root: string,
  relative: string,
  { maxBytes }: { readonly maxBytes: number },
): Promise<ConfinedFile | undefined> {
  await using file = await openConfined(root, relative);
  return file === undefined ? undefined : await readUpTo(file, maxBytes);
}

/**
 * Writes a file below `root` whose directory is there: a new file beside it, then a rename, so a reader sees the old text or the new
 * one and a link that is put in its place meanwhile is replaced, not followed. The file belongs to the owner of its directory.
 * @throws {PathRefused} when the directory is missing, or something else than a plain file has the name already
 */
export async function writeConfined(root: string, relative: string, bytes: string | Uint8Array, mode = 0o600): Promise<void> {
  const { directories, name } = split(relative);
  await using directory = await descend(root, directories, relative);
  if (directory === undefined) throw new PathRefused("leads to a directory that does not exist", relative);
  const present = await lstatAt(directory, name);
  if (present !== undefined && !present.isFile()) throw new PathRefused(notPlain(present), relative);
  const temporary = `${temporaryPrefix}${randomBytes(8).toString("hex")}`;
  await using file = await open(at(directory, temporary), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600).catch((error: unknown) => {
    throw refusalOf(error, relative);
  });
  try {
    await file.writeFile(bytes);
    const { uid, gid } = await directory.stat();
    if (process.geteuid?.() === 0) await file.chown(uid, gid);
    await file.chmod(mode & 0o777);
    await file.sync();
    await rename(at(directory, temporary), at(directory, name));
  } catch (error) {
    await unlink(at(directory, temporary)).catch(() => {});
    throw refusalOf(error, relative);
  }
  await syncDirectory(directory);
}

/** Makes a directory below `root`, with those before it that are missing; what is there already keeps its mode. @throws {PathRefused} */
export async function makeConfinedDirectory(root: string, relative: string, mode = 0o700): Promise<void> {
  const components = parseRelativePath(relative);
  const opened = await openRoot(root, relative);
  if (opened === undefined) throw new PathRefused("leads to a directory that does not exist", relative);
  let directory: FileHandle = opened;
  try {
    for (const name of components) {
      const next: FileHandle = (await openAt(directory, name, O_DIRECTORY, relative)) ?? (await makeAt(directory, name, mode, relative));
      await directory.close();
      directory = next;
    }
  } finally {
    await directory.close();
  }
}

/** What a directory below `root` holds, by name; without `relative`, `root` itself. @returns undefined where there is none @throws {PathRefused} */
export async function listConfined(
  root: string,
  relative?: string,
): Promise<readonly { readonly name: string; readonly kind: ConfinedKind }[] | undefined> {
  await using directory = await descend(root, relative === undefined ? [] : parseRelativePath(relative), relative ?? "");
  if (directory === undefined) return undefined;
  const entries = await readdir(behind(directory), { withFileTypes: true }).catch((error: unknown) => {
    throw refusalOf(error, relative ?? "");
  });
  return entries
    .filter(({ name }) => !name.startsWith(temporaryPrefix))
    .map((entry) => ({ name: entry.name, kind: kindOf(entry) }))
    .toSorted((one, other) => (one.name < other.name ? -1 : 1));
}

/** What is at a path below `root`. @returns undefined where there is nothing @throws {PathRefused} for anything but a file or a directory */
export async function statConfined(root: string, relative: string): Promise<ConfinedStat | undefined> {
  await using found = await find(root, relative);
  if (found === undefined) return undefined;
  const stats = await found.stat();
  const kind = kindOf(stats);
  if (kind === "link" || kind === "other") throw new PathRefused(notPlain(stats), relative);
  return { kind, sizeBytes: stats.size, mode: stats.mode & 0o777, modifiedAtMs: stats.mtimeMs };
}

/** Removes a file, a link itself, or a directory with all that is below it; links are removed, never followed. @returns whether there was something */
export async function removeConfined(root: string, relative: string): Promise<boolean> {
  const { directories, name } = split(relative);
  await using directory = await descend(root, directories, relative);
  return directory !== undefined && (await removeEntry(directory, name));
}

/** The same for an entry of `parent` whose name is our own, and need not suit every system. */
export async function removeOwnEntry(parent: string, name: string): Promise<boolean> {
  await using directory = await descend(parent, [], name);
  return directory !== undefined && (await removeEntry(directory, name));
}

async function removeEntry(directory: FileHandle, name: string): Promise<boolean> {
  if ((await lstatAt(directory, name)) === undefined) return false;
  const pending: Name[] = [name];
  for (let next = pending.pop(); next !== undefined; next = pending.pop()) {
    await removeBelow(directory, next, { top: directory, pending, depth: 0 });
  }
  return true;
}

type Name = string | Buffer;

/** `name` in the open directory, for calls that take a path. A name that is not UTF-8 stays as it is. */
const at = (directory: FileHandle, name: Name): string | Buffer => {
  const place = `/proc/self/fd/${directory.fd}/`;
  return typeof name === "string" ? `${place}${name}` : Buffer.concat([Buffer.from(place), name]);
};

/** The very thing that is open, for calls that take a path. */
const behind = (handle: FileHandle): string => `/proc/self/fd/${handle.fd}`;

const kindOf = (entry: Pick<Stats, "isFile" | "isDirectory" | "isSymbolicLink">): ConfinedKind =>
  entry.isFile() ? "file" : entry.isDirectory() ? "directory" : entry.isSymbolicLink() ? "link" : "other";

const notPlain = (stats: Stats): string =>
  stats.isSymbolicLink() ? "leads through a link" : stats.isDirectory() ? "is a directory" : "is not a plain file";

function split(relative: string): { readonly directories: readonly string[]; readonly name: string } {
  const components = parseRelativePath(relative);
  return { directories: components.slice(0, -1), name: components.at(-1) ?? "" };
}

function refusalOf(error: unknown, relative: string): unknown {
  const { code } = error as NodeJS.ErrnoException;
  if (code === "ELOOP" || code === "ENOTDIR") return new PathRefused("leads through a link or something that is no directory", relative);
  if (code === "EACCES" || code === "EPERM") return new PathRefused("may not be used", relative, { cause: error });
  if (code === "EISDIR" || code === "ENOTEMPTY" || code === "ENXIO") return new PathRefused("is not a plain file", relative);
  return error;
}

async function openAt(directory: FileHandle, name: Name, flags: number, relative: string): Promise<FileHandle | undefined> {
  return await openOrUndefined(at(directory, name), flags, relative);
}

/** Opens without touching what is there: nothing can be read or written through the handle. */
async function openOrUndefined(path: string | Buffer, flags: number, relative: string): Promise<FileHandle | undefined> {
  try {
    return await open(path, O_PATH | O_NOFOLLOW | flags);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw refusalOf(error, relative);
  }
}

const openRoot = async (root: string, relative: string): Promise<FileHandle | undefined> =>
  await openOrUndefined(root, O_DIRECTORY, relative);

/** The directory at the end of the walk. */
async function descend(root: string, components: readonly string[], relative: string): Promise<FileHandle | undefined> {
  let directory = await openRoot(root, relative);
  for (const name of components) {
    if (directory === undefined) return undefined;
    const before: FileHandle = directory;
    try {
      directory = await openAt(before, name, O_DIRECTORY, relative);
    } finally {
      await before.close();
    }
  }
  return directory;
}

/** Whatever the path leads to, even a link: its kind is for the caller to judge. */
async function find(root: string, relative: string): Promise<FileHandle | undefined> {
  const { directories, name } = split(relative);
  await using directory = await descend(root, directories, relative);
  return directory === undefined ? undefined : await openAt(directory, name, 0, relative);
}

async function makeAt(directory: FileHandle, name: string, mode: number, relative: string): Promise<FileHandle> {
  await mkdir(at(directory, name), { mode }).catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw refusalOf(error, relative);
  });
  const made = await openAt(directory, name, O_DIRECTORY, relative);
  if (made === undefined) throw new PathRefused("changed while it was used", relative);
  if (process.geteuid?.() === 0) {
    const { uid, gid } = await directory.stat();
    await using writable = await open(behind(made), O_RDONLY | O_DIRECTORY);
    await writable.chown(uid, gid);
  }
  return made;
}

async function lstatAt(directory: FileHandle, name: Name): Promise<Stats | undefined> {
  return await lstat(at(directory, name)).catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  });
}

async function syncDirectory(directory: FileHandle): Promise<void> {
  await using synced = await open(behind(directory), O_RDONLY | O_DIRECTORY);
  await synced.sync();
}

/** Directories deeper than this are moved up before they are emptied, so a tree of any depth takes few descriptors. */
const depthKeptOpen = 32;

type Removal = { readonly top: FileHandle; readonly pending: Name[]; readonly depth: number };

async function removeBelow(parent: FileHandle, name: Name, { top, pending, depth }: Removal): Promise<void> {
  try {
    await unlink(at(parent, name));
    return;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT") return;
    if (code !== "EISDIR" && code !== "EPERM") throw error;
  }
  if (depth === depthKeptOpen) {
    const moved = `${temporaryPrefix}${randomBytes(8).toString("hex")}`;
    await rename(at(parent, name), at(top, moved));
    pending.push(moved);
    return;
  }
  {
    await using directory = await openAt(parent, name, O_DIRECTORY, "");
    if (directory === undefined) return;
    // Its owner may have closed it to itself; the handle is the directory, so this follows no link.
    await chmod(behind(directory), 0o700);
    for (const entry of await readdir(behind(directory), { encoding: "buffer" })) {
      await removeBelow(directory, entry, { top, pending, depth: depth + 1 });
    }
  }
  await rmdir(at(parent, name));
}

async function readUpTo(file: FileHandle, maxBytes: number): Promise<ConfinedFile> {
  const { size } = await file.stat();
  let room = Buffer.alloc(Math.min(size, maxBytes) + 1);
  let length = 0;
  for (;;) {
    const { bytesRead } = await file.read(room, length, room.length - length, length);
    length += bytesRead;
    if (bytesRead === 0 || length > maxBytes) break;
    // It grew since it was measured.
    if (length === room.length) room = Buffer.concat([room], Math.min(2 * room.length, maxBytes + 1));
  }
  return { bytes: room.subarray(0, Math.min(length, maxBytes)), isCut: length > maxBytes };
}
