import { AppError } from "../domain/app-error.ts";
import type { MarkupPpm, NanoUsd } from "../domain/money.ts";
import { type Rates, priceOf } from "../domain/rate-card.ts";
import type { QuotaBooks } from "../domain/quota-wire.ts";
import type { TenantContext, TenantId } from "../domain/tenant.ts";
import type { ControlTx, Database } from "../storage/database.ts";
import { compareCounters } from "./quota-counters.ts";
import { loadRateCard } from "./rate-cards.ts";
import type { Tenants } from "./tenants.ts";

/** What differs: names for programs, never changed. */
export type BillingFaultKind =
  | "row_missing"
  | "row_differs"
  | "row_unexpected"
  | "sum_missing"
  | "sum_unexpected"
  | "sum_differs"
  | "price_differs"
  | "counter_differs";

export type BillingFinding = {
  readonly tenant: string;
  /**
   * `journal`: a call and its row · `rollup`: a day's sum and its rows · `price`: a row and the card it was priced with ·
   * `counter`: what the tenant's workflow counted of a day, and the day's rows.
   */
  readonly check: "journal" | "rollup" | "price" | "counter";
  readonly kind: BillingFaultKind;
  /** A row's id, day and model of a sum, or a day. */
  readonly subject: string;
  /** UTC, of admission. */
  readonly day: string;
  readonly what: string;
};

export type BillingVerification = {
  readonly ok: boolean;
  readonly tenants: number;
  readonly rows: number;
  readonly findings: readonly BillingFinding[];
  /** Whether there is more to be found than is listed. */
  readonly has_more: boolean;
  /** Tenants of which something could not be read, so that nothing is known of it. */
  readonly unread: readonly string[];
};

/** UTC days of admission, both included. */
export type BillingDays = { readonly firstDay: string; readonly lastDay: string };
export const allDays: BillingDays = { firstDay: "0001-01-01", lastDay: "9999-12-31" };

export type BillingCompareDeps = {
  readonly database: Pick<Database, "withControl" | "withTenant">;
  /**
   * What a tenant's workflow has counted; undefined when it counts nothing.
   * @throws when it cannot be asked
   */
  readonly booksOf: (tenantId: TenantId) => Promise<QuotaBooks | undefined>;
  /** Rows that are read at once; default 5,000. */
  readonly pageRows?: number;
  /** Pause before counters that differ are looked at again; default half a second. */
  readonly againMs?: number;
};

export type BillingVerifyDeps = BillingCompareDeps & {
  readonly tenants: Pick<Tenants, "list">;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
};

export type VerifyBillingOptions = {
  readonly tenantId: TenantId | undefined;
  /** Default: all. */
  readonly days?: BillingDays | undefined;
  readonly requestId: string;
};
export type VerifyBilling = (options: VerifyBillingOptions) => Promise<BillingVerification>;

/** A tenant's rows of a long time are summed in one statement. */
const comparing = { readOnly: true, statementTimeoutMs: 120_000 } as const;
/** Who has more than this many differences has one cause to look for. */
const mostFindings = 1_000;

/**
 * Compares journal, billing rows, daily sums, prices and the workflows' counters to the digit. What differs is told, not mended.
 * A tenant of which something cannot be read does not stop the others.
 * @param tenantId only this tenant, present or deleted
 * @throws {AppError} `not_found`
 */
export async function verifyBilling(
  deps: BillingVerifyDeps,
  { tenantId, days = allDays, requestId }: VerifyBillingOptions,
): Promise<BillingVerification> {
  const { database, tenants, log } = deps;
  const present = new Map((await tenants.list()).map((tenant) => [tenant.id, tenant]));
  const deleted = await database.withControl(async (tx) => await readDeleted(tx), { readOnly: true });
  const ids = [...present.keys(), ...deleted].filter((id) => tenantId === undefined || id === tenantId);
  const findings: BillingFinding[] = [];
  const unread: string[] = [];
  let rows = 0;
  for (const id of ids) {
    if (findings.length > mostFindings) break;
    try {
      const counts = present.has(id);
      const compared = await compareBilling(deps, { context: { tenantId: id, requestId }, days, isPresent: counts, withCounters: counts });
      rows += compared.rows;
      findings.push(...compared.findings);
      if (compared.unread !== undefined) throw compared.unread;
    } catch (error) {
      log("the billing of a tenant could not be compared", { tenantId: id, error: String(error) });
      unread.push(id);
    }
  }
  const named = ids.filter((id) => present.has(id)).length;
  if (tenantId !== undefined && named === 0 && rows === 0 && unread.length === 0)
    throw new AppError("not_found", { client: { message: "There is no such tenant.", param: "tenant" } });
  return {
    ok: findings.length === 0 && unread.length === 0,
    tenants: named,
    rows,
    findings: findings.slice(0, mostFindings),
    has_more: findings.length > mostFindings,
    unread,
  };
}

