import { AppError } from "../domain/app-error.ts";
import type { InvoiceEventKey, InvoiceKind, InvoiceMode, InvoiceResolution, InvoiceState } from "../domain/invoice.ts";
import type { ControlTx } from "./database.ts";
import { readDueFees } from "./platform-fee-repository.ts";

export type InvoiceAccountKey = { readonly tenantId: string; readonly mode: InvoiceMode };

export type InvoiceAccount = InvoiceAccountKey & {
  readonly customer: string;
  readonly firstDay: string;
  readonly closed: boolean;
  readonly sentEvents: number;
  readonly sentNanoUsd: bigint;
  readonly lastSentAt: Date | undefined;
};

/** What is owed for a day beyond what was planned before. */
export type InvoiceLine = { readonly kind: InvoiceKind; readonly day: string; readonly revision: number; readonly nanoUsd: bigint };

export type InvoiceEvent = InvoiceEventKey & {
  readonly nanoUsd: bigint;
  readonly state: InvoiceState;
  readonly attempts: number;
  readonly reason: string | undefined;
};

/** What an attempt is to send, and what it must know to be judged. */
export type InvoiceAttempt = InvoiceEventKey & {
  readonly nanoUsd: bigint;
  readonly customer: string;
  readonly eventName: string;
  readonly identifier: string;
  readonly attempt: number;
  /** An earlier attempt may have arrived. */
  readonly wasUnclear: boolean;
  /** It may have arrived so long ago that Stripe no longer knows its identifier: ask before it is sent again. */
  readonly isStale: boolean;
};

export type DayRange = { readonly firstDay?: string | undefined; readonly lastDay?: string | undefined };

/** Stripe knows an identifier for 24 hours at least; an hour is for clocks and slow answers. */
const identifierHours = 23;
/** Stripe takes no event that is older; an hour less, for clocks. */
const oldestEvent = "interval '35 days' - interval '1 hour'";

const today = "(now() at time zone 'UTC')::date";
const keyColumns = "tenant_id = $1 and mode = $2";
const eventKey = `${keyColumns} and kind = $3 and day = $4 and revision = $5`;
const keyValues = ({ tenantId, mode, kind, day, revision }: InvoiceEventKey): readonly unknown[] => [tenantId, mode, kind, day, revision];

/** How a tenant's mapping is noted. */
export type InvoiceNote = { readonly customer: string; readonly firstDay: string; readonly closed: boolean; readonly hasSchedule: boolean };

type NoteRow = { tenant_id: string; customer: string; first_day: string; closed: boolean; has_schedule: boolean };
const noteColumns = "account.tenant_id, account.customer, account.first_day, account.closed_at is not null as closed, account.has_schedule";
const toNote = ({ customer, first_day, closed, has_schedule }: NoteRow): InvoiceNote => ({
  customer,
  firstDay: first_day,
  closed,
  hasSchedule: has_schedule,
});

/** All mappings that are noted of a mode, by tenant. */
export async function readNotes(tx: ControlTx, mode: InvoiceMode): Promise<ReadonlyMap<string, InvoiceNote>> {
  const rows = await tx.query<NoteRow>(`select ${noteColumns} from control.invoice_account account where mode = $1`, [mode]);
  return new Map(rows.map((row) => [row.tenant_id, toNote(row)]));
}

/**
 * Notes the mapping of a tenant that exists; a `firstDay` that is not given stays, and is today at first.
 * @returns undefined when there is no such tenant
 */
export async function noteAccount(
  tx: ControlTx,
  { tenantId, mode }: InvoiceAccountKey,
  { customer, firstDay }: { readonly customer: string; readonly firstDay: string | undefined },
): Promise<InvoiceNote | undefined> {
  const [row] = await tx.query<NoteRow>(
    `insert into control.invoice_account as account (tenant_id, mode, customer, first_day)
     select id, $2, $3, coalesce($4::date, ${today}) from control.tenant where id = $1
     on conflict (tenant_id, mode) do update set customer = excluded.customer, first_day = coalesce($4::date, account.first_day)
     returning ${noteColumns}`,
    [tenantId, mode, customer, firstDay ?? null],
  );
  return row === undefined ? undefined : toNote(row);
}

export async function noteSchedule(tx: ControlTx, { tenantId, mode }: InvoiceAccountKey, hasSchedule: boolean): Promise<void> {
  await tx.execute(`update control.invoice_account set has_schedule = $3 where ${keyColumns}`, [tenantId, mode, hasSchedule]);
}

