import type { Membership } from "../control-plane/membership.ts";
import { AppError } from "../domain/app-error.ts";
import { rendezvousWinner } from "../domain/rendezvous.ts";
import { type Owner, type TenantId, parseOwner, systemOwner } from "../domain/tenant.ts";
import type { Database } from "../storage/database.ts";
import {
  type TakeOutcome,
  placementChannel,
  readHomeOf,
  readOrphans,
  readPlacementsOf,
  releaseAll,
  releasePlacement,
  takePlacement,
  wakeChannel,
} from "../storage/placement-repository.ts";
import type { LiveProcess } from "../storage/process-repository.ts";
import { HeldOwners, type PlaceEntry } from "./held-owners.ts";
import { createTurnQueue } from "./turn-queue.ts";
import type { TenantWorkerPool } from "./tenant-worker-pool.ts";

export type PlacedWorkersOptions = {
  readonly database: Pick<Database, "withControl" | "listen" | "notify">;
  readonly membership: Membership;
  readonly pool: Pick<TenantWorkerPool, "wake" | "forget" | "has" | "close">;
  /** Whether the tenant's directory is in this process's home. */
  readonly hasDirectory: (tenantId: TenantId) => boolean;
  /** Whether directories are file systems that one machine mounts. */
  readonly mountsVolumes: boolean;
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
  /** To be called when the pool has stopped an owner's worker, for whatever reason. */
  onStopped(owner: Owner): void;
  /** For what uses the tenant's directory. @throws {AppError} `unavailable` when another process may serve the tenant */
  enter(tenantId: TenantId): PlaceEntry;
  /** Owners that this process serves. */
  held(): number;
  /** Gives all owners to the other workers, if there are any; resolves when running activities have ended too, or after `patienceMs`. */
  drain(patienceMs: number): Promise<void>;
  close(): Promise<void>;
}

/** An owner that somebody else seemed to serve is looked at again for so long: two processes may see the live ones differently for a moment. */
const wantedMs = 15_000;
const movesAtOnce = 10;
const drainAgainMs = 250;
const homesRemembered = 10_000;
const homeMemoryMs = 60_000;

