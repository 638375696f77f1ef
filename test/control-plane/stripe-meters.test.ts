import { expect, onTestFinished, test } from "vitest";
import { type MeterEvent, openStripeMeters } from "../../control-plane/stripe-meters.ts";
import { startFakeStripe } from "../fixtures/fake-stripe.ts";
import { dayOf, usageMeter } from "./invoice-stage.ts";

const yesterday = dayOf(-1);

async function metersStage(timeoutMs?: number) {
  const stripe = await startFakeStripe();
  onTestFinished(() => stripe.close());
  stripe.customers.add("cus_1");
  const options = { apiKey: stripe.apiKey, apiBase: stripe.url };
  const meters = await openStripeMeters(timeoutMs === undefined ? options : { ...options, timeoutMs });
  const event = (identifier: string, more: Partial<MeterEvent> = {}): MeterEvent => ({
    eventName: usageMeter,
    customer: "cus_1",
    value: 999_999_999_999_999n,
    identifier,
    atSeconds: Date.parse(`${yesterday}T23:59:59Z`) / 1_000,
    ...more,
  });
  return { stripe, meters, event, options };
}

test("values go to Stripe as whole digits, and its refusals are told apart from doubts", async () => {
  const { stripe, meters, event } = await metersStage();

  expect(await meters.send(event("a"))).toEqual({ state: "accepted" });
  expect(stripe.events.map(({ value }) => value)).toEqual([999_999_999_999_999n]);
  expect(await meters.send(event("a"))).toEqual({ state: "known" });
  expect(await meters.send(event("b", { customer: "cus_2" }))).toEqual({
    state: "refused",
    reason: "Stripe (400): No such customer: 'cus_2'",
  });
  expect(await meters.send(event("c", { eventName: "none" }))).toMatchObject({ state: "refused" });
  expect(await meters.send(event("c", { value: 1_000_000_000_000_000n }))).toMatchObject({ state: "refused" });
  expect(await meters.send(event("d", { atSeconds: 1 }))).toMatchObject({ state: "refused" });
  stripe.next("500");
  expect(await meters.send(event("e"))).toMatchObject({ state: "unclear" });
  stripe.next({ retryAfter: "99999" });
  expect(await meters.send(event("e"))).toMatchObject({ state: "later", afterMs: 3_600_000 });
  stripe.next("drop", "drop");
  expect(await meters.send(event("e"))).toMatchObject({ state: "unclear" });
  expect(stripe.events).toHaveLength(1);
});

test("an answer that comes too late leaves a doubt, which the next call ends", async () => {
  const { stripe, meters, event } = await metersStage(300);
  const held = Promise.withResolvers<void>();

  stripe.next({ hold: held.promise });
  expect(await meters.send(event("a"))).toMatchObject({ state: "unclear" });
  expect(await meters.send(event("a"))).toMatchObject({ state: "later" }); // Stripe is still at it
  held.resolve();
  await expect.poll(async () => (await meters.send(event("a"))).state).toBe("known");

  expect(stripe.events).toHaveLength(1);
});

test("a key that Stripe does not accept is not quoted", async () => {
  const { options, event } = await metersStage();
  const meters = await openStripeMeters({ ...options, apiKey: "sk_test_another" });

  const answer = await meters.send(event("a"));

  expect([answer.state, (await meters.readMeters()).state]).toEqual(["locked", "locked"]);
  expect(JSON.stringify(answer)).not.toContain("sk_test");
});

test("a server that is not there leaves a doubt", async () => {
  const { stripe, meters, event } = await metersStage();
  await stripe.close();

  expect(await meters.send(event("a"))).toMatchObject({ state: "unclear" });
  expect(await meters.readMeters()).toMatchObject({ state: "unclear" });
});

test("the sum of a day is the customer's, of that meter and day", async () => {
  const { stripe, meters, event } = await metersStage();
  stripe.customers.add("cus_2");
  await meters.send(event("a", { value: 5n }));
  await meters.send(event("b", { value: 6n }));
  await meters.send(event("c", { value: 10n, customer: "cus_2" }));
  await meters.send(event("d", { value: 20n, atSeconds: Date.parse(`${yesterday}T00:00:00Z`) / 1_000 - 1 }));

  expect(await meters.sumOfDay("cus_1", usageMeter, yesterday)).toBe(11);
  expect(await meters.sumOfDay("cus_1", "openclaw_platform_fee_nano_usd", yesterday)).toBe(0);
  await expect(meters.sumOfDay("cus_1", "none", yesterday)).rejects.toThrow("no meter");
});
