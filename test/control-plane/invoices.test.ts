import { expect, test } from "vitest";
import { createInvoices } from "../../control-plane/invoices.ts";
import { requireStripeKey } from "../../control-plane/stripe-key.ts";
import type { TenantId } from "../../domain/tenant.ts";
import { recordPlatformFee } from "../../storage/platform-fee-repository.ts";
import { parseNanoUsd } from "../../domain/money.ts";
import { closeAccount, readAccounts, resolveEvent } from "../../storage/invoice-repository.ts";
import type { Fault } from "../fixtures/fake-stripe.ts";
import { type InvoiceStage, billCall, customerOf, dayOf, feeMeter, invoiceStage, ledgerSum, usageMeter } from "./invoice-stage.ts";

const yesterday = dayOf(-1);
const nothing = { planned: 0, sent: 0, refused: 0, held: 0 };

/** Lets the doubt about every event be older than Stripe's memory, on both sides. */
async function waitADay(stage: InvoiceStage): Promise<void> {
  stage.stripe.forgetIdentifiers();
  await stage.sql(
    "update control.invoice_event set unclear_since = unclear_since - interval '25 hours', attempted_at = attempted_at - interval '25 hours'",
  );
}

async function expectExact({ stripe, ownerUrl }: InvoiceStage, tenantId: TenantId): Promise<void> {
  expect(stripe.sumOf(customerOf(tenantId), usageMeter)).toBe(await ledgerSum(ownerUrl, tenantId));
}

test("each day that has ended is one event of its exact sum, and is told once", async () => {
  const stage = await invoiceStage();
  const tenantId = await stage.addTenant();
  await billCall(stage.database, tenantId, dayOf(-3), 1n);
  await billCall(stage.database, tenantId, yesterday, 4_780_000_001n, "one");
  await billCall(stage.database, tenantId, yesterday, 5_920_000_002n, "other");
  await billCall(stage.database, tenantId, dayOf(0), 7n);

  expect(await stage.run(tenantId)).toEqual({ ...nothing, planned: 2, sent: 2 });
  expect(await stage.run(tenantId)).toEqual(nothing);

  expect(stage.stripe.events).toEqual([
    {
      identifier: `openclaw.${tenantId}.${customerOf(tenantId)}.usage.${dayOf(-3)}.1`,
      customer: customerOf(tenantId),
      eventName: usageMeter,
      value: 1n,
      atSeconds: Date.parse(`${dayOf(-3)}T23:59:59Z`) / 1_000,
    },
    expect.objectContaining({ value: 10_700_000_003n, atSeconds: Date.parse(`${yesterday}T23:59:59Z`) / 1_000 }),
  ]);
  await expectExact(stage, tenantId);
});

test("a row that is settled late is the day's next revision", async () => {
  const stage = await invoiceStage();
  const tenantId = await stage.addTenant();
  await billCall(stage.database, tenantId, yesterday, 100n);
  await stage.run(tenantId);

  await billCall(stage.database, tenantId, yesterday, 23n);
  expect(await stage.run(tenantId)).toEqual({ ...nothing, planned: 1, sent: 1 });

  expect(stage.stripe.events.map(({ identifier, value }) => [identifier.split(".").at(-1), value])).toEqual([
    ["1", 100n],
    ["2", 23n],
  ]);
});

test("a day beyond what Stripe takes in one event is told in parts", async () => {
  const stage = await invoiceStage();
  const tenantId = await stage.addTenant();
  await stage.sql(`insert into control.platform_fee values ('${dayOf(-40)}', 1000000000000000)`);
  for (let call = 0; call < 3; call++) await billCall(stage.database, tenantId, yesterday, 999_999_999_999_998n);

  expect(await stage.run(tenantId)).toMatchObject({ refused: 0, held: 0 });
  expect(await stage.run(tenantId)).toEqual(nothing);

  expect(stage.stripe.events.filter(({ eventName }) => eventName === usageMeter).map(({ value }) => value)).toEqual([
    999_999_999_999_999n,
    999_999_999_999_999n,
    999_999_999_999_996n,
  ]);
  await expectExact(stage, tenantId);
  const fees = Array.from({ length: 34 }, (_, index) => dayOf(index - 34)).filter((day) => day.endsWith("-01")).length;
  expect(stage.stripe.sumOf(customerOf(tenantId), feeMeter)).toBe(1_000_000_000_000_000n * BigInt(fees));
});