/** Tenants that may have a schedule although none of the mapped ones is to have it. */
export async function readSurplusSchedules(tx: ControlTx, mapped: readonly string[]): Promise<readonly InvoiceAccountKey[]> {
  const rows = await tx.query<{ tenant_id: string; mode: InvoiceMode }>(
    "select tenant_id, mode from control.invoice_account where has_schedule and not (tenant_id = any ($1))",
    [mapped],
  );
  return rows.map(({ tenant_id, mode }) => ({ tenantId: tenant_id, mode }));
}

/** Accounts with what was told, by tenant. */
export async function readAccounts(tx: ControlTx, tenantId: string | undefined): Promise<readonly InvoiceAccount[]> {
  const rows = await tx.query<{
    tenant_id: string;
    mode: InvoiceMode;
    customer: string;
    first_day: string;
    closed: boolean;
    events: bigint;
    nano_usd: string;
    last_sent_at: Date | null;
  }>(
    `select account.tenant_id, account.mode, account.customer, account.first_day, closed_at is not null as closed, count(event) as events,
            coalesce(sum(event.value_nano_usd), 0)::text as nano_usd, max(event.decided_at) as last_sent_at
     from control.invoice_account account
     left join control.invoice_event event on event.tenant_id = account.tenant_id and event.mode = account.mode and event.state = 'sent'
     where $1::text is null or account.tenant_id = $1
     group by account.tenant_id, account.mode order by account.tenant_id collate "C", account.mode`,
    [tenantId ?? null],
  );
  return rows.map(({ tenant_id, mode, customer, first_day, closed, events, nano_usd, last_sent_at }) => ({
    tenantId: tenant_id,
    mode,
    customer,
    firstDay: first_day,
    closed,
    sentEvents: Number(events),
    sentNanoUsd: BigInt(nano_usd),
    lastSentAt: last_sent_at ?? undefined,
  }));
}

/**
 * What is owed and in no event yet, of days of the range that have ended.
 * @param configured the first day of a tenant that was not noted yet, or not with this one; default: as it was noted, else today
 */
export async function readOwedLines(
  tx: ControlTx,
  key: InvoiceAccountKey,
  range: DayRange,
  configured?: string,
): Promise<readonly InvoiceLine[]> {
  const [bounds] = await tx.query<{ first_day: string; last_day: string }>(
    `select greatest(coalesce($5::date, (select first_day from control.invoice_account where ${keyColumns}), ${today}), $3::date) as first_day,
            least($4::date, ${today} - 1) as last_day`,
    [key.tenantId, key.mode, range.firstDay ?? null, range.lastDay ?? null, configured ?? null],
  );
  if (bounds === undefined || bounds.first_day > bounds.last_day) return [];
  const { first_day: firstDay, last_day: lastDay } = bounds;
  const days = await tx.query<{ day: string; revision: number; nano_usd: bigint }>(
    `select used.day, coalesce(told.revision, 0) + 1 as revision, (used.cost - coalesce(told.cost, 0))::bigint as nano_usd
     from (select day, sum(cost_nano_usd) as cost from control.usage_daily where tenant_id = $1 and day between $3 and $4 group by day) used
     left join (
       select day, max(revision) as revision, sum(value_nano_usd) as cost from control.invoice_event
       where ${keyColumns} and kind = 'usage' and day between $3 and $4 group by day
     ) told using (day)
     where used.cost > coalesce(told.cost, 0) order by used.day`,
    [key.tenantId, key.mode, firstDay, lastDay],
  );
  const told = await tx.query<{ day: string }>(
    `select day from control.invoice_event where ${keyColumns} and kind = 'platform_fee' and day between $3 and $4`,
    [key.tenantId, key.mode, firstDay, lastDay],
  );
  const fees = await readDueFees(tx, { tenantId: key.tenantId, firstDay, lastDay });
  return [
    ...days.map(({ day, revision, nano_usd }) => ({ kind: "usage" as const, day, revision, nanoUsd: nano_usd })),
    ...fees
      .filter(({ day }) => !told.some((event) => event.day === day))
      .map(({ day, nanoUsd }) => ({ kind: "platform_fee" as const, day, revision: 1, nanoUsd })),
  ].flatMap(inParts);
}

/** Stripe takes 15 digits in one event, which is a million dollars less a nano. */
const largestPart = 999_999_999_999_999n;

