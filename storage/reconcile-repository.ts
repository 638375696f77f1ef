import type { ReconcileProgress } from "../domain/reconciliation.ts";
import type { TenantId } from "../domain/tenant.ts";
import type { ControlTx, TenantTx } from "./database.ts";

/** A difference as it is kept; `day` is compared again to know whether it is gone. */
export type KeptFinding = {
  readonly id: string;
  readonly checkName: string;
  readonly kind: string;
  readonly subject: string;
  readonly what: string;
  readonly day: string;
  readonly isAlarmed: boolean;
};

export type ReconcileTenant = {
  readonly id: TenantId;
  readonly isDeleted: boolean;
  /** Undefined before the tenant's first comparison. */
  readonly nextDay: string | undefined;
};

type TenantRow = { id: TenantId; is_deleted: boolean; next_day: string | null };
const tenantColumns = "t.id, t.state = 'deleted' as is_deleted, r.next_day";
const toReconcileTenant = ({ id, is_deleted, next_day }: TenantRow): ReconcileTenant => ({
  id,
  isDeleted: is_deleted,
  nextDay: next_day ?? undefined,
});

/** Tenants behind `after`, by id. One that was compared after its erasure changes no more, and comes only while it has a finding. */
export async function readTenantsToReconcile(tx: ControlTx, after: string, limit: number): Promise<readonly ReconcileTenant[]> {
  const rows = await tx.query<TenantRow>(
    `select ${tenantColumns} from control.tenant t left join control.reconciled_tenant r on r.tenant_id = t.id
     where t.id collate "C" > $1 and ${changesStill} order by t.id collate "C" limit $2`,
    [after, limit],
  );
  return rows.map(toReconcileTenant);
}

/** @returns undefined for one that is not there */
export async function readTenantToReconcile(tx: ControlTx, tenantId: string): Promise<ReconcileTenant | undefined> {
  const [row] = await tx.query<TenantRow>(
    `select ${tenantColumns} from control.tenant t left join control.reconciled_tenant r on r.tenant_id = t.id where t.id = $1`,
    [tenantId],
  );
  return row === undefined ? undefined : toReconcileTenant(row);
}

export async function countTenantsToReconcile(tx: ControlTx): Promise<number> {
  const [row] = await tx.query<{ count: bigint }>(
    `select count(*) from control.tenant t left join control.reconciled_tenant r on r.tenant_id = t.id where ${changesStill}`,
  );
  return Number(row?.count ?? 0n);
}

const changesStill = `(t.erased_at is null or r.compared_at is null or r.compared_at <= t.erased_at
  or exists (select from control.billing_finding f where f.tenant_id = t.id and f.ended_at is null))`;

/** Differences of a tenant that are not gone. */
export async function readOpenFindings(tx: ControlTx, tenantId: TenantId): Promise<readonly KeptFinding[]> {
  return await tx.query<KeptFinding>(
    `select id::text, check_name as "checkName", kind, subject, what, day, alarmed_at is not null as "isAlarmed"
     from control.billing_finding where tenant_id = $1 and ended_at is null order by id`,
    [tenantId],
  );
}

/** @returns how many were not known */
export async function insertFindings(
  tx: ControlTx,
  tenantId: TenantId,
  findings: readonly Omit<KeptFinding, "id" | "isAlarmed">[],
): Promise<number> {
  if (findings.length === 0) return 0;
  return await tx.execute(
    `insert into control.billing_finding (tenant_id, check_name, kind, subject, what, day)
     select $1, * from unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::date[])
     on conflict (tenant_id, kind, subject) where ended_at is null do nothing`,
    [
      tenantId,
      findings.map(({ checkName }) => checkName),
      findings.map(({ kind }) => kind),
      findings.map(({ subject }) => subject),
      findings.map(({ what }) => what),
      findings.map(({ day }) => day),
    ],
  );
}

/** They are gone; one whose alarm is not written yet keeps until it is. */
export async function endFindings(tx: ControlTx, ids: readonly string[]): Promise<void> {
  if (ids.length > 0)
    await tx.execute("update control.billing_finding set ended_at = now() where id = any ($1::bigint[]) and alarmed_at is not null", [ids]);
}

/** In the transaction that writes the finding's audit entry. */
export async function noteAlarm(tx: ControlTx, findingId: string): Promise<void> {
  await tx.execute("update control.billing_finding set alarmed_at = coalesce(alarmed_at, now()) where id = $1::bigint", [findingId]);
}

/** The next run begins with `nextDay`. */
export async function noteReconciled(tx: ControlTx, tenantId: TenantId, nextDay: string): Promise<void> {
  await tx.execute(
    `insert into control.reconciled_tenant (tenant_id, next_day) values ($1, $2)
     on conflict (tenant_id) do update set next_day = excluded.next_day, compared_at = now()`,
    [tenantId, nextDay],
  );
}

/** Where the next run of a tenant has to begin: today, or the day of its oldest call that has not ended. */
export async function readNextDay(tx: TenantTx): Promise<string> {
  const [row] = await tx.query<{ day: string }>(
    `select least((now() at time zone 'UTC')::date, min(coalesce(day, (started_at at time zone 'UTC')::date))) as day
     from model_call where state = 'started'`,
  );
  if (row === undefined) throw new Error("a minimum answered no row");
  return row.day;
}

/** Notes that a run came to its end; safe to repeat. @returns how many differences it was the first to find, and how many are open */
export async function noteRun(
  tx: ControlTx,
  { runId, startedAtMs, report }: { readonly runId: string; readonly startedAtMs: number; readonly report: ReconcileProgress },
): Promise<{ readonly found: number; readonly open: number }> {
  const [row] = await tx.query<{ found: bigint; open: bigint }>(
    `select count(*) filter (where found_at >= to_timestamp($1::float8 / 1000)) as found, count(*) filter (where ended_at is null) as open
     from control.billing_finding`,
    [startedAtMs],
  );
  const found = Number(row?.found ?? 0n);
  await tx.execute(
    "insert into control.reconciliation (run_id, tenants, rows, found, unread) values ($1, $2, $3, $4, $5) on conflict do nothing",
    [runId, report.compared, report.rows, found, report.unread],
  );
  return { found, open: Number(row?.open ?? 0n) };
}

export type ReconciliationTotals = {
  /** Differences that are not gone, by what was compared. */
  readonly open: Readonly<Record<"journal" | "rollup" | "price" | "counter", number>>;
  /** Undefined before the first run's end. */
  readonly last: { readonly finishedAtMs: number; readonly unread: number } | undefined;
};

/** For the metrics. */
export async function readReconciliationTotals(tx: ControlTx): Promise<ReconciliationTotals> {
  const open = { journal: 0, rollup: 0, price: 0, counter: 0 };
  const counts = await tx.query<{ check_name: keyof typeof open; count: bigint }>(
    "select check_name, count(*) from control.billing_finding where ended_at is null group by 1",
  );
  for (const { check_name, count } of counts) open[check_name] = Number(count);
  const [last] = await tx.query<{ finishedAtMs: number; unread: number }>(
    `select (extract(epoch from finished_at) * 1000)::float8 as "finishedAtMs", cardinality(unread) as unread
     from control.reconciliation order by finished_at desc limit 1`,
  );
  return { open, last };
}