test("an answer that is lost is asked for again under the same identifier, and is not counted twice", async () => {
  for (const fault of ["lose", "lose-500", "garbage"] as const) {
    const stage = await invoiceStage();
    const tenantId = await stage.addTenant();
    await billCall(stage.database, tenantId, yesterday, 5n);

    stage.stripe.fault = () => fault; // again, for Stripe's client repeats a call whose connection was reset once, by itself
    expect(await stage.run(tenantId)).toBe("unavailable");
    expect(await stage.undecided(tenantId)).toEqual([[`usage.${yesterday}.1`, "open"]]);
    stage.stripe.fault = undefined;
    expect(await stage.run(tenantId)).toEqual({ ...nothing, sent: 1 });

    expect(stage.stripe.events).toHaveLength(1);
    expect(new Set(stage.stripe.attempts.map(({ identifier }) => identifier)).size).toBe(1);
    await expectExact(stage, tenantId);
  }
});

test("only one event of a day is in doubt at a time, and other days do not wait for it", async () => {
  const stage = await invoiceStage();
  const tenantId = await stage.addTenant();
  await billCall(stage.database, tenantId, dayOf(-2), 40n);
  stage.stripe.next("lose-500");
  await stage.run(tenantId);
  await billCall(stage.database, tenantId, dayOf(-2), 2n);
  await billCall(stage.database, tenantId, yesterday, 3n);

  stage.stripe.next("500", "none");
  expect(await stage.run(tenantId)).toBe("unavailable");
  expect(await stage.undecided(tenantId)).toEqual([
    [`usage.${dayOf(-2)}.1`, "open"],
    [`usage.${dayOf(-2)}.2`, "open"],
  ]);
  expect(stage.stripe.attempts.map(({ identifier }) => identifier.split(".").slice(-2).join())).toEqual([
    `${dayOf(-2)},1`,
    `${dayOf(-2)},1`,
    `${yesterday},1`,
  ]);
  expect(await stage.run(tenantId)).toEqual({ ...nothing, sent: 2 });

  await expectExact(stage, tenantId);
});

test("after more than a day of doubt Stripe's own sum tells whether the event has arrived", async () => {
  const stage = await invoiceStage();
  const [arrived, lost] = [await stage.addTenant("arrived"), await stage.addTenant("lost")];
  for (const [tenantId, fault] of [
    [arrived, "lose-500"],
    [lost, "500"],
  ] as const) {
    await billCall(stage.database, tenantId, yesterday, 40n);
    await stage.run(tenantId);
    await billCall(stage.database, tenantId, yesterday, 2n);
    stage.stripe.next(fault);
    expect(await stage.run(tenantId)).toBe("unavailable");
  }
  await waitADay(stage);
  const before = stage.stripe.attempts.length;

  expect(await stage.run(arrived)).toEqual({ ...nothing, sent: 1 });
  expect(stage.stripe.attempts).toHaveLength(before);
  expect(await stage.run(lost)).toEqual({ ...nothing, sent: 1 });
  expect(stage.stripe.attempts).toHaveLength(before + 1);

  await expectExact(stage, arrived);
  await expectExact(stage, lost);
});

