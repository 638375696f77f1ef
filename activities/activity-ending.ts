import { AsyncLocalStorage } from "node:async_hooks";
import type { ActivityInterceptorsFactory } from "@temporalio/worker";

const endings = new AsyncLocalStorage<AbortSignal>();

/**
 * Tells the activities of this process to stop when the signal fires. A worker's own grace at its shutdown is set when it is made, for the
 * move of a tenant whose turns may end in peace; a process that is told to end at once has no such time.
 */
export const endActivitiesBy =
  (ending: AbortSignal): ActivityInterceptorsFactory =>
  () => ({ inbound: { execute: async (input, next) => await endings.run(ending, async () => await next(input)) } });

/** Fires when the running activity is to stop because its process ends. */
export const processEnding = (): AbortSignal | undefined => endings.getStore();
