import { lstat, opendir } from "node:fs/promises";
import { join } from "node:path";

export type DiskUse = { readonly bytes: number; readonly inodes: number };

/** Files looked at together: enough for four threads of the pool, no more. */
const AT_ONCE = 16;
const BLOCK_BYTES = 512;
/** A look at a large directory costs; it takes at most a quarter of one core. */
const PAUSE_MS = 60;
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

export type DiskWatch = {
  /** What was there before the run is known; only then may the program be let go. */
  readonly ready: Promise<void>;
  /** Looks once more. @returns whether the run left more than it may */
  end(): Promise<boolean>;
};

/** Looks at a work directory again and again while a run lasts. A burst between two looks can pass the limit. */
export function watchDisk(directory: string, limits: DiskUse, exceeded: () => void): DiskWatch {
  let timer: NodeJS.Timeout | undefined;
  let allowed = limits;
  let isOver = false;
  let ended = false;
  const look = async (): Promise<void> => {
    const use = await diskUseOf(directory, allowed);
    isOver ||= use.bytes > allowed.bytes || use.inodes > allowed.inodes;
  };
  const ready = (async () => {
    const before = await diskUseOf(directory, limits);
    if (before.bytes <= limits.bytes && before.inodes <= limits.inodes) return;
    // Already too full: what is there may stay and be removed, but nothing may be added.
    const whole = await diskUseOf(directory, tooMuch);
    if (whole !== tooMuch) allowed = { bytes: Math.max(limits.bytes, whole.bytes), inodes: Math.max(limits.inodes, whole.inodes) };
  })();
  let looking: Promise<void> = ready;
  const schedule = (pauseMs: number): void => {
    if (ended) return;
    timer = setTimeout(() => {
      const startedAt = performance.now();
      looking = look().then(() => {
        if (isOver) exceeded();
        else schedule(Math.max(PAUSE_MS, (performance.now() - startedAt) * PAUSE_FACTOR));
      });
    }, pauseMs);
  };
  void ready.then(() => schedule(PAUSE_MS));
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
