import { randomBytes } from "node:crypto";
import { onTestFinished } from "vitest";
import {
  type InvoiceSender,
  type InvoiceSettings,
  type Invoices,
  createInvoiceSender,
  createInvoices,
} from "../../control-plane/invoices.ts";
import { openStripeMeters } from "../../control-plane/stripe-meters.ts";
import { AppError } from "../../domain/app-error.ts";
import type { TenantId } from "../../domain/tenant.ts";
import type { Database } from "../../storage/database.ts";
import { readUndecided } from "../../storage/invoice-repository.ts";
import { type FakeStripe, startFakeStripe } from "../fixtures/fake-stripe.ts";
import { runSql } from "../storage/fresh-database.ts";
import { controlStage, someTenantId } from "./control-stage.ts";

const dayMs = 86_400_000;
/** A UTC day, counted from today. */
export const dayOf = (offset: number): string => new Date(Date.now() + offset * dayMs).toISOString().slice(0, 10);
export const customerOf = (tenantId: string): string => `cus_${tenantId.replaceAll("-", "")}`;
export const usageMeter = "openclaw_usage_nano_usd";
export const feeMeter = "openclaw_platform_fee_nano_usd";

/** Writes a billing row as a settlement does; the day's sums follow. */
export async function billCall(
  database: Pick<Database, "withControl">,
  tenantId: string,
  day: string,
  nanoUsd: bigint,
  model = "m",
): Promise<void> {
  await database.withControl((tx) =>
    tx.execute(
      `insert into control.usage_ledger (id, tenant_id, session_id, "timestamp", model, reason, input_tokens, cache_read_tokens, cache_write_tokens,
         output_tokens, reasoning_tokens, cost_nano_usd, provider_cost_nano_usd, markup_ppm, rate_card_hash)
       values ($1, $2, 'api:jane:default', $3, $4, 'chat', 1, 0, 0, 1, 0, $5, $5, 0, 'none')`,
      [`trn_${randomBytes(13).toString("hex")}.0`, tenantId, `${day}T12:00:00Z`, model, nanoUsd.toString()],
    ),
  );
}

/** What the ledger holds of days that have ended. */
export async function ledgerSum(ownerUrl: string, tenantId: string): Promise<bigint> {
  const { rows } = await runSql(
    ownerUrl,
    `select coalesce(sum(cost_nano_usd), 0)::text as sum from control.usage_ledger
     where tenant_id = '${tenantId}' and "timestamp" < (now() at time zone 'UTC')::date::timestamp at time zone 'UTC'`,
  );
  return BigInt((rows[0] as { sum: string }).sum);
}

/** What `config.yaml` says of a Stripe of the test's. */
export const settingsFor = (stripe: FakeStripe, more: Partial<InvoiceSettings> = {}): InvoiceSettings => ({
  apiKeyEnv: "STRIPE_KEY",
  apiBase: stripe.url,
  mode: "test",
  eventNames: { usage: usageMeter, platform_fee: feeMeter },
  firstDay: dayOf(-34),
  customers: new Map(),
  ...more,
});

/** Tells a Stripe of the test's; every tenant is mapped to the customer that `customerOf` makes of it, unless `settings` are given. */
export function invoicesAt(stripe: FakeStripe, settings?: () => InvoiceSettings): (database: Database) => InvoiceSender {
  const everybody = { get: customerOf } as unknown as ReadonlyMap<string, string>;
  const meters = openStripeMeters({ apiKey: stripe.apiKey, apiBase: stripe.url });
  return (database) =>
    createInvoiceSender({
      database,
      settings: settings ?? (() => settingsFor(stripe, { customers: everybody })),
      metersOf: async () => await meters,
      log: () => undefined,
    });
}

export type InvoiceStage = {
  readonly database: Database;
  readonly ownerUrl: string;
  readonly stripe: FakeStripe;
  readonly invoices: Invoices;
  readonly sender: InvoiceSender;
  /** Changes what `config.yaml` says. */
  configure(change: Partial<InvoiceSettings>): void;
  /** A tenant since 60 days with a customer; `isKnown`: to Stripe. */
  addTenant(name?: string, isKnown?: boolean): Promise<TenantId>;
  /** Plans and sends once. @returns what it left, or the error's code */
  run(tenantId: TenantId): Promise<{ planned: number; sent: number; refused: number; held: number } | string>;
  undecided(tenantId: TenantId): Promise<readonly (readonly [event: string, state: string])[]>;
  sql(statement: string): Promise<unknown>;
};

/** Invoices between a real Postgres and a Stripe of the test's own, through Stripe's own client, without Temporal. */
export async function invoiceStage(): Promise<InvoiceStage> {
  const { database, tenants, ownerUrl } = await controlStage();
  const stripe = await startFakeStripe();
  onTestFinished(() => stripe.close());
  const customers = new Map<string, string>();
  let settings = settingsFor(stripe, { customers });
  const sender = invoicesAt(stripe, () => settings)(database);
  return {
    database,
    ownerUrl,
    stripe,
    sender,
    invoices: createInvoices({ database, settings: () => settings }),
    configure: (change) => void (settings = { ...settings, ...change }),
    async addTenant(name = "acme", isKnown = true) {
      const { tenant } = await tenants.create({ id: someTenantId(name) });
      await runSql(ownerUrl, `update control.tenant set created_at = now() - interval '60 days' where id = '${tenant.id}'`);
      customers.set(tenant.id, customerOf(tenant.id));
      if (isKnown) stripe.customers.add(customerOf(tenant.id));
      return tenant.id;
    },
    async run(tenantId) {
      try {
        const planned = await sender.plan(tenantId, {});
        return { planned, ...(await sender.send(tenantId, {}, new AbortController().signal)) };
      } catch (error) {
        if (error instanceof AppError) return error.code;
        throw error;
      }
    },
    async undecided(tenantId) {
      const events = await database.withControl((tx) => readUndecided(tx, { tenantId, mode: settings.mode }));
      return events.map(({ kind, day, revision, state }) => [`${kind}.${day}.${revision}`, state]);
    },
    sql: async (statement) => (await runSql(ownerUrl, statement)).rows,
  };
}
