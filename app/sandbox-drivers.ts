import type { AdminConfig } from "../control-plane/admin-config.ts";
import type { SandboxPolicy } from "../domain/sandbox-policy.ts";
import { createBwrapDriver } from "../sandbox/bwrap-driver.ts";
import { createDockerDriver, type DockerDriverOptions } from "../sandbox/docker-driver.ts";
import type { SandboxContainer, SandboxDriver, SandboxSpec } from "../sandbox/sandbox-driver.ts";
import type { WarmLimits } from "../sandbox/warm-slots.ts";

export type SandboxDriverOptions = {
  readonly config: Pick<AdminConfig, "sandbox">;
  /** Sandboxes that are started ahead, of each driver; default: none. */
  readonly warm?: WarmLimits;
  readonly docker?: DockerDriverOptions;
};

/** The container that a policy asks for; undefined for bubblewrap, and for a policy that `refusePolicy` refuses. */
export function containerOf({ runtime, image, runtimeClass }: SandboxPolicy): SandboxContainer | undefined {
  if (runtime.value !== "docker" || image.value === undefined) return undefined;
  return { image: image.value, runtimeClass: runtimeClass.value ?? "runc" };
}

/** All ways that this process runs programs in, as one driver: a run that names a container has Docker's, any other bubblewrap's. */
export function createSandboxDrivers({ config, warm, docker: dockerOptions }: SandboxDriverOptions): SandboxDriver {
  const ahead = warm === undefined ? {} : { warm };
  const bwrap = createBwrapDriver({ enforcer: config.sandbox.require === "cgroup" ? "cgroup" : "any", ...ahead });
  const docker = createDockerDriver({ ...dockerOptions, ...ahead });
  const driverOf = ({ container }: Pick<SandboxSpec, "container">): SandboxDriver => (container === undefined ? bwrap : docker);
  const usesDocker = Object.values(config.sandbox.modes ?? {}).some(({ runtime }) => runtime === "docker");
  return {
    name: "bwrap or docker",
    enforcement: (container) => driverOf({ container }).enforcement(),
    async probe(container) {
      if (container !== undefined) return await docker.probe(container);
      const missing = await bwrap.probe();
      // Modes of bubblewrap are refused then, one by one.
      return missing !== undefined && usesDocker && (await docker.probe()) === undefined ? undefined : missing;
    },
    prepare: (spec) => driverOf(spec).prepare(spec),
    run: async (job, signal) => await driverOf(job).run(job, signal),
    drop: async (workDirectory) => void (await Promise.all([bwrap.drop(workDirectory), docker.drop(workDirectory)])),
    dispose: async () => void (await Promise.all([bwrap.dispose(), docker.dispose()])),
  };
}
