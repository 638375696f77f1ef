import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type Docker from "dockerode";
import type { StartedSandbox } from "./bwrap-start.ts";
import { readGroup } from "./cgroup-enforcer.ts";
import { groupsOfProcess } from "./cgroup-place.ts";
import type { DockerHost } from "./docker-host.ts";
import { ownerLabels } from "./docker-leftovers.ts";
import { DockerOutput } from "./docker-output.ts";
import { dockerSeccomp } from "./docker-seccomp.ts";
import type { Exceeded, Usage } from "./resource-enforcer.ts";
import type { SandboxJob, SandboxSpec } from "./sandbox-driver.ts";
import { syscallTables } from "./seccomp-filter.ts";
import { defaultSeccompProfile } from "./seccomp-profile.ts";
import { Leaving } from "./leaving.ts";
import { directoryIdentity } from "./work-directory.ts";

const runner = readFileSync(join(import.meta.dirname, "docker-runner.pl"), "utf8");
const SHM_BYTES = 16 * 1024 * 1024;
/** The runner and the one that watches for it. */
const OWN_PROCESSES = 2;
/** gVisor's kernel is some dozens of threads of the host, which count. */
const GVISOR_PROCESSES = 96;
/** A daemon that hangs fails the call; a loaded machine may take long. */
const withinReason = (): AbortSignal => AbortSignal.timeout(120_000);
/** The exit status that tells of a program ended by signal 9. */
const KILLED_EXIT_CODE = 137;
const STATUS_DIGITS = 3;

/** What the program sees of the host: nothing but these, which Docker shows and a program needs not. */
const maskedPaths = [
  "/proc/acpi",
  "/proc/asound",
  "/proc/interrupts",
  "/proc/kcore",
  "/proc/keys",
  "/proc/latency_stats",
  "/proc/sched_debug",
].concat(["/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/proc/kallsyms", "/sys"]);
const readOnlyPaths = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

function optionsOf(
  { machine, imageId, runtimeClass, isGvisor }: DockerHost,
  spec: SandboxSpec,
): Docker.ContainerCreateOptions & { HostConfig: object } {
  const { workDirectory, limits, seccomp = defaultSeccompProfile } = spec;
  const uid = spec.uid ?? process.getuid?.();
  const gid = spec.uid ?? process.getgid?.();
  const ulimit = (Name: string, value: number) => ({ Name, Soft: Math.ceil(value), Hard: Math.ceil(value) });
  return {
    Image: imageId,
    Entrypoint: ["/usr/bin/perl", "-e", runner, String(syscallTables[machine]["prctl"])],
    Cmd: [],
    User: `${uid}:${gid}`,
    Hostname: "sandbox",
    WorkingDir: "/work",
    Env: ["HOME=/work", "USER=agent", "LOGNAME=agent", "SHELL=/bin/bash", "LANG=C.UTF-8", "TMPDIR=/tmp", "TERM=dumb"],
    Labels: ownerLabels(limits),
    Healthcheck: { Test: ["NONE"] },
    ...{ OpenStdin: true, StdinOnce: true, AttachStdin: true, AttachStdout: true, AttachStderr: true, Tty: false },
    HostConfig: {
      Runtime: runtimeClass,
      NetworkMode: "none",
      IpcMode: "private",
      CgroupnsMode: "private",
      ReadonlyRootfs: true,
      CapDrop: ["ALL"],
      Privileged: false,
      SecurityOpt: ["no-new-privileges", `seccomp=${dockerSeccomp(machine, seccomp)}`],
      MaskedPaths: maskedPaths,
      ReadonlyPaths: readOnlyPaths,
      // Docker lets everybody take the system's ports.
      Sysctls: { "net.ipv4.ip_unprivileged_port_start": "1024" },
      Memory: limits.memoryBytes,
      MemorySwap: limits.memoryBytes,
      PidsLimit: limits.processes + OWN_PROCESSES + (isGvisor ? GVISOR_PROCESSES : 0),
      ...(limits.cpus === undefined ? {} : { NanoCpus: Math.round(limits.cpus * 1e9) }),
      Ulimits: [
        ulimit("core", 0),
        ulimit("memlock", 64 * 1024),
        ulimit("nofile", limits.openFiles),
        ulimit("fsize", limits.fileBytes),
        ulimit("cpu", limits.cpuSeconds),
      ],
      Tmpfs: { "/tmp": `rw,exec,nosuid,nodev,mode=1777,size=${limits.tmpBytes}` },
      ShmSize: Math.min(SHM_BYTES, limits.tmpBytes),
      Mounts: [{ Type: "bind", Source: workDirectory, Target: "/work", BindOptions: { Propagation: "rprivate" } }],
      LogConfig: { Type: "none", Config: {} },
      RestartPolicy: { Name: "" },
    },
  } as Docker.ContainerCreateOptions & { HostConfig: object };
}

/** Starts a container for a program that is told to it later. @throws when the daemon cannot */
export async function startContainer(host: DockerHost, spec: SandboxSpec): Promise<StartedSandbox> {
  const directory = directoryIdentity(spec.workDirectory);
  const container = await host.docker.createContainer({ ...optionsOf(host, spec), abortSignal: withinReason() });
  try {
    const [stdout, stderr] = [new DockerOutput({ behindBytes: STATUS_DIGITS }), new DockerOutput({ behindBytes: 0 })];
    const attached = await container.attach({ stream: true, hijack: true, stdin: true, stdout: true, stderr: true });
    const gone = new Promise<void>((resolve) => {
      attached.once("close", resolve);
      attached.once("end", resolve);
      attached.on("error", () => resolve());
    });
    host.docker.modem.demuxStream(attached, stdout as never, stderr as never);
    await container.start({ abortSignal: withinReason() });
    const { State } = await container.inspect();
    return tend({
      spec,
      directory,
      container,
      stdout,
      stderr,
      attached,
      gone,
      groups: groupsOf(State.Pid, container.id),
      isGvisor: host.isGvisor,
    });
  } catch (error) {
    await removeContainer(container);
    throw error;
  }
}