const readDeleted = async (tx: ControlTx): Promise<readonly TenantId[]> =>
  (await tx.query<{ id: TenantId }>(`select id from control.tenant where state = 'deleted' order by id collate "C"`)).map(({ id }) => id);

export type ComparedBilling = {
  readonly rows: number;
  readonly findings: readonly BillingFinding[];
  /** Whether all there is to be found was found. */
  readonly isComplete: boolean;
  /** Days whose counters were compared. */
  readonly countedDays: readonly string[];
  /** Why the counters could not be read. */
  readonly unread: unknown;
};

/**
 * Compares one tenant. Each comparison is one statement, so calls that end meanwhile are in both of its sides or in neither.
 * A row without a call is no difference: calls go with their session, and a deleted tenant's all.
 */
export async function compareBilling(
  { database, booksOf, pageRows = 5_000, againMs }: BillingCompareDeps,
  {
    context,
    days,
    isPresent,
    withCounters,
  }: { readonly context: TenantContext; readonly days: BillingDays; readonly isPresent: boolean; readonly withCounters: boolean },
): Promise<ComparedBilling> {
  const { tenantId } = context;
  const findings: BillingFinding[] = isPresent ? await compareJournal(database, context, days) : [];
  const isFull = (): boolean => findings.length > mostFindings;
  findings.push(...(await database.withControl(async (tx) => await compareSums(tx, tenantId, days), comparing)));
  const prices = pricesOf(database);
  let rows = 0;
  for (let after: RowPlace = firstPlace; !isFull();) {
    const place = after;
    const page = await database.withControl(async (tx) => await readRows(tx, { tenantId, days, after: place, limit: pageRows }), comparing);
    for (const row of page) findings.push(...(await prices.compare(row)));
    rows += page.length;
    const last = page.at(-1);
    if (last === undefined || page.length < pageRows) break;
    after = last;
  }
  let countedDays: readonly string[] = [];
  let unread: unknown;
  if (withCounters) {
    try {
      const { compared, differences } = await compareCounters(
        { database, booksOf: async () => await booksOf(tenantId), ...(againMs === undefined ? {} : { againMs }) },
        context,
      );
      const isAsked = (day: string): boolean => day >= days.firstDay && day <= days.lastDay;
      countedDays = compared.filter(isAsked);
      for (const { day, what } of differences.filter((difference) => isAsked(difference.day)))
        findings.push({ tenant: tenantId, check: "counter", kind: "counter_differs", subject: day, day, what });
    } catch (error) {
      if (!(error instanceof AppError && error.code === "tenant_deleted")) unread = error; // deleted meanwhile: nothing is counted
    }
  }
  return { rows, findings, isComplete: !isFull(), countedDays, unread };
}

const tokenColumns = ["input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens"] as const;
const rowColumns = ["model", ...tokenColumns] as const;

