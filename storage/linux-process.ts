import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { basename } from "node:path";

/** A process as `/proc` shows it; only processes that we may look into (our own, or all as root) are ever returned. */
const readLinkOrNothing = (path: string): string | undefined => {
  try {
    return readlinkSync(path);
  } catch {
    return undefined; // gone, a zombie, or another user's
  }
};

/**
 * Living Postgres processes (postmaster and backends) that work in `dataDirectory`: each of them makes it its working
 * directory, so this is proof where a pid in a file is only a hint. Zombies have no working directory and do not count.
 */
export function postgresProcessesIn(dataDirectory: string): number[] {
  return readdirSync("/proc")
    .filter((entry) => /^\d+$/.test(entry))
    .map(Number)
    .filter((pid) => {
      if (readLinkOrNothing(`/proc/${pid}/cwd`) !== dataDirectory) return false;
      const executable = readLinkOrNothing(`/proc/${pid}/exe`);
      return executable !== undefined && basename(executable.replace(/ \(deleted\)$/, "")) === "postgres";
    });
}

/** The command line of a living process, of any user; undefined when there is none. */
export function commandLineOf(pid: number): string[] | undefined {
  try {
    const words = readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
    return words[0] === "" ? undefined : words;
  } catch {
    return undefined;
  }
}
