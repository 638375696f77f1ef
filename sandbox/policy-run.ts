import { builtInNetworkLimits, type SandboxPolicy } from "../domain/sandbox-policy.ts";
import { refuseImageName } from "./docker-image.ts";
import { permitsRelay } from "./egress-door.ts";
import type { EgressGrant } from "./egress-grant.ts";
import type { SandboxDriver, SandboxLimits } from "./sandbox-driver.ts";
import type { SeccompProfile } from "./seccomp-profile.ts";

const KiB = 1_024;
const MiB = 1_024 * KiB;
/** The largest file, where the administrator gives the work directory no size of its own. */
const DEFAULT_FILE_BYTES = 128 * MiB;

/** The policy's limits as a driver takes them. */
export function limitsOfPolicy({ limits, asked }: SandboxPolicy): SandboxLimits {
  const diskBytes = limits.disk_mb.value * MiB;
  return {
    wallMs: limits.wall_seconds.value * 1_000,
    memoryBytes: limits.memory_limit_mb.value * MiB,
    processes: limits.pids.value,
    outputBytes: limits.output_kb.value * KiB,
    fileBytes: asked.has("disk_mb") ? diskBytes : Math.min(diskBytes, DEFAULT_FILE_BYTES),
    openFiles: limits.open_files.value,
    tmpBytes: limits.tmp_mb.value * MiB,
    cpus: limits.cpu_quota.value,
    // Of each process, and the only bound where no cgroup holds the share.
    cpuSeconds: Math.ceil(limits.wall_seconds.value * Math.max(1, limits.cpu_quota.value)),
    diskBytes,
    inodes: limits.inodes.value,
  };
}

/** `sandbox.network` of the administrator's `config.yaml`. */
export type NetworkSettings = Partial<Record<keyof typeof builtInNetworkLimits, number | undefined>> & {
  readonly allow_private?: readonly string[] | undefined;
};

/** What a run may reach; undefined: nothing. */
export function egressOfPolicy({ network }: SandboxPolicy, settings: NetworkSettings = {}): EgressGrant | undefined {
  if (network.value.length === 0) return undefined;
  const limitOf = (name: keyof typeof builtInNetworkLimits): number => settings[name] ?? builtInNetworkLimits[name];
  return {
    rules: network.value,
    allowPrivate: settings.allow_private ?? [],
    limits: {
      upBytes: limitOf("max_up_mb") * MiB,
      downBytes: limitOf("max_down_mb") * MiB,
      connections: limitOf("max_connections"),
      requests: limitOf("max_requests"),
    },
  };
}

/** A policy without its network where its programs can have none; refused where the mode asks for one by name. */
export function fitNetwork(policy: SandboxPolicy, seccomp: SeccompProfile): SandboxPolicy {
  const why = policy.network.value.length === 0 ? undefined : networkObstacle(policy, seccomp);
  if (why === undefined) return policy;
  const fault = policy.networkAsked ? `${why}, and the mode ${policy.mode.value} asks for network: allow-list` : undefined;
  return { ...policy, network: { value: [], because: why }, fault: policy.fault ?? fault };
}

function networkObstacle({ runtime, seccomp: asked }: SandboxPolicy, seccomp: SeccompProfile): string | undefined {
  if (runtime.value === "docker") return "the runtime docker has no network";
  if (permitsRelay(seccomp)) return undefined;
  return `the seccomp profile ${asked.value.join(" with ")} allows no IP sockets that listen, which a network needs`;
}

/** Why a policy cannot be held on this host, as a clause; undefined when it can, or when only the Docker daemon can tell (`probe`). Nothing is weakened to make it fit. */
export function refusePolicy(policy: SandboxPolicy, driver: Pick<SandboxDriver, "enforcement">): string | undefined {
  const { fault, runtime, runtimeClass, image, require, asked } = policy;
  if (fault !== undefined) return fault;
  if (runtime.value === "docker") {
    if (image.value === undefined) return `runtime docker needs an image (${runtime.because})`;
    const misnamed = refuseImageName(image.value);
    return misnamed === undefined ? undefined : `${misnamed} (${image.because})`;
  }
  if (runtimeClass.value !== undefined) return `runtime_class ${runtimeClass.value} needs the runtime docker (${runtimeClass.because})`;
  if (image.value !== undefined) return `image ${image.value} needs the runtime docker (${image.because})`;
  const held = driver.enforcement();
  if (held === undefined) return "no sandbox can be started on this host";
  if (require !== "cgroup") return undefined;
  if (held.memory !== "group" || held.processes !== "group")
    return "sandbox.require is cgroup, and memory and processes cannot be held by one here";
  if (asked.has("cpu_quota") && held.cpu !== "group")
    return "sandbox.require is cgroup, and the mode's cpu_quota cannot be held by one here: the cpu controller is not delegated";
  return undefined;
}
