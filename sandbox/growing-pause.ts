import { setImmediate as nextTurn, setTimeout as sleep } from "node:timers/promises";

/** What is about to be gone mostly is within the time of a few looks; what is not is looked at less and less often. */
const QUICK_LOOKS = 20;
const MOST_MS = 50;

/** Waits between two looks at something that the kernel is about to finish. */
export function growingPause(): () => Promise<void> {
  let looks = 0;
  return async () => {
    looks += 1;
    if (looks <= QUICK_LOOKS) await nextTurn();
    else await sleep(Math.min(MOST_MS, 2 ** (looks - QUICK_LOOKS - 1)));
  };
}
