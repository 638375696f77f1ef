import type { Membership } from "../control-plane/membership.ts";
import { AppError } from "../domain/app-error.ts";
import { type Owner, type TenantId, parseOwner, systemOwner } from "../domain/tenant.ts";
import type { Database } from "../storage/database.ts";
import {
  placementChannel,
  readOrphans,
  readPlacementsOf,
  releaseAll,
  releasePlacement,
  wakeChannel,
} from "../storage/placement-repository.ts";
import { HeldOwners, type PlaceEntry } from "./held-owners.ts";
import { createPlacementPlan } from "./placement-plan.ts";
import { type TakeOverOptions, createTakeOver } from "./take-over.ts";
import type { TenantWorkerPool } from "./tenant-worker-pool.ts";
import { TurnQueue, inLanes } from "./turn-queue.ts";
import { type Refusal, WantedOwners } from "./wanted-owners.ts";

export type PlacedWorkersOptions = Omit<TakeOverOptions, "plan"> & {
  readonly database: Pick<Database, "withControl" | "listen" | "notify">;
  readonly membership: Membership;
  readonly pool: Pick<TenantWorkerPool, "wake" | "forget" | "has" | "close">;
  /** Ends what waits in the tenant's directory, and unmounts it. Nothing runs there any more. */
  readonly leaveDirectory: (tenantId: TenantId) => Promise<void>;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
  /** How long tools may run on when their tenant moves. Default 10 s. */
  readonly toolGraceMs?: number;
};

/**
 * The tenants' workers over several processes: of all live workers one holds a tenant, takes its tasks and runs tools in its directory
 * (docs/adr/022).
 */
export interface PlacedWorkers {
  /** Makes sure that a worker polls the owner's queue: here, or by telling whoever is to serve it. */
  wake(owner: Owner): Promise<void>;
  /** As `wake`, but tells nobody: for what every worker process looks at by itself. */
  wakeHere(owner: Owner): Promise<void>;
  /** To be called when the pool has stopped an owner's worker, for whatever reason. */
  onStopped(owner: Owner): void;
  /** For what uses the tenant's directory. @throws {AppError} `unavailable` when another process may serve the tenant */
  enter(tenantId: TenantId): PlaceEntry;
  /** Owners that this process serves. */
  held(): number;
  /** Takes nothing new and gives all owners to the other workers, if there are any; resolves when running activities have ended, or after `patienceMs`. */
  drain(patienceMs: number): Promise<void>;
  close(): Promise<void>;
}

const movesAtOnce = 10;
const drainAgainMs = 250;
/** A lease that is not back so long after it ran out: the worker leaves the tenants' queues to whoever has taken them over. */
const leaveQueuesMs = 10_000;

