import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { expect, test } from "vitest";
import { csvLine } from "../../control-plane/billing-csv.ts";
import { explainCall } from "../../control-plane/billing-explanation.ts";
import { parsePeriod } from "../../control-plane/billing-period.ts";
import { createBillingReports, type BillingReportsDeps, type ReportRequest } from "../../control-plane/billing-reports.ts";
import { createRateCard, loadRateCard, storeRateCard } from "../../control-plane/rate-cards.ts";
import { parseMarkup } from "../../domain/money.ts";
import { priceOf, type RateCardText } from "../../domain/rate-card.ts";
import type { TenantId } from "../../domain/tenant.ts";
import { noUsage, type Usage } from "../../domain/usage.ts";
import type { Database } from "../../storage/database.ts";
import { runSql } from "../storage/fresh-database.ts";
import { controlStage, someTenantId } from "./control-stage.ts";

const card = createRateCard({
  "claude-opus-4-7": { input: "15.00", output: "75.00", cache_read: "1.50", cache_write: "18.75", reasoning: "75.00" },
  odd: { input: "0.000001", output: "0.333333" },
});
/** Contract §6: 5.968545 USD. */
const checkUsage: Usage = {
  inputTokens: 142_500,
  outputTokens: 38_200,
  cacheReadTokens: 12_300,
  cacheWriteTokens: 0,
  reasoningTokens: 5_400,
};

type Call = {
  readonly id: string;
  readonly at: string;
  readonly model?: string;
  readonly session?: string;
  readonly usage: Usage;
  readonly markup?: string;
  readonly estimated?: boolean;
  readonly toolCalls?: number;
};

/** Bills as the settlement does: under the tenant's own role, which moves the day's sums too. */
async function bill(database: Database, tenantId: TenantId, call: Call): Promise<void> {
  const { model = "claude-opus-4-7", session = "api:jane:default", usage, markup = "0", estimated = false, toolCalls = 0 } = call;
  const rates = card.rates.get(model) ?? card.rates.get("odd");
  if (rates === undefined) throw new Error("no rates");
  const markupPpm = parseMarkup(markup, "markup");
  const { costNanoUsd, providerCostNanoUsd } = priceOf(rates, usage, markupPpm);
  await database.withTenant({ tenantId, requestId: "req_test" }, (tx) =>
    tx.execute(
      `insert into control.usage_ledger (id, tenant_id, session_id, "timestamp", model, reason, provider_request_id, input_tokens, cache_read_tokens,
         cache_write_tokens, output_tokens, reasoning_tokens, tool_calls, cost_nano_usd, provider_cost_nano_usd, markup_ppm, rate_card_hash, estimated)
       values ($1, $2, $3, $4, $5, 'chat', $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)`,
      [
        call.id,
        tenantId,
        session,
        call.at,
        model,
        `msg_${call.id}`,
        usage.inputTokens,
        usage.cacheReadTokens,
        usage.cacheWriteTokens,
        usage.outputTokens,
        usage.reasoningTokens,
        toolCalls,
        costNanoUsd.toString(),
        providerCostNanoUsd.toString(),
        markupPpm,
        card.hash,
        estimated,
      ],
    ),
  );
}

async function billingStage(options: Omit<BillingReportsDeps, "database"> = {}) {
  const { database, tenants, ownerUrl } = await controlStage();
  await database.withControl((tx) => storeRateCard(tx, card));
  const reports = createBillingReports({ database, ...options });
  const addTenant = async (name: string): Promise<TenantId> => (await tenants.create({ id: someTenantId(name) })).tenant.id;
  return { database, ownerUrl, reports, addTenant };
}

const requestOf = (period: string, rest: Omit<ReportRequest, "period"> = {}): ReportRequest => ({
  period: parsePeriod(period, Date.parse("2026-06-15T12:00:00Z")),
  ...rest,
});
async function textOf(chunks: AsyncIterable<string | Uint8Array>): Promise<string> {
  let text = "";
  for await (const chunk of chunks) text += typeof chunk === "string" ? chunk : Buffer.from(chunk).toString("utf8");
  return text;
}

