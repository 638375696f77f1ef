// What billing rows cost to write and to report: node bench/billing.ts [--rows 1000000] [--json]
//
// The product runs as `app/main.ts start`. Rows are written by the storage layer's own statement, next to the same table without keys to
// other sums; reports are fetched over HTTP, next to Postgres' own COPY of the same columns. Memory is the product's resident set.
import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import pg from "pg";
import type { MarkupPpm, NanoUsd } from "../domain/money.ts";
import type { RateCardHash } from "../domain/rate-card.ts";
import type { SessionId } from "../domain/session-id.ts";
import { type TenantContext, parseTenantId } from "../domain/tenant.ts";
import { callIdOf, mintTurnId } from "../domain/turn-id.ts";
import { openDatabase } from "../storage/database.ts";
import { recordUsage } from "../storage/turn-repository.ts";
import { onFreshHome, quantile } from "./bench-run.ts";
import { type RunningProduct, databaseUrlOf, startProduct } from "./turn-product.ts";

const { values: options } = parseArgs({
  options: { rows: { type: "string", default: "1000000" }, json: { type: "boolean", default: false } },
});
const manyRows = Number(options.rows);
const fewRows = Math.round(manyRows / 10);
const writeMs = 4_000;
const writers = 8;
/** The rows lie in two months before this one: nothing else writes there. */
const [fewMonth, manyMonth] = ["2026-01", "2026-02"] as const;

const print = (name: string, value: string, compared = ""): void => console.log(`${name.padEnd(44)}${value.padStart(18)}   ${compared}`);

async function rowsWritten(write: () => Promise<void>): Promise<number> {
  let count = 0;
  const startedAt = performance.now();
  await Promise.all(
    Array.from({ length: writers }, async () => {
      while (performance.now() - startedAt < writeMs) {
        await write();
        count++;
      }
    }),
  );
  return (count * 1_000) / (performance.now() - startedAt);
}

/** Rows of a month, spread over its days, 20 models and sessions of some 100 calls, with the sums that the triggers would have made. */
async function seed(pool: pg.Pool, tenant: string, month: string, count: number): Promise<void> {
  const client = await pool.connect();
  try {
    await client.query("begin");
    await client.query("set local session_replication_role = replica"); // triggers off: a million in one statement would each update one row
    await client.query(
      `insert into control.usage_ledger (id, tenant_id, session_id, "timestamp", model, reason, provider_request_id, input_tokens, cache_read_tokens,
         cache_write_tokens, output_tokens, reasoning_tokens, tool_calls, cost_nano_usd, provider_cost_nano_usd, markup_ppm, rate_card_hash, estimated)
       select 'trn_bench-' || $2 || '-' || n || '.0', $1, 'api:user-' || (n::bigint * 7919 % greatest($4::int / 100, 1)) || ':default',
         date_trunc('milliseconds', ($2 || '-01')::timestamp at time zone 'UTC' + n * (interval '28 days' / $4)), 'model-' || n % 20, 'chat', 'req_' || md5(n::text),
         n % 3000, n % 700, n % 50, n % 900, n % 100, n % 3, n % 100000 * 17, n % 100000 * 15, 100000, repeat('a', 64), false
       from generate_series(0, $3::int - 1) n`,
      [tenant, month, count, count],
    );
    await client.query(
      `insert into control.usage_daily (tenant_id, day, model, tokens_in, tokens_out, tokens_cached, reasoning_tokens, tool_calls, cost_nano_usd, calls, cache_write_tokens)
       select tenant_id, ("timestamp" at time zone 'UTC')::date, model, sum(input_tokens + cache_write_tokens), sum(output_tokens), sum(cache_read_tokens),
         sum(reasoning_tokens), sum(tool_calls), sum(cost_nano_usd), count(*), sum(cache_write_tokens) from control.usage_ledger where id like 'trn_bench-' || $1 || '-%' group by 1, 2, 3`,
      [month],
    );
    await client.query("commit");
  } finally {
    client.release();
  }
  await pool.query("vacuum (analyze) control.usage_ledger, control.usage_daily");
}

const residentMiB = (pid: number): number => Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0) / 1_024;

type Report = { readonly rowsPerSecond: number; readonly peakMiB: number };

async function fetchReport(product: RunningProduct, adminKey: string, path: string, rows: number): Promise<Report> {
  const before = residentMiB(product.pid);
  let peak = before;
  const watch = setInterval(() => (peak = Math.max(peak, residentMiB(product.pid))), 50);
  const startedAt = performance.now();
  const answer = await fetch(product.url + path, { headers: { authorization: `Bearer ${adminKey}` } });
  if (!answer.ok || answer.body === null) throw new Error(`${path} answered ${answer.status}: ${await answer.text()}`);
  let lines = 0;
  for await (const chunk of answer.body as AsyncIterable<Uint8Array>) for (let at = -1; (at = chunk.indexOf(10, at + 1)) >= 0;) lines++;
  const seconds = (performance.now() - startedAt) / 1_000;
  clearInterval(watch);
  if (path.includes("csv") && lines !== rows + 1) throw new Error(`${lines} lines for ${rows} rows`);
  return { rowsPerSecond: rows / seconds, peakMiB: peak - before };
}

