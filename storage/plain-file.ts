import { closeSync, constants, fstatSync, openSync, readSync } from "node:fs";

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
 * Synchronous: for small local files it costs a tenth of the same calls through the thread pool.
 * @returns undefined where there is no such file or directory
 * @throws {NotPlainFile}
 */
export function readPlainFile(directory: string, name: string, maxBytes: number): PlainFile | undefined {
  return withDescriptor(directory, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, (place) =>
    withDescriptor(`/proc/self/fd/${place}/${name}`, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, (file) => {
      const stat = fstatSync(file);
      if (!stat.isFile()) throw new NotPlainFile("is not a plain file");
      return readUpTo(file, maxBytes, stat.size);
    }),
  );
}

function withDescriptor<T>(path: string, flags: number, work: (descriptor: number) => T): T | undefined {
  const descriptor = openOrUndefined(path, flags);
  if (descriptor === undefined) return undefined;
  try {
    return work(descriptor);
  } finally {
    closeSync(descriptor);
  }
}

function openOrUndefined(path: string, flags: number): number | undefined {
  try {
    return openSync(path, flags);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT") return undefined;
    if (code === "ELOOP" || code === "ENOTDIR" || code === "ENXIO") throw new NotPlainFile("is not a plain file");
    throw new NotPlainFile(`cannot be read (${code ?? "unknown"})`, { cause: error });
  }
}

/** One byte more than expected is asked for: what has grown since is cut. */
function readUpTo(file: number, maxBytes: number, expectedBytes: number): PlainFile {
  const room = Buffer.allocUnsafe(Math.min(maxBytes, expectedBytes) + 1);
  let length = 0;
  while (length < room.length) {
    const bytesRead = readSync(file, room, length, room.length - length, length);
    if (bytesRead === 0) break;
    length += bytesRead;
  }
  return { bytes: room.subarray(0, Math.min(length, maxBytes)), isCut: length > Math.min(maxBytes, expectedBytes) };
}