test("the contract's check value goes through the ledger to the CSV, the JSON and the explanation", async () => {
  const { database, reports, addTenant } = await billingStage();
  const acme = await addTenant("acme");
  await bill(database, acme, { id: "trn_1.0", at: "2026-06-03T10:14:22Z", usage: checkUsage, markup: "0.10", toolCalls: 42 });

  expect(await textOf(await reports.csv(requestOf("2026-06", { tenantId: acme })))).toBe(
    `date,tenant,model,tokens_in,tokens_out,tokens_cached,reasoning_tokens,tool_calls,cost_usd\n2026-06-03,${acme},claude-opus-4-7,142500,38200,12300,5400,42,5.968545\n`,
  );
  const json = JSON.parse(await textOf(await reports.json(requestOf("2026-06", { tenantId: acme })))) as unknown;
  expect(json).toEqual({
    tenant: acme,
    period: "2026-06",
    currency: "USD",
    total_cost_usd: "5.968545000",
    date_unix: Date.parse("2026-06-01T00:00:00Z") / 1000,
    rows: [
      {
        date: "2026-06-03",
        tenant: acme,
        model: "claude-opus-4-7",
        tokens_in: 142_500,
        tokens_out: 38_200,
        tokens_cached: 12_300,
        reasoning_tokens: 5_400,
        tool_calls: 42,
        cost_usd: "5.968545000",
      },
    ],
  });
  expect(await explainCall(database, "trn_1.0")).toEqual({
    id: "trn_1.0",
    model: "claude-opus-4-7",
    lines: [
      { class: "input", tokens: 142_500, usd_per_million: "15.00", cost_usd: "2.137500000" },
      { class: "output", tokens: 38_200, usd_per_million: "75.00", cost_usd: "2.865000000" },
      { class: "cache_read", tokens: 12_300, usd_per_million: "1.50", cost_usd: "0.018450000" },
      { class: "cache_write", tokens: 0, usd_per_million: "18.75", cost_usd: "0.000000000" },
      { class: "reasoning", tokens: 5_400, usd_per_million: "75.00", cost_usd: "0.405000000" },
    ],
    markup_ppm: 100_000,
    cost_nano_usd: "5968545000",
    cost_usd: "5.968545000",
    sentence: `On 2026-06-03 ${acme} used claude-opus-4-7: 142,500 input tokens at $15.00/M = $2.1375, plus 38,200 output tokens at $75.00/M = $2.865, plus 12,300 cached input tokens at $1.50/M = $0.01845, plus 5,400 reasoning tokens at $75.00/M = $0.405. Together $5.42595, plus 10 % markup = $5.968545. Charge: $5.968545.`,
  });
});

test("rounded columns come from the exact sum, not from rounded parts", async () => {
  const { database, reports, addTenant } = await billingStage();
  const acme = await addTenant("acme");
  // 0.000000333 USD each: rounded one by one to 6 places, three of them would be nothing.
  for (const step of [0, 1, 2])
    await bill(database, acme, { id: `trn_1.${step}`, at: "2026-06-03T00:00:00Z", model: "odd", usage: { ...noUsage, outputTokens: 1 } });

  expect(await textOf(await reports.csv(requestOf("2026-06", { tenantId: acme })))).toContain(`${acme},odd,0,3,0,0,0,0.000001\n`);
  expect(await textOf(await reports.json(requestOf("2026-06", { tenantId: acme })))).toContain('"total_cost_usd":"0.000000999"');
});

test("days are UTC days of admission, at their very edges", async () => {
  const { database, reports, addTenant } = await billingStage();
  const acme = await addTenant("acme");
  const usage = { ...noUsage, inputTokens: 1_000_000 };
  const moments = [
    "2026-05-31T23:59:59.999Z",
    "2026-06-01T00:00:00Z",
    "2026-06-01T01:59:59+02:00",
    "2026-06-30T23:59:59.999Z",
    "2026-07-01T00:00:00Z",
  ];
  for (const [step, at] of moments.entries()) await bill(database, acme, { id: `trn_1.${step}`, at, usage });

  for (const detail of [false, true]) {
    const csv = await textOf(await reports.csv(requestOf("2026-06", { tenantId: acme, detail })));
    const lines = csv.trimEnd().split("\n").slice(1);
    expect(lines.map((line) => /2026-\d\d-\d\d/.exec(line)?.[0])).toEqual(["2026-06-01", "2026-06-30"]);
  }
});

