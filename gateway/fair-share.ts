import { monitorEventLoopDelay } from "node:perf_hooks";

export type FairShareOptions = {
  /** The largest share: `http.slots_per_tenant`. */
  readonly most: number;
  /** Whether calls of more than one tenant are here. */
  readonly isContended: () => boolean;
  /** Told when the share has grown. */
  readonly onGrow: () => void;
  /** How long a step waits for its turn in this process, in ms, since it was last asked for; default: of the event loop. */
  readonly lagMs?: () => number;
};

export interface FairShare {
  /** Calls of one tenant that may run at once just now. */
  current(): number;
  stop(): void;
}

/** Each of a turn's dozen steps waits for so long; more is felt by whoever calls beside a flood. */
const tolerableLagMs = 5;
const intervalMs = 200;
const resolutionMs = 20;

/**
 * What one tenant may run at once while this process falls behind and others call as well: half as much each time it is looked at, and
 * again more when it keeps up. A tenant who floods then waits in his own queue instead of before everybody's processor. One tenant alone
 * has all of it: nobody gains by his waiting.
 */
export function createFairShare({ most, isContended, onGrow, lagMs = watchEventLoop() }: FairShareOptions): FairShare {
  let share = most;
  const adjust = (): void => {
    const isBehind = lagMs() > tolerableLagMs;
    if (isBehind && isContended()) share = Math.max(1, Math.floor(Math.min(share, most) / 2));
    else if (share < most && !isBehind) {
      share = Math.min(most, share + Math.ceil(share / 8));
      onGrow();
    } else if (share < most && !isContended()) {
      share = most;
      onGrow();
    }
  };
  const timer = setInterval(adjust, intervalMs);
  timer.unref();
  return { current: () => share, stop: () => clearInterval(timer) };
}

function watchEventLoop(): () => number {
  const delays = monitorEventLoopDelay({ resolution: resolutionMs });
  delays.enable();
  return () => {
    const ms = delays.percentile(75) / 1e6 - resolutionMs;
    delays.reset();
    return ms;
  };
}
