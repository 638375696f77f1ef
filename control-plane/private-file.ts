import { randomBytes } from "node:crypto";
import {
  closeSync,
  fchmodSync,
  fchownSync,
  fstatSync,
  fsyncSync,
  linkSync,
  openSync,
  realpathSync,
  renameSync,
  statSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { dirname } from "node:path";

/** Files with secrets or settings: mode 0600, there whole or not at all, also after a crash. */

/** @param prepare is given the descriptor before anything is written */
function writeBeside(path: string, text: string, prepare: (file: number) => void = () => {}): string {
  const temporary = `${path}.${process.pid}.${randomBytes(4).toString("hex")}.tmp`;
  const file = openSync(temporary, "wx", 0o600);
  try {
    prepare(file);
    writeFileSync(file, text);
    fsyncSync(file);
  } catch (error) {
    unlinkSync(temporary);
    throw error;
  } finally {
    closeSync(file);
  }
  return temporary;
}

function syncDirectory(path: string): void {
  const directory = openSync(dirname(path), "r");
  try {
    fsyncSync(directory);
  } finally {
    closeSync(directory);
  }
}

/** Writes a file that must not exist yet. @returns false when it does; it is then left as it is. */
export function createPrivateFile(path: string, text: string): boolean {
  const temporary = writeBeside(path, text);
  try {
    linkSync(temporary, path); // unlike a rename, fails where somebody else was first
    syncDirectory(path);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw error;
  } finally {
    unlinkSync(temporary);
  }
}

/** Writes a file or replaces it as a whole. */
export function replacePrivateFile(path: string, text: string): void {
  const temporary = writeBeside(path, text);
  try {
    renameSync(temporary, path);
  } catch (error) {
    unlinkSync(temporary);
    throw error;
  }
  syncDirectory(path);
}

/**
 * Replaces a file of the operator's as a whole: links to it stay, and so do its mode and its owner.
 * @param isUnchanged is asked last; where it says no, nothing is replaced
 * @returns whether it was replaced
 */
export function replaceOperatorFile(path: string, text: string, isUnchanged: () => boolean): boolean {
  const target = realpathSync(path);
  const { mode, uid, gid } = statSync(target);
  const temporary = writeBeside(target, text, (file) => {
    const made = fstatSync(file);
    if (made.uid !== uid || made.gid !== gid) fchownSync(file, uid, gid);
    fchmodSync(file, mode & 0o7777);
  });
  if (!isUnchanged()) {
    unlinkSync(temporary);
    return false;
  }
  try {
    renameSync(temporary, target);
  } catch (error) {
    unlinkSync(temporary);
    throw error;
  }
  syncDirectory(target);
  return true;
}
