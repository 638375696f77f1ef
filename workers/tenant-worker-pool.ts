import { type ActivityInterceptorsFactory, Worker, type WorkerOptions } from "@temporalio/worker";
import { endActivitiesBy } from "../activities/activity-ending.ts";
import { type Owner, taskQueueOf } from "../domain/tenant.ts";
import { activityTenantGuard } from "../temporal/activity-guard.ts";
import { type TemporalConnection, converterOption } from "../temporal/temporal-connection.ts";
import { SharedPoolWorker } from "./shared-pool-worker.ts";

export type TenantWorkerPoolOptions = {
  readonly connection: TemporalConnection;
  readonly bundle: { readonly codePath: string; readonly buildId: string };
  readonly activities: object;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
  /** A worker without work for this long is stopped. Default 10 minutes. */
  readonly idleStopMs?: number;
  /** Workers that run at once; the one unused for longest goes first. Default 400 (temporal frontend.namespaceCount). */
  readonly liveWorkers?: number;
  /** Called when an owner's worker has ended, for whatever reason. */
  readonly onStopped?: (owner: Owner) => void;
  /** How long running activities may go on when a worker stops. Default 1 s. */
  readonly graceMs?: number;
  /** Whether a workflow may be asked for its call stack. Default false: it costs a tenth of a turn. Of the first pool in a process. */
  readonly callStacks?: boolean;
  /** Around every activity, inside the guard of its tenant. */
  readonly around?: readonly ActivityInterceptorsFactory[];
  /** Ends running activities whatever their grace; default: nothing does. */
  readonly ending?: AbortSignal;
};

export interface TenantWorkerPool {
  /** Makes sure that the owner's queue is polled; cheap when it is. */
  wake(owner: Owner): Promise<void>;
  /** Stops the worker of an owner that is gone, once it has nothing to do; a later wake starts another one. */
  forget(owner: Owner): Promise<void>;
  live(): number;
  /** Whether the owner has a worker, one that starts or stops included. */
  has(owner: Owner): boolean;
  /** Stops all workers; running activities get their grace to end. */
  close(): Promise<void>;
}

type LiveWorker = { readonly worker: Worker; readonly stopped: Promise<void>; lastWokenMs: number };

/** Turns of one tenant that its worker runs at once; others wait in the tenant's own queue and slow nobody else. */
const slots = { workflowTasks: 20, activities: 100, localActivities: 100 };

/** One Worker per tenant queue, started at the tenant's first turn and stopped when it has been idle. */
export function createTenantWorkerPool(options: TenantWorkerPoolOptions): TenantWorkerPool {
  const { connection, bundle, activities, log, idleStopMs = 600_000, liveWorkers = 400, graceMs = 1_000 } = options;
  const workers = new Map<Owner, Promise<LiveWorker>>();
  const missing = SharedPoolWorker.missingHooks();
  if (missing !== undefined) log("workers cannot share a thread pool: each tenant costs a thread of its own", { missing });
  SharedPoolWorker.callStacks = options.callStacks ?? false;
  const WorkerClass = missing === undefined ? SharedPoolWorker : Worker;

  const start = async (owner: Owner): Promise<LiveWorker> => {
    const worker = await WorkerClass.create(workerOptions(owner));
    const stopped = worker.run().then(
      () => void workers.delete(owner),
      (error: unknown) => {
        workers.delete(owner);
        log("a worker failed", { owner, error: String(error) });
      },
    );
    void stopped.then(() => options.onStopped?.(owner));
    return { worker, stopped, lastWokenMs: performance.now() };
  };

  const workerOptions = (owner: Owner): WorkerOptions => ({
    connection: connection.native,
    namespace: connection.namespace,
    taskQueue: taskQueueOf(owner),
    workflowBundle: { codePath: bundle.codePath },
    ...converterOption(connection.converterOf(owner)),
    buildId: bundle.buildId,
    activities,
    interceptors: {
      activity: [
        activityTenantGuard,
        ...(options.ending === undefined ? [] : [endActivitiesBy(options.ending)]),
        ...(options.around ?? []),
      ],
    },
    maxConcurrentWorkflowTaskExecutions: slots.workflowTasks,
    maxConcurrentActivityTaskExecutions: slots.activities,
    maxConcurrentLocalActivityExecutions: slots.localActivities,
    // A turn's first activity begins in the worker that scheduled it, without a hand-over: a third of a turn's cost on the server.
    maxEagerActivityReservationsPerWorkflowTask: 10,
    maxCachedWorkflows: 200,
    workflowTaskPollerBehavior: { type: "simple-maximum", maximum: 3 },
    activityTaskPollerBehavior: { type: "simple-maximum", maximum: 2 },
    stickyQueueScheduleToStartTimeout: "2s",
    maxHeartbeatThrottleInterval: "1s",
    defaultHeartbeatThrottleInterval: "1s",
    shutdownGraceTime: graceMs,
    shutdownForceTime: graceMs + 1_000,
    workflowThreadPoolSize: 1,
  });

  const stop = async (owner: Owner, { worker, stopped }: LiveWorker): Promise<void> => {
    if (worker.getState() === "RUNNING") worker.shutdown();
    await stopped;
    log("worker stopped", { owner });
  };

  const stopIdle = async (): Promise<void> => {
    const started = await Promise.allSettled([...workers].map(async ([owner, starting]) => ({ owner, live: await starting })));
    const live = started.flatMap((one) => (one.status === "fulfilled" ? [one.value] : []));
    live.sort((a, b) => a.live.lastWokenMs - b.live.lastWokenMs);
    const surplus = live.length - liveWorkers;
    await Promise.all(
      live
        .filter(
          ({ live: { worker, lastWokenMs } }, place) => isIdle(worker) && (place < surplus || performance.now() - lastWokenMs > idleStopMs),
        )
        .map(async ({ owner, live: idle }) => await stop(owner, idle)),
    );
  };
  let isSweeping = false;
  const sweepNow = (): void => {
    if (isSweeping) return;
    isSweeping = true;
    stopIdle()
      .catch((error: unknown) => log("idle workers were not stopped", { error: String(error) }))
      .finally(() => (isSweeping = false));
  };
  const sweep = setInterval(sweepNow, idleStopMs / 4);
  sweep.unref();

  return {
    async wake(owner) {
      for (;;) {
        let starting = workers.get(owner);
        if (starting === undefined) {
          starting = start(owner);
          workers.set(owner, starting);
          starting.catch(() => workers.delete(owner));
          if (workers.size > liveWorkers) sweepNow();
        }
        const live = await starting;
        live.lastWokenMs = performance.now();
        if (live.worker.getState() === "RUNNING" || live.worker.getState() === "INITIALIZED") return;
        await live.stopped; // two pollers on one queue would share it, so the next one waits for this one's end
      }
    },
    async forget(owner) {
      const starting = workers.get(owner);
      if (starting !== undefined) await stop(owner, await starting);
    },
    live: () => workers.size,
    has: (owner) => workers.has(owner),
    async close() {
      clearInterval(sweep);
      await Promise.allSettled([...workers].map(async ([owner, starting]) => await stop(owner, await starting)));
    },
  };
}

function isIdle(worker: Worker): boolean {
  const { runState, numInFlightActivities, numInFlightWorkflowActivations, numInFlightLocalActivities } = worker.getStatus();
  return runState === "RUNNING" && numInFlightActivities + numInFlightWorkflowActivations + numInFlightLocalActivities === 0;
}
