// What a quota costs a call, and how exact it is: node bench/quota.ts [--seconds 4] [--json]
//
// The product runs as `app/main.ts start`; the leases are this process's, as if it were one more worker. Compared with an Update for
// every call, and with a counter in Postgres that is read, compared and then written. 1, 32 and 200 callers in a closed loop.
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import pg from "pg";
import { createQuotaLeases } from "../control-plane/quota-leases.ts";
import { QuotaLease } from "../domain/quota-lease.ts";
import { type Amount, type QuotaLimits } from "../domain/quota-ledger.ts";
import { answerFromWire, orderToWire } from "../domain/quota-wire.ts";
import type { NanoUsd } from "../domain/money.ts";
import { type TenantId, parseTenantId } from "../domain/tenant.ts";
import { callIdOf, mintTurnId } from "../domain/turn-id.ts";
import { openDatabase } from "../storage/database.ts";
import { openDataKeys } from "../storage/open-data-keys.ts";
import { connectTemporal } from "../temporal/temporal-connection.ts";
import { forTenant } from "../temporal/tenant-client.ts";
import { onFreshHome, quantile } from "./bench-run.ts";
import { databaseUrlOf, startProduct } from "./turn-product.ts";

const { values: options } = parseArgs({
  options: { seconds: { type: "string", default: "4" }, json: { type: "boolean", default: false } },
});
const measureMs = Math.max(0.5, Number(options.seconds)) * 1_000;
const callerCounts = [1, 32, 200] as const;
/** Of each call, reserved and used. */
const callTokens = 100;
const each: Amount = { tokens: callTokens, nanoUsd: 0n as NanoUsd };
/** Calls of the small quota, whose limit everybody runs into. */
const smallQuota = 50;
const plenty = 1_000_000_000_000;

/** One way of admitting calls: @returns whether the call may go. */
type Way = { readonly name: string; admit(): Promise<boolean>; close(): Promise<void> };
type Figures = { readonly perSecond: number; readonly p50: number; readonly p95: number };

const someCall = () => callIdOf(mintTurnId(Date.now(), crypto.getRandomValues(new Uint8Array(10))), 0);

async function throughput(way: Way, callers: number): Promise<Figures> {
  for (let warm = 0; warm < 3; warm++) await Promise.all(Array.from({ length: callers }, async () => await way.admit()));
  const times: number[] = [];
  const startedAt = performance.now();
  await Promise.all(
    Array.from({ length: callers }, async () => {
      while (performance.now() - startedAt < measureMs) {
        const before = performance.now();
        if (!(await way.admit())) throw new Error(`${way.name} refused a call of a quota without end`);
        times.push(performance.now() - before);
        await new Promise(setImmediate); // the call itself
      }
    }),
  );
  const seconds = (performance.now() - startedAt) / 1_000;
  return { perSecond: times.length / seconds, p50: quantile(times, 0.5), p95: quantile(times, 0.95) };
}

/** How many calls a quota for `smallQuota` lets through when each caller asks until it is refused. */
async function passed(way: Way, callers: number): Promise<number> {
  let count = 0;
  await Promise.all(
    Array.from({ length: callers }, async () => {
      while (await way.admit()) count++;
    }),
  );
  return count;
}

