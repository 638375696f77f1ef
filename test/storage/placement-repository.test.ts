import { expect, test } from "vitest";
import type { TenantId } from "../../domain/tenant.ts";
import type { Database } from "../../storage/database.ts";
import { type TakeOutcome, holdPlacement, releasePlacement, takePlacement } from "../../storage/placement-repository.ts";
import { expireProcesses, renewProcess } from "../../storage/process-repository.ts";
import { databaseWith } from "./fresh-database.ts";

const home = "hom_ours";
const join = async (database: Database, id: string, { machine = "here", isDraining = false } = {}): Promise<void> =>
  void (await database.withControl(
    async (tx) =>
      await renewProcess(
        tx,
        { id, role: "worker", host: "host", machine, pid: 1, startedAtTicks: "1", homeId: home },
        { forMs: 60_000, isDraining },
      ),
  ));
const expire = async (database: Database, id: string): Promise<void> =>
  await database.withControl(async (tx) => await expireProcesses(tx, [id]));
const take = async (
  database: Database,
  owner: TenantId,
  holder: string,
  more: { homeId?: string; hasDirectory?: boolean; onlyAfterMachine?: string } = {},
): Promise<TakeOutcome> =>
  await database.withControl(
    async (tx) => await takePlacement(tx, { owner, holder, homeId: home, hasDirectory: true, onlyAfterMachine: undefined, ...more }),
  );
const epochOf = (outcome: TakeOutcome): bigint => {
  if (outcome.state !== "taken") throw new Error(`not taken: ${outcome.state}`);
  return outcome.epoch;
};

test("of many who take an owner at once one gets it, and nobody else while its process lives", async () => {
  const { database, tenants } = await databaseWith({}, "acme");
  const [{ tenantId }] = tenants;
  const ids = Array.from({ length: 8 }, (_, n) => `prc_${n}`);
  for (const id of ids) await join(database, id);

  const outcomes = await Promise.all(ids.map(async (id) => await take(database, tenantId, id)));

  const winner = ids[outcomes.findIndex(({ state }) => state === "taken")];
  expect(outcomes.filter(({ state }) => state === "taken")).toHaveLength(1);
  expect(outcomes.filter(({ state }) => state === "held")).toEqual(Array.from({ length: 7 }, () => ({ state: "held", holder: winner })));
});

test("a holder whose time is up is taken over under a higher epoch, and its own epoch holds nothing any more", async () => {
  const { database, tenants } = await databaseWith({}, "acme");
  const [context] = tenants;
  const { tenantId } = context;
  await join(database, "prc_old");
  await join(database, "prc_new");
  const old = epochOf(await take(database, tenantId, "prc_old"));

  await expire(database, "prc_old");
  const taken = epochOf(await take(database, tenantId, "prc_new"));

  expect(taken).toBeGreaterThan(old);
  const holds = async (holder: string, epoch: bigint): Promise<boolean> =>
    await database.withTenant(context, async (tx) => await holdPlacement(tx, { holder, epoch }));
  expect(await holds("prc_old", old)).toBe(false);
  expect(await holds("prc_new", old)).toBe(false);
  expect(await holds("prc_new", taken)).toBe(true);
  // A late farewell of the old one changes nothing.
  await database.withControl(async (tx) => await releasePlacement(tx, tenantId, { holder: "prc_old", epoch: old }, { thenWake: false }));
  expect(await holds("prc_new", taken)).toBe(true);
});