test("a report of all tenants is ordered by date, tenant and model, and one of one tenant holds nothing of the others", async () => {
  const { database, reports, addTenant } = await billingStage({ pageRows: 2 });
  const [a, b] = [await addTenant("aaa"), await addTenant("bbb")];
  const usage = { ...noUsage, inputTokens: 7 };
  let step = 0;
  for (const tenantId of [b, a]) {
    for (const model of ["odd", "claude-opus-4-7"])
      for (const day of ["03", "02", "01"])
        for (const hour of ["09", "08"])
          await bill(database, tenantId, { id: `trn_1.${step++}`, at: `2026-06-${day}T${hour}:00:00Z`, model, usage });
  }

  const all = (await textOf(await reports.csv(requestOf("2026-06")))).trimEnd().split("\n").slice(1);
  const ofA = (await textOf(await reports.csv(requestOf("2026-06", { tenantId: a })))).trimEnd().split("\n").slice(1);
  const detail = (await textOf(await reports.csv(requestOf("2026-06", { detail: true })))).trimEnd().split("\n").slice(1);

  const keys = all.map((line) => line.split(",").slice(0, 3).join(","));
  expect(keys).toEqual(
    ["01", "02", "03"].flatMap((day) =>
      [a, b].flatMap((tenant) => ["claude-opus-4-7", "odd"].map((model) => `2026-06-${day},${tenant},${model}`)),
    ),
  );
  expect(all[0]).toBe(`2026-06-01,${a},claude-opus-4-7,14,0,0,0,0,0.000210`);
  expect(ofA).toEqual(all.filter((line) => line.includes(a)));
  expect(detail).toHaveLength(24);
  expect(new Set(detail.map((line) => line.split(",")[0])).size).toBe(24);
  const order = detail.map((line) =>
    [line.slice(line.indexOf("2026"), line.indexOf("2026") + 10), line.split(",")[3], line.split(",")[2]].join(" "),
  );
  expect(order).toEqual(order.toSorted());
});

test("the details carry every column of the row, harmless in a spreadsheet", async () => {
  const { database, reports, addTenant } = await billingStage();
  const acme = await addTenant("acme");
  await bill(database, acme, {
    id: "trn_1.0",
    at: "2026-06-03T10:14:22.123Z",
    model: '=cmd|"/c calc"',
    session: "wa:+15551234567:default",
    usage: { ...checkUsage, cacheWriteTokens: 3 },
    estimated: true,
  });

  const csv = await textOf(await reports.csv(requestOf("2026-06-03..2026-06-03", { tenantId: acme, detail: true })));
  const json = JSON.parse(await textOf(await reports.json(requestOf("2026-06", { tenantId: acme, detail: true })))) as { rows: object[] };

  expect(csv).toBe(
    "id,provider_request_id,timestamp,tenant_id,session_id,model,input_tokens,cache_read_tokens,cache_write_tokens,output_tokens,reasoning_tokens,tool_calls,cost_nano_usd,provider_cost_nano_usd,markup_ppm,rate_card_hash,estimated,reason\n" +
      `trn_1.0,msg_trn_1.0,2026-06-03T10:14:22.123Z,${acme},wa:+15551234567:default,"'=cmd|""/c calc""",142500,12300,3,38200,5400,0,14533474,14533474,0,${card.hash},true,chat\n`,
  );
  expect(json.rows).toEqual([
    {
      id: "trn_1.0",
      provider_request_id: "msg_trn_1.0",
      timestamp: "2026-06-03T10:14:22.123Z",
      tenant_id: acme,
      session_id: "wa:+15551234567:default",
      model: '=cmd|"/c calc"',
      input_tokens: 142_500,
      cache_read_tokens: 12_300,
      cache_write_tokens: 3,
      output_tokens: 38_200,
      reasoning_tokens: 5_400,
      tool_calls: 0,
      cost_nano_usd: "14533474",
      provider_cost_nano_usd: "14533474",
      markup_ppm: 0,
      rate_card_hash: card.hash,
      estimated: true,
      reason: "chat",
    },
  ]);
});