test("what nobody can tell is held for an administrator, never sent again by itself, and holds up no other day", async () => {
  const stage = await invoiceStage();
  const tenantId = await stage.addTenant();
  await billCall(stage.database, tenantId, yesterday, 40n);
  stage.stripe.next("500");
  await stage.run(tenantId);
  await waitADay(stage);
  // Somebody else writes to the same meter.
  await fetch(`${stage.stripe.url}/v1/billing/meter_events`, {
    method: "POST",
    headers: { authorization: `Bearer ${stage.stripe.apiKey}` },
    body: new URLSearchParams({
      event_name: usageMeter,
      identifier: "foreign",
      timestamp: String(Date.parse(`${yesterday}T10:00:00Z`) / 1_000),
      "payload[stripe_customer_id]": customerOf(tenantId),
      "payload[value]": "7",
    }),
  });
  await billCall(stage.database, tenantId, dayOf(-2), 3n);

  expect(await stage.run(tenantId)).toEqual({ planned: 1, sent: 1, refused: 0, held: 1 });
  expect(await stage.run(tenantId)).toEqual({ ...nothing, held: 1 });
  expect(await stage.invoices.status(tenantId)).toMatchObject({
    data: [
      {
        undecided: [
          { event: `usage.${yesterday}.1`, state: "held", reason: expect.stringContaining("neither 0 without it nor 40 with it") },
        ],
      },
    ],
  });

  const key = { tenantId, mode: "test", kind: "usage", day: yesterday, revision: 1 } as const;
  expect(await stage.database.withControl((tx) => resolveEvent(tx, key, "open"))).toBe(true);
  expect(await stage.run(tenantId)).toEqual({ ...nothing, sent: 1 });
  expect(await stage.database.withControl((tx) => resolveEvent(tx, key, "dropped"))).toBe(false); // it is decided
  expect(stage.stripe.sumOf(customerOf(tenantId))).toBe(50n);
});

test("Stripe's sums are not asked within an hour of a call: it adds up later than it answers", async () => {
  const stage = await invoiceStage();
  const tenantId = await stage.addTenant();
  await billCall(stage.database, tenantId, yesterday, 40n);
  stage.stripe.next("lose-500");
  await stage.run(tenantId);
  stage.stripe.forgetIdentifiers();
  await stage.sql("update control.invoice_event set unclear_since = unclear_since - interval '25 hours'");

  expect(await stage.run(tenantId)).toBe("unavailable");

  expect(stage.stripe.attempts).toHaveLength(1);
  expect(await stage.undecided(tenantId)).toEqual([[`usage.${yesterday}.1`, "open"]]);
});

test("a customer that Stripe does not know is refused, and is told when the mapping is mended; other tenants and days go on", async () => {
  const stage = await invoiceStage();
  const [bad, good] = [await stage.addTenant("bad", false), await stage.addTenant("good")];
  for (const tenantId of [bad, good]) for (const day of [-2, -1]) await billCall(stage.database, tenantId, dayOf(day), 11n);

  expect(await stage.run(bad)).toEqual({ planned: 2, sent: 0, refused: 2, held: 0 });
  expect(await stage.run(good)).toEqual({ planned: 2, sent: 2, refused: 0, held: 0 });
  expect(await stage.invoices.preview(bad, { text: "x", firstDay: dayOf(-9), lastDay: dayOf(0) })).toMatchObject({
    total_usd: "0.000000022",
    lines: [{ state: "refused", reason: expect.stringContaining("No such customer") }, {}],
  });

  stage.configure({ customers: new Map([[bad, "cus_mended"]]) });
  stage.stripe.customers.add("cus_mended");
  expect(await stage.run(bad)).toEqual({ ...nothing, sent: 2 });
  expect(stage.stripe.sumOf("cus_mended")).toBe(22n);
});