/** Where the daemon runs in other namespaces than ours, its numbers are not those of its groups here. */
function groupsOf(pid: number, containerId: string) {
  const groups = groupsOfProcess(pid);
  const place = groups?.version === 1 ? groups.memory : groups?.parent;
  return place?.includes(containerId) ? groups : undefined;
}

/** A container that is gone already is no fault; one that cannot be removed now is a leftover. */
async function removeContainer(container: Docker.Container): Promise<void> {
  await container.remove({ force: true, v: true, abortSignal: withinReason() }).catch(() => undefined);
}

type Parts = {
  readonly spec: SandboxSpec;
  readonly directory: string | undefined;
  readonly container: Docker.Container;
  readonly stdout: DockerOutput;
  readonly stderr: DockerOutput;
  readonly attached: NodeJS.ReadWriteStream;
  readonly gone: Promise<void>;
  readonly groups: ReturnType<typeof groupsOf>;
  readonly isGvisor: boolean;
};

/** How a container ended that its runner did not see to its end. */
type End = { readonly exitCode: number | undefined; readonly outOfMemory: boolean; readonly outOfProcesses: boolean };

/** Go's status of a program that gave up: gVisor's kernel does when the host refuses it a thread. */
const GVISOR_GAVE_UP = 2;

function tend({ spec, directory, container, stdout, stderr, attached, gone, groups, isGvisor }: Parts): StartedSandbox {
  let exitCode: number | undefined;
  let signal: string | undefined;
  let isHandedOver = false;
  let used: (Exceeded & Usage) | undefined;
  let killing: Promise<unknown> | undefined;
  const read = (): Exceeded & Usage =>
    groups === undefined ? { memory: false, processes: false, peakMemoryBytes: undefined, cpuMs: undefined } : readGroup(groups);
  let isTold = false;
  const told = Promise.all([stdout.closed, stderr.closed]).then(([status]) => {
    exitCode = Number(status);
    isTold = true;
  });
  void gone.then(() => {
    stdout.end();
    stderr.end();
  });
  const ended = Promise.race([told, gone]);
  const ready = Promise.race([Promise.all([stdout.ready, stderr.ready]).then(() => true), ended.then(() => false)]);
  const kill = (): void => {
    if (isTold || killing !== undefined) return;
    // The group goes with the last of its processes.
    used = read();
    killing = container.kill({ signal: "SIGKILL", abortSignal: withinReason() }).catch(() => undefined);
  };
  const endOf = async (): Promise<End> => {
    kill();
    await killing;
    await container.wait({ abortSignal: withinReason() });
    const { State } = await container.inspect();
    const outOfProcesses = isGvisor && State.ExitCode === GVISOR_GAVE_UP;
    const isUntold = outOfProcesses || State.ExitCode === KILLED_EXIT_CODE;
    return { exitCode: isUntold ? undefined : State.ExitCode, outOfMemory: State.OOMKilled, outOfProcesses };
  };
  return {
    stdout: stdout.stream,
    stderr: stderr.stream,
    ready,
    ended,
    isCurrent: () => directory !== undefined && directoryIdentity(spec.workDirectory) === directory,
    startError: () => undefined,
    complaint: () => new Uint8Array(),
    status: () => ({ exitCode }),
    began: () => isHandedOver,
    handOver(job) {
      isHandedOver = true;
      const word = randomBytes(16).toString("hex");
      stdout.expect(word);
      stderr.expect(word);
      attached.write(jobFrame(job, { word, wallMs: spec.limits.wallMs }));
      if (job.stdin.length > 0) attached.end(job.stdin);
    },
    watch: () => undefined,
    signal: () => signal,
    kill,
    async end() {
      if (!isTold) {
        const end = await endOf();
        // A kill between the program's end and our hearing of it takes nothing back.
        if (!isTold) [exitCode, signal] = [end.exitCode, end.exitCode === undefined ? "SIGKILL" : undefined];
        const before = used ?? read();
        used = { ...before, memory: before.memory || end.outOfMemory, processes: before.processes || end.outOfProcesses };
      } else used = read();
      // Nothing of the program is alive, and the directory is free; the daemon takes its time to clear away.
      leaving.add(removeContainer(container).finally(() => attached.removeAllListeners("data")));
      for (const output of [stdout, stderr]) {
        output.end();
        output.stream.resume();
      }
      return used;
    },
  };
}

/** What the runner reads: the length, then its word, the seconds that it may live, whether input follows, the program. */
function jobFrame(
  { argv, stdin }: Pick<SandboxJob, "argv" | "stdin">,
  { word, wallMs }: { readonly word: string; readonly wallMs: number },
): Buffer {
  const GRACE_SECONDS = 10;
  const seconds = Math.ceil(wallMs / 1_000) + GRACE_SECONDS;
  const body = Buffer.from([word, String(seconds), stdin.length > 0 ? "1" : "", ...argv].join("\0"));
  const length = Buffer.alloc(4);
  length.writeUInt32BE(body.length);
  return Buffer.concat([length, body]);
}

/** Containers that are being removed after their run. */
const leaving = new Leaving();
/** Until the daemon has cleared away what ended. */
export const containersCleared = async (): Promise<void> => await leaving.empty();
