import { lstat, opendir, statfs } from "node:fs/promises";
import { join } from "node:path";

export type DiskUse = { readonly bytes: number; readonly inodes: number };

/** Files looked at together: enough for four threads of the pool, no more. */
const AT_ONCE = 16;
const BLOCK_BYTES = 512;
/** A look at a large directory costs; it takes at most a quarter of one core. */
const PAUSE_MS = 60;
/** A look at the file system's own counts costs microseconds. */
const SENSE_MS = 4;
const PAUSE_FACTOR = 3;

const tooMuch: DiskUse = { bytes: Infinity, inodes: Infinity };

/**
 * What a directory holds, counted until it passes `enough`. A program may change it meanwhile, and may swap a directory for a link to
 * anywhere: then the count is wrong, and that is all. What lies too deep to be named is counted as too much.
 */
export async function diskUseOf(directory: string, enough: DiskUse): Promise<DiskUse> {
  let [bytes, inodes] = [0, 0];
  const left = [directory];
  for (let next = left.pop(); next !== undefined; next = left.pop()) {
    const here = next;
    try {
      let batch: string[] = [];
      const count = async (): Promise<void> => {
        for (const found of await Promise.all(batch.map(async (path) => await bytesOf(path)))) bytes += found;
        batch = [];
      };
      for await (const entry of await opendir(here, { bufferSize: 256 })) {
        const path = join(here, entry.name);
        if (entry.isDirectory()) left.push(path);
        batch.push(path);
        if (++inodes > enough.inodes || bytes > enough.bytes) return { bytes, inodes };
        if (batch.length === AT_ONCE) await count();
      }
      await count();
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENAMETOOLONG") return tooMuch;
      // Gone meanwhile, or closed to us, who are not root here.
    }
  }
  return { bytes, inodes };
}

async function bytesOf(path: string): Promise<number> {
  try {
    return (await lstat(path)).blocks * BLOCK_BYTES;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENAMETOOLONG") throw error;
    return 0;
  }
}

/** Whether a directory holds more entries than `enough`; it looks at names alone, which is many times faster than their sizes. */
async function hasMoreEntries(directory: string, enough: number): Promise<boolean> {
  let inodes = 0;
  const left = [directory];
  for (let next = left.pop(); next !== undefined; next = left.pop()) {
    try {
      for await (const entry of await opendir(next, { bufferSize: 1_024 })) {
        if (++inodes > enough) return true;
        if (entry.isDirectory()) left.push(join(next, entry.name));
      }
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENAMETOOLONG") return true;
    }
  }
  return false;
}

export type DiskWatch = {
  /** What was there before the run is known; only then may the program be let go. */
  readonly ready: Promise<void>;
  /** Looks once more. @returns whether the run left more than it may */
  end(): Promise<boolean>;
};

/** How much of a file system is in use, by whomever. */
async function fileSystemUse(directory: string): Promise<DiskUse> {
  try {
    const { blocks, bfree, bsize, files, ffree } = await statfs(directory);
    return { bytes: (blocks - bfree) * bsize, inodes: files - ffree };
  } catch {
    // The directory is gone: nothing to hold.
    return { bytes: 0, inodes: 0 };
  }
}

/**
 * Looks at a work directory while a run lasts: now and then in any case, and at once when its whole file system has grown by what the
 * directory may still take. A burst can pass the limit by what it makes in the few milliseconds until it is killed. Where the file
 * system does not count its files (Btrfs), or others empty it as fast as the run fills it, only the first kind of look finds it.
 */
export function watchDisk(directory: string, limits: DiskUse, exceeded: () => void): DiskWatch {
  let timer: NodeJS.Timeout | undefined;
  let allowed = limits;
  let isOver = false;
  let ended = false;
  /** When the last look began, in the directory and around it. */
  let own: DiskUse = { bytes: 0, inodes: 0 };
  let around: DiskUse = { bytes: 0, inodes: 0 };
  let [lookedAt, lookTook] = [0, 0];

  const look = async (): Promise<void> => {
    lookedAt = performance.now();
    around = await fileSystemUse(directory);
    if (await hasMoreEntries(directory, allowed.inodes)) isOver = true;
    if (isOver) return;
    own = await diskUseOf(directory, allowed);
    isOver = own.bytes > allowed.bytes || own.inodes > allowed.inodes;
    lookTook = performance.now() - lookedAt;
  };
  const mayBeOver = async (): Promise<boolean> => {
    const now = await fileSystemUse(directory);
    return own.bytes + now.bytes - around.bytes > allowed.bytes || own.inodes + now.inodes - around.inodes > allowed.inodes;
  };
  const ready = (async () => {
    around = await fileSystemUse(directory);
    own = await diskUseOf(directory, limits);
    if (own.bytes <= limits.bytes && own.inodes <= limits.inodes) return;
    // Already too full: what is there may stay and be removed, but nothing may be added.
    const whole = await diskUseOf(directory, tooMuch);
    if (whole === tooMuch) return;
    own = whole;
    allowed = { bytes: Math.max(limits.bytes, whole.bytes), inodes: Math.max(limits.inodes, whole.inodes) };
  })();
  let looking: Promise<void> = ready;
  const step = async (): Promise<void> => {
    const sinceMs = performance.now() - lookedAt;
    const isRested = sinceMs >= lookTook * PAUSE_FACTOR;
    if (isRested && (sinceMs >= PAUSE_MS || (await mayBeOver()))) await look();
  };
  const schedule = (): void => {
    if (ended) return;
    timer = setTimeout(() => {
      looking = step().then(() => {
        if (isOver) exceeded();
        else schedule();
      });
    }, SENSE_MS);
  };
  void ready.then(schedule);
  return {
    ready,
    async end() {
      ended = true;
      clearTimeout(timer);
      await looking;
      if (!isOver) await look();
      return isOver;
    },
  };
}
