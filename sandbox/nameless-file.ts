import { closeSync, constants, fchmodSync, mkdtempSync, openSync, rmdirSync, unlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** Bytes that each of many programs reads from a descriptor of its own: a file without a name, opened anew for each. */
export type ConstantFile = {
  /** A descriptor at the beginning of the bytes; the caller closes it. */
  open(): number;
  dispose(): void;
};

export function createConstantFile(bytes: Uint8Array | string): ConstantFile {
  const fd = openNameless();
  writeFileSync(fd, bytes);
  // A descriptor that is passed on shares its position with us; one that is opened through /proc has its own.
  return { open: () => openAgain(fd), dispose: () => closeSync(fd) };
}

/** A file that a program has open before we write it. */
export type LaterFile = {
  /** The program's own descriptor, at the beginning; the caller closes it after the start. */
  readonly programFd: number;
  write(bytes: Uint8Array | string): void;
  dispose(): void;
};

/**
 * Not a pipe and not a socket: a bash whose stdin is a socket takes itself for a remote shell and runs ~/.bashrc, and a file can be
 * opened again as /dev/stdin by whatever uid the program has.
 */
export function createLaterFile(): LaterFile {
  const fd = openNameless();
  fchmodSync(fd, 0o444);
  return { programFd: openAgain(fd), write: (bytes) => writeFileSync(fd, bytes), dispose: () => closeSync(fd) };
}

const openAgain = (fd: number): number => openSync(`/proc/self/fd/${fd}`, constants.O_RDONLY);

/** Linux' own bit of O_TMPFILE, the same on both of our machines; Node does not name it. */
const TMPFILE = 0o20000000;

/** A new file that we alone may open, for reading and writing. */
function openNameless(): number {
  try {
    return openSync(tmpdir(), TMPFILE | constants.O_DIRECTORY | constants.O_RDWR, 0o400);
  } catch {
    // Some file systems cannot make a file without a name.
    const directory = mkdtempSync(join(tmpdir(), "openclaw-nameless-"));
    const path = join(directory, "bytes");
    const fd = openSync(path, constants.O_CREAT | constants.O_EXCL | constants.O_RDWR, 0o400);
    unlinkSync(path);
    rmdirSync(directory);
    return fd;
  }
}
