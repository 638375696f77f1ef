import { AppError } from "../domain/app-error.ts";
import type { SystemCommand } from "../domain/audit.ts";
import type { ReconcileBatch, ReconcileProgress, ReconcileReport, ReconciledBatch } from "../domain/reconciliation.ts";
import type { TenantContext, TenantId } from "../domain/tenant.ts";
import {
  type KeptFinding,
  type ReconcileTenant,
  countTenantsToReconcile,
  endFindings,
  insertFindings,
  noteReconciled,
  noteRun,
  readNextDay,
  readOpenFindings,
  readTenantToReconcile,
  readTenantsToReconcile,
} from "../storage/reconcile-repository.ts";
import type { ChainClient } from "../temporal/chain-client.ts";
import { type BillingCompareDeps, type BillingDays, type BillingFinding, allDays, compareBilling } from "./billing-verify.ts";

export type Reconciler = {
  /** How many tenants a run is about. */
  count(): Promise<number>;
  /**
   * Compares some tenants and raises an alarm for each difference that has none. Safe to repeat from its start.
   * @throws {AppError} `unavailable` when Postgres or the audit cannot be reached: the batch is to be tried again
   */
  compare(batch: ReconcileBatch, signal: AbortSignal): Promise<ReconciledBatch>;
  finish(run: { readonly runId: string; readonly startedAtMs: number; readonly report: ReconcileProgress }): Promise<ReconcileReport>;
};

export type ReconcilerDeps = BillingCompareDeps & {
  /** The chain `system`: a tenant's own may be broken, or have had its last entry. */
  readonly chain: Pick<ChainClient, "change">;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
};

/** What a worker that dies repeats at most. */
const tenantsPerBatch = 20;
const patienceMs = 10_000;
const dayMs = 86_400_000;

/**
 * Compares, night by night, what can have changed: from the first day that was open at a tenant's last comparison on, and the days of
 * differences that are not gone. Which difference is known, alarmed or gone stands in `control.billing_finding`.
 */
export function createReconciler(deps: ReconcilerDeps): Reconciler {
  const { database, chain, log } = deps;

  const raise = async (tenantId: TenantId, { id, kind, subject, what }: KeptFinding): Promise<void> => {
    log("ALARM: the billing of a tenant differs", { tenantId, kind, subject, what });
    const command: SystemCommand = { type: "billing.alarm", findingId: id, tenantId, kind, subject, what };
    const opId = `billing_alarm_${id}`;
    const signal = AbortSignal.timeout(patienceMs);
    const order = {
      opId,
      command,
      actor: { type: "system", id: "reconcile" } as const,
      requestId: opId,
      notAfterMs: Date.now() + patienceMs,
    };
    for (;;) {
      const { state } = await chain.change(order, signal).catch((error: unknown) => {
        throw new AppError("unavailable", { why: "an alarm has no audit entry yet", tenantId }, { cause: error });
      });
      if (state === "done") return;
      if (state !== "moved") return log("an alarm has no audit entry: the chain takes none", { tenantId, state });
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  };

  const compareTenant = async ({ id: tenantId, isDeleted, nextDay }: ReconcileTenant): Promise<{ rows: number; unread: unknown }> => {
    const context: TenantContext = { tenantId, requestId: "reconcile" };
    const today = new Date().toISOString().slice(0, 10);
    const next = isDeleted ? today : await database.withTenant(context, readNextDay, { readOnly: true });
    const known = await database.withControl(async (tx) => await readOpenFindings(tx, tenantId), { readOnly: true });
    const firstDay = nextDay ?? allDays.firstDay;
    const windows: BillingDays[] = [{ firstDay, lastDay: allDays.lastDay }];
    for (const day of new Set(known.map((finding) => finding.day))) if (day < firstDay) windows.push({ firstDay: day, lastDay: day });

    const found: BillingFinding[] = [];
    const countedDays = new Set<string>();
    let rows = 0;
    let isComplete = true;
    let unread: unknown;
    for (const days of windows) {
      const compared = await compareBilling(deps, {
        context,
        days,
        isPresent: !isDeleted,
        withCounters: !isDeleted && days === windows[0],
      });
      found.push(...compared.findings);
      rows += compared.rows;
      isComplete &&= compared.isComplete;
      unread ??= compared.unread;
      for (const day of compared.countedDays) countedDays.add(day);
    }
    await database.withControl(async (tx) => await insertFindings(tx, tenantId, found.map(toKept)));
    const open = await database.withControl(async (tx) => await readOpenFindings(tx, tenantId), { readOnly: true });
    for (const finding of open) if (!finding.isAlarmed) await raise(tenantId, finding);

    const there = new Set(found.map(nameOf));
    // Counters are those of two days: whoever cannot be asked any more is told no more.
    const oldestCounted = new Date(Date.now() - 2 * dayMs).toISOString().slice(0, 10);
    const isCompared = ({ checkName, day }: KeptFinding): boolean =>
      checkName === "counter" ? countedDays.has(day) || day < oldestCounted || isDeleted : isComplete;
    const gone = open.filter((finding) => !there.has(nameOf(finding)) && isCompared(finding));
    await database.withControl(async (tx) => {
      await endFindings(
        tx,
        gone.map(({ id }) => id),
      );
      await noteReconciled(tx, tenantId, next);
    });
    for (const { kind, subject } of gone) log("a difference in the billing of a tenant is gone", { tenantId, kind, subject });
    return { rows, unread };
  };

  const tenantsOf = async (batch: ReconcileBatch): Promise<readonly ReconcileTenant[]> =>
    await database.withControl(
      async (tx) => {
        if ("after" in batch) return await readTenantsToReconcile(tx, batch.after, tenantsPerBatch);
        const named: ReconcileTenant[] = [];
        for (const id of batch.tenants) {
          const tenant = await readTenantToReconcile(tx, id);
          if (tenant !== undefined) named.push(tenant);
        }
        return named;
      },
      { readOnly: true },
    );

  return {
    count: async () => await database.withControl(countTenantsToReconcile, { readOnly: true }),
    async compare(batch, signal) {
      const tenants = await tenantsOf(batch);
      const unread: string[] = [];
      let rows = 0;
      for (const tenant of tenants) {
        if (signal.aborted) throw new AppError("unavailable", { why: "this worker stops" });
        try {
          const compared = await compareTenant(tenant);
          rows += compared.rows;
          if (compared.unread !== undefined) throw compared.unread;
        } catch (error) {
          await database.withControl(async (tx) => await tx.query("select 1")); // with Postgres away there is nothing to go on with
          log("the billing of a tenant could not be compared", { tenantId: tenant.id, error: String(error) });
          unread.push(tenant.id);
        }
      }
      return { last: tenants.at(-1)?.id, compared: tenants.length - unread.length, rows, unread };
    },
    async finish({ runId, startedAtMs, report }) {
      const { found, open } = await database.withControl(async (tx) => await noteRun(tx, { runId, startedAtMs, report }));
      const { after: _after, ...counts } = report;
      if (report.unread.length > 0) log("ALARM: the billing of tenants could not be compared", { tenants: report.unread });
      log("the billing was compared", { ...counts, found, open });
      return { ...counts, found, open };
    },
  };
}

const nameOf = ({ kind, subject }: Pick<KeptFinding, "kind" | "subject">): string => `${kind} ${subject}`;

const toKept = ({ check, kind, subject, what, day }: BillingFinding) => ({ checkName: check, kind, subject, what, day });
