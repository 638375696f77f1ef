import { performance } from "node:perf_hooks";
import type Docker from "dockerode";
import { runProgram } from "./bwrap-run.ts";
import type { StartedSandbox } from "./bwrap-start.ts";
import { containersCleared, startContainer } from "./docker-container.ts";
import { connectDocker, dockerEnforcer, type DockerHost, prepareContainer } from "./docker-host.ts";
import type { SandboxContainer, SandboxDriver, SandboxJob, SandboxResult, SandboxSpec } from "./sandbox-driver.ts";
import { refuseOwner, refuseProgram, slotKeyOf, specOf } from "./sandbox-job.ts";
import { denied, enforcementOf, notStarted } from "./sandbox-result.ts";
import { WarmSlots, type WarmLimits } from "./warm-slots.ts";
import { refuseWorkDirectory } from "./work-directory.ts";

export type DockerDriverOptions = {
  /** Default: DOCKER_HOST, else the daemon's usual place. */
  readonly socketPath?: string;
  /** Containers that are started ahead of their runs; default: none. */
  readonly warm?: WarmLimits;
};

/**
 * Runs programs in containers of a Docker daemon on this machine: no network, nothing writable but /work and /tmp, our seccomp filter, no
 * capabilities, and each container for one run.
 */
export function createDockerDriver({ socketPath, warm }: DockerDriverOptions = {}): SandboxDriver {
  /** What was found usable; what was not is looked at again. */
  const hosts = new Map<string, Promise<DockerHost | string>>();
  let connection: Promise<Docker | string> | undefined;
  const connect = async (): Promise<Docker | string> => {
    const found = await (connection ??= connectDocker(socketPath));
    if (typeof found === "string") connection = undefined;
    return found;
  };
  const hostOf = async (container: SandboxContainer | undefined): Promise<DockerHost | string> => {
    if (container === undefined) return "A container needs an image and a runtime.";
    const key = JSON.stringify([container.image, container.runtimeClass]);
    const found =
      hosts.get(key) ?? connect().then(async (docker) => (typeof docker === "string" ? docker : await prepareContainer(docker, container)));
    hosts.set(key, found);
    const host = await found;
    if (typeof host === "string") hosts.delete(key);
    return host;
  };

  const slots = warm === undefined ? undefined : new WarmSlots<StartedSandbox>(warm);
  const prepare = (spec: SandboxSpec): void => {
    if (slots === undefined || slots.isClosed || refuseOwner(spec) !== undefined) return;
    slots.refill({ key: slotKeyOf(spec), workDirectory: spec.workDirectory }, async () => {
      const host = await hostOf(spec.container);
      const refusal = refuseWorkDirectory(spec.workDirectory) ?? (typeof host === "string" ? host : undefined);
      if (refusal !== undefined || typeof host === "string") throw new Error(refusal);
      return await startContainer(host, spec);
    });
  };

  async function run(job: SandboxJob, signal: AbortSignal): Promise<SandboxResult> {
    const host = await hostOf(job.container);
    if (typeof host === "string") return notStarted(host);
    const refusal = refuseEgress(job) ?? refuseOwner(job) ?? refuseProgram(job);
    if (refusal !== undefined) return denied(refusal);
    const obstacle = refuseWorkDirectory(job.workDirectory);
    if (obstacle !== undefined) return notStarted(obstacle);
    if (signal.aborted) return { ...denied(""), reason: "cancelled" };
    const call = { enforcer: dockerEnforcer, startedAtMs: performance.now(), signal };
    const spec = specOf(job);
    const ready = await slots?.take(slotKeyOf(spec));
    try {
      const result = ready === undefined ? undefined : await runProgram(ready, job, call);
      if (result !== undefined && (ready?.began() || result.reason === "cancelled" || result.reason === "wall")) return result;
      const sandbox = await startContainer(host, spec).catch((error: Error) => error);
      if (sandbox instanceof Error) {
        // The image may be gone, or the daemon: the next call looks again.
        hosts.clear();
        return notStarted(`The container could not be started: ${sandbox.message}`);
      }
      return await runProgram(sandbox, job, call);
    } finally {
      // Not before the caller has its result.
      setImmediate(prepare, spec);
    }
  }

  return {
    name: "docker",
    prepare,
    run,
    drop: async (workDirectory) => await slots?.drop(workDirectory),
    enforcement: () => enforcementOf(dockerEnforcer),
    async probe(container) {
      const found = container === undefined ? await connect() : await hostOf(container);
      return typeof found === "string" ? found : undefined;
    },
    async dispose() {
      await slots?.close();
      await containersCleared();
    },
  };
}

const refuseEgress = ({ egress }: SandboxSpec): string | undefined =>
  egress === undefined ? undefined : "A container has no network, and this run is to have one.";
