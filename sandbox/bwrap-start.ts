import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync } from "node:fs";
import type { Socket } from "node:net";
import { setImmediate as nextTurn } from "node:timers/promises";
import type { Readable } from "node:stream";
import { bwrapArguments, goScript, goWords, jobFile, limitArguments, runFds, wayOutArguments } from "./bwrap-arguments.ts";
import type { BwrapHost } from "./bwrap-host.ts";
import { type BwrapStatus, readBwrapStatus } from "./bwrap-status.ts";
import type { EgressDoor } from "./egress-door.ts";
import { keepOutput } from "./bounded-output.ts";
import { growingPause } from "./growing-pause.ts";
import type { Leaving } from "./leaving.ts";
import { createLaterFile, type LaterFile } from "./nameless-file.ts";
import type { OutputPipe } from "./pipe-pool.ts";
import { processTree } from "./process-tree.ts";
import type { Exceeded, ResourceHold, Usage } from "./resource-enforcer.ts";
import { killNamed, newRunName } from "./run-owner.ts";
import type { SandboxJob, SandboxSpec } from "./sandbox-driver.ts";
import { directoryIdentity } from "./work-directory.ts";

/** A sandbox that is being made, or is complete and waits for the one program that it will run. */
export type StartedSandbox = {
  readonly stdout: Readable;
  readonly stderr: Readable;
  /** True once the sandbox is complete, held within its limits and waiting; false when it ended before. @throws when it cannot be held */
  readonly ready: Promise<boolean>;
  /** The program has ended and left nothing running, or the sandbox has ended, or could not be started at all. */
  readonly ended: Promise<unknown>;
  /** True while the directory that the sandbox has as /work still is the one of that name. */
  isCurrent(): boolean;
  /** The system's refusal to start it. */
  startError(): Error | undefined;
  /** What it said when it could not be started. */
  complaint(): Uint8Array;
  status(): Pick<BwrapStatus, "exitCode">;
  /** True once the sandbox has gone over to the program. */
  began(): boolean;
  /** Lets the program go, once; `ready` comes first. */
  handOver(job: Pick<SandboxJob, "argv" | "stdin" | "onEgress">): void;
  /** Watches the program from now on, where the kernel does not. */
  watch: ResourceHold["watch"];
  /** The signal that ended bubblewrap. */
  signal(): string | undefined;
  kill(): void;
  /** Kills what is left of the program, waits until all of it is gone and everything was read; what was made for it is given back then or soon after. */
  end(): Promise<Exceeded & Usage>;
};

/** The command line from outside to inside: close what we inherited, become bubblewrap, take the rlimits, wait for the program. */
function commandLine({ bwrap, enforcer, hardLimits, inherited }: BwrapHost, { limits, egress }: SandboxSpec, name: string): string[] {
  const alone = enforcer.kind === "rlimit";
  // Only bash can close a descriptor of two digits.
  const close =
    inherited.length === 0
      ? []
      : ["/bin/bash", "--norc", "-p", "-c", `exec ${inherited.map((fd) => `${fd}>&-`).join(" ")}; exec "$@"`, "bash"];
  const limited = limitArguments(limits, hardLimits, { alone });
  const enter = ["/bin/sh", "-c", goScript, name, ...limited, ...wayOutArguments(egress, limits)];
  return [...close, bwrap, "--args", String(runFds.args), "--", ...enter];
}

const statusArguments = ["--json-status-fd", String(runFds.status)];