test("usage adds the days, the models and the ten dearest sessions of one tenant", async () => {
  const { database, reports, addTenant } = await billingStage();
  const [acme, other] = [await addTenant("acme"), await addTenant("other")];
  await bill(database, other, { id: "trn_0.0", at: "2026-06-02T00:00:00Z", usage: checkUsage });
  for (let session = 0; session < 12; session++) {
    await bill(database, acme, {
      id: `trn_1.${session}`,
      at: `2026-06-0${1 + (session % 2)}T12:00:00Z`,
      session: `api:s${session}:default`,
      usage: { ...noUsage, inputTokens: 1_000 * (session + 1) },
    });
  }
  await bill(database, acme, {
    id: "trn_2.0",
    at: "2026-06-02T12:00:00Z",
    model: "odd",
    session: "api:s11:default",
    usage: { ...noUsage, inputTokens: 5 },
  });

  const usage = await reports.usage(acme, requestOf("2026-06").period);

  expect(usage).toMatchObject({ tenant: acme, period: "2026-06", currency: "USD", total_cost_usd: "1.170000000" });
  expect(usage.rows).toHaveLength(3);
  expect(usage.daily.map(({ date, tokens_in, cost_usd }) => [date, tokens_in, cost_usd])).toEqual([
    ["2026-06-01", 36_000, "0.540000000"],
    ["2026-06-02", 42_005, "0.630000000"],
  ]);
  expect(usage.by_model.map(({ model, cost_usd }) => [model, cost_usd])).toEqual([
    ["claude-opus-4-7", "1.170000000"],
    ["odd", "0.000000000"],
  ]);
  expect(usage.top_sessions).toHaveLength(10);
  expect(usage.top_sessions[0]).toEqual({ session_id: "api:s11:default", calls: 2, cost_usd: "0.180000000" });
  expect(usage.quota).toEqual({ tokens_per_day: null, cost_per_day_usd: null, requests_per_minute: null });
});

test("the dearest sessions are those of the rows at every moment: late settlements, today's calls, the next day", async () => {
  let now = Date.parse("2026-06-03T09:00:00Z");
  const { database, ownerUrl, reports, addTenant } = await billingStage({ now: () => now });
  const [acme, globex] = [await addTenant("acme"), await addTenant("globex")];
  let calls = 0;
  const spend = async (day: string, session: number, tokens: number, tenantId = acme) =>
    await bill(database, tenantId, {
      id: `trn_${++calls}.0`,
      at: `${day}T08:00:00.${String(calls % 1_000).padStart(3, "0")}Z`,
      session: `api:s${session}:default`,
      usage: { ...noUsage, inputTokens: tokens },
    });
  const compare = async () => {
    for (const period of ["2026-06", "2026-06-01..2026-06-02", "2026-06-02..2026-06-03", "2026-06-03..2026-06-03", "2026-07"]) {
      const { firstDay, lastDay } = requestOf(period).period;
      const { rows } = await runSql(
        ownerUrl,
        `select session_id, count(*)::int as calls, to_char(sum(cost_nano_usd) / 1e9, 'FM999999990.000000000') as cost_usd from control.usage_ledger
         where tenant_id = '${acme}' and ("timestamp" at time zone 'UTC')::date between '${firstDay}' and '${lastDay}'
         group by 1 order by sum(cost_nano_usd) desc, session_id collate "C" limit 10`,
      );
      expect((await reports.usage(acme, requestOf(period).period)).top_sessions).toEqual(rows);
    }
  };

  for (let session = 0; session < 25; session++) {
    await spend("2026-06-01", session, 100 + (session % 5));
    await spend("2026-06-02", session, 100);
    if (session % 3 === 0) await spend("2026-06-03", session, 40);
  }
  await spend("2026-06-01", 3, 9_000, globex);
  await compare();
  await compare();
  await spend("2026-06-01", 24, 5_000); // settled late: the day is over
  await compare();
  await spend("2026-06-03", 7, 4_000);
  await spend("2026-06-03", 99, 3_000);
  await compare();
  now = Date.parse("2026-06-04T00:00:00Z");
  await compare();
  await spend("2026-06-03", 8, 6_000); // and so is this one now
  await compare();
});

test("an empty period is a header, an unknown tenant is not found before the first byte, a deleted one's bills stay", async () => {
  const { database, reports, addTenant } = await billingStage();
  const acme = await addTenant("acme");
  await bill(database, acme, { id: "trn_1.0", at: "2026-06-03T00:00:00Z", usage: checkUsage });
  await database.withControl((tx) => tx.execute("update control.tenant set state = 'deleted' where id = $1", [acme]));

  expect((await textOf(await reports.csv(requestOf("2026-05", { tenantId: acme })))).split("\n")).toHaveLength(2);
  expect(JSON.parse(await textOf(await reports.json(requestOf("2026-05", { tenantId: acme, detail: true }))))).toMatchObject({
    rows: [],
    total_cost_usd: "0.000000000",
  });
  await expect(reports.csv(requestOf("2026-06", { tenantId: someTenantId("nobody") }))).rejects.toMatchObject({ code: "not_found" });
  await expect(reports.usage(someTenantId("nobody"), requestOf("2026-06").period)).rejects.toMatchObject({ code: "not_found" });
  expect((await reports.usage(acme, requestOf("2026-06").period)).rows).toHaveLength(1);
});

