import type { WorkflowInterceptors } from "@temporalio/workflow";

/** Replaced in the bundle's text by the milliseconds that the clock of a test is ahead. */
const aheadMs = Number("CLOCK_AHEAD_MS");

type Activator = { now: number; shiftedNow?: number };

/** Workflows tell the server's time; here they tell a test's. Timers last as long as they do. */
export const interceptors = (): WorkflowInterceptors => ({
  internals: [
    {
      activate(input, next) {
        const { __TEMPORAL_ACTIVATOR__: activator } = globalThis as unknown as { __TEMPORAL_ACTIVATOR__: Activator };
        // An activation may come in several parts.
        if (activator.now !== activator.shiftedNow) activator.shiftedNow = activator.now += aheadMs;
        next(input);
      },
    },
  ],
});
