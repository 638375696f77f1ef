import { AppError } from "../domain/app-error.ts";
import type { MarkupPpm, NanoUsd } from "../domain/money.ts";
import { type Rates, priceOf } from "../domain/rate-card.ts";
import type { TenantId } from "../domain/tenant.ts";
import type { ControlTx, Database } from "../storage/database.ts";
import { loadRateCard } from "./rate-cards.ts";
import type { Tenants } from "./tenants.ts";

export type BillingFinding = {
  readonly tenant: string;
  /** `journal`: a call and its row · `rollup`: a day's sum and its rows · `price`: a row and the card it was priced with. */
  readonly check: "journal" | "rollup" | "price";
  /** A row's id, or day and model of a sum. */
  readonly subject: string;
  readonly what: string;
};

export type BillingVerification = {
  readonly ok: boolean;
  readonly tenants: number;
  readonly rows: number;
  readonly findings: readonly BillingFinding[];
  /** Whether there is more to be found than is listed. */
  readonly has_more: boolean;
};

export type BillingVerifyDeps = {
  readonly database: Pick<Database, "withControl" | "withTenant">;
  readonly tenants: Pick<Tenants, "list">;
  /** Rows that are read at once; default 5,000. */
  readonly pageRows?: number;
};

/** The whole ledger is summed in one statement. */
const comparing = { readOnly: true, statementTimeoutMs: 120_000 } as const;
/** Who has more than this many differences has one cause to look for. */
const mostFindings = 1_000;

/**
 * Compares journal, billing rows, daily sums and prices to the digit. What differs is told, not mended. Each comparison is one
 * statement, so calls that end meanwhile are in both of its sides or in neither.
 * A row without a call is no difference: calls go with their session, and a deleted tenant's all.
 * @param tenantId only this tenant, present or deleted
 * @throws {AppError} `not_found`
 */
export async function verifyBilling(
  { database, tenants, pageRows = 5_000 }: BillingVerifyDeps,
  { tenantId, requestId }: { readonly tenantId: TenantId | undefined; readonly requestId: string },
): Promise<BillingVerification> {
  const present = (await tenants.list()).filter(({ id }) => tenantId === undefined || id === tenantId);
  const findings: BillingFinding[] = [];
  const isFull = (): boolean => findings.length > mostFindings;
  for (const { id } of present) {
    if (isFull()) break;
    findings.push(...(await compareJournal(database, id, requestId)));
  }
  findings.push(...(await database.withControl(async (tx) => await compareSums(tx, tenantId), comparing)));
  const prices = pricesOf(database);
  let rows = 0;
  for (let after = ""; !isFull();) {
    const page = await database.withControl(async (tx) => await readRows(tx, { tenantId, after, limit: pageRows }), comparing);
    for (const row of page) findings.push(...(await prices.compare(row)));
    rows += page.length;
    const last = page.at(-1);
    if (last === undefined || page.length < pageRows) break;
    after = last.id;
  }
  if (tenantId !== undefined && present.length === 0 && rows === 0)
    throw new AppError("not_found", { client: { message: "There is no such tenant.", param: "tenant" } });
  return {
    ok: findings.length === 0,
    tenants: present.length,
    rows,
    findings: findings.slice(0, mostFindings),
    has_more: isFull(),
  };
}

async function compareJournal(database: BillingVerifyDeps["database"], tenantId: TenantId, requestId: string): Promise<BillingFinding[]> {
  type Difference = { id: string; state: string; has_row: boolean };
  const differences = await database
    .withTenant(
      { tenantId, requestId },
      async (tx) =>
        await tx.query<Difference>(
          `select c.id, c.state, l.id is not null as has_row
           from model_call c left join control.usage_ledger l on l.id = c.id
           where case when c.state = 'done' then l.id is null
               or (c.model, (c.usage ->> 'inputTokens')::numeric, (c.usage ->> 'cacheReadTokens')::numeric, (c.usage ->> 'cacheWriteTokens')::numeric,
                   (c.usage ->> 'outputTokens')::numeric, (c.usage ->> 'reasoningTokens')::numeric)
                 is distinct from (l.model, l.input_tokens, l.cache_read_tokens, l.cache_write_tokens, l.output_tokens, l.reasoning_tokens)
             else l.id is not null end
           order by c.id limit $1`,
          [mostFindings + 1],
        ),
      comparing,
    )
    .catch((error: unknown) => {
      if (error instanceof AppError && error.code === "tenant_deleted") return []; // meanwhile: its journal is gone
      throw error;
    });
  return differences.map(({ id, state, has_row }) => ({
    tenant: tenantId,
    check: "journal",
    subject: id,
    what: !has_row
      ? "the call ended and has no billing row"
      : state === "done"
        ? "the billing row has another model or other tokens than the call"
        : "there is a billing row of a call that did not end",
  }));
}

