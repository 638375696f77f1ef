import { limitAtOnce } from "./at-once.ts";
import { AppError } from "../domain/app-error.ts";
import { formatUsd } from "../domain/money.ts";
import { utcDayOf } from "../domain/quota-ledger.ts";
import type { TenantId } from "../domain/tenant.ts";
import type { Database, TransactionOptions } from "../storage/database.ts";
import { type DueFee, readDueFees } from "../storage/platform-fee-repository.ts";
import { readUsedToday } from "../storage/usage-totals.ts";
import { csvLine, csvLineSql, type CsvCell, isPlainCsv } from "./billing-csv.ts";
import type { Period } from "./billing-period.ts";
import { SessionCosts } from "./session-costs.ts";

export type ReportRequest = {
  /** Undefined: all tenants, deleted ones too. */
  readonly tenantId?: TenantId | undefined;
  readonly period: Period;
  /** One line per model call in place of one per day, tenant and model. */
  readonly detail?: boolean | undefined;
};

export type SumRow = {
  readonly tokens_in: number;
  readonly tokens_out: number;
  readonly tokens_cached: number;
  readonly reasoning_tokens: number;
  readonly tool_calls: number;
  /** Nine places. */
  readonly cost_usd: string;
};
export type DayRow = { readonly date: string; readonly tenant: string; readonly model: string } & SumRow;

/** The answer of `GET /v1/tenants/{t}/usage`. */
export type UsageReport = {
  readonly tenant: TenantId;
  readonly period: string;
  readonly currency: "USD";
  readonly total_cost_usd: string;
  /** The period's first second. */
  readonly date_unix: number;
  readonly rows: readonly DayRow[];
  readonly daily: readonly ({ readonly date: string } & SumRow)[];
  readonly by_model: readonly ({ readonly model: string } & SumRow)[];
  /** The ten dearest. */
  readonly top_sessions: readonly { readonly session_id: string; readonly calls: number; readonly cost_usd: string }[];
  readonly quota: QuotaProgress;
};

/** What today's ended calls came to of each ceiling, whatever the report's period. null: no such ceiling. */
export type QuotaProgress = {
  readonly tokens_per_day: { readonly limit: number; readonly used: number } | null;
  /** Nine places. */
  readonly cost_per_day_usd: { readonly limit: string; readonly used: string } | null;
  readonly requests_per_minute: { readonly limit: number } | null;
};

export type BillingReports = {
  /** Chunks of a CSV, read page by page. @throws {AppError} `not_found`, before the first chunk. */
  csv(request: ReportRequest): Promise<AsyncIterable<string | Uint8Array>>;
  /** Chunks of one JSON object; the total comes after the rows that it sums. @throws {AppError} `not_found`, before the first chunk. */
  json(request: ReportRequest): Promise<AsyncIterable<string>>;
  /** @throws {AppError} `not_found` */
  usage(tenantId: TenantId, period: Period): Promise<UsageReport>;
};

export type BillingReportsDeps = {
  readonly database: Pick<Database, "withControl">;
  /** Rows that are read at once; default 5,000. */
  readonly pageRows?: number;
  /** Default: the clock. */
  readonly now?: () => number;
};

type Sums = {
  tokens_in: bigint;
  tokens_out: bigint;
  tokens_cached: bigint;
  reasoning_tokens: bigint;
  tool_calls: bigint;
  cost_nano_usd: bigint;
};
type DailyRow = { day: string; tenant_id: string; model: string; calls: bigint } & Sums;
type LedgerRow = {
  id: string;
  provider_request_id: string | null;
  timestamp: Date;
  tenant_id: string;
  session_id: string;
  model: string;
  input_tokens: bigint;
  cache_read_tokens: bigint;
  cache_write_tokens: bigint;
  output_tokens: bigint;
  reasoning_tokens: bigint;
  tool_calls: number;
  cost_nano_usd: bigint;
  provider_cost_nano_usd: bigint;
  markup_ppm: number;
  rate_card_hash: string;
  estimated: boolean;
  reason: string;
  cursor: string;
};

