import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** Bytes that each of many programs reads from a descriptor of its own: a file without a name, opened anew for each. */
export type ConstantFile = {
  /** A descriptor at the beginning of the bytes; the caller closes it. */
  open(): number;
  dispose(): void;
};

export function createConstantFile(bytes: Uint8Array | string): ConstantFile {
  const fd = openNameless(bytes, 0o400);
  // A descriptor that is passed on shares its position with us; one that is opened through /proc has its own.
  return { open: () => openSync(`/proc/self/fd/${fd}`, "r"), dispose: () => closeSync(fd) };
}

/**
 * The bytes as a program's stdin; the caller closes it. Not a pipe and not a socket: a bash whose stdin is a socket takes itself for
 * a remote shell and runs ~/.bashrc, and a file can be opened again as /dev/stdin by whatever uid the program has.
 */
export const openStdinFile = (bytes: Uint8Array | string): number => openNameless(bytes, 0o444);

function openNameless(bytes: Uint8Array | string, mode: number): number {
  const directory = mkdtempSync(join(tmpdir(), "openclaw-nameless-"));
  try {
    const path = join(directory, "bytes");
    writeFileSync(path, bytes, { mode });
    return openSync(path, "r");
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}