async function compareJournal(
  database: BillingCompareDeps["database"],
  context: TenantContext,
  days: BillingDays,
): Promise<BillingFinding[]> {
  type Side = Readonly<Record<"model" | (typeof tokenColumns)[number], string>>;
  type Difference = { id: string; day: string; state: string; call: Side; row: Side | null };
  const side = (values: readonly string[]): string =>
    `jsonb_build_object(${["model", ...tokenColumns].map((column, n) => `'${column}', (${values[n]})::text`).join(", ")})`;
  const usage = ["inputTokens", "cacheReadTokens", "cacheWriteTokens", "outputTokens", "reasoningTokens"].map(
    (name) => `(c.usage ->> '${name}')::numeric`,
  );
  // A call is admitted on the day that it began or, over midnight, on the next: the index narrows, the day decides.
  const differences = await database
    .withTenant(
      context,
      async (tx) =>
        await tx.query<Difference>(
          `select c.id, coalesce(c.day, (c.started_at at time zone 'UTC')::date) as day, c.state, ${side(["c.model", ...usage])} as call,
             case when l.id is not null then ${side(["l.model", ...tokenColumns.map((column) => `l.${column}`)])} end as row
           from model_call c left join control.usage_ledger l on l.id = c.id
           where c.started_at >= ($1::date - 1)::timestamp at time zone 'UTC' and c.started_at < ($2::date + 2)::timestamp at time zone 'UTC'
             and coalesce(c.day, (c.started_at at time zone 'UTC')::date) between $1::date and $2::date
             and case when c.state = 'done'
               then l.id is null or (c.model, ${usage.join(", ")}) is distinct from (l.model, ${tokenColumns.map((column) => `l.${column}`).join(", ")})
               else l.id is not null end
           order by c.id limit $3`,
          [days.firstDay, days.lastDay, mostFindings + 1],
        ),
      comparing,
    )
    .catch((error: unknown) => {
      if (error instanceof AppError && error.code === "tenant_deleted") return []; // meanwhile: its journal is gone
      throw error;
    });
  return differences.map(({ id, day, state, call, row }) => ({
    tenant: context.tenantId,
    check: "journal",
    subject: id,
    day,
    ...(row === null
      ? { kind: "row_missing", what: `the call ended and has no billing row: ${columnsText(rowColumns, call)}` }
      : state === "done"
        ? { kind: "row_differs", what: differingText(rowColumns, row, call, "the call has") }
        : {
            kind: "row_unexpected",
            what: `there is a billing row of a call that did not end (${state}): ${columnsText(rowColumns, row)}`,
          }),
  }));
}

const columnsText = <Column extends string>(columns: readonly Column[], side: Readonly<Record<Column, string>>): string =>
  columns
    .filter((column) => side[column] !== "0")
    .map((column) => `${column} ${side[column]}`)
    .join(", ");

const differingText = <Column extends string>(
  columns: readonly Column[],
  found: Readonly<Record<Column, string>>,
  expected: Readonly<Record<Column, string>>,
  says: string,
): string =>
  columns
    .filter((column) => found[column] !== expected[column])
    .map((column) => `${column} is ${found[column]}, ${says} ${expected[column]}`)
    .join("; ");

const sumColumns = [
  "tokens_in",
  "tokens_out",
  "tokens_cached",
  "reasoning_tokens",
  "tool_calls",
  "cost_nano_usd",
  "calls",
  "cache_write_tokens",
] as const;

async function compareSums(tx: ControlTx, tenantId: TenantId, { firstDay, lastDay }: BillingDays): Promise<BillingFinding[]> {
  type Sums = Readonly<Record<(typeof sumColumns)[number], string>>;
  type Difference = { day: string; model: string } & ({ summed: Sums; kept: Sums | null } | { summed: null; kept: Sums });
  const columns = sumColumns.join(", ");
  // jsonb keeps a numeric's digits, and as text they survive JSON.parse.
  const asTexts = (name: string): string =>
    `jsonb_build_object(${sumColumns.map((column) => `'${column}', ${name}.${column}::text`).join(", ")})`;
  const differences = await tx.query<Difference>(
    `with summed as (
       select ("timestamp" at time zone 'UTC')::date as day, model, sum(input_tokens + cache_write_tokens)::bigint as tokens_in,
         sum(output_tokens)::bigint as tokens_out, sum(cache_read_tokens)::bigint as tokens_cached, sum(reasoning_tokens)::bigint as reasoning_tokens,
         sum(tool_calls)::bigint as tool_calls, sum(cost_nano_usd)::bigint as cost_nano_usd, count(*) as calls,
         sum(cache_write_tokens)::bigint as cache_write_tokens
       from control.usage_ledger where tenant_id = $1 and ${inDays} group by 1, 2),
     kept as (select day, model, ${columns} from control.usage_daily where tenant_id = $1 and day between $2::date and $3::date)
     select day::text as day, model, case when summed.calls is not null then ${asTexts("summed")} end as summed,
       case when kept.calls is not null then ${asTexts("kept")} end as kept
     from summed full join kept using (day, model)
     where (${sumColumns.map((column) => `summed.${column}`).join(", ")}) is distinct from (${sumColumns.map((column) => `kept.${column}`).join(", ")})
     order by day, model limit $4`,
    [tenantId, firstDay, lastDay, mostFindings + 1],
  );
  return differences.map(({ day, model, summed, kept }) => ({
    tenant: tenantId,
    check: "rollup",
    subject: `${day} ${model}`,
    day,
    ...(summed !== null
      ? kept === null
        ? { kind: "sum_missing", what: `there are rows and no sum: ${columnsText(sumColumns, summed)}` }
        : { kind: "sum_differs", what: differingText(sumColumns, kept, summed, "the rows come to") }
      : { kind: "sum_unexpected", what: `there is a sum and no row: ${columnsText(sumColumns, kept)}` }),
  }));
}

