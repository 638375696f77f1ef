import { expect, onTestFinished, test } from "vitest";
import { openMembership } from "../../control-plane/membership.ts";
import { AppError } from "../../domain/app-error.ts";
import { rendezvousWinner } from "../../domain/rendezvous.ts";
import type { Owner, TenantContext, TenantId } from "../../domain/tenant.ts";
import type { Database } from "../../storage/database.ts";
import { holdPlacement } from "../../storage/placement-repository.ts";
import { placeWorkers } from "../../workers/placed-workers.ts";
import { databaseWith, quiet } from "../storage/fresh-database.ts";

const times = { renewMs: 50, leaseMs: 1_500, ownLeaseMs: 1_000 };

/** One worker process: its place among the others, and a pool that only notes whose queues it polls. */
type StagedWorker = Awaited<ReturnType<typeof startWorker>>;

async function startWorker(database: Database, options: { readonly homeId?: string; readonly toolGraceMs?: number } = {}) {
  const { homeId = "hom_ours", ...rest } = options;
  let isCut = false;
  const work: Pick<Database, "withControl" | "listen" | "notify"> = {
    async withControl(...call) {
      if (isCut) throw new AppError("unavailable", { why: "the test cut the line" });
      return await database.withControl(...call);
    },
    listen: async (channel, handler, more) => await database.listen(channel, (payload) => void (isCut || handler(payload)), more),
    notify: async (...call) => await database.notify(...call),
  };
  const membership = await openMembership({ database: work, role: "worker", homeId, log: quiet, times });
  const polled = new Set<Owner>();
  const left: TenantId[] = [];
  const placed = await placeWorkers({
    database: work,
    membership,
    pool: {
      wake: async (owner) => void polled.add(owner),
      async forget(owner) {
        if (polled.delete(owner)) placed.onStopped(owner);
      },
      has: (owner) => polled.has(owner),
      close: async () => polled.clear(),
    },
    hasDirectory: () => true,
    isVolume: () => false,
    leaveDirectory: async (tenantId) => void left.push(tenantId),
    log: quiet,
    ...rest,
  });
  let isStopped = false;
  const stop = async (): Promise<void> => {
    if (isStopped) return;
    isStopped = true;
    await placed.close();
    await membership.close();
  };
  onTestFinished(stop);
  return {
    id: membership.self.id,
    placed,
    polled,
    left,
    drain: membership.drain,
    seesOthers: async (count: number): Promise<void> => {
      await expect.poll(() => membership.live().length, { timeout: 10_000 }).toBe(count + 1);
    },
    stop,
    cut: () => void (isCut = true),
    mend: () => void (isCut = false),
    idle: (owner: Owner) => {
      polled.delete(owner);
      placed.onStopped(owner);
    },
  };
}

const names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n"] as const;
const stage = async () => await databaseWith({}, ...names);
const winnerOf = (owner: Owner, workers: readonly StagedWorker[]): StagedWorker => rendezvousWinner(owner, workers) as StagedWorker;
/** Resolves once each of these owners is polled by its winner of these workers, and by nobody else. */
const settled = async (owners: readonly TenantContext[], workers: readonly StagedWorker[]): Promise<void> => {
  await expect
    .poll(() => owners.map(({ tenantId }) => workers.filter(({ polled }) => polled.has(tenantId)).map(({ id }) => id)), { timeout: 20_000 })
    .toEqual(owners.map(({ tenantId }) => [winnerOf(tenantId, workers).id]));
};
/** An owner of these that the first worker has when it is alone, and the second one wins. */
const moverOf = (owners: readonly TenantContext[], workers: readonly StagedWorker[], to: StagedWorker): TenantContext => {
  const mover = owners.find(({ tenantId }) => winnerOf(tenantId, workers) === to);
  if (mover === undefined) throw new Error("the test's tenants all stay: start again");
  return mover;
};

test("whoever is asked, an owner is served by the worker that wins it, and by nobody else", async () => {
  const { database, tenants } = await stage();
  const workers = [await startWorker(database), await startWorker(database), await startWorker(database)];

  await Promise.all(tenants.flatMap(({ tenantId }) => workers.map(async ({ placed }) => await placed.wake(tenantId))));

  await settled(tenants, workers);
});

test("a worker that comes gets what it wins, one that is drained gives all away, and one that dies is taken over from", async () => {
  const { database, tenants } = await stage();
  const [first, second] = [await startWorker(database), await startWorker(database)];
  for (const { tenantId } of tenants) await first.placed.wake(tenantId);
  await settled(tenants, [first, second]);

  const third = await startWorker(database);
  await settled(tenants, [first, second, third]);

  await first.drain();
  await first.placed.drain(10_000);
  expect(first.placed.held()).toBe(0);
  expect(first.left.length).toBeGreaterThanOrEqual(
    tenants.filter(({ tenantId }) => winnerOf(tenantId, [first, second, third]) === first).length,
  );
  await settled(tenants, [second, third]);

  second.cut();
  await expect.poll(() => tenants.filter(({ tenantId }) => third.polled.has(tenantId)), { timeout: 20_000 }).toHaveLength(tenants.length);
});