/** Starts bubblewrap for a program that is told to it later. @throws when the host cannot make what it needs */
export async function startSandbox(host: BwrapHost, spec: SandboxSpec): Promise<StartedSandbox> {
  const directory = directoryIdentity(spec.workDirectory);
  const name = newRunName();
  /** What is to be undone when the start fails. */
  const undo: (() => unknown)[] = [];
  /** The program's ends, ours until it is started. */
  const programFds: number[] = [];
  const passOn = (fd: number): number => (programFds.push(fd), fd);
  try {
    // First, for what it begins to wait for.
    const hold = host.enforcer.hold(spec.limits);
    undo.push(() => hold.release());
    const openPipe = async (options?: { lasting: true }): Promise<OutputPipe> => {
      const pipe = await host.pipes.take(options);
      undo.push(() => pipe.reader.destroy());
      passOn(pipe.programFd);
      return pipe;
    };
    const [stdout, stderr, complaints] = [await openPipe(), await openPipe(), await openPipe()];
    const status = await openPipe({ lasting: true });
    const openFile = (): LaterFile => {
      const file = createLaterFile();
      undo.push(file.dispose);
      passOn(file.programFd);
      return file;
    };
    const [stdin, job] = [openFile(), openFile()];
    const door = spec.egress === undefined ? undefined : await host.doors.open(spec.egress, spec.uid);
    if (door !== undefined) undo.push(() => door.close());
    const constants = [host.seccomp.open(spec.seccomp), host.passwd.open(), host.group.open()].map(passOn);
    const [command = "", ...args] = commandLine(host, spec, name);
    const child = spawn(command, args, {
      cwd: "/",
      env: {},
      // A process group of its own: until bubblewrap has tied its processes to each other, killing the group reaches all of them.
      detached: true,
      // In the order of runFds.
      stdio: [
        ...([stdin.programFd, complaints.programFd, complaints.programFd, "pipe", "pipe", status.programFd] as const),
        ...([stdout.programFd, stderr.programFd, job.programFd] as const),
        ...constants,
      ],
      // Before bubblewrap, so that what it makes is the tenant's; Node clears the supplementary groups as well.
      ...(process.getuid?.() === 0 && spec.uid !== undefined ? { uid: spec.uid, gid: spec.uid } : {}),
    });
    return tend({
      spec,
      name,
      directory,
      child,
      hold,
      stdout: stdout.reader,
      stderr: stderr.reader,
      complaints: complaints.reader,
      leaving: host.leaving,
      statusReader: status.reader,
      stdin,
      job,
      door,
    });
  } catch (error) {
    for (const step of undo) await step();
    throw error;
  } finally {
    for (const fd of programFds) closeSync(fd);
  }
}

type Parts = {
  readonly spec: SandboxSpec;
  readonly name: string;
  readonly directory: string | undefined;
  readonly child: ChildProcess;
  readonly hold: ResourceHold;
  readonly stdout: Socket;
  readonly stderr: Socket;
  /** bubblewrap's own. */
  readonly complaints: Socket;
  readonly leaving: Leaving;
  readonly statusReader: Socket;
  readonly stdin: LaterFile;
  readonly job: LaterFile;
  readonly door: EgressDoor | undefined;
};

