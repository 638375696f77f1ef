import { constants } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";

const { O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK, O_RDONLY } = constants;

/** There is something else than a plain file, or it cannot be read; the message says what, without a path. */
export class NotPlainFile extends Error {
  override readonly name = "NotPlainFile";
}

/** Up to `maxBytes` bytes of a file, and whether there are more. */
export type PlainFile = { readonly bytes: Buffer; readonly isCut: boolean };

/**
 * Reads the file `name` (one component) in `directory`. Neither may be a link, and only what the descriptor says is believed, so
 * that nothing is gained by swapping one for another in between. Linux only: the file is opened relative to its directory.
 * @returns undefined where there is no such file or directory
 * @throws {NotPlainFile}
 */
export async function readPlainFile(directory: string, name: string, maxBytes: number): Promise<PlainFile | undefined> {
  const place = await openOrUndefined(directory, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
  if (place === undefined) return undefined;
  try {
    const file = await openOrUndefined(`/proc/self/fd/${place.fd}/${name}`, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
    if (file === undefined) return undefined;
    try {
      if (!(await file.stat()).isFile()) throw new NotPlainFile("is not a plain file");
      return await readUpTo(file, maxBytes);
    } finally {
      await file.close();
    }
  } finally {
    await place.close();
  }
}

async function openOrUndefined(path: string, flags: number): Promise<FileHandle | undefined> {
  try {
    return await open(path, flags);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT") return undefined;
    if (code === "ELOOP" || code === "ENOTDIR" || code === "ENXIO") throw new NotPlainFile("is not a plain file");
    throw new NotPlainFile(`cannot be read (${code ?? "unknown"})`, { cause: error });
  }
}

async function readUpTo(file: FileHandle, maxBytes: number): Promise<PlainFile> {
  const room = Buffer.alloc(maxBytes + 1);
  let length = 0;
  while (length < room.length) {
    const { bytesRead } = await file.read(room, length, room.length - length, length);
    if (bytesRead === 0) break;
    length += bytesRead;
  }
  return { bytes: room.subarray(0, Math.min(length, maxBytes)), isCut: length > maxBytes };
}
