import { AppError } from "../domain/app-error.ts";

/** Whole UTC days. */
export type Period = {
  /** As it was asked for: `last-month`. */
  readonly text: string;
  /** First and last day, `YYYY-MM-DD`. */
  readonly firstDay: string;
  readonly lastDay: string;
  readonly fromMs: number;
  /** Exclusive. */
  readonly untilMs: number;
};

const dayMs = 86_400_000;
/** Beyond it a range is a mistake, not a report. */
const longestDays = 36_600;

/**
 * `today`, `yesterday`, `current-month`, `last-month`, `YYYY-MM` or `YYYY-MM-DD..YYYY-MM-DD` (both days included), in UTC.
 * @throws {AppError} `invalid_period`
 */
export function parsePeriod(text: string, nowMs: number): Period {
  const now = new Date(nowMs);
  const today = Math.floor(nowMs / dayMs) * dayMs;
  const month = (offset: number): Period => days(text, monthStart(now, offset), monthStart(now, offset + 1));
  switch (text) {
    case "today":
      return days(text, today, today + dayMs);
    case "yesterday":
      return days(text, today - dayMs, today);
    case "current-month":
      return month(0);
    case "last-month":
      return month(-1);
    default:
      return parseDates(text);
  }
}

function parseDates(text: string): Period {
  if (text.length > 32) throw invalidPeriod(text);
  const [, year, month] = /^(\d{4})-(0[1-9]|1[0-2])$/.exec(text) ?? [];
  if (year !== undefined && month !== undefined) {
    const first = new Date(`${year}-${month}-01T00:00:00Z`);
    return days(text, first.getTime(), monthStart(first, 1));
  }
  const [, from, to] = /^(\d{4}-\d{2}-\d{2})\.\.(\d{4}-\d{2}-\d{2})$/.exec(text) ?? [];
  if (from === undefined || to === undefined) throw invalidPeriod(text);
  const fromMs = parseDay(from, text);
  const untilMs = parseDay(to, text) + dayMs;
  if (untilMs <= fromMs || untilMs - fromMs > longestDays * dayMs) throw invalidPeriod(text);
  return days(text, fromMs, untilMs);
}

function parseDay(day: string, text: string): number {
  const atMs = Date.parse(`${day}T00:00:00Z`);
  if (Number.isNaN(atMs) || dayText(atMs) !== day) throw invalidPeriod(text); // 30 February is not 2 March
  return atMs;
}

function monthStart(date: Date, offset: number): number {
  const start = new Date(0);
  start.setUTCFullYear(date.getUTCFullYear(), date.getUTCMonth() + offset, 1); // Date.UTC would read the years 0 to 99 as 19xx
  return start.getTime();
}

const dayText = (atMs: number): string => new Date(atMs).toISOString().slice(0, 10);

const days = (text: string, fromMs: number, untilMs: number): Period => ({
  text,
  fromMs,
  untilMs,
  firstDay: dayText(fromMs),
  lastDay: dayText(untilMs - dayMs),
});

const invalidPeriod = (text: string): AppError => new AppError("invalid_period", { text: text.slice(0, 64), client: { param: "period" } });
