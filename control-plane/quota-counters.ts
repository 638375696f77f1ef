import { formatUsd } from "../domain/money.ts";
import type { NanoUsd } from "../domain/money.ts";
import type { DayBooks, UtcDay } from "../domain/quota-ledger.ts";
import { type QuotaBooks, booksFromWire } from "../domain/quota-wire.ts";
import type { TenantContext } from "../domain/tenant.ts";
import { type RowsOfDay, readClock, readRowsOfDay } from "../storage/counted-rows.ts";
import type { Database } from "../storage/database.ts";

/** A day whose counters cannot be what its rows come to. */
export type CounterDifference = { readonly day: UtcDay; readonly what: string };

export type QuotaCountersDeps = {
  readonly database: Pick<Database, "withControl" | "withTenant">;
  /** Undefined when the workflow counts nothing. @throws when it cannot be asked */
  readonly booksOf: () => Promise<QuotaBooks | undefined>;
  /** Pause before a difference is looked at again; default half a second. */
  readonly againMs?: number;
};

/** How often a difference must be seen in a row. */
const looks = 3;
const comparing = { readOnly: true, statementTimeoutMs: 120_000 } as const;

/**
 * Compares what a tenant's workflow has counted, of the day that it is in and of the one before, with the rows of those days.
 * The workflow says which rows it cannot have yet (calls that are open, leases that have not reported), so a busy tenant is compared
 * to the digit as well. Only rows that ended while it was asked, and rows that no lease reserved, may or may not be counted.
 * @returns the days that differ, and those that were compared
 * @throws when the workflow cannot be asked
 */
export async function compareCounters(
  { database, booksOf, againMs = 500 }: QuotaCountersDeps,
  context: TenantContext,
): Promise<{ readonly compared: readonly UtcDay[]; readonly differences: readonly CounterDifference[] }> {
  const look = async () => {
    const askedAt = await database.withControl(readClock, { readOnly: true });
    const books = await booksOf();
    const days = books === undefined ? [] : [books.today, ...(books.last === undefined ? [] : [books.last])].map(booksFromWire);
    const differences: CounterDifference[] = [];
    for (const day of days) {
      const rows = await database.withTenant(context, async (tx) => await readRowsOfDay(tx, day, askedAt), comparing);
      const what = differenceOf(day, rows);
      if (what !== undefined) differences.push({ day: day.day, what });
    }
    return { compared: days.map(({ day }) => day), differences };
  };
  let seen = await look();
  for (let n = 1; n < looks && seen.differences.length > 0; n++) {
    await new Promise((resolve) => setTimeout(resolve, againMs));
    const before = new Set(seen.differences.map(({ day }) => day));
    const again = await look();
    seen = { ...again, differences: again.differences.filter(({ day }) => before.has(day)) };
  }
  return seen;
}

function differenceOf({ used }: DayBooks, { counted, uncertain }: RowsOfDay): string | undefined {
  const parts = [
    outside(BigInt(used.tokens), BigInt(counted.tokens), BigInt(uncertain.tokens), (tokens) => `${tokens} tokens`),
    outside(used.nanoUsd, counted.nanoUsd, uncertain.nanoUsd, (nanoUsd) => `${formatUsd(nanoUsd as NanoUsd)} USD`),
  ].filter((part) => part !== undefined);
  return parts.length === 0 ? undefined : parts.join("; ");
}

function outside(used: bigint, counted: bigint, uncertain: bigint, print: (value: bigint) => string): string | undefined {
  if (used >= counted && used <= counted + uncertain) return undefined;
  const most = uncertain === 0n ? "" : ` to ${print(counted + uncertain)}`;
  return `the workflow has counted ${print(used)}, the rows come to ${print(counted)}${most}`;
}