test("an explanation recomputes to the digit, keeps to its tenant, and refuses a row or a card that was changed", async () => {
  const { database, ownerUrl, addTenant } = await billingStage();
  const [acme, other] = [await addTenant("acme"), await addTenant("other")];
  await bill(database, acme, {
    id: "trn_1.0",
    at: "2026-06-03T00:00:00Z",
    model: "odd",
    usage: { ...noUsage, inputTokens: 1, outputTokens: 3 },
    markup: "0.333333",
    estimated: true,
  });

  const explanation = await explainCall(database, "trn_1.0", acme);
  expect(explanation.lines[0]).toMatchObject({ class: "input", usd_per_million: "0.000001", cost_usd: "0.000000000001" });
  expect(explanation.sentence).toContain("33.3333 % markup");
  expect(explanation.sentence).toContain("counted here");
  for (const [doubt, why] of [
    ["missing", "(counted here, the provider gave no count)"],
    ["unbelievable", "(counted here, the provider's count cannot be true)"],
    ["contradictory", "(split here, the provider's counts contradict each other)"],
    ["cut", "(counted here, the answer ended before the provider's count)"],
  ] as const) {
    await runSql(ownerUrl, `update control.usage_ledger set doubt = '${doubt}'`);
    expect((await explainCall(database, "trn_1.0", acme)).sentence).toContain(why);
  }
  await expect(explainCall(database, "trn_1.0", other)).rejects.toMatchObject({ code: "not_found" });
  await expect(explainCall(database, "trn_9.0")).rejects.toMatchObject({ code: "not_found" });

  await runSql(ownerUrl, "update control.usage_ledger set cost_nano_usd = cost_nano_usd + 1");
  await expect(explainCall(database, "trn_1.0")).rejects.toMatchObject({ code: "internal" });
  await runSql(
    ownerUrl,
    "update control.usage_ledger set cost_nano_usd = cost_nano_usd - 1",
    `update control.rate_card set body = jsonb_set(body, '{odd,output}', '"0.3"')`,
  );
  await expect(explainCall(database, "trn_1.0")).rejects.toMatchObject({
    code: "internal",
    details: { reason: "the stored rate card was changed" },
  });
});

test("a card is stored once, with the moment it was first seen, and comes back the same", async () => {
  const { database } = await controlStage();
  const text: RateCardText = { m: { output: "2", input: "1.50" } };
  const created = createRateCard(text);

  expect(await database.withControl((tx) => storeRateCard(tx, created))).toBe(true);
  const first = await database.withControl((tx) => tx.query<{ valid_from: Date }>("select valid_from from control.rate_card"));
  expect(await database.withControl((tx) => storeRateCard(tx, created))).toBe(false);
  expect(await database.withControl((tx) => tx.query("select valid_from from control.rate_card"))).toEqual(first);
  expect(await database.withControl((tx) => loadRateCard(tx, created.hash))).toEqual({
    ...created,
    text: { m: { input: "1.5", output: "2" } },
  });
  expect(created.hash).toMatch(/^[0-9a-f]{64}$/);
  await expect(database.withControl((tx) => loadRateCard(tx, "0".repeat(64)))).rejects.toMatchObject({ code: "internal" });
});

test("however many read reports, they hold four connections, and one who waits for his reader holds none", async () => {
  const { database, addTenant } = await billingStage();
  const acme = await addTenant("acme");
  for (let n = 0; n < 40; n++)
    await bill(database, acme, { id: `trn_${n}.0`, at: `2026-06-01T00:00:00.${String(n).padStart(3, "0")}Z`, usage: checkUsage });
  let [now, most] = [0, 0];
  const counted: Pick<Database, "withControl"> = {
    async withControl(work, options) {
      most = Math.max(most, ++now);
      try {
        return await database.withControl(work, options);
      } finally {
        now--;
      }
    },
  };
  const reports = createBillingReports({ database: counted, pageRows: 1 });
  const request = requestOf("2026-06", { tenantId: acme, detail: true });

  const opened = await Promise.all(Array.from({ length: 30 }, async () => (await reports.csv(request))[Symbol.asyncIterator]()));
  await Promise.all(opened.map(async (reader) => [await reader.next(), await reader.next()]));
  await expect.poll(() => now).toBe(0);
  const texts = await Promise.all(Array.from({ length: 10 }, async () => await textOf(await reports.csv(request))));

  expect(most).toBe(4);
  expect(new Set(texts.map((text) => text.split("\n").length))).toEqual(new Set([42]));
  for (const reader of opened) await reader.return?.();
});

