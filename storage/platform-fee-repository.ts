import type { NanoUsd } from "../domain/money.ts";
import type { ControlTx } from "./database.ts";

/** A month's fee of one tenant, on the day that it falls due: the first of the month, or in the month of its creation the day of that. */
export type DueFee = { readonly day: string; readonly tenantId: string; readonly nanoUsd: bigint };

export type DueFeeRange = {
  /** Undefined: all tenants. */
  readonly tenantId?: string | undefined;
  readonly firstDay: string;
  readonly lastDay: string;
  /** Goes on behind this one. */
  readonly after?: DueFee | undefined;
  /** Default: no end. */
  readonly limit?: number;
};

/** Remembers the fee from today on (UTC), so that a change never reaches back. */
export async function recordPlatformFee(tx: ControlTx, fee: NanoUsd): Promise<void> {
  await tx.execute(
    `insert into control.platform_fee (valid_from, nano_usd)
     select (now() at time zone 'UTC')::date, $1::bigint
     where coalesce((select nano_usd from control.platform_fee order by valid_from desc limit 1), 0) <> $1::bigint
     on conflict (valid_from) do update set nano_usd = excluded.nano_usd`,
    [fee.toString()],
  );
}

/** Fees that fall due in the range, by day and tenant. A tenant owes every month of which it saw a moment, in full. */
export async function readDueFees(tx: ControlTx, { tenantId, firstDay, lastDay, after, limit }: DueFeeRange): Promise<readonly DueFee[]> {
  const rows = await tx.query<{ day: string; tenant_id: string; nano_usd: bigint }>(
    `select due.day, due.tenant_id, fee.nano_usd
     from (
       select tenant.id as tenant_id, greatest(month::date, (tenant.created_at at time zone 'UTC')::date) as day
       from generate_series(date_trunc('month', $2::timestamp), $3::timestamp, interval '1 month') month
       join control.tenant on (tenant.created_at at time zone 'UTC') < month + interval '1 month'
         and (tenant.deleted_at is null or (tenant.deleted_at at time zone 'UTC') >= month)
       where $1::text is null or tenant.id = $1
     ) due
     cross join lateral (select nano_usd from control.platform_fee where valid_from <= due.day order by valid_from desc limit 1) fee
     where due.day between $2::date and $3::date and fee.nano_usd > 0
       and ($4::date is null or (due.day, due.tenant_id collate "C") > ($4::date, $5::text))
     order by due.day, due.tenant_id collate "C" limit $6`,
    [tenantId ?? null, firstDay, lastDay, after?.day ?? null, after?.tenantId ?? null, limit ?? null],
  );
  return rows.map(({ day, tenant_id, nano_usd }) => ({ day, tenantId: tenant_id, nanoUsd: nano_usd }));
}
