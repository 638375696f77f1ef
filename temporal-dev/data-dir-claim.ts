import { linkSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { identifyProcess, isSameProcess } from "./process-identity.mjs";

/** What `temporal.pid.json` says: who owns the data directory, and which server it started on which ports. */
type ClaimRecord = {
  readonly ownerPid: number;
  readonly ownerStartTime: string;
  readonly server?: ServerProcess;
};

export type ServerProcess = { readonly pid: number; readonly startTime: string; readonly port: number; readonly uiPort: number };

export type DataDirClaim = {
  /** The ports of the server that a killed owner left behind, so that its clients find the next one at the same place. */
  readonly earlier: ServerProcess | undefined;
  /** Remembers the running server; called after every (re)start. */
  recordServer(server: ServerProcess): void;
  release(): void;
};

export type ClaimOptions = {
  readonly dataDir: string;
  readonly dbFile: string;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
};

/**
 * Makes this process the only owner of a data directory. A server whose owner was killed is ended first, proven ours
 * by its start time and by our database on its command line; a pid that now belongs to another program is left alone.
 * @throws {Error} when a live process owns the directory, or a server that we cannot account for has its database open.
 */
export async function claimDataDir({ dataDir, dbFile, log }: ClaimOptions): Promise<DataDirClaim> {
  const file = join(dataDir, "temporal.pid.json");
  const owner = { ownerPid: process.pid, ownerStartTime: identifyProcess(process.pid)?.startTime ?? "" };

  let earlier: ServerProcess | undefined;
  while (!createExclusively(file, owner)) {
    const found = readClaim(file);
    if (found !== undefined && isSameProcess(found.ownerPid, found.ownerStartTime)) {
      throw new Error(`Temporal's data directory ${dataDir} is in use by process ${found.ownerPid}: stop that one first.`);
    }
    earlier = found?.server ?? earlier;
    if (earlier !== undefined) await endOrphan(earlier, dbFile, log);
    rmSync(file, { force: true });
  }

  const stranger = findServerOn(dbFile);
  if (stranger !== undefined) {
    rmSync(file, { force: true });
    throw new Error(`Process ${stranger} has Temporal's database ${dbFile} open, and it is not known who started it: end it first.`);
  }
  return {
    earlier,
    recordServer: (server) => replaceFile(file, { ...owner, server }),
    release: () => rmSync(file, { force: true }),
  };
}

async function endOrphan({ pid, startTime }: ServerProcess, dbFile: string, log: ClaimOptions["log"]): Promise<void> {
  const identity = identifyProcess(pid);
  if (identity?.startTime !== startTime || !identity.commandLine.includes(dbFile)) return; // gone, or a stranger's by now
  log("Ending the Temporal server that a killed process left behind.", { pid });
  for (const [signal, patienceMs] of [
    ["SIGTERM", 5000],
    ["SIGKILL", 5000],
  ] as const) {
    if (!isSameProcess(pid, startTime)) return;
    process.kill(pid, signal);
    await waitUntilGone(pid, startTime, patienceMs);
  }
  if (isSameProcess(pid, startTime)) throw new Error(`The orphaned Temporal server ${pid} does not end.`);
}

async function waitUntilGone(pid: number, startTime: string, patienceMs: number): Promise<void> {
  const giveUpAt = performance.now() + patienceMs;
  while (isSameProcess(pid, startTime) && performance.now() < giveUpAt) await sleep(25);
}

/** A server on our database that no claim names, e.g. started by hand. Linux only; elsewhere SQLite's own lock has to do. */
function findServerOn(dbFile: string): number | undefined {
  if (process.platform !== "linux") return undefined;
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .find((pid) => {
      const commandLine = identifyProcess(pid)?.commandLine ?? [];
      return commandLine.includes("start-dev") && commandLine.includes(dbFile);
    });
}

function readClaim(file: string): ClaimRecord | undefined {
  try {
    const claim = JSON.parse(readFileSync(file, "utf8")) as ClaimRecord;
    return typeof claim.ownerPid === "number" && typeof claim.ownerStartTime === "string" ? claim : undefined;
  } catch {
    return undefined; // gone meanwhile, or written by half before a power cut
  }
}

/** Creates the file with its content in one step, so that nobody ever reads half of it. */
function createExclusively(file: string, claim: ClaimRecord): boolean {
  const temporary = `${file}.${process.pid}`;
  writeFileSync(temporary, JSON.stringify(claim), { mode: 0o600 });
  try {
    linkSync(temporary, file);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw error;
  } finally {
    rmSync(temporary, { force: true });
  }
}

function replaceFile(file: string, claim: ClaimRecord): void {
  const temporary = `${file}.${process.pid}`;
  writeFileSync(temporary, JSON.stringify(claim), { mode: 0o600 });
  renameSync(temporary, file);
}
