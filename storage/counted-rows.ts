import type { NanoUsd } from "../domain/money.ts";
import type { Amount, DayBooks } from "../domain/quota-ledger.ts";
import type { TenantId } from "../domain/tenant.ts";
import type { ControlTx, TenantTx } from "./database.ts";

/** What the rows of a day come to: those that its counters must have, and those that they may have. */
export type RowsOfDay = { readonly counted: Amount; readonly uncertain: Amount };

/** The database's clock, as text to the microsecond: what `finished_at` is compared with. */
export async function readClock(tx: ControlTx): Promise<string> {
  const [row] = await tx.query<{ at: string }>("select clock_timestamp()::text as at");
  if (row === undefined) throw new Error("a clock answered no row");
  return row.at;
}

/**
 * The rows of a day beside its books. Left out are the rows that the books name as not counted. Uncertain are rows of calls that ended
 * after `askedAt` (the books are of some later moment), that no lease reserved, or whose journal went with their session.
 */
export async function readRowsOfDay(tx: TenantTx, { day, open, leases }: DayBooks, askedAt: string): Promise<RowsOfDay> {
  type Sum = { is_counted: boolean; tokens: bigint; nano_usd: bigint };
  const sums = await tx.query<Sum>(
    `with open as (select * from unnest($3::text[], $4::text[], $5::int[]) as o (call_id, holder, batch)),
       lease as (select * from unnest($6::text[], $7::int[]) as s (holder, seq))
     select coalesce(c.holder is not null and c.finished_at < $8::timestamptz, false) as is_counted,
       sum(l.input_tokens + l.output_tokens + l.reasoning_tokens)::bigint as tokens, sum(l.cost_nano_usd)::bigint as nano_usd
     from control.usage_ledger l
     left join model_call c on c.id = l.id
     left join open o on o.call_id = c.id and o.holder = coalesce(c.holder, '') and o.batch = coalesce(c.batch, 0)
     left join lease s on s.holder = c.holder
     where l.tenant_id = $1 and l."timestamp" >= $2::date::timestamp at time zone 'UTC'
       and l."timestamp" < ($2::date + 1)::timestamp at time zone 'UTC'
       and o.call_id is null and (s.holder is null or c.batch <= s.seq)
     group by 1`,
    [
      tx.tenantId,
      day,
      open.map(({ callId }) => callId),
      open.map(({ holder }) => holder),
      open.map(({ batch }) => batch),
      leases.map(({ holder }) => holder),
      leases.map(({ seq }) => seq),
      askedAt,
    ],
  );
  const sumOf = (isCounted: boolean): Amount => {
    const sum = sums.find(({ is_counted }) => is_counted === isCounted);
    return { tokens: Number(sum?.tokens ?? 0n), nanoUsd: (sum?.nano_usd ?? 0n) as NanoUsd };
  };
  return { counted: sumOf(true), uncertain: sumOf(false) };
}

export async function hasUsageSinceYesterday(tx: ControlTx, tenantId: TenantId): Promise<boolean> {
  const rows = await tx.query(
    "select from control.usage_daily where tenant_id = $1 and day >= (now() at time zone 'UTC')::date - 1 limit 1",
    [tenantId],
  );
  return rows.length > 0;
}