test("pages that hold something special and pages that do not are one report, to the byte", async () => {
  const { ownerUrl, reports, addTenant } = await billingStage({ pageRows: 2 });
  const acme = await addTenant("acme");
  const texts = [
    "m",
    'a"b',
    "a,b",
    "=1",
    "+1",
    "-1",
    "@x",
    "\t",
    "a\nb",
    "a\rb",
    "\\",
    "\\N",
    "\\.",
    "é€😀",
    " ",
    "a=b",
    "a-b",
    "'x",
    "m".repeat(9_000),
  ];
  // Six rows are a page of lines: some are all plain, some have one odd text somewhere, and there are several rows in a millisecond.
  const rows = Array.from({ length: 90 }, (_, n) => ({
    id: `trn_${String(n).padStart(3, "0")}.0`,
    at: `2026-06-0${1 + Math.floor(n / 60)}T00:00:00.${String(Math.floor(n / 4)).padStart(3, "0")}Z`,
    model: n % 12 < 6 ? (texts[n % texts.length] ?? "m") : "plain",
    request: n % 5 === 0 ? null : n % 7 === 0 ? (texts[(n * 3) % texts.length] ?? "") : `req_${n}`,
  }));
  await runSql(
    ownerUrl,
    `insert into control.usage_ledger (id, tenant_id, session_id, "timestamp", model, reason, provider_request_id, input_tokens, cache_read_tokens,
       cache_write_tokens, output_tokens, reasoning_tokens, cost_nano_usd, provider_cost_nano_usd, markup_ppm, rate_card_hash)
     select id, '${acme}', 'api:s:default', at, model, 'chat', request, 1, 0, 0, 1, 0, 7, 7, 0, 'x'
     from jsonb_to_recordset($rows$${JSON.stringify(rows)}$rows$::jsonb) as given (id text, at timestamptz, model text, request text)`,
  );

  const csv = await textOf(await reports.csv(requestOf("2026-06", { tenantId: acme, detail: true })));

  const lines = rows.map(({ id, at, model, request }) =>
    csvLine([id, request, at, acme, "api:s:default", model, 1, 0, 0, 1, 0, 0, 7, 7, 0, "x", false, "chat"]),
  );
  expect(csv.slice(csv.indexOf("\n") + 1)).toBe(lines.join(""));
});

test("a row's time is whole milliseconds: what a report reads on from would miss a finer one", async () => {
  const { ownerUrl, addTenant } = await billingStage();
  const acme = await addTenant("acme");
  const insert = (time: string) =>
    runSql(
      ownerUrl,
      `insert into control.usage_ledger (id, tenant_id, session_id, "timestamp", model, reason, input_tokens, cache_read_tokens, cache_write_tokens,
         output_tokens, reasoning_tokens, cost_nano_usd, provider_cost_nano_usd, markup_ppm, rate_card_hash)
       values ('trn_${time}.0', '${acme}', 'api:s:default', '${time}', 'm', 'chat', 1, 0, 0, 1, 0, 7, 7, 0, 'x')`,
    );

  await insert("2026-06-01T00:00:00.123Z");
  await expect(insert("2026-06-01T00:00:00.123001Z")).rejects.toMatchObject({ constraint: "usage_ledger_whole_milliseconds" });
});