/** Fixed for ever (contract §6). */
const dayColumns = [
  "date",
  "tenant",
  "model",
  "tokens_in",
  "tokens_out",
  "tokens_cached",
  "reasoning_tokens",
  "tool_calls",
  "cost_usd",
] as const;
const sumColumns = "tokens_in, tokens_out, tokens_cached, reasoning_tokens, tool_calls, cost_nano_usd";
/** A billing row's own columns, in the contract's order. */
const callColumns = [
  "id",
  "provider_request_id",
  "timestamp",
  "tenant_id",
  "session_id",
  "model",
  "input_tokens",
  "cache_read_tokens",
  "cache_write_tokens",
  "output_tokens",
  "reasoning_tokens",
  "tool_calls",
  "cost_nano_usd",
  "provider_cost_nano_usd",
  "markup_ppm",
  "rate_card_hash",
  "estimated",
  "reason",
] as const;

/** As JavaScript writes them: times in milliseconds, `true` in full. */
const writtenAs: Readonly<Record<string, string>> = {
  // to_char takes five times as long. A row's time is whole milliseconds; the microsecond more gives each text the same length.
  timestamp: `$2::text || 'T' || left(("timestamp" - ($2::date::timestamp at time zone 'UTC') + interval '1 microsecond')::text, 12) || 'Z'`,
  estimated: "estimated::text",
};
const callCells = callColumns.map((column) => writtenAs[column] ?? column);
const callTexts = ["id", "provider_request_id", "tenant_id", "session_id", "model", "rate_card_hash", "reason"];

/** Time and id of a row. */
type Cursor = readonly [string, string];
type LinesPage = { readonly rows: number; readonly lines: Buffer; readonly last: Cursor };

/** Of lines in which every comma stands between two cells, of which the first is the id and the third the time. */
function plainPage(lines: Buffer): LinesPage {
  let rows = 0;
  for (let at = lines.indexOf(10); at >= 0; at = lines.indexOf(10, at + 1)) rows++;
  const [id = "", , time = ""] = lines.toString("utf8", lines.lastIndexOf(10, -2) + 1).split(",", 3);
  return { rows, lines, last: [time, id] };
}

/** A page of a tenant's ($1) day ($2) behind a time ($3) and an id ($4). */
const callsAfter = `from control.usage_ledger
  where tenant_id = $1 and "timestamp" >= $3::timestamptz and "timestamp" < ($2::date + 1)::timestamp at time zone 'UTC'
    and ("timestamp", id collate "C") > ($3::timestamptz, $4)
  order by "timestamp", id collate "C" limit $5`;

/** Of the pool's 20 connections (storage/database.ts). */
const readsAtOnce = 4;
const readOptions: TransactionOptions = { readOnly: true, statementTimeoutMs: 30_000 };
const pageOptions: TransactionOptions = { ...readOptions, byKey: true };