function tend({
  spec,
  name,
  directory,
  child,
  hold,
  stdout,
  stderr,
  complaints,
  leaving,
  statusReader,
  stdin,
  job,
  door,
}: Parts): StartedSandbox {
  let startError: Error | undefined;
  child.on("error", (error) => (startError = error));
  const ended = Promise.race([once(child, "exit"), new Promise((resolve) => child.once("error", resolve))]).catch(() => undefined);
  const bwrap = readBwrapStatus(statusReader);
  void bwrap.initPid.then(hold.born);
  const outerHeld = child.pid === undefined ? Promise.resolve() : hold.takeIn([child.pid]);
  const go = child.stdio[runFds.go] as Socket;
  const inner = readGoWords(go);
  const argsStream = child.stdio[runFds.args] as Socket;
  argsStream.on("error", () => undefined); // A start that failed reads nothing.
  const wayOut = door === undefined || spec.egress === undefined ? undefined : { grant: spec.egress, socketPath: door.socketPath };
  argsStream.end(`${[...statusArguments, ...bwrapArguments(spec.workDirectory, spec.limits, wayOut)].join("\0")}\0`);

  let isHeld = false;
  const holdAll = async (): Promise<boolean> => {
    await outerHeld;
    const initPid = await Promise.race([inner.ready.then(() => bwrap.initPid), ended.then(() => undefined)]);
    if (initPid === undefined) return false;
    door?.hide();
    const processes = processTree(initPid);
    if (processes.length < 2) throw new Error("The sandbox's processes cannot be found.");
    await hold.takeIn(processes);
    return (isHeld = true);
  };
  const complained = keepOutput(complaints, { limitBytes: MAX_COMPLAINT_BYTES, onFlood: () => undefined });
  /** Nothing is alive but bubblewrap's own two processes, which run no code of the program's. */
  let isEmpty = false;
  const programEnded = async (): Promise<void> => {
    await Promise.all([bwrap.exited, closeOf(stdout), closeOf(stderr)]);
    isEmpty = isHeld && hold.holdsOnly([child.pid ?? 0, bwrap.status().initPid ?? 0]);
    if (!isEmpty) await ended;
  };
  const ready = holdAll();
  ready.catch(() => undefined); // Whoever waits for it is told.

  const kill = (): void => {
    // Once the leader is reaped its number may be another's.
    if (child.pid !== undefined && child.exitCode === null && child.signalCode === null) {
      try {
        process.kill(-child.pid, "SIGKILL");
      } catch {
        // Gone meanwhile.
      }
    }
    hold.kill();
  };
  return {
    stdout,
    stderr,
    ready,
    ended: Promise.race([ended, programEnded()]),
    isCurrent: () => directory !== undefined && directoryIdentity(spec.workDirectory) === directory,
    startError: () => startError,
    complaint: () => complained.bytes(),
    status: bwrap.status,
    began: inner.began,
    handOver({ argv, stdin: bytes, onEgress }) {
      door?.attend(onEgress);
      if (bytes.length > 0) stdin.write(bytes);
      job.write(jobFile(argv, { hasStdin: bytes.length > 0 }));
      go.end("go\n");
    },
    watch: hold.watch,
    signal: () => child.signalCode ?? undefined,
    kill,
    async end() {
      if (!isEmpty) return await clearAway();
      // Not before the caller has its result; the next driver sweeps up what does not end.
      leaving.add(
        nextTurn()
          .then(clearAway)
          .catch(() => undefined),
      );
      return hold.read();
    },
  };

  async function clearAway(): Promise<Exceeded & Usage> {
    // bubblewrap ends with its program; what the program left running dies here, and only then is the call over.
    kill();
    // Killed during its start, bubblewrap may leave its other half, which nothing ties to it or to the hold yet.
    if (!isHeld) for (const pause = growingPause(); killNamed(name) > 0; await pause());
    await door?.close();
    const used = await hold.release();
    // What nobody read would keep the streams open.
    for (const stream of [stdout, stderr, go]) stream.resume();
    await Promise.all([...[stdout, stderr, complaints, go].map(closeOf), bwrap.ended]);
    for (const file of [stdin, job]) file.dispose();
    return used;
  }
}

/** What is kept of what bubblewrap says when it cannot start. */
const MAX_COMPLAINT_BYTES = 4_096;

const closeOf = async (stream: Socket): Promise<void> => {
  if (!stream.closed) await once(stream, "close");
};

/** Hears what `goScript` says. */
function readGoWords(go: Socket): { readonly ready: Promise<true>; began(): boolean } {
  // A sandbox that is killed during its start leaves nobody to tell.
  go.on("error", () => undefined);
  let heard = "";
  const ready = new Promise<true>((resolve) => {
    go.on("data", (chunk: Buffer) => {
      heard += chunk.toString("latin1");
      if (heard.startsWith(goWords.ready)) resolve(true);
    });
  });
  return { ready, began: () => heard === goWords.ready + goWords.began };
}
