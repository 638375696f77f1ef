import type { NanoUsd } from "../domain/money.ts";
import type { Reservation } from "../domain/quota-lease.ts";
import type { Amount, CallRow, HolderId, ReservationId, RowFate, UtcDay } from "../domain/quota-ledger.ts";
import type { CallId } from "../domain/turn-id.ts";
import type { TenantTx } from "./database.ts";

/** What the rows of one tenant say about its quota. */

/** Registers a lease, unless it is one that was taken back. @returns whether it stands */
export async function insertLease(tx: TenantTx, holder: HolderId): Promise<boolean> {
  await tx.execute("insert into quota_lease (holder) values ($1) on conflict do nothing", [holder]);
  return await holdLease(tx, holder);
}

/** From now on the lease opens nothing; waits for the transactions that are opening something with it. */
export async function fenceLease(tx: TenantTx, holder: HolderId): Promise<void> {
  // Nobody sends an order again after so long; a lease that was never registered must not be, once it was taken back.
  await tx.execute("delete from quota_lease where fenced_at < now() - interval '3 days'");
  await tx.execute(
    "insert into quota_lease (holder, fenced_at) values ($1, now()) on conflict (holder) do update set fenced_at = coalesce(quota_lease.fenced_at, now())",
    [holder],
  );
}

/** @returns the leases that stood */
export async function fenceAllLeases(tx: TenantTx): Promise<readonly HolderId[]> {
  const stood = await tx.query<{ holder: HolderId }>("update quota_lease set fenced_at = now() where fenced_at is null returning holder");
  return stood.map(({ holder }) => holder);
}

/** Locks the lease until the transaction ends. @returns false when it was fenced */
export async function holdLease(tx: TenantTx, holder: HolderId): Promise<boolean> {
  return (await tx.query("select from quota_lease where holder = $1 and fenced_at is null for share", [holder])).length === 1;
}

/** Writes a reservation to the journal row of its call. `taken`: another attempt has the call, or it has ended. */
export async function reserveCall(
  tx: TenantTx,
  { callId, attempt }: { readonly callId: CallId; readonly attempt: number },
  { holder, batch, day, reserved }: Reservation,
): Promise<"written" | "fenced" | "taken"> {
  const [row] = await tx.query<{ outcome: "written" | "fenced" | "taken" }>(
    `with lease as (select from quota_lease where holder = $3 and fenced_at is null for share), written as (
       update model_call set holder = $3, batch = $4, day = $5, reserved_tokens = $6, reserved_nano_usd = $7
       where id = $1 and attempt = $2 and state = 'started' and exists (select from lease) returning id
     )
     select case when exists (select from written) then 'written' when exists (select from lease) then 'taken' else 'fenced' end as outcome`,
    [callId, attempt, holder, batch, day, reserved.tokens, reserved.nanoUsd.toString()],
  );
  return row?.outcome ?? "fenced";
}

type JournalRow = {
  call_id: CallId;
  holder: HolderId | null;
  state: "started" | "done" | "void";
  day: UtcDay | null;
  batch: number | null;
  reserved_tokens: bigint | null;
  reserved_nano_usd: bigint | null;
  used_tokens: bigint | null;
  used_nano_usd: bigint | null;
};

/** Tokens of a day's quota are fresh input, output and reasoning (contract §6). */
const usedTokens = "l.input_tokens + l.output_tokens + l.reasoning_tokens";
const callColumns = `c.id as call_id, c.holder, c.state, c.day, c.batch, c.reserved_tokens, c.reserved_nano_usd,
  ${usedTokens} as used_tokens, l.cost_nano_usd as used_nano_usd`;
const withLedger = "left join control.usage_ledger l on l.id = c.id";

/** Calls of a lease that it never reported, which are those of later batches. */
export async function readUnreportedCalls(tx: TenantTx, holder: HolderId, afterBatch: number): Promise<readonly CallRow[]> {
  const rows = await tx.query<JournalRow>(`select ${callColumns} from model_call c ${withLedger} where c.holder = $1 and c.batch > $2`, [
    holder,
    afterBatch,
  ]);
  return rows.map(toCallRow);
}

