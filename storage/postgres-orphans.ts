import { existsSync, readFileSync, rmSync } from "node:fs";
import { basename, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { commandLineOf, postgresProcessesIn } from "./linux-process.ts";
import type { Place } from "./postgres-place.ts";
import { runsAsRoot } from "./traversable-directory.ts";

/**
 * Ends whatever Postgres still works in the data directory (we hold the place, so nobody supervises it), then removes the lock
 * file. Only after that is the file proven stale: its pid may by now be an innocent process, or a zombie, which Postgres itself
 * takes for a living server.
 */
export async function endOrphans({ data, log }: Place): Promise<void> {
  const lockFile = join(data, "postmaster.pid");
  const lockedPid = existsSync(lockFile) ? Math.abs(Number(readFileSync(lockFile, "utf8").split("\n")[0])) : undefined;
  const orphans = postgresProcessesIn(data);
  if (orphans.length > 0) {
    log("ending an orphaned Postgres", { pids: orphans });
    const postmaster = orphans.find((pid) => pid === lockedPid);
    // Without its postmaster a backend has nobody to be told by, and none of its work can be committed in order any more.
    if (postmaster !== undefined) signal([postmaster], "SIGINT");
    const gone =
      (postmaster !== undefined && (await haveGone(data, 5_000))) ||
      (signal(postgresProcessesIn(data), "SIGQUIT"), await haveGone(data, 3_000)) ||
      (signal(postgresProcessesIn(data), "SIGKILL"), await haveGone(data, 5_000));
    if (!gone) throw new Error(`Postgres processes ${postgresProcessesIn(data).join(", ")} in ${data} do not end`);
  }
  if (lockedPid === undefined) return;
  const words = commandLineOf(lockedPid);
  if (words !== undefined && basename(words[0] ?? "") === "postgres" && words.includes(data) && !runsAsRoot()) {
    throw new Error(`${data} is in use by the Postgres with pid ${lockedPid}, which belongs to another user`);
  }
  rmSync(lockFile, { force: true });
}

function signal(pids: readonly number[], name: NodeJS.Signals): void {
  for (const pid of pids) {
    try {
      process.kill(pid, name);
    } catch {
      // It went by itself.
    }
  }
}

async function haveGone(data: string, timeoutMs: number): Promise<boolean> {
  for (const end = Date.now() + timeoutMs; Date.now() < end; await sleep(20)) {
    if (postgresProcessesIn(data).length === 0) return true;
  }
  return false;
}