function inParts(line: InvoiceLine): readonly InvoiceLine[] {
  const parts: InvoiceLine[] = [];
  for (let rest = line.nanoUsd; rest > 0n; rest -= largestPart) {
    parts.push({ ...line, revision: line.revision + parts.length, nanoUsd: rest < largestPart ? rest : largestPart });
  }
  return parts;
}

/** Makes the events of what is owed by a tenant whose mapping is noted. @returns how many */
export async function planEvents(tx: ControlTx, key: InvoiceAccountKey, range: DayRange): Promise<number> {
  // One plan of a tenant at a time: the next one's statements begin behind this one's commit, and see its events.
  await tx.query(`select from control.invoice_account where ${keyColumns} for update`, [key.tenantId, key.mode]);
  const lines = await readOwedLines(tx, key, range);
  for (const { kind, day, revision, nanoUsd } of lines) {
    await tx.execute(
      "insert into control.invoice_event (tenant_id, mode, kind, day, revision, value_nano_usd) values ($1, $2, $3, $4, $5, $6)",
      [key.tenantId, key.mode, kind, day, revision, nanoUsd.toString()],
    );
  }
  return lines.length;
}

type EventRow = {
  kind: InvoiceKind;
  day: string;
  revision: number;
  value_nano_usd: bigint;
  state: InvoiceState;
  attempts: number;
  reason: string | null;
};

/** Events that are not decided, the oldest first. */
export async function readUndecided(tx: ControlTx, key: InvoiceAccountKey, range: DayRange = {}): Promise<readonly InvoiceEvent[]> {
  const rows = await tx.query<EventRow>(
    `select kind, day, revision, value_nano_usd, state, attempts, reason from control.invoice_event
     where ${keyColumns} and state in ('open', 'refused', 'held') and day >= coalesce($3::date, day) and day <= coalesce($4::date, day)
     order by day, kind, revision`,
    [key.tenantId, key.mode, range.firstDay ?? null, range.lastDay ?? null],
  );
  return rows.map(({ kind, day, revision, value_nano_usd, state, attempts, reason }) => ({
    ...key,
    kind,
    day,
    revision,
    nanoUsd: value_nano_usd,
    state,
    attempts,
    reason: reason ?? undefined,
  }));
}

/**
 * Notes, before anything is sent, that Stripe may get the event: a process that dies behind this leaves an event that may have arrived.
 * An event that may have arrived keeps its customer and identifier; another one takes those given. Nothing is noted of a stale one.
 * @returns the event's state when there is nothing to send: another process decided it meanwhile, it was refused and is too old by
 * now, or it is stale and was sent in the last hour, since Stripe adds up some time after it has answered
 */
export async function beginAttempt(
  tx: ControlTx,
  key: InvoiceEventKey,
  sent: { readonly customer: string; readonly eventName: string; readonly identifier: string },
): Promise<InvoiceAttempt | InvoiceState> {
  const [event] = await tx.query<AttemptRow>(
    `select state, value_nano_usd, customer, event_name, identifier, attempts, unclear_since is not null as unclear,
            day + 1 <= now() at time zone 'UTC' - (${oldestEvent}) as too_old,
            coalesce(unclear_since < now() - interval '${identifierHours} hours', false) as stale,
            coalesce(attempted_at > now() - interval '1 hour', false) as recent
     from control.invoice_event where ${eventKey} for update`,
    keyValues(key),
  );
  if (event === undefined) throw new AppError("not_found", { event: key });
  const isDecided = event.state !== "open" && event.state !== "refused";
  if (isDecided || (event.state === "refused" && event.too_old) || (event.stale && event.recent)) return event.state;
  const { value_nano_usd, attempts, unclear: wasUnclear, stale: isStale } = event;
  const { tenantId, mode, kind, day, revision } = key;
  const attempt = {
    ...{ tenantId, mode, kind, day, revision, wasUnclear, isStale, nanoUsd: value_nano_usd },
    ...(wasUnclear ? { customer: event.customer ?? "", eventName: event.event_name ?? "", identifier: event.identifier ?? "" } : sent),
  };
  if (isStale) return { ...attempt, attempt: attempts };
  await tx.execute(
    `update control.invoice_event set attempts = attempts + 1, attempted_at = now(), unclear_since = coalesce(unclear_since, now()),
       customer = $6, event_name = $7, identifier = $8
     where ${eventKey}`,
    [...keyValues(key), attempt.customer, attempt.eventName, attempt.identifier],
  );
  return { ...attempt, attempt: attempts + 1 };
}

