import { expect, onTestFinished, test } from "vitest";
import { openDatabase } from "../../storage/database.ts";
import { readUsageTotals, tenantsInUsage } from "../../storage/usage-totals.ts";
import { freshDatabase, quiet } from "./fresh-database.ts";

test("the tenants that used most are told apart, and the rest is one", async () => {
  const database = await openDatabase({ ownerUrl: await freshDatabase(), log: quiet });
  onTestFinished(() => database.close());
  const ledgerRow = `insert into control.usage_ledger (id, tenant_id, session_id, "timestamp", model, reason, input_tokens, cache_read_tokens,
    cache_write_tokens, output_tokens, reasoning_tokens, cost_nano_usd, provider_cost_nano_usd, markup_ppm, rate_card_hash)`;
  await database.withControl(async (tx) => {
    await tx.execute(
      `${ledgerRow} select 'row-' || n, 'tenant-' || n, 's', date_trunc('milliseconds', now()), 'm', 'chat', n, 0, 1, 2, 3, 1000000000, 0, 0, 'h' from generate_series(1, 50) n`,
    );
    await tx.execute(
      `${ledgerRow} values ('old', 'tenant-1', 's', date_trunc('milliseconds', now()) - interval '3 days', 'm', 'chat', 7, 5, 0, 0, 0, 500000000, 0, 0, 'h')`,
    );
    await tx.execute(
      `insert into control.open_turn (tenant_id, turn_id, lane, kind) select 'tenant-' || n, 'turn-' || m, 'l', 'chat' from generate_series(1, 30) n, generate_series(1, n) m`,
    );
  });

  const totals = await database.withControl(readUsageTotals, { readOnly: true });

  expect(totals).toMatchObject({
    openTurns: 465,
    calls: 51,
    costUsd: 50.5,
    tokens: { in: 1_275 + 50 + 7, out: 100, cached: 5, reasoning: 150 },
  });
  expect(totals.today).toHaveLength(tenantsInUsage + 1);
  expect(totals.today.find(({ tenant }) => tenant === "_other")).toEqual({
    tenant: "_other",
    calls: 30,
    tokens: 465 + 6 * 30,
    costUsd: 30,
  });
  expect(totals.today.filter(({ tenant }) => tenant !== "_other").map(({ tenant }) => tenant)).toEqual(
    Array.from({ length: tenantsInUsage }, (_, index) => `tenant-${50 - index}`),
  );
  expect(totals.openTurnsOf).toHaveLength(tenantsInUsage + 1);
  expect(totals.openTurnsOf).toEqual(
    expect.arrayContaining([
      { tenant: "tenant-30", turns: 30 },
      { tenant: "_other", turns: 55 },
    ]),
  );
});

test("an empty ledger has figures too", async () => {
  const database = await openDatabase({ ownerUrl: await freshDatabase(), log: quiet });
  onTestFinished(() => database.close());

  expect(await database.withControl(readUsageTotals, { readOnly: true })).toEqual({
    openTurns: 0,
    calls: 0,
    costUsd: 0,
    tokens: { in: 0, out: 0, cached: 0, reasoning: 0 },
    today: [],
    openTurnsOf: [],
  });
});
