import type { TenantId } from "../domain/tenant.ts";
import type { ControlTx } from "./database.ts";

/** Tenants that are told apart; a label for each of thousands would drown whoever collects the metrics. */
export const tenantsInUsage = 20;

export type UsageTotals = {
  readonly openTurns: number;
  readonly calls: number;
  /** For dashboards: the money that is billed is never a float. */
  readonly costUsd: number;
  /** In the classes of the billing CSV. */
  readonly tokens: Readonly<Record<"in" | "out" | "cached" | "reasoning", number>>;
  /** Of this UTC day, the largest first; what no tenant of these used is `_other`: no tenant can be called that. */
  readonly today: readonly { readonly tenant: string; readonly calls: number; readonly tokens: number; readonly costUsd: number }[];
  /** Turns that have not ended, likewise. */
  readonly openTurnsOf: readonly { readonly tenant: string; readonly turns: number }[];
};

/** The figures of all processes together, from the daily sums. */
export async function readUsageTotals(tx: ControlTx): Promise<UsageTotals> {
  const [totals] = await tx.query<Omit<UsageTotals, "today" | "openTurnsOf" | "tokens"> & UsageTotals["tokens"]>(
    `select (select count(*) from control.open_turn)::float8 as "openTurns", coalesce(sum(calls), 0)::float8 as calls,
            coalesce(sum(cost_nano_usd), 0)::float8 / 1e9 as "costUsd", coalesce(sum(tokens_in), 0)::float8 as "in",
            coalesce(sum(tokens_out), 0)::float8 as "out", coalesce(sum(tokens_cached), 0)::float8 as cached,
            coalesce(sum(reasoning_tokens), 0)::float8 as reasoning
     from control.usage_daily`,
  );
  const today = await tx.query<UsageTotals["today"][number]>(
    `with used as (
       select tenant_id, sum(tokens_in + tokens_out + tokens_cached + reasoning_tokens) as tokens, sum(cost_nano_usd) as cost,
              sum(calls) as calls,
              row_number() over (order by sum(tokens_in + tokens_out + tokens_cached + reasoning_tokens) desc, tenant_id) as place
       from control.usage_daily where day = (now() at time zone 'UTC')::date group by tenant_id
     )
     select case when place <= $1 then tenant_id else '_other' end as tenant, sum(calls)::float8 as calls, sum(tokens)::float8 as tokens,
            sum(cost)::float8 / 1e9 as "costUsd"
     from used group by 1, place > $1 order by 3 desc`,
    [tenantsInUsage],
  );
  const openTurnsOf = await tx.query<UsageTotals["openTurnsOf"][number]>(
    `with open as (
       select tenant_id, count(*) as turns, row_number() over (order by count(*) desc, tenant_id) as place from control.open_turn group by tenant_id
     )
     select case when place <= $1 then tenant_id else '_other' end as tenant, sum(turns)::float8 as turns
     from open group by 1, place > $1 order by 2 desc`,
    [tenantsInUsage],
  );
  const { openTurns, calls, costUsd, ...tokens } = totals ?? { openTurns: 0, calls: 0, costUsd: 0, in: 0, out: 0, cached: 0, reasoning: 0 };
  return { openTurns, calls, costUsd, tokens, today, openTurnsOf };
}

/** What counts under a tenant's ceilings of the calls that ended today, as the daily sums have it. */
export async function readUsedToday(tx: ControlTx, tenantId: TenantId): Promise<{ readonly tokens: bigint; readonly nanoUsd: bigint }> {
  const [used] = await tx.query<{ tokens: bigint; nanoUsd: bigint }>(
    `select coalesce(sum(tokens_in - cache_write_tokens + tokens_out + reasoning_tokens), 0)::bigint as tokens,
       coalesce(sum(cost_nano_usd), 0)::bigint as "nanoUsd"
     from control.usage_daily where tenant_id = $1 and day = (now() at time zone 'UTC')::date`,
    [tenantId],
  );
  return used ?? { tokens: 0n, nanoUsd: 0n };
}