export async function placeWorkers(options: PlacedWorkersOptions): Promise<PlacedWorkers> {
  const { database, membership, pool, log, toolGraceMs = 10_000 } = options;
  const { self } = membership;
  const held = new HeldOwners(self.id);
  const turns = new TurnQueue<Owner>();
  const wanted = new WantedOwners();
  const stopping = new Set<Promise<void>>();
  const plan = createPlacementPlan(options);
  const takeOver = createTakeOver({ ...options, plan });
  /** Their queues were left because the lease ran out. */
  const lapsed = new Set<Owner>();
  let leaving: NodeJS.Timeout | undefined;
  let isUnsettled = true;
  let isClosed = false;

  /** Serves an owner that is this process's to serve. @returns whether it is served here now */
  const serve = async (owner: Owner): Promise<boolean> =>
    await turns.run(owner, async () => {
      if (isClosed) return false;
      if (!held.isServed(owner)) {
        const refusal = await begin(owner);
        if (refusal !== undefined) return noteRefusal(owner, refusal);
      }
      wanted.delete(owner);
      await pool.wake(owner);
      return true;
    });

  /** @returns why it is not served here; undefined when it is */
  const begin = async (owner: Owner): Promise<Refusal | undefined> => {
    const taken = await takeOver(owner);
    if (!("epoch" in taken)) return taken;
    held.add(owner, taken.epoch);
    // The live ones may have changed while it was taken, when it was not among what is moved.
    if (!(await plan.isOurs(owner))) isUnsettled = true;
    log("a tenant is served here", { owner, epoch: String(taken.epoch) });
    return undefined;
  };

  const noteRefusal = (owner: Owner, refusal: Refusal): false => {
    if (wanted.add(owner, refusal) && !refusal.isAnothers) log(`a tenant is not served here: ${refusal.why}`, { owner });
    return false;
  };

  /** Gives an owner up: no new tasks, tools end, then whoever is to serve it may begin. What its activities still do needs no directory. */
  const giveUp = async (owner: Owner, { graceMs, thenWake }: { readonly graceMs: number; readonly thenWake: boolean }): Promise<void> => {
    const epoch = held.epochOf(owner);
    if (epoch === undefined) return;
    const emptied = held.empty(owner, graceMs);
    keepStopping(owner);
    await emptied;
    try {
      if (owner !== systemOwner) await options.leaveDirectory(owner);
      await database.withControl(async (tx) => await releasePlacement(tx, owner, { holder: self.id, epoch }, { thenWake }));
    } catch (error) {
      held.stay(owner);
      noteRefusal(owner, { isAnothers: false, why: "it could not be given up, and stays" });
      throw error;
    }
    const isAskedLate = !thenWake && held.isWanted(owner);
    held.remove(owner);
    if (isAskedLate) hear(owner);
    log("a tenant was given up", { owner });
  };

  const keepStopping = (owner: Owner): void => {
    const stopped = pool.forget(owner).catch((error: unknown) => log("a worker was not stopped", { owner, error: String(error) }));
    stopping.add(stopped);
    void stopped.then(() => stopping.delete(stopped));
  };

  const move = async (owner: Owner): Promise<void> =>
    await turns.run(owner, async () => {
      const winner = await plan.winnerOf(owner);
      if (winner !== undefined && winner.id !== self.id) await giveUp(owner, { graceMs: toolGraceMs, thenWake: true });
    });

  /** After a change of the live processes: gives away what is another's now, and takes over from the dead. */
  const settle = async (): Promise<void> => {
    isUnsettled = false;
    await inLanes(held.owners(), movesAtOnce, async (owner) => await attempt(owner, move));
    const orphans = await database.withControl(async (tx) => await readOrphans(tx), { readOnly: true });
    await inLanes(orphans.map(parseOwner), movesAtOnce, async (owner) => await attempt(owner, serve));
  };

  const attempt = async (owner: Owner, work: (owner: Owner) => Promise<unknown>): Promise<void> => {
    try {
      await work(owner);
    } catch (error) {
      isUnsettled = true;
      log("a tenant was not moved yet", { owner, error: String(error) });
    }
  };

  /** Compares what this process believes to hold with what it holds: after a pause, or when an owner was taken from it. */
  const lookUp = async (): Promise<void> => {
    const rows = await database.withControl(async (tx) => await readPlacementsOf(tx, self.id), { readOnly: true });
    const doubtful = new Set([...held.owners(), ...[...rows.keys()].map(parseOwner)]);
    for (const owner of doubtful)
      if (rows.get(owner) === held.epochOf(owner) && pool.has(owner) && !lapsed.has(owner)) doubtful.delete(owner);
    await inLanes([...doubtful], movesAtOnce, async (owner) => await attempt(owner, lookUpOne));
  };

  /** In the owner's turn, and so after whatever was under way when the rows were read. */
  const lookUpOne = async (owner: Owner): Promise<void> =>
    await turns.run(owner, async () => {
      const epoch = (await database.withControl(async (tx) => await readPlacementsOf(tx, self.id), { readOnly: true })).get(owner);
      const isOurs = epoch !== undefined && epoch === held.epochOf(owner);
      if (isOurs && pool.has(owner) && !lapsed.delete(owner)) return;
      if (held.epochOf(owner) !== undefined && !isOurs) {
        log("a tenant was taken over by another worker", { owner });
        keepStopping(owner);
      }
      if (epoch !== undefined)
        await database.withControl(async (tx) => await releasePlacement(tx, owner, { holder: self.id, epoch }, { thenWake: true }));
      held.remove(owner);
    });

  /** @returns owners whose directories are free; the others' stay this process's until somebody takes them over on this machine */
  const leaveAll = async (): Promise<readonly Owner[]> => {
    const left = await Promise.allSettled(
      held.owners().map(async (owner) => {
        await held.empty(owner, 0);
        if (owner !== systemOwner) await options.leaveDirectory(owner);
        return owner;
      }),
    );
    return left.flatMap((outcome) => {
      if (outcome.status === "fulfilled") return [outcome.value];
      log("a tenant's directory was not left", { error: String(outcome.reason) });
      return [];
    });
  };

  let background = Promise.resolve();
  const later = (work: () => Promise<void>): void => {
    background = background.then(async () => {
      if (isClosed) return;
      await work().catch((error: unknown) => {
        isUnsettled = true;
        log("the placement of tenants was not looked after", { error: String(error) });
      });
    });
  };

  const hear = (owner: Owner): void => {
    if (isClosed || held.want(owner)) return;
    const woken = held.isServed(owner) ? pool.wake(owner) : serve(owner);
    woken.catch((error: unknown) => log("a tenant was not woken", { owner, error: String(error) }));
  };

  const tick = (): void => {
    clearTimeout(leaving);
    for (const owner of wanted.due({ hasChanged: isUnsettled }))
      void attempt(owner, async () => await wanted.onOldTime(owner, async () => await serve(owner)));
    if (isUnsettled) later(settle);
  };

  const leaveQueues = (): void => {
    // Alone, this process is whom its tenants wait for.
    if (!plan.hasOthers()) return;
    for (const owner of held.owners()) {
      lapsed.add(owner);
      keepStopping(owner);
    }
  };

  const stopListening = await Promise.all([
    database.listen(wakeChannel, (payload) => hear(parseOwner(payload))),
    database.listen(placementChannel, (payload) => {
      const [holder, owner] = payload.split(" ", 2);
      if (holder !== self.id && held.epochOf(parseOwner(owner ?? "")) !== undefined) later(lookUp);
    }),
  ]);
  const stopFollowing = membership.listen({
    onChange: () => void (isUnsettled = true),
    onRenewal: tick,
    onLapse() {
      held.endAll();
      leaving = setTimeout(leaveQueues, leaveQueuesMs).unref();
    },
    onReturn: () => later(lookUp),
  });
  later(settle);

  return {
    async wake(owner) {
      if (held.want(owner)) return;
      if (held.isServed(owner)) return await pool.wake(owner);
      if (!(await serve(owner))) await database.notify(wakeChannel, owner);
    },
    async wakeHere(owner) {
      if (held.want(owner)) return;
      if (held.isServed(owner)) await pool.wake(owner);
      else if (await plan.isOurs(owner)) await serve(owner);
    },
    onStopped(owner) {
      if (isClosed || !held.isServed(owner)) return;
      void attempt(owner, async () => {
        await turns.run(owner, async () => {
          if (held.isServed(owner) && !pool.has(owner)) await giveUp(owner, { graceMs: 0, thenWake: lapsed.delete(owner) });
        });
      });
    },
    enter(tenantId) {
      if (!membership.isHeld()) throw new AppError("unavailable", { tenantId, why: "this process may have lost its lease" });
      return held.enter(tenantId);
    },
    held: () => held.size,
    async drain(patienceMs) {
      const lateMs = performance.now() + patienceMs;
      while ((await plan.hasHeirs(held.owners())) && performance.now() < lateMs) {
        later(settle);
        await background;
        if (held.size > 0) await new Promise((resolve) => setTimeout(resolve, drainAgainMs));
      }
      // What nobody takes over waits for the next start.
      const end = async (owner: Owner): Promise<void> =>
        await turns.run(owner, async () => await giveUp(owner, { graceMs: toolGraceMs, thenWake: false }));
      await inLanes(held.owners(), movesAtOnce, async (owner) => await attempt(owner, end));
      const { promise: late, resolve } = Promise.withResolvers<void>();
      const timer = setTimeout(resolve, lateMs - performance.now());
      await Promise.race([late, Promise.all(stopping)]);
      clearTimeout(timer);
    },
    async close() {
      isClosed = true;
      stopFollowing();
      clearTimeout(leaving);
      for (const stop of stopListening) await stop();
      await background;
      await turns.idle();
      await pool.close();
      await Promise.all(stopping);
      const owners = await leaveAll();
      await database
        .withControl(async (tx) => await releaseAll(tx, self.id, owners))
        .catch((error: unknown) => log("this process's tenants were not given up", { error: String(error) }));
    },
  };
}