/** Rows of the days `$2` to `$3`. */
const inDays = `"timestamp" >= $2::date::timestamp at time zone 'UTC' and "timestamp" < ($3::date + 1)::timestamp at time zone 'UTC'`;

type PricedRow = {
  readonly id: string;
  readonly at: string;
  readonly day: string;
  readonly tenant_id: string;
  readonly model: string;
  readonly input_tokens: bigint;
  readonly cache_read_tokens: bigint;
  readonly cache_write_tokens: bigint;
  readonly output_tokens: bigint;
  readonly reasoning_tokens: bigint;
  readonly cost_nano_usd: NanoUsd;
  readonly provider_cost_nano_usd: NanoUsd;
  readonly markup_ppm: MarkupPpm;
  readonly rate_card_hash: string;
};

type RowPlace = { readonly at: string; readonly id: string };
const firstPlace: RowPlace = { at: "-infinity", id: "" };

/** In the order of the index, so that a tenant's days are read without those of others. */
const readRows = async (
  tx: ControlTx,
  {
    tenantId,
    days,
    after,
    limit,
  }: { readonly tenantId: TenantId; readonly days: BillingDays; readonly after: RowPlace; readonly limit: number },
): Promise<PricedRow[]> =>
  await tx.query<PricedRow>(
    `select id, "timestamp"::text as at, ("timestamp" at time zone 'UTC')::date as day, tenant_id, model, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens,
       cost_nano_usd, provider_cost_nano_usd, markup_ppm::float8, rate_card_hash
     from control.usage_ledger where tenant_id = $1 and ${inDays} and ("timestamp", id) > ($4::timestamptz, $5) order by "timestamp", id limit $6`,
    [tenantId, days.firstDay, days.lastDay, after.at, after.id, limit],
  );

function pricesOf(database: BillingCompareDeps["database"]) {
  const cards = new Map<string, Promise<ReadonlyMap<string, Rates> | string>>();
  const cardOf = async (hash: string): Promise<ReadonlyMap<string, Rates> | string> => {
    const known = cards.get(hash);
    if (known !== undefined) return await known;
    const loading = database
      .withControl(async (tx) => (await loadRateCard(tx, hash)).rates, { readOnly: true })
      .catch((error: unknown) => {
        if (error instanceof AppError && error.code === "internal") return "its rate card is not stored, or was changed";
        throw error;
      });
    cards.set(hash, loading);
    return await loading;
  };
  return {
    async compare(row: PricedRow): Promise<BillingFinding[]> {
      const fault = faultOf(row, await cardOf(row.rate_card_hash));
      return fault === undefined
        ? []
        : [{ tenant: row.tenant_id, check: "price", kind: "price_differs", subject: row.id, day: row.day, what: fault }];
    },
  };
}

function faultOf(row: PricedRow, rates: ReadonlyMap<string, Rates> | string): string | undefined {
  if (typeof rates === "string") return rates;
  const own = rates.get(row.model);
  if (own === undefined) return "its rate card does not price its model";
  const usage = {
    inputTokens: Number(row.input_tokens),
    cacheReadTokens: Number(row.cache_read_tokens),
    cacheWriteTokens: Number(row.cache_write_tokens),
    outputTokens: Number(row.output_tokens),
    reasoningTokens: Number(row.reasoning_tokens),
  };
  const { costNanoUsd, providerCostNanoUsd } = priceOf(own, usage, row.markup_ppm);
  if (costNanoUsd === row.cost_nano_usd && providerCostNanoUsd === row.provider_cost_nano_usd) return undefined;
  return costNanoUsd === row.cost_nano_usd
    ? `provider_cost_nano_usd is ${row.provider_cost_nano_usd}, its tokens come to ${providerCostNanoUsd}`
    : `cost_nano_usd is ${row.cost_nano_usd}, its tokens come to ${costNanoUsd}`;
}