async function measure(home: string): Promise<void> {
  const product = await startProduct({ home, modelUrl: "http://127.0.0.1:9", modelCall: "remote" });
  const ownerUrl = databaseUrlOf(home);
  const pool = new pg.Pool({ connectionString: ownerUrl, max: writers });
  const database = await openDatabase({ ownerUrl, log: () => undefined });
  const adminKey = readFileSync(join(home, "admin-key"), "utf8").trim();
  const context: TenantContext = { tenantId: parseTenantId("billed"), requestId: "bench" };
  const figures: Record<string, number> = {};
  const note = (name: string, value: number): number => (figures[name] = value);
  try {
    await product.createTenant("billed");
    const usage = { inputTokens: 100, cacheReadTokens: 10, cacheWriteTokens: 0, outputTokens: 20, reasoningTokens: 5, estimated: false };
    const price = { costNanoUsd: 4_780_000n as NanoUsd, providerCostNanoUsd: 4_345_455n as NanoUsd, markupPpm: 100_000 as MarkupPpm };
    const own = await rowsWritten(async () => {
      const id = callIdOf(mintTurnId(Date.now(), randomBytes(10)), 0);
      const rest = { providerRequestId: "req_1", toolCalls: 0, rateCardHash: "a".repeat(64) as RateCardHash, reason: "chat" as const };
      await database.withTenant(context, async (tx) => {
        const sessionId = "api:jane:default" as SessionId;
        await recordUsage(tx, { id, sessionId, atMs: Date.now(), model: "bench-fast", usage, ...price, ...rest });
      });
    });
    await pool.query("create table bench_plain (like control.usage_ledger including all)");
    const plain = await rowsWritten(async () => {
      await pool.query(
        `insert into bench_plain values ($1, 'billed', 'api:jane:default', date_trunc('milliseconds', now()), 'bench-fast', 'chat', 'req_1', 100, 10, 0, 20, 5, 0, 4780000, 4345455,
           100000, repeat('a', 64), false)`,
        [randomBytes(12).toString("hex")],
      );
    });
    print(
      "rows written a second, one tenant",
      note("written", own).toFixed(0),
      `${(own / plain).toFixed(2)} x a bare insert (${plain.toFixed(0)})`,
    );

    await seed(pool, "billed", fewMonth, fewRows);
    await seed(pool, "billed", manyMonth, manyRows);
    const copyAt = performance.now();
    await pool.query(
      `copy (select * from control.usage_ledger where tenant_id = 'billed' and "timestamp" between '2026-02-01Z' and '2026-03-01Z' order by "timestamp", id)
       to '/dev/null' (format csv)`,
    );
    const copied = note("copied", manyRows / ((performance.now() - copyAt) / 1_000));
    for (const format of ["csv", "json"] as const) {
      const pathOf = (period: string): string => `/v1/billing/report?tenant=billed&period=${period}&format=${format}&detail=true`;
      const few = await fetchReport(product, adminKey, pathOf(fewMonth), fewRows);
      const many = await fetchReport(product, adminKey, pathOf(manyMonth), manyRows);
      const name = format.toUpperCase();
      note(`${format}RowsPerSecond`, many.rowsPerSecond);
      note(`${format}PeakMiB`, many.peakMiB);
      print(
        `${name} rows a second, ${manyRows} rows`,
        many.rowsPerSecond.toFixed(0),
        `${(many.rowsPerSecond / copied).toFixed(2)} x COPY to nowhere (${copied.toFixed(0)})`,
      );
      print(`${name}, memory over idle, MiB`, many.peakMiB.toFixed(0), `${few.peakMiB.toFixed(0)} at ${fewRows} rows`);
    }
    for (const period of [manyMonth, `${manyMonth}-10..${manyMonth}-10`, `${fewMonth}-15..${manyMonth}-20`]) {
      const times: number[] = [];
      let firstMs = 0;
      for (let n = 0; n < 60; n++) {
        const startedAt = performance.now();
        const answer = await fetch(`${product.url}/v1/tenants/billed/usage?period=${period}`, {
          headers: { authorization: `Bearer ${adminKey}` },
        });
        if (!answer.ok) throw new Error(await answer.text());
        await answer.arrayBuffer();
        const took = performance.now() - startedAt;
        if (n === 0) firstMs = took;
        if (n >= 5) times.push(took);
      }
      print(
        `usage of ${period}, P50 and P95 ms`,
        `${quantile(times, 0.5).toFixed(1)} ${note(`usageP95 ${period}`, quantile(times, 0.95)).toFixed(1)}`,
        `${firstMs.toFixed(0)} the first time`,
      );
    }
    if (options.json) console.log(JSON.stringify(figures));
  } finally {
    await pool.end();
    await database.close();
    await product.stop();
  }
}

await onFreshHome("billing", measure);