/** What became of calls; a call without a row is `missing`. */
export async function readCallRows(tx: TenantTx, callIds: readonly CallId[]): Promise<readonly CallRow[]> {
  if (callIds.length === 0) return [];
  const rows = await tx.query<JournalRow>(`select ${callColumns} from model_call c ${withLedger} where c.id = any ($1)`, [callIds]);
  const known = new Map(rows.map((row) => [row.call_id, toCallRow(row)]));
  return callIds.map((callId) => known.get(callId) ?? { callId, holder: "", batch: 0, day: "", state: "missing" });
}

const isCounted = "not (state = 'failed' and coalesce((error ->> 'isRefusal')::boolean, false))";

/** Turns that a lease admitted and never reported, without those that were refused for a quota. */
export async function countUnreportedTurns(tx: TenantTx, holder: HolderId, afterBatch: number): Promise<number> {
  const [row] = await tx.query<{ turns: bigint }>(`select count(*) as turns from turn where holder = $1 and batch > $2 and ${isCounted}`, [
    holder,
    afterBatch,
  ]);
  return Number(row?.turns ?? 0n);
}

/** Turns of the last minute that leases let in, without those that were refused for a quota. */
export async function countRecentTurns(tx: TenantTx, holders: readonly HolderId[]): Promise<number> {
  const [row] = await tx.query<{ turns: bigint }>(
    `select count(*) as turns from turn where holder = any ($1) and created_at > now() - interval '61 seconds' and ${isCounted}`,
    [holders],
  );
  return Number(row?.turns ?? 0n);
}

/** What the tenant has used today, and its calls that have not ended. */
export async function readDay(tx: TenantTx): Promise<{
  readonly day: UtcDay;
  readonly used: Amount;
  readonly open: readonly (ReservationId & { readonly reserved: Amount })[];
}> {
  // One statement, so one moment: a call that ends meanwhile is either open or used, never neither or both.
  const rows = await tx.query<{
    call_id: CallId | null;
    holder: HolderId;
    batch: number;
    day: UtcDay;
    tokens: bigint;
    nano_usd: bigint;
  }>(
    `with today as (select (now() at time zone 'UTC')::date as day)
     select null as call_id, '' as holder, 0 as batch, day, coalesce(sum(${usedTokens}), 0)::bigint as tokens, coalesce(sum(l.cost_nano_usd), 0)::bigint as nano_usd
     from today left join control.usage_ledger l
       on l.tenant_id = $1 and l."timestamp" >= day at time zone 'UTC' and l."timestamp" < (day + 1) at time zone 'UTC'
     group by day
     union all
     select c.id, coalesce(c.holder, ''), coalesce(c.batch, 0), today.day, coalesce(c.reserved_tokens, 0), coalesce(c.reserved_nano_usd, 0)
     from today join model_call c on c.state = 'started' and coalesce(c.day, today.day) = today.day`,
    [tx.tenantId],
  );
  const sum = rows.find(({ call_id }) => call_id === null);
  if (sum === undefined) throw new Error("a sum answered no row");
  return {
    day: sum.day,
    used: amountOf(sum.tokens, sum.nano_usd),
    open: rows.flatMap(({ call_id, holder, batch, tokens, nano_usd }) =>
      call_id === null ? [] : [{ callId: call_id, holder, batch, reserved: amountOf(tokens, nano_usd) }],
    ),
  };
}

const amountOf = (tokens: bigint, nanoUsd: bigint): Amount => ({ tokens: Number(tokens), nanoUsd: nanoUsd as NanoUsd });

function toCallRow(row: JournalRow): CallRow {
  const { call_id, holder, batch, day, state, reserved_tokens, reserved_nano_usd, used_tokens, used_nano_usd } = row;
  const reserved = amountOf(reserved_tokens ?? 0n, reserved_nano_usd ?? 0n);
  const fate: RowFate =
    state === "started"
      ? { state, reserved }
      : state === "done"
        ? { state, reserved, actual: amountOf(used_tokens ?? 0n, used_nano_usd ?? 0n) }
        : { state: "void" };
  return { callId: call_id, holder: holder ?? "", batch: batch ?? 0, day: day ?? "", ...fate };
}