test("a worker that is drained and has no heirs stops polling, and nobody makes it begin again", async () => {
  const { database, tenants } = await stage();
  const [{ tenantId }] = tenants;
  const only = await startWorker(database);
  await only.placed.wake(tenantId);

  await only.drain();
  await only.placed.drain(10_000);
  await only.placed.wake(tenantId);
  await only.placed.wakeHere(tenantId);

  expect([only.placed.held(), only.polled.size]).toEqual([0, 0]);
});

test("what every worker looks at by itself is served by the one that wins it", async () => {
  const { database, tenants } = await stage();
  const workers = [await startWorker(database), await startWorker(database)];
  await Promise.all(workers.map(async ({ seesOthers }) => await seesOthers(1)));

  for (const { placed } of workers) for (const { tenantId } of tenants) await placed.wakeHere(tenantId);

  await settled(tenants, workers);
});

test("a tool that runs is waited for before its tenant moves, and nothing new begins meanwhile", async () => {
  const { database, tenants } = await stage();
  const first = await startWorker(database);
  for (const { tenantId } of tenants) await first.placed.wake(tenantId);
  const entries = new Map(tenants.map(({ tenantId }) => [tenantId, first.placed.enter(tenantId)]));

  const second = await startWorker(database);
  const { tenantId } = moverOf(tenants, [first, second], second);
  await expect.poll(() => first.polled.has(tenantId)).toBe(false);

  expect(() => first.placed.enter(tenantId)).toThrow(AppError);
  expect(second.polled.has(tenantId)).toBe(false);
  expect(entries.get(tenantId)?.signal.aborted).toBe(false);
  for (const entry of entries.values()) entry.leave();
  await settled(tenants, [first, second]);
});

test("a tool that does not end in its grace is told to, and its tenant moves then", async () => {
  const { database, tenants } = await stage();
  const first = await startWorker(database, { toolGraceMs: 1 });
  for (const { tenantId } of tenants) await first.placed.wake(tenantId);
  for (const { tenantId } of tenants) {
    const { signal, leave } = first.placed.enter(tenantId);
    signal.addEventListener("abort", leave);
  }

  const second = await startWorker(database);

  await settled(tenants, [first, second]);
});

test("an idle tenant costs no row, and comes back when it is asked for, also in the moment of its leaving", async () => {
  const { database, tenants } = await stage();
  const [{ tenantId }] = tenants;
  const only = await startWorker(database);
  await only.placed.wake(tenantId);
  const placements = async () => await database.withControl(async (tx) => await tx.query("select from placement"));
  expect(await placements()).toHaveLength(1);

  only.idle(tenantId);
  await expect.poll(placements).toHaveLength(0);

  await only.placed.wake(tenantId);
  only.idle(tenantId);
  await only.placed.wake(tenantId);
  await expect.poll(() => only.polled.has(tenantId)).toBe(true);
  expect(isEntered(only, tenantId)).toBe(true);
});

test("a worker that cannot renew ends its tools by its own clock; when it comes back, what was taken over is not its own", async () => {
  const { database, tenants } = await stage();
  const [first, second] = [await startWorker(database), await startWorker(database)];
  for (const { tenantId } of tenants) await first.placed.wake(tenantId);
  await settled(tenants, [first, second]);
  const context = moverOf(tenants, [first, second], first);
  const { placement, signal, leave } = first.placed.enter(context.tenantId);

  first.cut();
  await expect.poll(() => signal.aborted, { timeout: 20_000 }).toBe(true);
  expect(() => first.placed.enter(context.tenantId)).toThrow(AppError);
  leave();
  await expect.poll(() => second.polled.has(context.tenantId), { timeout: 20_000 }).toBe(true);
  expect(await database.withTenant(context, async (tx) => await holdPlacement(tx, placement))).toBe(false);

  first.mend();
  await settled(tenants, [first, second]);
  const again = first.placed.enter(context.tenantId);
  expect(again.placement.epoch).toBeGreaterThan(placement.epoch);
  again.leave();
});

test("a worker that is alone through an outage goes on with what it has", async () => {
  const { database, tenants } = await stage();
  const [context] = tenants;
  const only = await startWorker(database);
  await only.placed.wake(context.tenantId);
  const before = only.placed.enter(context.tenantId);

  only.cut();
  await expect.poll(() => before.signal.aborted, { timeout: 20_000 }).toBe(true);
  before.leave();
  only.mend();

  await expect.poll(() => isEntered(only, context.tenantId), { timeout: 20_000 }).toBe(true);
  expect(only.polled.has(context.tenantId)).toBe(true);
  expect(await database.withTenant(context, async (tx) => await holdPlacement(tx, before.placement))).toBe(true);
});

function isEntered({ placed }: StagedWorker, tenantId: TenantId): boolean {
  try {
    placed.enter(tenantId).leave();
    return true;
  } catch {
    return false;
  }
}

test("a tenant goes to a worker of its own home only", async () => {
  const { database, tenants } = await stage();
  const here = await startWorker(database);
  for (const { tenantId } of tenants) await here.placed.wake(tenantId);

  const elsewhere = await startWorker(database, { homeId: "hom_other" });
  for (const { tenantId } of tenants) await elsewhere.placed.wake(tenantId);
  expect(tenants.every(({ tenantId }) => here.polled.has(tenantId))).toBe(true);
  await here.stop();
  for (const { tenantId } of tenants) await elsewhere.placed.wake(tenantId);

  expect([...elsewhere.polled]).toEqual([]);
});
