import { chown, mkdtemp, readFile, realpath, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import Docker from "dockerode";
import { startContainer } from "./docker-container.ts";
import { refuseImageName } from "./docker-image.ts";
import { removeLeftovers } from "./docker-leftovers.ts";
import { runProgram } from "./bwrap-run.ts";
import type { SandboxContainer, SandboxLimits } from "./sandbox-driver.ts";
import { type Machine, machineOf } from "./seccomp-filter.ts";

/** A daemon, with an image and a runtime of its that a container was tried with. */
export type DockerHost = {
  readonly docker: Docker;
  readonly machine: Machine;
  readonly imageId: string;
  readonly runtimeClass: string;
  readonly isGvisor: boolean;
};

/** What the kernel and the daemon hold of a container's limits. */
export const dockerEnforcer = { memory: "group", processes: "group", cpu: "group" } as const;

/** The daemon of DOCKER_HOST or its usual place, or one sentence on what stands in the way. */
export async function connectDocker(socketPath?: string): Promise<Docker | string> {
  const docker = new Docker(socketPath === undefined ? {} : { socketPath });
  if (typeof (docker.modem as { socketPath?: unknown }).socketPath === "undefined")
    return "The Docker daemon of DOCKER_HOST is not on this machine: the tenants' directories are.";
  try {
    await removeLeftovers(docker);
    return docker;
  } catch (error) {
    return `The Docker daemon does not answer: ${messageOf(error)}`;
  }
}

type DaemonInfo = {
  readonly OSType: string;
  readonly Runtimes: Readonly<Record<string, unknown>>;
  readonly SecurityOptions: readonly string[] | null;
  readonly MemoryLimit: boolean;
  readonly PidsLimit: boolean;
  readonly CpuCfsQuota: boolean;
};

/** Looks whether the daemon has what a container needs and tries it once. @returns what stands in the way, as one sentence */
export async function prepareContainer(docker: Docker, { image, runtimeClass }: SandboxContainer): Promise<DockerHost | string> {
  const machine = machineOf(process.arch);
  const named = refuseImageName(image);
  if (machine === undefined || named !== undefined) return named ?? `There is no syscall filter for ${process.arch}.`;
  try {
    const info = (await docker.info()) as DaemonInfo;
    const refusal = refuseDaemon(info, runtimeClass);
    if (refusal !== undefined) return refusal;
    const found = await docker
      .getImage(image)
      .inspect()
      .catch((error: { statusCode?: number }) => {
        if (error.statusCode === 404) return undefined;
        throw error;
      });
    if (found === undefined)
      return `The image ${image} is not on this machine, and none is fetched by itself: docker pull, load or import it.`;
    if (Object.keys(found.Config?.Volumes ?? {}).length > 0) return `The image ${image} has a VOLUME, which would be writable.`;
    // Told by its program or its kind of containerd's, whatever it is called.
    const isGvisor = JSON.stringify([runtimeClass, info.Runtimes[runtimeClass]]).includes("runsc");
    const host = { docker, machine, imageId: found.Id, runtimeClass, isGvisor };
    const fault = await tryContainer(host);
    return fault === undefined ? host : `A container of ${image} with ${runtimeClass} does not do as it must: ${fault}`;
  } catch (error) {
    return `No container can be started: ${messageOf(error)}`;
  }
}

function refuseDaemon(info: DaemonInfo, runtimeClass: string): string | undefined {
  const { OSType, Runtimes, SecurityOptions, MemoryLimit, PidsLimit, CpuCfsQuota } = info;
  const has = (name: string): boolean => SecurityOptions?.some((option) => option.split(",").includes(`name=${name}`)) ?? false;
  if (OSType !== "linux") return "The Docker daemon runs no Linux containers.";
  if (!Object.hasOwn(Runtimes, runtimeClass))
    return `The Docker daemon knows no runtime ${runtimeClass}, only ${Object.keys(Runtimes).join(", ")}.`;
  if (!has("seccomp")) return "The Docker daemon filters no syscalls.";
  if (has("userns") || has("rootless"))
    return "The Docker daemon gives containers other uids than the host's, so that no tenant would own its files.";
  if (!MemoryLimit || !PidsLimit || !CpuCfsQuota) return "The Docker daemon cannot limit memory, processes and CPU here.";
  return undefined;
}

/** A uid for the trial, the host's nobody; it owns nothing. */
const TRIAL_UID = 65534;
const MiB = 1024 * 1024;
const trialLimits: SandboxLimits = {
  wallMs: 60_000,
  memoryBytes: 256 * MiB,
  processes: 16,
  outputBytes: 64 * 1024,
  fileBytes: MiB,
  openFiles: 64,
  tmpBytes: MiB,
  cpuSeconds: 30,
};
/** Whatever a runtime makes of what it is told is seen from inside alone. */
const trialScript = `open my $f, ">", "/work/trial" or exit 3; print $f <STDIN>; close $f;
open $f, "<", "/proc/self/status"; print grep { /^(CapEff|CapBnd|NoNewPrivs|Seccomp):/ } <$f>`;

async function tryContainer(host: DockerHost): Promise<string | undefined> {
  const workDirectory = await mkdtemp(join(await realpath(tmpdir()), "openclaw-probe-"));
  try {
    const uid = process.getuid?.() === 0 ? TRIAL_UID : undefined;
    if (uid !== undefined) await chown(workDirectory, uid, uid);
    const spec = { workDirectory, uid, limits: trialLimits };
    const job = { ...spec, argv: ["/usr/bin/perl", "-e", trialScript], stdin: workDirectory };
    const call = { enforcer: dockerEnforcer, startedAtMs: performance.now(), signal: new AbortController().signal };
    const { reason, exitCode, stdout, stderr } = await runProgram(await startContainer(host, spec), job, call);
    const said = Buffer.from(stdout).toString("utf8");
    const isOurs = (await readFile(join(workDirectory, "trial"), "utf8").catch(() => "")) === workDirectory;
    if (reason !== "ok" || exitCode !== 0)
      return `its program ended with ${reason} ${exitCode ?? ""} ${Buffer.from(stderr).toString("utf8")}`;
    if (!isOurs) return "its /work is not the directory of this machine that was named";
    if (!/^Seccomp:\s*2$/m.test(said)) return "it applies no syscall filter (runsc does with --oci-seccomp in the daemon's runtimeArgs)";
    if (!/^CapEff:\s*0+$/m.test(said)) return "its program has capabilities";
    // gVisor does not show it; setuid has no effect in it for a user without capabilities.
    if (/^NoNewPrivs:\s*0$/m.test(said)) return "its program may gain privileges";
    return undefined;
  } finally {
    await rm(workDirectory, { recursive: true, force: true });
  }
}

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));
