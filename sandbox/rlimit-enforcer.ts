import { growingPause } from "./growing-pause.ts";
import { cpuMsOf, hasEnded, identify, memoryOf, type ProcessIdentity, processTree, taskCount } from "./process-tree.ts";
import { BWRAP_PROCESSES, type Exceeded, type ResourceEnforcer } from "./resource-enforcer.ts";

const POLL_MS = 40;
const RELEASE_WITHIN_MS = 10_000;

/**
 * Where no cgroup can be made: rlimits hold each process (the driver sets them), and the sum over all of them is polled. What the
 * sum cannot see: pages in pipes and socket buffers. A burst inside one poll can pass the sum, never the limit of one process.
 */
export function createRlimitEnforcer(): ResourceEnforcer {
  return {
    kind: "rlimit",
    memory: "per-process",
    processes: "per-uid",
    cpu: "per-process",
    hold({ memoryBytes, processes }) {
      let init: ProcessIdentity | undefined;
      let timer: NodeJS.Timeout | undefined;
      let over: Exceeded = { memory: false, processes: false };
      let peakMemoryBytes: number | undefined;
      let cpuMs: number | undefined;
      const kill = (): void => {
        if (init === undefined || hasEnded(init)) return;
        try {
          process.kill(init.pid, "SIGKILL");
        } catch {
          // Gone meanwhile.
        }
      };
      return {
        takeIn: async () => undefined,
        born(initPid) {
          init = identify(initPid);
        },
        watch(exceeded) {
          const look = (): void => {
            if (init === undefined) return;
            const pids = processTree(init.pid);
            const tasks = taskCount(pids);
            const memoryBytesNow = memoryOf(pids, memoryBytes);
            peakMemoryBytes = Math.max(peakMemoryBytes ?? 0, memoryBytesNow);
            cpuMs = Math.max(cpuMs ?? 0, cpuMsOf(pids));
            // The rlimit stops the count at the limit; one that is met is a limit that was hit, one that is passed was not held.
            over = {
              memory: over.memory || memoryBytesNow > memoryBytes,
              processes: over.processes || tasks >= processes,
            };
            if (over.memory) exceeded("memory");
            else if (tasks > processes + BWRAP_PROCESSES) exceeded("processes");
          };
          timer = setInterval(look, POLL_MS);
        },
        kill,
        // The list of a process's children may miss one while others come and go.
        holdsOnly: () => false,
        read: () => ({ ...over, peakMemoryBytes, cpuMs }),
        async release() {
          clearInterval(timer);
          const deadline = Date.now() + RELEASE_WITHIN_MS;
          for (const pause = growingPause(); init !== undefined && !hasEnded(init); await pause()) {
            if (Date.now() > deadline) throw new Error(`The sandbox's first process ${init.pid} does not end.`);
            kill();
          }
          return { ...over, peakMemoryBytes, cpuMs };
        },
      };
    },
  };
}
