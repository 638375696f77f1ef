import { randomBytes } from "node:crypto";
import {
  closeSync,
  constants,
  fchmodSync,
  fstatSync,
  fsyncSync,
  linkSync,
  openSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { AppError } from "../domain/app-error.ts";
import { keyBytes } from "./authenticated-cipher.ts";
import { type KeyEncryption, type KeyRing, localKeyEncryption } from "./key-encryption.ts";

/** `<home>/kek`, mode 0400: one key in base64 a line. The first line is the newest; a second one stands there during a rotation. */
const keyFilePath = (home: string): string => join(home, "kek");

const refused = (path: string, says: string): AppError => new AppError("invalid_configuration", { client: { message: `${path} ${says}` } });

/** @returns undefined when there is no file. @throws {AppError} `invalid_configuration` for a file that others may read or write */
function readKeys(path: string): readonly Buffer[] | undefined {
  let file: number;
  try {
    file = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT") return undefined;
    if (code === "ELOOP") throw refused(path, "is a symbolic link: put the key itself there");
    if (code === "EACCES") throw refused(path, "cannot be read by this user: it must belong to the user that runs the product");
    throw error;
  }
  try {
    const { mode, uid, size } = fstatSync(file);
    if ((mode & constants.S_IFMT) !== constants.S_IFREG) throw refused(path, "is not a regular file");
    if (uid !== process.geteuid?.()) throw refused(path, "belongs to another user than the one that runs the product");
    if ((mode & 0o7377) !== 0) throw refused(path, `has the mode 0${(mode & 0o7777).toString(8)}: only its owner may read it (chmod 400)`);
    const lines = size > 4_096 ? [] : readFileSync(file, "utf8").trim().split("\n");
    if (lines.length === 0 || !lines.every((line) => /^[A-Za-z0-9+/]{43}=$/.test(line)))
      throw refused(path, "does not hold a key-encryption key (32 bytes in base64 a line)");
    return lines.map((line) => Buffer.from(line, "base64"));
  } finally {
    closeSync(file);
  }
}

function writeKeys(path: string, keys: readonly Uint8Array[], publish: (temporary: string) => void): void {
  const temporary = `${path}.${process.pid}.${randomBytes(4).toString("hex")}.tmp`;
  const file = openSync(temporary, "wx", 0o400);
  try {
    fchmodSync(file, 0o400);
    writeSync(file, keys.map((key) => `${Buffer.from(key).toString("base64")}\n`).join(""));
    fsyncSync(file);
  } finally {
    closeSync(file);
  }
  try {
    publish(temporary);
  } catch (error) {
    unlinkSync(temporary);
    throw error;
  }
  const directory = openSync(dirname(path), "r");
  try {
    fsyncSync(directory);
  } finally {
    closeSync(directory);
  }
}

/** Drafts of a process that was killed while it wrote: they hold keys. */
function removeDrafts(path: string): void {
  const directory = dirname(path);
  const drafts = readdirSync(directory).filter((name) => /^kek\.\d+\.[0-9a-f]{8}\.tmp$/.test(name));
  for (const name of drafts) rmSync(join(directory, name), { force: true });
}

/**
 * The keys of a home's file.
 * @param mayCreate whether a missing file is made: only for a database that knows no key yet
 * @returns undefined when there is no file and none may be made
 * @throws {AppError} `invalid_configuration`
 */
export function openKeyFile(home: string, { mayCreate }: { readonly mayCreate: boolean }): KeyRing | undefined {
  const path = keyFilePath(home);
  let keys: readonly { readonly bytes: Buffer; readonly encryption: KeyEncryption }[] = [];
  const load = (): boolean => {
    const read = readKeys(path);
    if (read === undefined) return false;
    keys = read.map((bytes) => ({ bytes, encryption: localKeyEncryption(bytes) }));
    return true;
  };
  const replace = (kept: readonly Uint8Array[]): void => {
    writeKeys(path, kept, (temporary) => renameSync(temporary, path));
    load();
  };
  if (!load()) {
    if (!mayCreate) return undefined;
    writeKeys(path, [randomBytes(keyBytes)], (temporary) => {
      try {
        linkSync(temporary, path); // unlike a rename, fails where another process was first
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
      }
      unlinkSync(temporary);
    });
    load();
  }
  return {
    place: path,
    keys: () => keys.map(({ encryption }) => encryption),
    reload() {
      if (!load()) throw refused(path, "is gone: put it back");
    },
    prepareNext(currentId) {
      load();
      // A first key that is not the current one is what an earlier attempt of the rotation made.
      if (keys[0]?.encryption.keyId === currentId) replace([randomBytes(keyBytes), ...keys.map(({ bytes }) => bytes)]);
      return keys[0]?.encryption.keyId ?? currentId;
    },
    keepOnly(keyId) {
      load();
      const kept = keys.filter(({ encryption }) => encryption.keyId === keyId).map(({ bytes }) => bytes);
      if (kept.length === 1 && keys.length > 1) replace(kept);
      removeDrafts(path);
    },
  };
}