test("nothing is told to a meter that is not there or would count something else; the other one goes on, and all of it when it is mended", async () => {
  const stage = await invoiceStage();
  const tenantId = await stage.addTenant();
  await stage.sql(`insert into control.platform_fee values ('${dayOf(-40)}', 5)`);
  await billCall(stage.database, tenantId, yesterday, 11n);
  await stage.sender.plan(tenantId, {});
  const fees = (await stage.undecided(tenantId)).length - 1;
  const oddities = {
    "is not there": () => stage.stripe.meters.delete(usageMeter),
    "has the aggregation count": () => (stage.stripe.oddMeters[usageMeter] = { default_aggregation: { formula: "count" } }),
    "must be raw": () => (stage.stripe.oddMeters[usageMeter] = { event_time_window: "day" }),
    "another customer key": () => (stage.stripe.oddMeters[usageMeter] = { customer_mapping: { event_payload_key: "id", type: "by_id" } }),
    "another value key": () => (stage.stripe.oddMeters[usageMeter] = { value_settings: { event_payload_key: "tokens" } }),
  };

  for (const [index, [says, makeOdd]] of Object.entries(oddities).entries()) {
    makeOdd();
    expect(await stage.run(tenantId)).toEqual({ planned: 0, sent: index === 0 ? fees : 0, refused: 1, held: 0 });
    expect(await stage.invoices.status(tenantId)).toMatchObject({ data: [{ undecided: [{ reason: expect.stringContaining(says) }] }] });
    stage.stripe.meters.add(usageMeter);
    delete stage.stripe.oddMeters[usageMeter];
  }

  expect(await stage.run(tenantId)).toEqual({ ...nothing, sent: 1 });
  await expectExact(stage, tenantId);
});

test("days beyond Stripe's 35 are refused once and not asked about again", async () => {
  const stage = await invoiceStage();
  const tenantId = await stage.addTenant();
  stage.configure({ firstDay: dayOf(-50) });
  await billCall(stage.database, tenantId, dayOf(-40), 11n);

  expect(await stage.run(tenantId)).toEqual({ planned: 1, sent: 0, refused: 1, held: 0 });
  expect(await stage.run(tenantId)).toEqual({ ...nothing, refused: 1 });

  expect(stage.stripe.attempts).toHaveLength(1);
});

test("429 says when to come back; a key that is not accepted ends the run; neither leaves a doubt", async () => {
  const stage = await invoiceStage();
  const tenantId = await stage.addTenant();
  await billCall(stage.database, tenantId, yesterday, 11n);
  await stage.sender.plan(tenantId, {});
  const send = () => stage.sender.send(tenantId, {}, new AbortController().signal);

  stage.stripe.next({ retryAfter: "17" });
  await expect(send()).rejects.toMatchObject({ code: "unavailable", client: { retryAfterSeconds: 17 } });
  stage.stripe.next({ retryAfter: "soon" });
  await expect(send()).rejects.toMatchObject({ code: "unavailable", client: {} });
  stage.stripe.next("locked");
  const refused = await send().catch((error: unknown) => error);
  expect(refused).toMatchObject({ code: "invalid_configuration" });
  expect(String(refused)).not.toContain(stage.stripe.apiKey);

  expect(await stage.sql("select attempts, unclear_since, reason from control.invoice_event")).toEqual([
    { attempts: 3, unclear_since: null, reason: "Stripe (401) does not accept the API key for this call" },
  ]);
  expect(await send()).toEqual({ sent: 1, refused: 0, held: 0 });
  expect(stage.stripe.events).toHaveLength(1);
});

test("when Stripe is away a run gives up after a few calls, and none of it is lost", async () => {
  const stage = await invoiceStage();
  const tenantId = await stage.addTenant();
  for (let day = -20; day < 0; day++) await billCall(stage.database, tenantId, dayOf(day), 3n);

  stage.stripe.fault = () => "500";
  expect(await stage.run(tenantId)).toBe("unavailable");
  expect(stage.stripe.attempts).toHaveLength(3);
  stage.stripe.fault = undefined;

  expect(await stage.run(tenantId)).toEqual({ ...nothing, sent: 20 });
  await expectExact(stage, tenantId);
});