export function createBillingReports({ database, pageRows = 5_000, now = Date.now }: BillingReportsDeps): BillingReports {
  /** A line is one piece of text, a row some twenty values. */
  const linesAtOnce = 3 * pageRows;
  // A reader who waits for a page holds no connection, so however many there are, turns have the rest of the pool.
  const limited = limitAtOnce(readsAtOnce);
  const read = <Row extends object>(text: string, values: readonly unknown[], options = readOptions): Promise<readonly Row[]> =>
    limited(async () => await database.withControl((tx) => tx.query<Row & Record<string, unknown>>(text, values), options));

  const sessionCosts = new SessionCosts(async (tenantId, { fromMs, untilMs }) => {
    const sums = await read<{ session_id: string; calls: bigint; cost: string }>(
      `select session_id, count(*) as calls, sum(cost_nano_usd)::text as cost from control.usage_ledger
       where tenant_id = $1 and "timestamp" >= $2::timestamptz and "timestamp" < $3::timestamptz group by session_id`,
      [tenantId, new Date(fromMs), new Date(untilMs)],
    );
    return sums.map(({ session_id, calls, cost }) => ({ sessionId: session_id, calls: Number(calls), nanoUsd: BigInt(cost) }));
  });

  /** Pages by key, not by offset or an open cursor: each is a short transaction, whoever reads as slowly as they like. */
  async function* dailyPages({ tenantId, period }: ReportRequest): AsyncGenerator<readonly DailyRow[]> {
    let after: readonly [string, string, string] = [period.firstDay, "", ""];
    for (;;) {
      const page = await read<DailyRow>(
        `select day, tenant_id, model, calls, ${sumColumns} from control.usage_daily
         where day between $1::date and $2::date and ($3::text is null or tenant_id = $3)
           and (day, tenant_id collate "C", model collate "C") > ($4::date, $5, $6)
         order by day, tenant_id collate "C", model collate "C" limit $7`,
        [period.firstDay, period.lastDay, tenantId ?? null, ...after, pageRows],
      );
      const last = page.at(-1);
      if (last === undefined) return;
      yield page;
      if (page.length < pageRows) return;
      after = [last.day, last.tenant_id, last.model];
    }
  }

  /** Calls by day, tenant and time. The daily sums tell whose days there are, so every page is a range of the ledger's index. */
  async function* pagesOfCalls<Page>(
    request: ReportRequest,
    pagesOfDay: (day: string, tenantId: string) => AsyncIterable<Page>,
  ): AsyncGenerator<Page> {
    let seen = "";
    for await (const sums of dailyPages(request)) {
      for (const { day, tenant_id } of sums) {
        if (seen === `${day} ${tenant_id}`) continue; // another model of the same day
        seen = `${day} ${tenant_id}`;
        yield* pagesOfDay(day, tenant_id);
      }
    }
  }

  async function* callsOfDay(day: string, tenantId: string): AsyncGenerator<readonly LedgerRow[]> {
    let after: Cursor = [`${day}T00:00:00Z`, ""];
    for (;;) {
      const page = await read<LedgerRow>(
        `select ${callColumns.map((column) => `"${column}"`).join(", ")}, "timestamp"::text as cursor ${callsAfter}`,
        [tenantId, day, ...after, pageRows],
        pageOptions,
      );
      const last = page.at(-1);
      if (last === undefined) return;
      yield page;
      if (page.length < pageRows) return;
      after = [last.cursor, last.id]; // as text: a Date would drop the microseconds
    }
  }

  /**
   * The same as lines of the CSV, made by Postgres: to make a million here would take longer than to read them. Nearly every page holds
   * nothing that CSV writes in another way than COPY, which one look at its bytes shows; the others are read again, with a look at each cell.
   */
  async function* callLinesOfDay(day: string, tenantId: string): AsyncGenerator<Uint8Array> {
    let after: Cursor = [`${day}T00:00:00Z`, ""];
    for (;;) {
      const range = [tenantId, day, ...after, linesAtOnce] as const;
      const copied = await limited(
        async () =>
          await database.withControl(
            async (tx) => await tx.copyOut(`select ${callCells.join(", ")} ${callsAfter}`, range, { delimiter: "," }),
            pageOptions,
          ),
      );
      const page = isPlainCsv(copied) ? plainPage(copied) : await carefulPage(range);
      if (page.rows > 0) yield page.lines;
      if (page.rows < linesAtOnce) return;
      after = page.last;
    }
  }

  async function carefulPage(range: readonly (string | number)[]): Promise<LinesPage> {
    const [page] = await read<{ rows: number; lines: string; time: string | null; id: string | null }>(
      `select count(*)::int as rows, coalesce(string_agg(line, ''), '') as lines, max("timestamp")::text as time, (array_agg(id))[count(*)] as id
       from (select "timestamp", id, ${csvLineSql(callCells, callTexts)} as line ${callsAfter}) as page`,
      range,
      pageOptions,
    );
    const { rows = 0, lines = "", time, id } = page ?? {};
    return { rows, lines: Buffer.from(lines), last: [time ?? "", id ?? ""] };
  }

  async function* feePages({ tenantId, period: { firstDay, lastDay } }: ReportRequest): AsyncGenerator<readonly DueFee[]> {
    for (let after: DueFee | undefined; ;) {
      const range = { tenantId, firstDay, lastDay, after, limit: pageRows };
      const page: readonly DueFee[] = await database.withControl(async (tx) => await readDueFees(tx, range), { readOnly: true });
      if (page.length > 0) yield page;
      if (page.length < pageRows) return;
      after = page.at(-1);
    }
  }

  const requireKnown = async (tenantId: TenantId | undefined): Promise<void> => {
    if (tenantId === undefined) return;
    const rows = await read("select from control.tenant where id = $1", [tenantId]);
    if (rows.length === 0) throw new AppError("not_found", { client: { message: `There is no tenant "${tenantId}".`, param: "tenant" } });
  };

  async function quotaProgress(tenantId: TenantId): Promise<QuotaProgress> {
    const [ceilings] = await read<{ tokens: bigint | null; cost: bigint | null; requests: number | null }>(
      `select tokens_per_day as tokens, cost_per_day_nano_usd as cost, requests_per_minute as requests
       from control.tenant where id = $1 and state <> 'deleted'`,
      [tenantId],
    );
    const { tokens = null, cost = null, requests = null } = ceilings ?? {};
    const used = await limited(async () => await database.withControl(async (tx) => await readUsedToday(tx, tenantId), readOptions));
    return {
      tokens_per_day: tokens === null ? null : { limit: Number(tokens), used: Number(used.tokens) },
      cost_per_day_usd: cost === null ? null : { limit: formatUsd(cost), used: formatUsd(used.nanoUsd) },
      requests_per_minute: requests === null ? null : { limit: requests },
    };
  }

  return {
    async csv(request) {
      await requireKnown(request.tenantId);
      return request.detail ? callsCsv(readAhead(pagesOfCalls(request, callLinesOfDay))) : daysCsv(dailyPages(request));
    },
    async json(request) {
      await requireKnown(request.tenantId);
      const fees = feePages(request);
      return request.detail
        ? jsonOf(request, pagesOfCalls(request, callsOfDay), toCallJson, fees)
        : jsonOf(request, dailyPages(request), toDayRow, fees);
    },
    async usage(tenantId, period) {
      await requireKnown(tenantId);
      const days: DailyRow[] = [];
      for await (const page of dailyPages({ tenantId, period })) days.push(...page);
      const nowMs = now();
      const today = utcDayOf(nowMs);
      const closedCalls = days.reduce((total, { day, calls }) => total + (day < today ? Number(calls) : 0), 0);
      const dearest = await sessionCosts.dearest(tenantId, period, { nowMs, closedCalls, count: 10 });
      return {
        ...headOf({ tenantId, period }),
        tenant: tenantId,
        total_cost_usd: formatUsd(days.reduce((total, { cost_nano_usd }) => total + cost_nano_usd, 0n)),
        rows: days.map(toDayRow),
        daily: sumsBy(days, ({ day }) => day).map(([date, sums]) => ({ date, ...toSumRow(sums) })),
        by_model: sumsBy(days, ({ model }) => model)
          .toSorted(([, a], [, b]) => (a.cost_nano_usd === b.cost_nano_usd ? 0 : a.cost_nano_usd < b.cost_nano_usd ? 1 : -1))
          .map(([model, sums]) => ({ model, ...toSumRow(sums) })),
        top_sessions: dearest.map(({ sessionId, calls, nanoUsd }) => ({ session_id: sessionId, calls, cost_usd: formatUsd(nanoUsd) })),
        quota: await quotaProgress(tenantId),
      };
    },
  };
}

