import { performance } from "node:perf_hooks";
import { type BoundedOutput, keepOutput } from "./bounded-output.ts";
import type { StartedSandbox } from "./bwrap-start.ts";
import { type DiskWatch, isFull, watchDisk } from "./disk-watch.ts";
import type { Exceeded, ResourceEnforcer } from "./resource-enforcer.ts";
import type { SandboxJob, SandboxResult } from "./sandbox-driver.ts";
import { enforcementOf } from "./sandbox-result.ts";

type Reason = SandboxResult["reason"];

export type ProgramRun = {
  readonly enforcer: Pick<ResourceEnforcer, "memory" | "processes" | "cpu">;
  readonly startedAtMs: number;
  readonly signal: AbortSignal;
};

/** Runs the job's program in a sandbox that was started for it, to the end of both; its clock begins here. */
export async function runProgram(
  sandbox: StartedSandbox,
  job: SandboxJob,
  { enforcer, startedAtMs, signal }: ProgramRun,
): Promise<SandboxResult> {
  const { limits } = job;
  let killedFor: Reason | undefined;
  const kill = (reason: Reason): void => {
    killedFor ??= reason;
    sandbox.kill();
  };
  const [stdout, stderr] = (["stdout", "stderr"] as const).map((name) =>
    keepOutput(sandbox[name], {
      limitBytes: limits.outputBytes,
      onFlood: () => kill("output"),
      onKept: (chunk) => job.onOutput?.(name, chunk),
    }),
  ) as [BoundedOutput, BoundedOutput];
  const disk = diskWatchOf(job, () => kill("disk"));
  let startError: Error | undefined;
  const letGo = async (): Promise<void> => {
    const [isReady] = await Promise.all([sandbox.ready, disk?.ready]);
    if (!isReady || killedFor !== undefined) return;
    if (!sandbox.isCurrent()) throw new Error("The work directory was replaced while the sandbox waited.");
    sandbox.watch((what) => kill(what === "processes" ? "pids" : what));
    sandbox.handOver(job);
  };
  letGo().catch((error: Error) => {
    startError = error;
    kill("failed_to_start");
  });
  const wall = setTimeout(() => kill("wall"), limits.wallMs);
  const cancel = (): void => kill("cancelled");
  signal.addEventListener("abort", cancel, { once: true });
  if (signal.aborted) cancel();

  await sandbox.ended;
  clearTimeout(wall);
  signal.removeEventListener("abort", cancel);
  const exceeded = await sandbox.end();
  // A program that fills the directory and ends between two looks is told of it as well.
  if (await disk?.end()) killedFor ??= "disk";
  await Promise.all([stdout.ended, stderr.ended]);
  if (sandbox.began() && sandbox.status().exitCode !== 0 && (await isVolumeFull(job))) killedFor ??= "disk";

  const said = sandbox.began() ? sandbox.status().exitCode : undefined;
  // Of a run that we killed bubblewrap may have lived long enough to tell of it.
  const exitCode = killedFor !== undefined && said === KILLED_EXIT_CODE ? undefined : said;
  startError ??= sandbox.startError();
  return {
    exitCode,
    signal: exitCode === undefined ? (killedFor === undefined ? sandbox.signal() : "SIGKILL") : undefined,
    reason: reasonOf(killedFor, exceeded, exitCode),
    stdout: stdout.bytes(),
    stderr: startError ? Buffer.from(startError.message) : sandbox.began() ? stderr.bytes() : sandbox.complaint(),
    truncated: stdout.truncated() || stderr.truncated(),
    wallMs: Math.round(performance.now() - startedAtMs),
    peakMemoryBytes: exceeded.peakMemoryBytes,
    cpuMs: exceeded.cpuMs,
    enforcement: enforcementOf(enforcer, job.heldByVolume),
  };
}

function diskWatchOf({ workDirectory, limits, heldByVolume = [] }: SandboxJob, exceeded: () => void): DiskWatch | undefined {
  const [bytes, inodes] = (["diskBytes", "inodes"] as const).map((name) => (heldByVolume.includes(name) ? undefined : limits[name]));
  if (bytes === undefined && inodes === undefined) return undefined;
  return watchDisk(workDirectory, { bytes: bytes ?? Infinity, inodes: inodes ?? Infinity }, exceeded);
}

/** What a program that could not finish had no room for. */
async function isVolumeFull({ workDirectory, heldByVolume = [] }: SandboxJob): Promise<boolean> {
  return heldByVolume.length > 0 && (await isFull(workDirectory));
}

/** How bubblewrap tells of a program that SIGKILL ended: 128 + 9. */
const KILLED_EXIT_CODE = 137;

/** 128 + SIGSYS: our filter ends a program that speaks another machine's calls; all other calls it refuses. */
const FILTERED_EXIT_CODE = 159;

/** Why the run ended. A limit that was hit tells more than the clock that ran out because of it. */
function reasonOf(killedFor: Reason | undefined, exceeded: Exceeded, exitCode: number | undefined): Reason {
  if (killedFor === "cancelled" || killedFor === "output" || killedFor === "disk") return killedFor;
  if (exceeded.memory) return "memory";
  if (exceeded.processes && exitCode !== 0) return "pids";
  // The clock may strike while a program that has ended is cleaned up.
  if (exitCode === FILTERED_EXIT_CODE) return "denied";
  if (exitCode !== undefined) return "ok";
  return killedFor ?? "failed_to_start";
}
