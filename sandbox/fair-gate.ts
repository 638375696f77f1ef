import { availableParallelism } from "node:os";
import { notStarted } from "./sandbox-result.ts";
import type { SandboxDriver } from "./sandbox-driver.ts";

/** Runs at once, of one work directory and of this process. */
export type GateLimits = { readonly perDirectory: number; readonly total: number };

/** A machine of few cores runs several at once all the same: most tools wait for a disk or a clock. */
const gateDefaults: GateLimits = { perDirectory: 4, total: Math.max(8, 2 * availableParallelism()) };

type Lane = { running: number; readonly waiting: (() => void)[] };

/**
 * Bounds what runs at once. Whoever has to wait waits in the lane of its work directory, and the lanes have their turns one after the
 * other: a tenant with a hundred calls waits for itself. Waiting counts against no limit of the run and ends when the call is cancelled.
 */
export function gateRuns<Driver extends SandboxDriver>(driver: Driver, { perDirectory, total }: GateLimits = gateDefaults): Driver {
  /** In the order of their turns. */
  const lanes = new Map<string, Lane>();
  let running = 0;

  const admit = (): void => {
    for (const [directory, lane] of lanes) {
      if (running >= total) return;
      if (lane.running >= perDirectory) continue;
      const next = lane.waiting.shift();
      if (next === undefined) continue;
      lanes.delete(directory);
      lanes.set(directory, lane);
      [lane.running, running] = [lane.running + 1, running + 1];
      next();
      return admit();
    }
  };

  /** @returns false when the call was cancelled before its turn */
  const enter = async (directory: string, signal: AbortSignal): Promise<boolean> => {
    const lane = lanes.get(directory) ?? { running: 0, waiting: [] };
    lanes.set(directory, lane);
    return await new Promise<boolean>((resolve) => {
      const leave = (): void => {
        lane.waiting.splice(lane.waiting.indexOf(go), 1);
        forget(directory, lane);
        resolve(false);
      };
      const go = (): void => {
        signal.removeEventListener("abort", leave);
        resolve(true);
      };
      lane.waiting.push(go);
      signal.addEventListener("abort", leave, { once: true });
      if (signal.aborted) leave();
      else admit();
    });
  };

  const forget = (directory: string, lane: Lane): void => {
    if (lane.running === 0 && lane.waiting.length === 0) lanes.delete(directory);
  };

  return {
    ...driver,
    async run(job, signal) {
      if (!(await enter(job.workDirectory, signal))) return { ...notStarted(""), reason: "cancelled" };
      try {
        return await driver.run(job, signal);
      } finally {
        const lane = lanes.get(job.workDirectory) as Lane;
        [lane.running, running] = [lane.running - 1, running - 1];
        forget(job.workDirectory, lane);
        admit();
      }
    },
  };
}
