import type { Owner } from "../domain/tenant.ts";

export type WakerOptions = {
  /** The owners whose workflows want a worker by `byMs`. */
  readonly dueOwners: (byMs: number) => Promise<ReadonlySet<Owner>>;
  /** Makes sure that a worker polls the owner's queue; cheap when it does. */
  readonly wake: (owner: Owner) => Promise<void>;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
  /** Default 500 ms. */
  readonly intervalMs?: number;
};

/** Delayed starts are woken for so long before they are due. */
const aheadMs = 1_000;
/** Looking takes this share of the time at most, however many workflows are open. */
const busyShare = 0.05;

/**
 * Wakes tenants whose worker was stopped, or not started since the process began, when something of theirs is due: a timer, a retry, a
 * schedule, a delayed start. It costs one query for all of them, whether there are ten or a thousand, and keeps the workers of whoever
 * has something open from being taken for idle.
 */
export function startWaker({ dueOwners, wake, log, intervalMs = 500 }: WakerOptions): { stop(): Promise<void> } {
  let isStopped = false;
  let timer: NodeJS.Timeout | undefined;

  const look = async (): Promise<void> => {
    const beganAtMs = performance.now();
    try {
      const owners = [...(await dueOwners(Date.now() + aheadMs))];
      const woken = await Promise.allSettled(owners.map(wake));
      for (const [place, outcome] of woken.entries())
        if (outcome.status === "rejected")
          log("a tenant with something due was not woken", { owner: owners[place], error: String(outcome.reason) });
    } catch (error) {
      log("what is due could not be asked for", { error: String(error) });
    }
    if (!isStopped) schedule(Math.max(intervalMs, (performance.now() - beganAtMs) / busyShare));
  };
  let looking = Promise.resolve();
  const schedule = (ms: number): void => {
    timer = setTimeout(() => {
      looking = look();
    }, ms);
    timer.unref();
  };
  schedule(0);

  return {
    async stop() {
      isStopped = true;
      clearTimeout(timer);
      await looking;
    },
  };
}