async function measure(home: string): Promise<void> {
  const product = await startProduct({ home, modelUrl: "http://127.0.0.1:9", modelCall: "remote" });
  const ownerUrl = databaseUrlOf(home);
  const log = (): void => undefined;
  const database = await openDatabase({ ownerUrl, log });
  const keys = await openDataKeys({ database, home, keyEncryptionKey: undefined, log });
  const connection = await connectTemporal({ ...product.temporal, dataKeys: keys.dataKeys });
  const naivePool = new pg.Pool({ connectionString: ownerUrl, max: 20 });
  try {
    await naivePool.query("create table bench_quota (tenant text primary key, used bigint not null)");
    const adminKey = readFileSync(join(home, "admin-key"), "utf8").trim();
    let names = 0;
    const newTenant = async (tokensPerDay: number): Promise<TenantId> => {
      const id = `quota-${++names}`;
      await product.createTenant(id);
      const answer = await fetch(`${product.url}/v1/tenants/${id}/quota`, {
        method: "PUT",
        headers: { authorization: `Bearer ${adminKey}`, "content-type": "application/json" },
        body: JSON.stringify({ tokens_per_day: tokensPerDay, cost_per_day_usd: null, requests_per_minute: null }),
      });
      if (!answer.ok) throw new Error(await answer.text());
      return parseTenantId(id);
    };
    const clientOf = (tenantId: TenantId) => forTenant({ tenantId }, connection, { windowMs: 2_000, modelCall: "remote" });
    const limitsOf = (tokensPerDay: number): QuotaLimits => ({ tokensPerDay, nanoUsdPerDay: undefined, requestsPerMinute: undefined });

    const updatePerCall = async (tokensPerDay: number): Promise<Way> => {
      const tenantId = await newTenant(tokensPerDay);
      const { quota } = clientOf(tenantId);
      const idle: QuotaLease[] = [];
      return {
        name: "an Update per call",
        async admit() {
          const lease = idle.pop() ?? new QuotaLease(randomUUID());
          const ask = async (): Promise<void> => {
            const order = lease.order({ calls: 1, least: each, first: each, total: each, requests: 0 }, performance.now());
            if (order === undefined) return;
            lease.take(answerFromWire(await quota.lease(orderToWire(order))));
          };
          await ask();
          const callId = someCall();
          const now = { monotonicMs: performance.now(), wallMs: Date.now() };
          const reserved = lease.reserve(callId, { least: each, desired: each }, now);
          if (reserved !== undefined) lease.settle({ callId, holder: reserved.holder, batch: reserved.batch, actual: each });
          idle.push(lease);
          return reserved !== undefined;
        },
        close: async () => {},
      };
    };
    const ways: readonly ((tokensPerDay: number) => Promise<Way>)[] = [
      async (tokensPerDay) => {
        const tenantId = await newTenant(tokensPerDay);
        const leases = createQuotaLeases({
          limitsOf: async () => limitsOf(tokensPerDay),
          clientOf,
          wake: async () => {},
          usedTokens: async () => 0,
          log,
        });
        return {
          name: "leases",
          async admit() {
            const callId = someCall();
            const need = { least: each, desired: each };
            try {
              const { holder, batch } = leases.take(tenantId, callId, need) ?? (await leases.reserve(tenantId, callId, need));
              leases.settle(tenantId, { callId, holder, batch, actual: each });
              return true;
            } catch {
              return false;
            }
          },
          close: leases.close,
        };
      },
      updatePerCall,
      async (tokensPerDay) => {
        const tenantId = await newTenant(tokensPerDay);
        await naivePool.query("insert into bench_quota values ($1, 0)", [tenantId]);
        return {
          name: "read, compare, write",
          async admit() {
            const { rows } = await naivePool.query<{ used: string }>("select used from bench_quota where tenant = $1", [tenantId]);
            if (Number(rows[0]?.used) + callTokens > tokensPerDay) return false;
            await naivePool.query("update bench_quota set used = used + $2 where tenant = $1", [tenantId, callTokens]);
            return true;
          },
          close: async () => {},
        };
      },
    ];

    console.log(`${"".padEnd(22)}callers  admissions/s   P50 ms   P95 ms   passed of ${smallQuota}   overshoot`);
    for (const open of ways) {
      for (const callers of callerCounts) {
        if (open === updatePerCall && callers > 32) continue; // the server takes 100 Updates of one workflow at a time and aborts others
        const many = await open(plenty);
        const figures = await throughput(many, callers);
        await many.close();
        const few = await open(smallQuota * callTokens);
        const through = await passed(few, callers);
        await few.close();
        const cells = [
          many.name.padEnd(22),
          String(callers).padStart(7),
          figures.perSecond.toFixed(0).padStart(14),
          figures.p50.toFixed(2).padStart(9),
          figures.p95.toFixed(2).padStart(9),
          String(through).padStart(13),
          String(Math.max(0, through - smallQuota)).padStart(12),
        ];
        console.log(cells.join(""));
        if (options.json) console.log(JSON.stringify({ way: many.name, callers, ...figures, passed: through }));
      }
    }
  } finally {
    await naivePool.end();
    await connection.close();
    await keys.close();
    await database.close();
    await product.stop();
  }
}

await onFreshHome("quota", measure);