const sumColumns = ["tokens_in", "tokens_out", "tokens_cached", "reasoning_tokens", "tool_calls", "cost_nano_usd", "calls"] as const;

async function compareSums(tx: ControlTx, tenantId: TenantId | undefined): Promise<BillingFinding[]> {
  type Sums = Readonly<Record<(typeof sumColumns)[number], string>>;
  type Difference = { tenant_id: string; day: string; model: string; summed: Sums | null; kept: Sums | null };
  const columns = sumColumns.join(", ");
  // jsonb keeps a numeric's digits, and as text they survive JSON.parse.
  const asTexts = (name: string): string =>
    `jsonb_build_object(${sumColumns.map((column) => `'${column}', ${name}.${column}::text`).join(", ")})`;
  const differences = await tx.query<Difference>(
    `with summed as (
       select tenant_id, ("timestamp" at time zone 'UTC')::date as day, model, sum(input_tokens + cache_write_tokens)::bigint as tokens_in,
         sum(output_tokens)::bigint as tokens_out, sum(cache_read_tokens)::bigint as tokens_cached, sum(reasoning_tokens)::bigint as reasoning_tokens,
         sum(tool_calls)::bigint as tool_calls, sum(cost_nano_usd)::bigint as cost_nano_usd, count(*) as calls
       from control.usage_ledger where $1::text is null or tenant_id = $1 group by 1, 2, 3),
     kept as (select tenant_id, day, model, ${columns} from control.usage_daily where $1::text is null or tenant_id = $1)
     select tenant_id, day::text as day, model, case when summed.calls is not null then ${asTexts("summed")} end as summed,
       case when kept.calls is not null then ${asTexts("kept")} end as kept
     from summed full join kept using (tenant_id, day, model)
     where (${sumColumns.map((column) => `summed.${column}`).join(", ")}) is distinct from (${sumColumns.map((column) => `kept.${column}`).join(", ")})
     order by tenant_id, day, model limit $2`,
    [tenantId ?? null, mostFindings + 1],
  );
  return differences.map(({ tenant_id, day, model, summed, kept }) => ({
    tenant: tenant_id,
    check: "rollup",
    subject: `${day} ${model}`,
    what:
      kept === null
        ? "there are rows and no sum"
        : summed === null
          ? "there is a sum and no row"
          : sumColumns
              .filter((column) => kept[column] !== summed[column])
              .map((column) => `${column} is ${kept[column]}, the rows come to ${summed[column]}`)
              .join("; "),
  }));
}

type PricedRow = {
  readonly id: string;
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

const readRows = async (
  tx: ControlTx,
  { tenantId, after, limit }: { readonly tenantId: TenantId | undefined; readonly after: string; readonly limit: number },
): Promise<PricedRow[]> =>
  await tx.query<PricedRow>(
    `select id, tenant_id, model, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens,
       cost_nano_usd, provider_cost_nano_usd, markup_ppm::float8, rate_card_hash
     from control.usage_ledger where id > $1 and ($2::text is null or tenant_id = $2) order by id limit $3`,
    [after, tenantId ?? null, limit],
  );

function pricesOf(database: BillingVerifyDeps["database"]) {
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
      return fault === undefined ? [] : [{ tenant: row.tenant_id, check: "price", subject: row.id, what: fault }];
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
  return `cost_nano_usd is ${row.cost_nano_usd}, its tokens come to ${costNanoUsd}`;
}
