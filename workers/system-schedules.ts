import { type Owner, systemOwner } from "../domain/tenant.ts";

export type SystemSchedulesOptions = {
  /** Safe to repeat. */
  readonly ensure: () => Promise<void>;
  readonly wake: (owner: Owner) => Promise<void>;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
  /** Default one minute: a worker of the queue that the schedules start on is stopped after ten without work. */
  readonly intervalMs?: number;
};

/** Sees to it that what the system does at times is scheduled, again until it is, and that a worker is there for it. */
export function startSystemSchedules({ ensure, wake, log, intervalMs = 60_000 }: SystemSchedulesOptions): { stop(): Promise<void> } {
  let isEnsured = false;
  const sync = async (): Promise<void> => {
    try {
      if (!isEnsured) await ensure();
      isEnsured = true;
      await wake(systemOwner);
    } catch (error) {
      log("the schedules of the system are not seen to", { error: String(error) });
    }
  };
  let syncing = sync();
  const timer = setInterval(() => {
    syncing = syncing.then(sync);
  }, intervalMs);
  return {
    async stop() {
      clearInterval(timer);
      await syncing;
    },
  };
}
