import fc from "fast-check";
import { expect, onTestFinished, test } from "vitest";
import { parseTenantId } from "../../domain/tenant.ts";
import { type TurnSlot, createTurnSlots } from "../../gateway/turn-slots.ts";

const acme = parseTenantId("acme");
const globex = parseTenantId("globex");

/** Whether a promise has been kept by now. */
async function isSettled(promise: Promise<unknown>): Promise<boolean> {
  const pending = Symbol("pending");
  return (await Promise.race([promise.catch(() => undefined), new Promise((resolve) => setImmediate(resolve, pending))])) !== pending;
}

test("a tenant runs no more calls at once than it has slots; the other tenant has its own", async () => {
  const slots = createTurnSlots({ slots: 1_000, slotsPerTenant: 2 });
  const [first] = [await slots.acquire(acme), await slots.acquire(acme)];
  const third = slots.acquire(acme);

  expect(await isSettled(third)).toBe(false);
  expect(await isSettled(slots.acquire(globex))).toBe(true);

  first.release();
  expect(await isSettled(third)).toBe(true);
});

test("those who wait are served in the order in which they came, before anyone who comes later", async () => {
  const slots = createTurnSlots({ slots: 1_000, slotsPerTenant: 1 });
  const served: string[] = [];
  const call = async (name: string): Promise<void> => {
    const slot = await slots.acquire(acme);
    served.push(name);
    await Promise.resolve();
    slot.release();
  };

  await Promise.all([call("a"), call("b"), call("c"), call("d")]);
  await call("e");

  expect(served).toEqual(["a", "b", "c", "d", "e"]);
});

test("who has waited for too long is told to come again, and leaves the queue", async () => {
  const slots = createTurnSlots({ slots: 1_000, slotsPerTenant: 1, waitMs: 20 });
  const held = await slots.acquire(acme);

  const refusals = await Promise.allSettled([slots.acquire(acme), slots.acquire(acme)]);

  for (const refusal of refusals) expect(refusal).toMatchObject({ reason: { code: "unavailable", client: { retryAfterSeconds: 5 } } });
  const next = slots.acquire(acme);
  held.release(); // goes to the one who still waits, not to those who left
  expect(await isSettled(next)).toBe(true);
});

test("a slot that is given back twice counts once", async () => {
  const slots = createTurnSlots({ slots: 1_000, slotsPerTenant: 1 });
  const first = await slots.acquire(acme);
  first.release();
  const second = await slots.acquire(acme);
  first.release();

  expect(await isSettled(slots.acquire(acme))).toBe(false);
  second.release();
});

test("ten stateless calls share a lane of the pool, and a place that comes free is used again", async () => {
  const slots = createTurnSlots({ slots: 1_000, slotsPerTenant: 64 });
  const taken = await Promise.all(Array.from({ length: 25 }, async () => await slots.acquire(acme)));

  expect(taken.map(({ poolLane }) => poolLane)).toEqual([...Array(10).fill(0), ...Array(10).fill(1), ...Array(5).fill(2)]);

  taken[3]?.release();
  expect((await slots.acquire(acme)).poolLane).toBe(0);
  expect((await slots.acquire(acme)).poolLane).toBe(2);
});

test("however calls come and go, the bound holds, no lane is overfull and nobody is forgotten", async () => {
  await fc.assert(
    fc.asyncProperty(fc.integer({ min: 1, max: 25 }), fc.array(fc.nat(2), { maxLength: 80 }), async (slotsPerTenant, steps) => {
      const slots = createTurnSlots({ slots: 1_000, slotsPerTenant, waitMs: 10_000 });
      const held: TurnSlot[] = [];
      const asked: Promise<number>[] = [];
      for (const step of steps) {
        if (step > 0) asked.push(slots.acquire(acme).then((slot) => held.push(slot)));
        else held.shift()?.release();
        await Promise.resolve();
        const loads = Map.groupBy(held, ({ poolLane }) => poolLane);
        expect(held.length).toBeLessThanOrEqual(slotsPerTenant);
        expect(Math.max(0, ...[...loads.values()].map(({ length }) => length))).toBeLessThanOrEqual(10);
      }
      for (let served = 0; served < asked.length; served++) {
        held.shift()?.release();
        await new Promise((resolve) => setImmediate(resolve));
      }
      expect(await Promise.all(asked)).toHaveLength(asked.length);
    }),
    { numRuns: 40 },
  );
});

test("where all slots are taken tenants have their turns one after the other: who has many calls waits for himself", async () => {
  const slots = createTurnSlots({ slots: 2, slotsPerTenant: 2 });
  const held = [await slots.acquire(acme), await slots.acquire(acme)];
  const order: string[] = [];
  const wait = async (tenant: typeof acme): Promise<void> => {
    const slot = await slots.acquire(tenant);
    order.push(tenant);
    setImmediate(() => slot.release());
  };
  const waiting = [wait(acme), wait(acme), wait(acme), wait(acme), wait(globex)];
  for (const slot of held) slot.release();
  await Promise.all(waiting);

  expect(order).toHaveLength(5);
  expect(order.slice(0, 2).toSorted()).toEqual([acme, globex]);
});

test("a tenant who floods runs less at once while the process falls behind and others call, and all again when it keeps up", async () => {
  let lag = 0;
  const slots = createTurnSlots({ slots: 1_000, slotsPerTenant: 8, lagMs: () => lag });
  onTestFinished(slots.close);
  const running = Array.from({ length: 20 }, async () => await slots.acquire(acme));
  const other = await slots.acquire(globex);
  lag = 100;
  let served = 0;
  for (const slot of running)
    slot.then(
      () => void served++,
      () => {},
    );
  await expect.poll(() => served).toBe(8);
  // Each that ends is not followed by another one until no more than one is left.
  const first = await Promise.all(running.slice(0, 8));
  await expect.poll(() => slots.shareNow()).toBe(1);
  for (const slot of first.slice(0, 7)) slot.release();
  expect(served).toBe(8);
  first[7]?.release();
  await expect.poll(() => served).toBe(9);
  lag = 0;
  await expect.poll(() => served).toBeGreaterThan(12);
  other.release();
});

test("a queue that would only grow is refused at once", async () => {
  const slots = createTurnSlots({ slots: 10, slotsPerTenant: 1 });
  const held = await slots.acquire(acme);
  const waiting = Array.from({ length: 100 }, async () => await slots.acquire(acme));

  await expect(slots.acquire(acme)).rejects.toMatchObject({ code: "unavailable", client: { retryAfterSeconds: 5 } });
  expect(await isSettled(slots.acquire(globex))).toBe(true);
  held.release();
  expect(await isSettled(waiting[0] as Promise<TurnSlot>)).toBe(true);
});