test("a transaction that holds a placement is waited for by whoever takes it over", async () => {
  const { database, tenants } = await databaseWith({}, "acme");
  const [context] = tenants;
  const { tenantId } = context;
  await join(database, "prc_old");
  await join(database, "prc_new");
  const epoch = epochOf(await take(database, tenantId, "prc_old"));
  await expire(database, "prc_old");
  const order: string[] = [];
  const isHeld = Promise.withResolvers<void>();

  const holding = database
    .withTenant(context, async (tx) => {
      expect(await holdPlacement(tx, { holder: "prc_old", epoch })).toBe(true);
      isHeld.resolve();
      // The other one waits for our row by now; its own view says so.
      await expect
        .poll(async () => await database.withControl(async (other) => await other.query(waitingForALock), { readOnly: true }))
        .toHaveLength(1);
      order.push("claimed");
    })
    .then(() => order.push("committed"));
  await isHeld.promise;
  const taking = take(database, tenantId, "prc_new").then(() => order.push("taken"));
  await Promise.all([holding, taking]);

  expect(order[0]).toBe("claimed");
  expect(await database.withTenant(context, async (tx) => await holdPlacement(tx, { holder: "prc_old", epoch }))).toBe(false);
});

const waitingForALock = "select from pg_stat_activity where wait_event_type = 'Lock' and query like '%control.placement%'";

test("a tenant is bound to the home that has its directory, and no other home begins with an empty one", async () => {
  const { database, tenants } = await databaseWith({}, "acme", "globex");
  const [{ tenantId }, { tenantId: unknown }] = tenants;
  await join(database, "prc_a");

  expect(await take(database, unknown, "prc_a", { hasDirectory: false })).toEqual({ state: "elsewhere", homeId: null });
  expect(await take(database, tenantId, "prc_a")).toMatchObject({ state: "taken" });

  await expire(database, "prc_a");
  await join(database, "prc_b");
  expect(await take(database, tenantId, "prc_b", { homeId: "hom_other" })).toEqual({ state: "elsewhere", homeId: home });
});

test("nothing is taken by a process that has expired or drains, nor for a tenant that is not there", async () => {
  const { database, tenants } = await databaseWith({}, "acme");
  const [{ tenantId }] = tenants;
  await join(database, "prc_leaves", { isDraining: true });
  await join(database, "prc_dead");
  await expire(database, "prc_dead");
  await join(database, "prc_a");

  expect(await take(database, tenantId, "prc_leaves")).toEqual({ state: "refused" });
  expect(await take(database, tenantId, "prc_dead")).toEqual({ state: "refused" });
  expect(await take(database, tenantId, "prc_unknown")).toEqual({ state: "refused" });
  expect(await take(database, "nobody" as TenantId, "prc_a")).toEqual({ state: "refused" });
});

test("where a volume may still be mounted, only a predecessor of this machine is taken over", async () => {
  const { database, tenants } = await databaseWith({}, "acme");
  const [{ tenantId }] = tenants;
  await join(database, "prc_there", { machine: "there" });
  await take(database, tenantId, "prc_there");
  await expire(database, "prc_there");
  await join(database, "prc_here");

  expect(await take(database, tenantId, "prc_here", { onlyAfterMachine: "here" })).toEqual({
    state: "mounted_elsewhere",
    holder: "prc_there",
  });
  await join(database, "prc_back", { machine: "there" });
  expect(await take(database, tenantId, "prc_back", { onlyAfterMachine: "there" })).toMatchObject({ state: "taken" });
});

test("a tenant's own transaction sees and holds its own placement only", async () => {
  const { database, tenants } = await databaseWith({}, "acme", "globex");
  const [acme, globex] = tenants;
  await join(database, "prc_a");
  const epoch = epochOf(await take(database, acme.tenantId, "prc_a"));

  expect(await database.withTenant(globex, async (tx) => await holdPlacement(tx, { holder: "prc_a", epoch }))).toBe(false);
  expect(await database.withTenant(globex, async (tx) => await tx.query("select owner from control.placement"))).toEqual([]);
  await expect(database.withTenant(globex, async (tx) => await tx.query("select from control.process"))).rejects.toThrow(
    "permission denied",
  );
  await expect(database.withTenant(acme, async (tx) => await tx.execute("update control.placement set holder = 'prc_me'"))).rejects.toThrow(
    "permission denied",
  );
});