async function* daysCsv(pages: AsyncIterable<readonly DailyRow[]>): AsyncGenerator<string> {
  yield csvLine(dayColumns);
  for await (const page of pages) yield page.map((row) => csvLine(dayCells(row))).join("");
}

async function* callsCsv(pages: AsyncIterable<Uint8Array>): AsyncGenerator<string | Uint8Array> {
  yield csvLine(callColumns);
  yield* pages;
}

/** Asks for the next page while the last one is on its way to the reader. */
async function* readAhead<Page>(pages: AsyncGenerator<Page>): AsyncGenerator<Page> {
  let next = pages.next();
  try {
    for (let page = await next; page.done !== true; page = await next) {
      next = pages.next();
      next.catch(() => undefined); // told when its turn comes
      yield page.value;
    }
  } finally {
    // The reader may have left while a page was read.
    await next.catch(() => undefined);
    await pages.return(undefined);
  }
}

async function* jsonOf<Row extends { cost_nano_usd: bigint }>(
  request: ReportRequest,
  pages: AsyncIterable<readonly Row[]>,
  toJson: (row: Row) => object,
  fees: AsyncIterable<readonly DueFee[]>,
): AsyncGenerator<string> {
  yield `${JSON.stringify(headOf(request)).slice(0, -1)},"rows":[`;
  let totalNanoUsd = 0n;
  let separator = "";
  for await (const page of pages) {
    let chunk = "";
    for (const row of page) {
      totalNanoUsd += row.cost_nano_usd;
      chunk += separator + JSON.stringify(toJson(row));
      separator = ",";
    }
    yield chunk;
  }
  yield "]";
  const feesNanoUsd = yield* feesJson(fees);
  if (feesNanoUsd > 0n) yield `],"total_with_fees_usd":"${formatUsd(totalNanoUsd + feesNanoUsd)}"`;
  yield `,"total_cost_usd":"${formatUsd(totalNanoUsd)}"}\n`;
}