test("a long report streams: memory stays flat, and every row is there once", async () => {
  const { ownerUrl, reports, addTenant } = await billingStage();
  const acme = await addTenant("acme");
  const rows = 40_000;
  await runSql(
    ownerUrl,
    `insert into control.usage_ledger (id, tenant_id, session_id, "timestamp", model, reason, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cost_nano_usd, provider_cost_nano_usd, markup_ppm, rate_card_hash)
     select 'trn_' || n || '.0', '${acme}', 'api:s' || n % 50 || ':default', timestamptz '2026-06-01Z' + (n / 7) * interval '137 seconds', 'm' || n % 3, 'chat', n, 0, 0, 1, 0, n, n, 0, 'x' from generate_series(0, ${rows - 1}) n`,
  );
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;

  let lines = 0;
  let cost = 0n;
  const heaps: number[] = [];
  for await (const chunk of await reports.csv(requestOf("2026-06-01..2026-12-31", { tenantId: acme, detail: true }))) {
    for (const line of Buffer.from(chunk as Uint8Array)
      .toString("utf8")
      .trimEnd()
      .split("\n")) {
      if (line.startsWith("id,")) continue;
      lines++;
      cost += BigInt(line.split(",")[12] ?? "");
    }
    collect();
    heaps.push(process.memoryUsage().heapUsed);
  }

  expect(lines).toBe(rows);
  expect(cost).toBe((BigInt(rows) * BigInt(rows - 1)) / 2n);
  expect(Math.max(...heaps) - Math.min(...heaps)).toBeLessThan(24 * 1024 * 1024);
});

test("a month's platform fee is a line of the JSON on the day that it falls due, whatever the pages, and never of the CSV", async () => {
  const { ownerUrl, database, reports, addTenant } = await billingStage({ pageRows: 1 });
  const [early, late] = [await addTenant("early"), await addTenant("late")];
  await bill(database, early, { id: "trn_1.0", at: "2026-06-03T10:14:22Z", usage: checkUsage });
  await runSql(
    ownerUrl,
    `update control.tenant set created_at = '2026-01-15T00:00:00Z', deleted_at = '2026-07-01T00:00:00Z' where id = '${early}'`,
    `update control.tenant set created_at = '2026-06-30T23:59:59Z' where id = '${late}'`,
    "insert into control.platform_fee values ('2026-03-02', 49000000000), ('2026-06-30', 50000000001)",
  );
  const linesOf = async (period: string, tenantId?: TenantId) => {
    const report = JSON.parse(await textOf(await reports.json(requestOf(period, tenantId === undefined ? {} : { tenantId })))) as {
      platform_fees?: readonly { date: string; tenant: string; platform_fee_usd: string }[];
      total_cost_usd: string;
      total_with_fees_usd?: string;
    };
    return {
      fees: report.platform_fees?.map(({ date, tenant, platform_fee_usd }) => [date, tenant, platform_fee_usd]),
      totals: [report.total_cost_usd, report.total_with_fees_usd],
    };
  };

  expect(await linesOf("2026-06")).toEqual({
    fees: [
      ["2026-06-01", early, "49.000000000"],
      ["2026-06-30", late, "50.000000001"],
    ],
    totals: ["5.425950000", "104.425950001"],
  });
  expect(await linesOf("2026-03", early)).toEqual({ fees: undefined, totals: ["0.000000000", undefined] }); // it was there before the fee was
  expect((await linesOf("2026-04-02..2026-06-30", early)).fees?.map(([date]) => date)).toEqual(["2026-05-01", "2026-06-01"]);
  expect((await linesOf("2026-07")).fees).toEqual(
    [
      ["2026-07-01", early, "50.000000001"], // a moment of the month was enough
      ["2026-07-01", late, "50.000000001"],
    ].toSorted(([, a = ""], [, b = ""]) => (a < b ? -1 : 1)),
  );
  expect((await linesOf("2026-08")).fees?.map(([, tenant]) => tenant)).toEqual([late]);
  expect(await textOf(await reports.csv(requestOf("2026-06", { tenantId: early })))).not.toContain("49");
});

test("usage tells how far today's ceilings are used, whatever the period", async () => {
  const { database, ownerUrl, reports, addTenant } = await billingStage();
  const acme = await addTenant("acme");
  const yesterday = new Date(Date.now() - 86_400_000).toISOString();
  await bill(database, acme, { id: "trn_old.0", at: yesterday, usage: checkUsage });
  await bill(database, acme, { id: "trn_new.0", at: new Date().toISOString(), usage: checkUsage });
  await runSql(ownerUrl, `update control.tenant set tokens_per_day = 1000000, cost_per_day_nano_usd = 7000000000 where id = '${acme}'`);

  const { quota } = await reports.usage(acme, requestOf("2026-06").period);

  expect(quota).toEqual({
    tokens_per_day: { limit: 1_000_000, used: 142_500 + 38_200 + 5_400 },
    cost_per_day_usd: { limit: "7.000000000", used: "5.425950000" },
    requests_per_minute: null,
  });
});