test("runs at the same time, and faults of every kind, add up to the ledger exactly", async () => {
  const stage = await invoiceStage();
  const tenantId = await stage.addTenant();
  const kinds: readonly Fault[] = ["none", "lose", "drop", "lose-500", "500", "garbage", { retryAfter: "1" }, "none"];
  let seed = 12_345;
  const random = (below: number): number => (seed = (seed * 1_103_515_245 + 12_345) % 2_147_483_648) % below;
  stage.stripe.fault = () => kinds[random(kinds.length)];

  for (let round = 0; round < 12; round++) {
    for (let call = 0; call < 5; call++) await billCall(stage.database, tenantId, dayOf(-1 - random(6)), BigInt(1 + random(1_000_000)));
    await Promise.all([stage.run(tenantId), stage.run(tenantId), stage.run(tenantId)]);
  }
  stage.stripe.fault = undefined;
  await expect
    .poll(async () => ((await stage.run(tenantId)) === "unavailable" ? 1 : await stage.undecided(tenantId)), { timeout: 20_000 })
    .toEqual([]);

  await expectExact(stage, tenantId);
  const identifiers = stage.stripe.events.map(({ identifier }) => identifier);
  expect(new Set(identifiers).size).toBe(identifiers.length);
  const rows = await stage.sql("select state, sum(value_nano_usd)::text as sum from control.invoice_event group by state");
  expect(rows).toEqual([{ state: "sent", sum: (await ledgerSum(stage.ownerUrl, tenantId)).toString() }]);
}, 120_000);

test("amounts of events are not changed, and events are not removed", async () => {
  const stage = await invoiceStage();
  const tenantId = await stage.addTenant();
  await billCall(stage.database, tenantId, yesterday, 11n);
  await stage.run(tenantId);

  await expect(stage.sql("update control.invoice_event set value_nano_usd = 1")).rejects.toThrow("never changed");
  await expect(stage.sql("delete from control.invoice_event")).rejects.toThrow("none is removed");
});

test("days before the first one are not told; without one given it is the day of the first mapping", async () => {
  const stage = await invoiceStage();
  const tenantId = await stage.addTenant();
  await billCall(stage.database, tenantId, dayOf(-5), 5n);
  await billCall(stage.database, tenantId, dayOf(-2), 2n);

  stage.configure({ firstDay: undefined });
  expect(await stage.run(tenantId)).toEqual(nothing);
  stage.configure({ firstDay: dayOf(-3) });
  expect(await stage.run(tenantId)).toEqual({ ...nothing, planned: 1, sent: 1 });
  expect(stage.stripe.sumOf(customerOf(tenantId))).toBe(2n);
});

test("live and test mode know nothing of each other, and a key of the other mode is refused", async () => {
  const stage = await invoiceStage();
  const tenantId = await stage.addTenant();
  await billCall(stage.database, tenantId, yesterday, 5n);
  await stage.run(tenantId);

  stage.stripe.forgetIdentifiers();
  stage.configure({ mode: "live" });
  expect(await stage.run(tenantId)).toEqual({ ...nothing, planned: 1, sent: 1 });

  expect(await stage.invoices.status(undefined)).toMatchObject({
    mode: "live",
    data: [
      { tenant: tenantId, mode: "live", state: "active", sent_usd: "0.000000005" },
      { tenant: tenantId, mode: "test", state: "not mapped", sent_usd: "0.000000005" },
    ],
  });

  const settings = { ...(await stage.invoices.requireCustomer(tenantId)), apiKeyEnv: "KEY" };
  for (const key of [undefined, "", "sk_test_1", "pk_live_1", "nonsense"])
    expect(() => requireStripeKey(settings, { KEY: key })).toThrow(/^Stripe cannot be told: KEY /);
  expect(requireStripeKey(settings, { KEY: "rk_live_1" })).toBe("rk_live_1");
});