/** The months' platform fees that fall due in the period, a line each; nothing where none does. @returns their sum */
async function* feesJson(pages: AsyncIterable<readonly DueFee[]>): AsyncGenerator<string, bigint> {
  let sum = 0n;
  for await (const page of pages) {
    yield sum === 0n ? ',"platform_fees":[' : ",";
    yield page
      .map(({ day, tenantId, nanoUsd }) =>
        JSON.stringify({ date: day, tenant: tenantId, month: day.slice(0, 7), platform_fee_usd: formatUsd(nanoUsd) }),
      )
      .join(",");
    sum = page.reduce((total, { nanoUsd }) => total + nanoUsd, sum);
  }
  return sum;
}

const headOf = ({ tenantId, period }: ReportRequest) => ({
  tenant: tenantId ?? null,
  period: period.text,
  currency: "USD" as const,
  date_unix: period.fromMs / 1000,
});

const dayCells = (row: DailyRow): readonly CsvCell[] => [
  row.day,
  row.tenant_id,
  row.model,
  row.tokens_in,
  row.tokens_out,
  row.tokens_cached,
  row.reasoning_tokens,
  row.tool_calls,
  formatUsd(row.cost_nano_usd, 6),
];

const toSumRow = (sums: Sums): SumRow => ({
  tokens_in: Number(sums.tokens_in),
  tokens_out: Number(sums.tokens_out),
  tokens_cached: Number(sums.tokens_cached),
  reasoning_tokens: Number(sums.reasoning_tokens),
  tool_calls: Number(sums.tool_calls),
  cost_usd: formatUsd(sums.cost_nano_usd),
});

const toDayRow = (row: DailyRow): DayRow => ({ date: row.day, tenant: row.tenant_id, model: row.model, ...toSumRow(row) });

/** Token counts as numbers, money as text. */
function toCallJson(row: LedgerRow): object {
  const money = new Set<string>(["cost_nano_usd", "provider_cost_nano_usd"]);
  return Object.fromEntries(
    callColumns.map((column) => {
      const value = row[column];
      if (typeof value === "bigint") return [column, money.has(column) ? value.toString() : Number(value)];
      return [column, value instanceof Date ? value.toISOString() : value];
    }),
  );
}

function sumsBy(days: readonly DailyRow[], keyOf: (row: DailyRow) => string): [string, Sums][] {
  const groups = Map.groupBy(days, keyOf);
  return [...groups].map(([key, rows]) => [key, rows.reduce<Sums>(addSums, noSums)]);
}

const noSums: Sums = { tokens_in: 0n, tokens_out: 0n, tokens_cached: 0n, reasoning_tokens: 0n, tool_calls: 0n, cost_nano_usd: 0n };

const addSums = (a: Sums, b: Sums): Sums => ({
  tokens_in: a.tokens_in + b.tokens_in,
  tokens_out: a.tokens_out + b.tokens_out,
  tokens_cached: a.tokens_cached + b.tokens_cached,
  reasoning_tokens: a.reasoning_tokens + b.reasoning_tokens,
  tool_calls: a.tool_calls + b.tool_calls,
  cost_nano_usd: a.cost_nano_usd + b.cost_nano_usd,
});
