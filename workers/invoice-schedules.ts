import type { InvoiceSettings } from "../control-plane/invoices.ts";
import { type Owner, type TenantId, parseTenantId, systemOwner } from "../domain/tenant.ts";
import type { Database } from "../storage/database.ts";
import { noteAccount, noteSchedule, readNotes, readSurplusSchedules } from "../storage/invoice-repository.ts";
import type { InvoiceClient } from "../temporal/invoice-client.ts";

export type InvoiceSchedulesOptions = {
  readonly database: Pick<Database, "withControl">;
  readonly settings: () => InvoiceSettings | undefined;
  readonly client: Pick<InvoiceClient, "ensureSchedule" | "removeSchedule">;
  readonly wake: (owner: Owner) => Promise<void>;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
  /** Default one minute: a worker of the queue that the schedules start on is stopped after ten without work. */
  readonly intervalMs?: number;
};

/**
 * Keeps one schedule per tenant that is mapped to a customer: at once when it starts, and again for tenants that are made later, that
 * are erased and told to the end, or while Temporal was away.
 */
export function startInvoiceSchedules(options: InvoiceSchedulesOptions): { stop(): Promise<void> } {
  const { log, intervalMs = 60_000 } = options;
  const ensured = new Set<TenantId>();
  const syncAll = async (): Promise<void> => {
    try {
      await sync(options, ensured);
    } catch (error) {
      log("the schedules of invoices were not brought up to date", { error: String(error) });
    }
  };
  let syncing = syncAll();
  const timer = setInterval(() => {
    syncing = syncing.then(syncAll);
  }, intervalMs);
  return {
    async stop() {
      clearInterval(timer);
      await syncing;
    },
  };
}

/** @param ensured tenants whose schedule this process has seen to */
async function sync({ database, settings, client, wake, log }: InvoiceSchedulesOptions, ensured: Set<TenantId>): Promise<void> {
  const { mode, firstDay, customers } = settings() ?? { mode: "live", firstDay: undefined, customers: new Map<string, string>() };
  const notes = await database.withControl(async (tx) => await readNotes(tx, mode), { readOnly: true });
  const scheduled: TenantId[] = [];
  for (const [name, customer] of customers) {
    const tenantId = parseTenantId(name);
    const key = { tenantId, mode };
    const noted = notes.get(tenantId);
    const isNoted = noted?.customer === customer && (firstDay ?? noted.firstDay) === noted.firstDay;
    const account = isNoted ? noted : await database.withControl(async (tx) => await noteAccount(tx, key, { customer, firstDay }));
    if (account === undefined || account.closed) continue; // not made yet, or told to its end
    scheduled.push(tenantId);
    if (account.hasSchedule && ensured.has(tenantId)) continue;
    // Noted first: a schedule that nobody knows of could never be removed.
    if (!account.hasSchedule) await database.withControl(async (tx) => await noteSchedule(tx, key, true));
    await client.ensureSchedule(tenantId);
    ensured.add(tenantId);
    log("a tenant's invoicing is scheduled", { tenantId, mode });
  }
  for (const key of await database.withControl(async (tx) => await readSurplusSchedules(tx, scheduled))) {
    const tenantId = parseTenantId(key.tenantId);
    ensured.delete(tenantId);
    await client.removeSchedule(tenantId);
    await database.withControl(async (tx) => await noteSchedule(tx, key, false));
    log("a tenant's invoicing is no longer scheduled", { tenantId: key.tenantId, mode: key.mode });
  }
  if (scheduled.length > 0) await wake(systemOwner);
}