test("a platform fee is told once a month on its own meter, in full also for the month of creation and of the end", async () => {
  const stage = await invoiceStage();
  const [old, young, gone] = [await stage.addTenant("old"), await stage.addTenant("young"), await stage.addTenant("gone")];
  await stage.sql("insert into control.platform_fee values (current_date - 90, 49000000000)");
  await stage.sql(`update control.tenant set created_at = '${yesterday}T15:00:00Z' where id = '${young}'`);
  await stage.sql(`update control.tenant set state = 'deleted', deleted_at = '${dayOf(-33)}T00:00:01Z' where id = '${gone}'`);

  for (const tenantId of [old, young, gone]) for (let again = 0; again < 2; again++) await stage.run(tenantId);

  const feesOf = (tenantId: TenantId) =>
    stage.stripe.events
      .filter(({ customer, eventName }) => customer === customerOf(tenantId) && eventName === feeMeter)
      .map(({ atSeconds, value }) => [new Date(atSeconds * 1_000).toISOString().slice(0, 10), value]);
  const firstDays = Array.from({ length: 34 }, (_, index) => dayOf(index - 34)).filter((day) => day.endsWith("-01"));
  expect(feesOf(old)).toEqual(firstDays.map((day) => [day, 49_000_000_000n]));
  expect(feesOf(young)).toEqual([[yesterday, 49_000_000_000n]]);
  expect(feesOf(gone)).toEqual(firstDays.filter((day) => day <= dayOf(-33)).map((day) => [day, 49_000_000_000n]));
});

test("a change of the fee counts for months that fall due from then on", async () => {
  const stage = await invoiceStage();
  const record = (nanoUsd: string) => stage.database.withControl((tx) => recordPlatformFee(tx, parseNanoUsd(nanoUsd)));
  const amounts = async () =>
    await stage.sql(
      "select (valid_from = (now() at time zone 'UTC')::date) as today, nano_usd::text from control.platform_fee order by valid_from",
    );

  await record("0");
  expect(await amounts()).toEqual([]);
  await record("5");
  await record("6");
  await record("6");
  expect(await amounts()).toEqual([{ today: true, nano_usd: "6" }]);
  await stage.sql("update control.platform_fee set valid_from = valid_from - 10");
  await record("0");
  expect(await amounts()).toEqual([
    { today: false, nano_usd: "6" },
    { today: true, nano_usd: "0" },
  ]);
});

test("an account ends when its tenant is erased and everything, the day of the end too, was told", async () => {
  const stage = await invoiceStage();
  const tenantId = await stage.addTenant();
  const isClosed = async () => (await stage.database.withControl((tx) => readAccounts(tx, tenantId)))[0]?.closed;
  const erasedAt = async (at: string) =>
    await stage.sql(`update control.tenant set state = 'deleted', deleted_at = ${at}, erased_at = ${at} where id = '${tenantId}'`);

  await stage.run(tenantId);
  expect(await isClosed()).toBe(false);
  await erasedAt("now()");
  await stage.run(tenantId);
  expect(await isClosed()).toBe(false);

  await billCall(stage.database, tenantId, yesterday, 9n);
  await erasedAt("now() - interval '1 day'");
  await stage.sender.plan(tenantId, {});
  await stage.database.withControl((tx) => closeAccount(tx, { tenantId, mode: "test" }));
  expect(await isClosed()).toBe(false);
  expect(await stage.run(tenantId)).toEqual({ ...nothing, sent: 1 });
  expect(await isClosed()).toBe(true);
  await expectExact(stage, tenantId);
});

test("without billing.stripe there is nothing to see and nothing to run", async () => {
  const stage = await invoiceStage();
  const tenantId = await stage.addTenant();
  const none = createInvoices({ database: stage.database, settings: () => undefined });

  await expect(none.status(undefined)).rejects.toMatchObject({ code: "conflict" });
  await expect(none.requireCustomer(tenantId)).rejects.toMatchObject({ code: "conflict" });
  await expect(none.requireCustomer("nobody" as TenantId)).rejects.toMatchObject({ code: "not_found" });
});