export async function placeWorkers(options: PlacedWorkersOptions): Promise<PlacedWorkers> {
  const { database, membership, pool, log, toolGraceMs = 10_000 } = options;
  const { self } = membership;
  const held = new HeldOwners(self.id);
  const inTurn = createTurnQueue<Owner>();
  const wanted = new Map<Owner, number>();
  const stopping = new Set<Promise<void>>();
  const homeOf = rememberHomes(database);
  const told = new Map<Owner, string>();
  let isUnsettled = true;
  let isClosed = false;

  const workers = (): readonly LiveProcess[] => membership.live().filter(({ role, isDraining }) => role !== "gateway" && !isDraining);
  const hasOthers = (): boolean => workers().some(({ id }) => id !== self.id);

  const winnerOf = async (owner: Owner): Promise<LiveProcess | undefined> => {
    const candidates = workers();
    if (owner === systemOwner || candidates.every(({ homeId }) => homeId === self.homeId)) return rendezvousWinner(owner, candidates);
    const home = await homeOf(owner);
    return rendezvousWinner(
      owner,
      candidates.filter(({ homeId }) => home === undefined || homeId === home),
    );
  };

  /** Serves an owner that is this process's to serve. @returns whether it is served here now */
  const serve = async (owner: Owner): Promise<boolean> =>
    await inTurn(owner, async () => {
      if (isClosed) return false;
      if (!held.isServed(owner)) {
        wanted.set(owner, performance.now() + wantedMs);
        const winner = await winnerOf(owner);
        if (winner === undefined) tellOnce(owner, "no live worker has the tenant's home: its turns wait");
        if (winner?.id !== self.id) return false;
        const outcome = await take(owner);
        if (outcome.state !== "taken") {
          tellOnce(owner, refusalOf(outcome), outcome);
          return false;
        }
        held.add(owner, outcome.epoch);
        log("a tenant is served here", { owner, epoch: String(outcome.epoch) });
      }
      wanted.delete(owner);
      told.delete(owner);
      await pool.wake(owner);
      return true;
    });

  const take = async (owner: Owner): Promise<TakeOutcome> =>
    await database.withControl(
      async (tx) =>
        await takePlacement(tx, {
          owner,
          holder: self.id,
          homeId: self.homeId,
          hasDirectory: owner !== systemOwner && options.hasDirectory(owner),
          onlyAfterMachine: options.mountsVolumes && owner !== systemOwner ? self.machine : undefined,
        }),
    );

  const tellOnce = (owner: Owner, why: string | undefined, fields: object = {}): void => {
    if (why === undefined || told.get(owner) === why) return;
    told.set(owner, why);
    log(`a tenant is not served here: ${why}`, { owner, ...fields });
  };

  /** Gives an owner up: no new tasks, tools end, then whoever is to serve it may begin. What its activities still do needs no directory. */
  const giveUp = async (owner: Owner, { graceMs, thenWake }: { readonly graceMs: number; readonly thenWake: boolean }): Promise<void> => {
    const epoch = held.epochOf(owner);
    if (epoch === undefined) return;
    const emptied = held.empty(owner, graceMs);
    keepStopping(owner);
    await emptied;
    if (owner !== systemOwner) await options.leaveDirectory(owner);
    const placement = { holder: self.id, epoch };
    try {
      await database.withControl(async (tx) => await releasePlacement(tx, owner, placement, { thenWake }));
    } catch (error) {
      wanted.set(owner, performance.now() + wantedMs);
      held.stay(owner);
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
    await inTurn(owner, async () => {
      const winner = await winnerOf(owner);
      if (winner !== undefined && winner.id !== self.id) await giveUp(owner, { graceMs: toolGraceMs, thenWake: true });
    });

  /** After a change of the live processes: gives away what is another's now, and takes over from the dead. */
  const settle = async (): Promise<void> => {
    isUnsettled = false;
    const owners = [...held.owners()];
    const lanes = Array.from({ length: Math.min(movesAtOnce, owners.length) }, async () => {
      for (let owner = owners.pop(); owner !== undefined; owner = owners.pop()) await attempt(owner, move);
    });
    await Promise.all(lanes);
    const orphans = await database.withControl(async (tx) => await readOrphans(tx), { readOnly: true });
    for (const orphan of orphans) await attempt(parseOwner(orphan), serve);
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
    for (const owner of held.owners()) {
      if (rows.get(owner) === held.epochOf(owner) || !held.isServed(owner)) continue;
      log("a tenant was taken over by another worker", { owner });
      held.remove(owner);
      keepStopping(owner);
    }
    for (const [name, epoch] of rows) {
      const owner = parseOwner(name);
      if (held.epochOf(owner) === epoch && pool.has(owner)) continue;
      await inTurn(owner, async () => {
        if (held.epochOf(owner) === epoch && pool.has(owner)) return;
        await database.withControl(async (tx) => await releasePlacement(tx, owner, { holder: self.id, epoch }, { thenWake: true }));
        if (held.epochOf(owner) === epoch) held.remove(owner);
      });
    }
  };

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
    for (const [owner, untilMs] of wanted) {
      if (untilMs < performance.now()) wanted.delete(owner);
      else void attempt(owner, reconsider);
    }
    if (isUnsettled) later(settle);
  };

  /** Without asking for more time. */
  const reconsider = async (owner: Owner): Promise<void> => {
    const untilMs = wanted.get(owner);
    if (untilMs === undefined || (await winnerOf(owner))?.id !== self.id) return;
    await serve(owner);
    if (wanted.has(owner)) wanted.set(owner, untilMs);
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
      // Alone, this process is whom its tenants wait for.
      if (hasOthers()) for (const owner of held.owners()) keepStopping(owner);
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
    onStopped(owner) {
      if (isClosed || !held.isServed(owner)) return;
      void attempt(owner, async () => {
        await inTurn(owner, async () => {
          if (held.isServed(owner) && !pool.has(owner)) await giveUp(owner, { graceMs: 0, thenWake: false });
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
      while (hasOthers() && held.size > 0 && performance.now() < lateMs) {
        later(settle);
        await background;
        if (held.size > 0) await new Promise((resolve) => setTimeout(resolve, drainAgainMs));
      }
      // A worker that nobody takes over from goes on until it is closed.
      if (held.size > 0) return;
      const { promise: late, resolve } = Promise.withResolvers<void>();
      const timer = setTimeout(resolve, lateMs - performance.now());
      await Promise.race([late, Promise.all(stopping)]);
      clearTimeout(timer);
    },
    async close() {
      isClosed = true;
      stopFollowing();
      for (const stop of stopListening) await stop();
      await background;
      await pool.close();
      await Promise.all(stopping);
      const owners = await leaveAll();
      await database
        .withControl(async (tx) => await releaseAll(tx, self.id, owners))
        .catch((error: unknown) => log("this process's tenants were not given up", { error: String(error) }));
    },
  };
}

function refusalOf(outcome: Exclude<TakeOutcome, { state: "taken" }>): string | undefined {
  switch (outcome.state) {
    case "held":
      return undefined; // until it is given up
    case "elsewhere":
      return "its directory is not in this home";
    case "mounted_elsewhere":
      return "its volume may still be mounted on the machine of a worker that died";
    case "refused":
      return "there is no such tenant, or this process gives its tenants up";
  }
}

/** The homes of tenants; asked for only where the live workers have several. */
function rememberHomes(database: Pick<Database, "withControl">): (owner: Owner) => Promise<string | undefined> {
  const homes = new Map<Owner, { readonly homeId: string | undefined; readonly untilMs: number }>();
  return async (owner) => {
    const known = homes.get(owner);
    if (known !== undefined && known.untilMs > performance.now()) return known.homeId;
    const homeId = await database.withControl(async (tx) => await readHomeOf(tx, owner), { readOnly: true });
    if (homes.size >= homesRemembered) homes.clear();
    // Where nobody knows, the worker that has the directory may tell any moment.
    if (homeId !== undefined) homes.set(owner, { homeId, untilMs: performance.now() + homeMemoryMs });
    return homeId;
  };
}