type AttemptRow = {
  state: InvoiceState;
  too_old: boolean;
  value_nano_usd: bigint;
  customer: string | null;
  event_name: string | null;
  identifier: string | null;
  attempts: number;
  unclear: boolean;
  stale: boolean;
  recent: boolean;
};

/** Stripe has it, or nobody can tell: neither is tried again. An event that was decided meanwhile stays as it is. */
export async function decideEvent(tx: ControlTx, key: InvoiceEventKey, state: "sent" | "held", reason: string | null): Promise<void> {
  await tx.execute(
    `update control.invoice_event set state = $6, reason = $7, decided_at = now(), unclear_since = case when $6 = 'sent' then null else unclear_since end
     where ${eventKey} and state in ('open', 'refused')`,
    [...keyValues(key), state, reason],
  );
}

/**
 * The attempt has surely not arrived: Stripe said so. What an attempt beside it or before it may have done stays open.
 * @param state `open` when it is to be tried again, `refused` when something has to be mended first
 */
export async function noteRefusal(
  tx: ControlTx,
  { attempt, wasUnclear, ...key }: InvoiceAttempt,
  state: "open" | "refused",
  reason: string,
): Promise<void> {
  await tx.execute(
    `update control.invoice_event set state = $6, reason = $7, unclear_since = case when attempts = $8 and not $9 then null else unclear_since end
     where ${eventKey} and state in ('open', 'refused')`,
    [...keyValues(key), state, reason, attempt, wasUnclear],
  );
}

/** Something has to be mended before the event is sent at all. */
export async function refuseUnsent(tx: ControlTx, key: InvoiceEventKey, reason: string): Promise<void> {
  await tx.execute(`update control.invoice_event set state = 'refused', reason = $6 where ${eventKey} and state in ('open', 'refused')`, [
    ...keyValues(key),
    reason,
  ]);
}

export async function noteReason(tx: ControlTx, key: InvoiceEventKey, reason: string): Promise<void> {
  await tx.execute(`update control.invoice_event set reason = $6 where ${eventKey} and state in ('open', 'refused')`, [
    ...keyValues(key),
    reason,
  ]);
}

/** No attempt up to `attempt` has arrived: the event may be sent as if for the first time. @returns whether nobody tried meanwhile */
export async function clearAttempts(tx: ControlTx, { attempt, ...key }: InvoiceAttempt): Promise<boolean> {
  const cleared = await tx.execute(
    `update control.invoice_event set unclear_since = null where ${eventKey} and attempts = $6 and state in ('open', 'refused')`,
    [...keyValues(key), attempt],
  );
  return cleared === 1;
}

/** What Stripe is known to have of a day under a customer and an event name. */
export async function readSentOfDay(tx: ControlTx, { tenantId, mode, kind, day, customer, eventName }: InvoiceAttempt): Promise<bigint> {
  const [row] = await tx.query<{ nano_usd: string }>(
    `select coalesce(sum(value_nano_usd), 0)::text as nano_usd from control.invoice_event
     where ${keyColumns} and kind = $3 and day = $4 and customer = $5 and event_name = $6 and state = 'sent'`,
    [tenantId, mode, kind, day, customer, eventName],
  );
  return BigInt(row?.nano_usd ?? 0);
}

/** @returns false when the event is neither held nor refused */
export async function resolveEvent(tx: ControlTx, key: InvoiceEventKey, as: InvoiceResolution): Promise<boolean> {
  const changed = await tx.execute(
    `update control.invoice_event set state = $6, reason = 'resolved by an administrator', unclear_since = null, decided_at = now()
     where ${eventKey} and state in ('held', 'refused')`,
    [...keyValues(key), as],
  );
  return changed === 1;
}

/** Ends the account of a tenant that is erased when nothing is left to tell. Rows of an erased tenant cannot follow. */
export async function closeAccount(tx: ControlTx, key: InvoiceAccountKey): Promise<void> {
  const [erased] = await tx.query<{ ended: boolean }>(
    `select (erased_at at time zone 'UTC')::date < ${today} as ended from control.tenant where id = $1 and erased_at is not null`,
    [key.tenantId],
  );
  if (erased?.ended !== true) return; // the day of the end is told when it has ended
  const isLeft = (await readUndecided(tx, key)).length > 0 || (await readOwedLines(tx, key, {})).length > 0;
  if (!isLeft)
    await tx.execute(`update control.invoice_account set closed_at = coalesce(closed_at, now()) where ${keyColumns}`, [
      key.tenantId,
      key.mode,
    ]);
}
