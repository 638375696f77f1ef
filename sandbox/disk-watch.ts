import { lstat, opendir, statfs } from "node:fs/promises";
import { join } from "node:path";

export type DiskUse = { readonly bytes: number; readonly inodes: number };

/** Files looked at together: enough for four threads of the pool, no more. */
const AT_ONCE = 16;
const BLOCK_BYTES = 512;
/** A look at a large directory costs; it takes at most a quarter of one core. */
const PAUSE_MS = 60;
const PAUSE_FACTOR = 3;
/** The file system's own counts cost microseconds. */
const SENSE_MS = 4;

/** Shows all names in a directory and below, some at a time, until `isEnough`. @throws ENAMETOOLONG for what lies too deep to be named */
async function walk(directory: string, isEnough: (paths: readonly string[]) => Promise<boolean> | boolean): Promise<void> {
  const left = [directory];
  for (let next = left.pop(); next !== undefined; next = left.pop()) {
    try {
      let batch: string[] = [];
      for await (const entry of await opendir(next, { bufferSize: 1_024 })) {
        const path = join(next, entry.name);
        if (entry.isDirectory()) left.push(path);
        batch.push(path);
        if (batch.length < AT_ONCE) continue;
        if (await isEnough(batch)) return;
        batch = [];
      }
      if (await isEnough(batch)) return;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENAMETOOLONG") throw error;
      // Gone meanwhile, or closed to us, who are not root here.
    }
  }
}

/**
 * What a directory holds, counted until it passes `enough`. A program may change it meanwhile, and may swap a directory for a link to
 * anywhere: then the count is wrong, and that is all. What lies too deep to be named is counted as too much.
 */
async function bytesIn(directory: string, enough: number): Promise<number> {
  let bytes = 0;
  const tooDeep = await isTooDeep(
    walk(directory, async (paths) => {
      for (const found of await Promise.all(paths.map(async (path) => await bytesOf(path)))) bytes += found;
      return bytes > enough;
    }),
  );
  return tooDeep ? Infinity : bytes;
}

/** As `bytesIn`, of files and directories. It reads names alone, which is many times faster. */
export async function inodesIn(directory: string, enough: number): Promise<number> {
  let inodes = 0;
  const tooDeep = await isTooDeep(
    walk(directory, (paths) => {
      inodes += paths.length;
      return inodes > enough;
    }),
  );
  return tooDeep ? Infinity : inodes;
}

async function isTooDeep(walking: Promise<void>): Promise<boolean> {
  try {
    await walking;
    return false;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENAMETOOLONG") return true;
    throw error;
  }
}

async function bytesOf(path: string): Promise<number> {
  try {
    return (await lstat(path)).blocks * BLOCK_BYTES;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENAMETOOLONG") throw error;
    return 0;
  }
}

/** What a whole file system has in use, by whomever; nothing where the directory is gone. */
async function fileSystemUse(directory: string): Promise<DiskUse> {
  try {
    const { blocks, bfree, bsize, files, ffree } = await statfs(directory);
    return { bytes: (blocks - bfree) * bsize, inodes: files - ffree };
  } catch {
    return { bytes: 0, inodes: 0 };
  }
}

/** Whether a file system has no room for another file, or for a block of one. */
export async function isFull(directory: string): Promise<boolean> {
  try {
    const { bavail, ffree } = await statfs(directory);
    return bavail === 0 || ffree === 0;
  } catch {
    return false;
  }
}

export type DiskWatch = {
  /** What was there before the run is known; only then may the program be let go. */
  readonly ready: Promise<void>;
  /** Looks once more. @returns whether the run left more than it may */
  end(): Promise<boolean>;
};

/**
 * Looks at a work directory while a run lasts: now and then in any case, and at once when its whole file system has grown by what the
 * directory may still take. A burst can pass the limit by what it makes in the few milliseconds until it is killed. Where the file
 * system does not count its files (Btrfs), or others empty it as fast as the run fills it, only the first kind of look finds it.
 */
export function watchDisk(directory: string, limits: DiskUse, exceeded: () => void): DiskWatch {
  // Apart, because a look at sizes takes long, and a flood of files must not wait for it.
  const watches = [
    watchOne({
      limit: limits.inodes,
      measure: async (enough) => await inodesIn(directory, enough),
      around: async () => (await fileSystemUse(directory)).inodes,
      exceeded,
    }),
    watchOne({
      limit: limits.bytes,
      measure: async (enough) => await bytesIn(directory, enough),
      around: async () => (await fileSystemUse(directory)).bytes,
      exceeded,
    }),
  ];
  return {
    ready: Promise.all(watches.map(({ ready }) => ready)).then(() => undefined),
    end: async () => (await Promise.all(watches.map(async (watch) => await watch.end()))).includes(true),
  };
}

type Measure = {
  readonly limit: number;
  /** Of the directory, counted until it passes `enough`. */
  readonly measure: (enough: number) => Promise<number>;
  /** Of the file system around it. */
  readonly around: () => Promise<number>;
  readonly exceeded: () => void;
};

function watchOne({ limit, measure, around, exceeded }: Measure): DiskWatch {
  let timer: NodeJS.Timeout | undefined;
  let allowed = limit;
  let isOver = false;
  let ended = false;
  /** At the last look. */
  let [own, outside, lookedAt, lookTook] = [0, 0, 0, 0];

  const look = async (): Promise<void> => {
    lookedAt = performance.now();
    outside = await around();
    own = await measure(allowed);
    isOver ||= own > allowed;
    lookTook = performance.now() - lookedAt;
  };
  const begin = async (): Promise<void> => {
    await look();
    if (!isOver) return;
    // Already too full: what is there may stay and be removed, but nothing may be added.
    own = await measure(Infinity);
    if (own !== Infinity) allowed = Math.max(limit, own);
    isOver = false;
  };
  const ready = limit === Infinity ? Promise.resolve() : begin();
  let looking: Promise<void> = ready;
  const step = async (): Promise<void> => {
    const sinceMs = performance.now() - lookedAt;
    if (sinceMs < lookTook * PAUSE_FACTOR) return;
    if (sinceMs >= PAUSE_MS || own + (await around()) - outside > allowed) await look();
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
  if (limit !== Infinity) void ready.then(schedule);
  return {
    ready,
    async end() {
      ended = true;
      clearTimeout(timer);
      await looking;
      if (!isOver && limit !== Infinity) await look();
      return isOver;
    },
  };
}
