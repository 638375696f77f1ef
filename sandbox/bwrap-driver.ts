import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync } from "node:fs";
import { chown, mkdtemp, realpath, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { performance } from "node:perf_hooks";
import type { Duplex, Writable } from "node:stream";
import { type BoundedOutput, keepOutput } from "./bounded-output.ts";
import { bwrapArguments, goScript, limitArguments, runFds } from "./bwrap-arguments.ts";
import { type BwrapDriverOptions, type BwrapHost, prepareHost } from "./bwrap-host.ts";
import { readBwrapStatus } from "./bwrap-status.ts";
import { type DiskWatch, watchDisk } from "./disk-watch.ts";
import { openStdinFile } from "./nameless-file.ts";
import type { OutputPipe } from "./pipe-pool.ts";
import { processTree } from "./process-tree.ts";
import type { Exceeded, ResourceEnforcer, ResourceHold } from "./resource-enforcer.ts";
import { ownerName } from "./run-owner.ts";
import type { SandboxDriver, SandboxJob, SandboxLimits, SandboxResult } from "./sandbox-driver.ts";
import { refuseWorkDirectory } from "./work-directory.ts";

export type { BwrapDriverOptions } from "./bwrap-host.ts";

export type BwrapDriver = SandboxDriver & {
  /** Closes the descriptors that are kept ready for the next run. */
  dispose(): void;
};

type Reason = SandboxResult["reason"];
/** A uid for the trial run of the probe, the host's nobody; it owns nothing. */
const PROBE_UID = 65534;
const probeLimits: SandboxLimits = {
  wallMs: 10_000,
  memoryBytes: 128 * 1024 * 1024,
  processes: 16,
  outputBytes: 64 * 1024,
  fileBytes: 1024 * 1024,
  openFiles: 64,
  tmpBytes: 1024 * 1024,
  cpuSeconds: 5,
};

/** Runs programs in bubblewrap: all namespaces new, our seccomp filter, no network, and nothing writable but /work and /tmp. */
export function createBwrapDriver(options: BwrapDriverOptions = {}): BwrapDriver {
  let host: BwrapHost | string | undefined;
  const prepared = (): BwrapHost | string => (host ??= prepareHost(options));

  async function run(job: SandboxJob, signal: AbortSignal): Promise<SandboxResult> {
    const ready = prepared();
    if (typeof ready === "string") return notStarted(ready);
    const refusal = refuseJob(job) ?? (await refuseWorkDirectory(job.workDirectory));
    if (refusal !== undefined) return notStarted(refusal);
    if (signal.aborted) return { ...notStarted(""), reason: "cancelled" };
    return runIn(ready, job, signal);
  }

  return {
    name: "bwrap",
    run,
    enforcement() {
      const ready = prepared();
      return typeof ready === "string" ? undefined : enforcementOf(ready.enforcer);
    },
    async probe() {
      const ready = prepared();
      if (typeof ready === "string") return ready;
      const workDirectory = await mkdtemp(join(await realpath(tmpdir()), "openclaw-probe-"));
      try {
        const uid = isRoot() ? PROBE_UID : undefined;
        if (uid !== undefined) await chown(workDirectory, uid, uid);
        // Perl, because the file tools are a Perl script: one trial run shows both.
        const job = { workDirectory, uid, argv: ["/usr/bin/perl", "-e", "print while <STDIN>"], stdin: "works", limits: probeLimits };
        const { reason, stdout, stderr } = await run(job, new AbortController().signal);
        if (reason === "ok" && textOf(stdout) === "works") return undefined;
        return `bubblewrap cannot start a sandbox here: ${explainFailure(textOf(stderr).trim())}`;
      } finally {
        await rm(workDirectory, { recursive: true, force: true });
      }
    },
    dispose() {
      if (host === undefined || typeof host === "string") return;
      for (const kept of [host.seccomp, host.passwd, host.group, host.pipes]) kept.dispose();
      host = undefined;
    },
  };
}

const isRoot = (): boolean => process.getuid?.() === 0;
const textOf = (bytes: Uint8Array): string => Buffer.from(bytes).toString("utf8");

function refuseJob({ uid, argv }: SandboxJob): string | undefined {
  if (argv.length === 0 || argv.some((argument) => argument.includes("\0"))) return "The program's arguments are empty or hold a NUL.";
  if (isRoot())
    return Number.isInteger(uid) && Number(uid) > 0
      ? undefined
      : "A sandbox started by root needs the tenant's own uid: it never runs as root.";
  return uid === undefined || uid === process.getuid?.() ? undefined : "Only root can run a sandbox as another uid.";
}

function explainFailure(stderr: string): string {
  const namespaces = /uid map|user namespace|No permissions to create/i.test(stderr);
  const hint =
    "unprivileged user namespaces are switched off: sysctl -w kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0";
  return namespaces ? `${stderr} (${hint})` : stderr || "it gave no reason";
}

const notStarted = (why: string): SandboxResult => ({
  exitCode: undefined,
  signal: undefined,
  reason: "failed_to_start",
  stdout: new Uint8Array(),
  stderr: Buffer.from(why),
  truncated: false,
  wallMs: 0,
  peakMemoryBytes: undefined,
  cpuMs: undefined,
  enforcement: { wall: "none", memory: "none", processes: "none", output: "none", cpu: "none", disk: "none", inodes: "none" },
});

const enforcementOf = ({ memory, processes, cpu }: ResourceEnforcer): SandboxResult["enforcement"] => ({
  wall: "group",
  memory,
  processes,
  output: "group",
  cpu,
  disk: "polled",
  inodes: "polled",
});

/** The command line from outside to inside: close what we inherited, become bubblewrap, take the rlimits, run the program. */
function commandLine({ bwrap, enforcer, hardLimits, inherited }: BwrapHost, { limits, argv }: SandboxJob): string[] {
  const alone = enforcer.kind === "rlimit";
  // Only bash can close a descriptor of two digits.
  const close =
    inherited.length === 0
      ? []
      : ["/bin/bash", "--norc", "-p", "-c", `exec ${inherited.map((fd) => `${fd}>&-`).join(" ")}; exec "$@"`, "bash"];
  const enter = ["/bin/sh", "-c", goScript, ownerName, ...limitArguments(limits, hardLimits, { alone })];
  return [...close, bwrap, "--args", String(runFds.args), "--", ...enter, ...argv];
}

async function runIn(host: BwrapHost, job: SandboxJob, signal: AbortSignal): Promise<SandboxResult> {
  const startedAt = performance.now();
  const [stdout, stderr, statusPipe] = [await host.pipes.take(), await host.pipes.take(), await host.pipes.take({ lasting: true })];
  const fds = [stdout.programFd, stderr.programFd, statusPipe.programFd];
  let hold: ResourceHold | undefined;
  let child: ChildProcess;
  try {
    hold = host.enforcer.hold(job.limits);
    const keep = (fd: number): number => (fds.push(fd), fd);
    const stdinFd = job.stdin.length === 0 ? "ignore" : keep(openStdinFile(job.stdin));
    const [seccompFd, passwdFd, groupFd] = [keep(host.seccomp.open(job.seccomp)), keep(host.passwd.open()), keep(host.group.open())];
    const [command = "", ...args] = commandLine(host, job);
    child = spawn(command, args, {
      cwd: "/",
      env: {},
      // A process group of its own: until bubblewrap has tied its processes to each other, killing the group reaches all of them.
      detached: true,
      // In the order of runFds.
      stdio: [stdinFd, stdout.programFd, stderr.programFd, "pipe", "pipe", statusPipe.programFd, seccompFd, passwdFd, groupFd],
      // Before bubblewrap, so that what it makes is the tenant's; Node clears the supplementary groups as well.
      ...(isRoot() && job.uid !== undefined ? { uid: job.uid, gid: job.uid } : {}),
    });
  } catch (error) {
    for (const { reader } of [stdout, stderr, statusPipe]) reader.destroy();
    await hold?.release();
    return notStarted(`The sandbox could not be made: ${(error as Error).message}`);
  } finally {
    for (const fd of fds) closeSync(fd);
  }
  return watchRun({ host, job, signal, child, hold, startedAt, stdout, stderr, statusPipe });
}

type Running = {
  readonly host: BwrapHost;
  readonly job: SandboxJob;
  readonly signal: AbortSignal;
  readonly child: ChildProcess;
  readonly hold: ResourceHold;
  readonly startedAt: number;
  readonly stdout: OutputPipe;
  readonly stderr: OutputPipe;
  readonly statusPipe: OutputPipe;
};

async function watchRun({ host, job, signal, child, hold, startedAt, ...pipes }: Running): Promise<SandboxResult> {
  const { limits } = job;
  let killedFor: Reason | undefined;
  const kill = (reason: Reason): void => {
    killedFor ??= reason;
    killEverything(child, hold);
  };

  const [stdout, stderr] = (["stdout", "stderr"] as const).map((name) =>
    keepOutput(pipes[name].reader, {
      limitBytes: limits.outputBytes,
      onFlood: () => kill("output"),
      onKept: (chunk) => job.onOutput?.(name, chunk),
    }),
  ) as [BoundedOutput, BoundedOutput];
  const disk = diskWatchOf(job, () => kill("disk"));
  let startError: Error | undefined;
  child.on("error", (error) => (startError = error));
  const ended = Promise.race([once(child, "exit"), new Promise((resolve) => child.once("error", resolve))]);
  const bwrap = readBwrapStatus(pipes.statusPipe.reader, (pid) => hold.watch(pid, (what) => kill(what === "processes" ? "pids" : what)));
  const letGo = async (): Promise<void> => {
    // It was said before the sandbox was ready, but on another descriptor, which a busy process may read later.
    await bwrap.begun;
    const processes = processTree(bwrap.status().initPid ?? 0);
    if (processes.length < 2) throw new Error("The sandbox's processes cannot be found.");
    await Promise.all([hold.takeIn(processes), disk?.ready]);
  };
  const outerHeld = child.pid === undefined ? Promise.resolve() : hold.takeIn([child.pid]);
  const failStart = (error: Error): void => {
    startError = error;
    kill("failed_to_start");
  };
  outerHeld.catch(failStart);
  answerReady(child.stdio[runFds.go] as Duplex | undefined, () => outerHeld.then(letGo), failStart);
  const argsStream = child.stdio[runFds.args] as Writable | undefined;
  argsStream?.on("error", () => undefined); // A start that failed reads nothing.
  argsStream?.end(`${[...statusArguments, ...bwrapArguments(job.workDirectory, limits)].join("\0")}\0`);
  const wall = setTimeout(() => kill("wall"), limits.wallMs);
  const cancel = (): void => kill("cancelled");
  signal.addEventListener("abort", cancel, { once: true });
  if (signal.aborted) cancel();

  await ended.catch(() => undefined);
  clearTimeout(wall);
  signal.removeEventListener("abort", cancel);
  // bubblewrap ends with its program; what the program left running dies here, and only then is the call over.
  killEverything(child, hold);
  const exceeded = await hold.release();
  // A program that fills the directory and ends between two looks is told of it as well.
  if (await disk?.end()) killedFor ??= "disk";
  await Promise.all([stdout.ended, stderr.ended, bwrap.ended]);

  const said = bwrap.status().exitCode;
  // Of a run that we killed bubblewrap may have lived long enough to tell of it.
  const exitCode = killedFor !== undefined && said === KILLED_EXIT_CODE ? undefined : said;
  const reason = reasonOf(killedFor, exceeded, exitCode);
  return {
    exitCode,
    signal: exitCode === undefined ? (killedFor === undefined ? (child.signalCode ?? undefined) : "SIGKILL") : undefined,
    reason,
    stdout: stdout.bytes(),
    stderr: startError ? Buffer.from(startError.message) : stderr.bytes(),
    truncated: stdout.truncated() || stderr.truncated(),
    wallMs: Math.round(performance.now() - startedAt),
    peakMemoryBytes: exceeded.peakMemoryBytes,
    cpuMs: exceeded.cpuMs,
    enforcement: enforcementOf(host.enforcer),
  };
}

function diskWatchOf({ workDirectory, limits: { diskBytes, inodes } }: SandboxJob, exceeded: () => void): DiskWatch | undefined {
  if (diskBytes === undefined && inodes === undefined) return undefined;
  return watchDisk(workDirectory, { bytes: diskBytes ?? Infinity, inodes: inodes ?? Infinity }, exceeded);
}

/** How bubblewrap tells of a program that SIGKILL ended: 128 + 9. */
const KILLED_EXIT_CODE = 137;
const statusArguments = ["--json-status-fd", String(runFds.status)];

function killEverything(child: ChildProcess, hold: ResourceHold): void {
  // Once the leader is reaped its number may be another's.
  if (child.pid !== undefined && child.exitCode === null && child.signalCode === null) {
    try {
      process.kill(-child.pid, "SIGKILL");
    } catch {
      // Gone meanwhile.
    }
  }
  hold.kill();
}

/** Lets the program go once the sandbox is complete and `prepare` is done (see `goScript`). */
function answerReady(go: Duplex | undefined, prepare: () => Promise<void>, failed: (error: Error) => void): void {
  // A run that is killed during its start leaves nobody to tell.
  go?.on("error", () => undefined);
  go?.once("data", () => void prepare().then(() => go.end("go\n"), failed));
}

/** Why the run ended. A limit that was hit tells more than the clock that ran out because of it. */
function reasonOf(killedFor: Reason | undefined, exceeded: Exceeded, exitCode: number | undefined): Reason {
  if (killedFor === "cancelled" || killedFor === "output" || killedFor === "disk") return killedFor;
  if (exceeded.memory) return "memory";
  if (exceeded.processes && exitCode !== 0) return "pids";
  // The clock may strike while a program that has ended is cleaned up.
  if (exitCode !== undefined) return "ok";
  return killedFor ?? "failed_to_start";
}
