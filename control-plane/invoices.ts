import { AppError } from "../domain/app-error.ts";
import {
  type InvoiceEventKey,
  type InvoiceKind,
  type InvoiceMode,
  type InvoiceReport,
  type InvoiceRun,
  type InvoiceState,
  invoiceEventIdOf,
} from "../domain/invoice.ts";
import { formatUsd } from "../domain/money.ts";
import type { TenantId } from "../domain/tenant.ts";
import type { Database } from "../storage/database.ts";
import {
  type InvoiceAttempt,
  beginAttempt,
  clearAttempts,
  closeAccount,
  decideEvent,
  noteAccount,
  noteReason,
  noteRefusal,
  planEvents,
  readAccounts,
  readOwedLines,
  readSentOfDay,
  readUndecided,
  refuseUnsent,
} from "../storage/invoice-repository.ts";
import { tenantExists } from "./tenants.ts";
import type { StripeMeters } from "./stripe-meters.ts";

/** `billing.stripe` of `config.yaml`. */
export type InvoiceSettings = {
  /** The environment variable that holds Stripe's key. */
  readonly apiKeyEnv: string;
  readonly apiBase: string | undefined;
  readonly mode: InvoiceMode;
  readonly eventNames: Readonly<Record<InvoiceKind, string>>;
  /** `YYYY-MM-DD`; undefined: the day on which a tenant was first mapped. */
  readonly firstDay: string | undefined;
  /** Stripe's customers by tenant. */
  readonly customers: ReadonlyMap<string, string>;
};

export type InvoicesDeps = {
  readonly database: Pick<Database, "withControl">;
  /** Undefined: no invoices are written. */
  readonly settings: () => InvoiceSettings | undefined;
};

/** What would be told, and was not yet. */
export type InvoicePreview = {
  readonly tenant: TenantId;
  readonly mode: InvoiceMode;
  readonly customer: string;
  readonly period: string;
  readonly currency: "USD";
  readonly dry_run: true;
  readonly lines: readonly {
    readonly event: string;
    readonly kind: InvoiceKind;
    readonly date: string;
    readonly state: string;
    readonly event_name: string;
    readonly value: string;
    readonly amount_usd: string;
    readonly reason: string | null;
  }[];
  readonly total_usd: string;
};

/** What administrators read of invoices. */
export type Invoices = {
  /** @throws {AppError} `conflict` for a tenant without a customer; `not_found` */
  preview(
    tenantId: TenantId,
    period: { readonly text: string; readonly firstDay: string; readonly lastDay: string },
  ): Promise<InvoicePreview>;
  /** @throws {AppError} `conflict` where no invoices are written */
  status(tenantId: TenantId | undefined): Promise<object>;
  /** @throws {AppError} as `preview`; nothing is told */
  requireCustomer(tenantId: TenantId): Promise<InvoiceSettings>;
};

const shownUndecided = 100;

export function createInvoices({ database, settings }: InvoicesDeps): Invoices {
  const requireCustomer = async (tenantId: TenantId): Promise<InvoiceSettings> => {
    const exists = await database.withControl(async (tx) => await tenantExists(tx, tenantId), { readOnly: true });
    if (!exists) throw new AppError("not_found", { client: { message: `There is no tenant "${tenantId}".`, param: "tenant" } });
    return mappingOf(settings, tenantId).settings;
  };

  return {
    requireCustomer,
    async preview(tenantId, { text, firstDay, lastDay }) {
      await requireCustomer(tenantId);
      const { customer, settings: found } = mappingOf(settings, tenantId);
      const key = { tenantId, mode: found.mode };
      const range = { firstDay, lastDay };
      const { undecided, owed } = await database.withControl(
        async (tx) => ({ undecided: await readUndecided(tx, key, range), owed: await readOwedLines(tx, key, range, found.firstDay) }),
        { readOnly: true },
      );
      const lines = [...undecided, ...owed.map((line) => ({ ...line, state: "not planned", reason: undefined }))].map((line) => ({
        event: invoiceEventIdOf(line),
        kind: line.kind,
        date: line.day,
        state: line.state,
        event_name: found.eventNames[line.kind],
        value: line.nanoUsd.toString(),
        amount_usd: formatUsd(line.nanoUsd),
        reason: line.reason ?? null,
      }));
      const total = [...undecided, ...owed].reduce((sum, { nanoUsd }) => sum + nanoUsd, 0n);
      const head = { tenant: tenantId, mode: found.mode, customer, period: text, currency: "USD", dry_run: true } as const;
      return { ...head, lines, total_usd: formatUsd(total) };
    },
    async status(tenantId) {
      const found = settings();
      if (found === undefined) throw notConfigured();
      return await database.withControl(
        async (tx) => {
          const data: object[] = [];
          for (const { closed, ...account } of await readAccounts(tx, tenantId)) {
            const undecided = await readUndecided(tx, account);
            const isMapped = found.mode === account.mode && found.customers.has(account.tenantId);
            data.push({
              tenant: account.tenantId,
              mode: account.mode,
              customer: account.customer,
              first_day: account.firstDay,
              state: closed ? "closed" : isMapped ? "active" : "not mapped",
              sent_events: account.sentEvents,
              sent_usd: formatUsd(account.sentNanoUsd),
              last_sent_at: account.lastSentAt?.toISOString() ?? null,
              undecided_count: undecided.length,
              undecided: undecided.slice(0, shownUndecided).map((event) => ({
                event: invoiceEventIdOf(event),
                state: event.state,
                amount_usd: formatUsd(event.nanoUsd),
                attempts: event.attempts,
                reason: event.reason ?? null,
              })),
            });
          }
          return { object: "list", mode: found.mode, data };
        },
        { readOnly: true },
      );
    },
  };
}

function mappingOf(
  settings: InvoicesDeps["settings"],
  tenantId: TenantId,
): { readonly settings: InvoiceSettings; readonly customer: string } {
  const found = settings();
  if (found === undefined) throw notConfigured();
  const customer = found.customers.get(tenantId);
  if (customer === undefined) {
    throw new AppError("conflict", {
      client: { message: `The tenant "${tenantId}" has no customer in billing.stripe.customers of config.yaml.`, param: "tenant" },
    });
  }
  return { settings: found, customer };
}

const notConfigured = (): AppError =>
  new AppError("conflict", { client: { message: "No invoices are written: config.yaml has no billing.stripe." } });

export type InvoiceSenderDeps = InvoicesDeps & {
  /** @throws {AppError} `invalid_configuration` without a key that fits the mode */
  readonly metersOf: (settings: InvoiceSettings) => Promise<StripeMeters>;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
};

/** Tells Stripe. Every step can be repeated by any process at any time. */
export type InvoiceSender = {
  /** Makes the events of what is owed. @returns how many */
  plan(tenantId: TenantId, run: InvoiceRun): Promise<number>;
  /**
   * Sends what is open, in order.
   * @throws {AppError} `unavailable` when something may succeed later; `invalid_configuration` when the key is at fault
   */
  send(tenantId: TenantId, run: InvoiceRun, signal: AbortSignal): Promise<Omit<InvoiceReport, "planned">>;
};

/** So many events in a row without an answer, and the rest waits: Stripe is away. */
const unclearBeforePause = 3;

type EventOutcome = InvoiceState | "unclear" | "locked" | { readonly afterMs: number | undefined };

export function createInvoiceSender({ database, settings, metersOf, log }: InvoiceSenderDeps): InvoiceSender {
  /** How an event that may have arrived is told from one that has not, when its identifier is no longer known for sure. */
  const ask = async (meters: StripeMeters, attempt: InvoiceAttempt): Promise<EventOutcome | "again"> => {
    const sum = await meters.sumOfDay(attempt.customer, attempt.eventName, attempt.day).catch((error: unknown) => {
      log("Stripe could not be asked what it has", { tenantId: attempt.tenantId, event: invoiceEventIdOf(attempt), error: String(error) });
      return undefined;
    });
    if (sum === undefined) return "open";
    return await database.withControl(async (tx) => {
      const sent = await readSentOfDay(tx, attempt);
      if (Number.isSafeInteger(sum) && BigInt(sum) === sent + attempt.nanoUsd) {
        await decideEvent(tx, attempt, "sent", "Stripe's sum of the day holds it");
        return "sent";
      }
      if (Number.isSafeInteger(sum) && BigInt(sum) === sent) return (await clearAttempts(tx, attempt)) ? "again" : "open";
      const reason = `Stripe's sum of the day is ${sum}, which is neither ${sent} without it nor ${sent + attempt.nanoUsd} with it`;
      await decideEvent(tx, attempt, "held", reason);
      log("ALARM: nobody can tell whether Stripe has an invoice event", {
        tenantId: attempt.tenantId,
        event: invoiceEventIdOf(attempt),
        reason,
      });
      return "held";
    });
  };

  const sendOne = async (meters: StripeMeters, key: InvoiceEventKey, customer: string, eventName: string): Promise<EventOutcome> => {
    const identifier = `openclaw.${key.tenantId}.${customer}.${invoiceEventIdOf(key)}`;
    const attempt = await database.withControl(async (tx) => await beginAttempt(tx, key, { customer, eventName, identifier }));
    if (typeof attempt === "string") return attempt;
    if (attempt.isStale) {
      const outcome = await ask(meters, attempt);
      return outcome === "again" ? await sendOne(meters, key, customer, eventName) : outcome;
    }
    const answer = await meters.send({
      eventName: attempt.eventName,
      customer: attempt.customer,
      value: attempt.nanoUsd,
      identifier: attempt.identifier,
      atSeconds: lastSecondOf(attempt.day),
    });
    return await database.withControl(async (tx): Promise<EventOutcome> => {
      switch (answer.state) {
        case "accepted":
        case "known":
          await decideEvent(tx, attempt, "sent", answer.state === "known" ? "Stripe had it from an earlier attempt" : null);
          return "sent";
        case "refused":
          await noteRefusal(tx, attempt, "refused", answer.reason);
          log("Stripe refused an invoice event", { tenantId: attempt.tenantId, event: invoiceEventIdOf(attempt), reason: answer.reason });
          return "refused";
        case "later":
          await noteRefusal(tx, attempt, "open", answer.reason);
          return { afterMs: answer.afterMs };
        case "locked":
          await noteRefusal(tx, attempt, "open", answer.reason);
          return "locked";
        case "unclear":
          await noteReason(tx, attempt, answer.reason);
          return "unclear";
      }
    });
  };

  const refuse = async (event: InvoiceEventKey, reason: string): Promise<EventOutcome> => {
    await database.withControl(async (tx) => await refuseUnsent(tx, event, reason));
    log("ALARM: an invoice event cannot be sent", { tenantId: event.tenantId, event: invoiceEventIdOf(event), reason });
    return "refused";
  };

  return {
    async plan(tenantId, run) {
      const { customer, settings: found } = mappingOf(settings, tenantId);
      const key = { tenantId, mode: found.mode };
      return await database.withControl(async (tx) => {
        const account = await noteAccount(tx, key, { customer, firstDay: found.firstDay });
        if (account === undefined) throw new AppError("not_found", { client: { message: `There is no tenant "${tenantId}".` } });
        return await planEvents(tx, key, run);
      });
    },
    async send(tenantId, run, signal) {
      const { customer, settings: found } = mappingOf(settings, tenantId);
      const meters = await metersOf(found).catch((error: unknown) => {
        log("ALARM: Stripe cannot be told", { error: String(error) });
        throw error;
      });
      const key = { tenantId, mode: found.mode };
      const events = await database.withControl(async (tx) => await readUndecided(tx, key, run), { readOnly: true });
      const setup = events.length === 0 ? undefined : await meters.readMeters();
      if (setup?.state === "locked") throw lockedError(log);
      if (setup !== undefined && setup.state !== "read") throw laterError(setup.state === "later" ? setup.afterMs : undefined);
      const counts = { sent: 0, refused: 0, held: 0 };
      const waitingDays = new Set<string>();
      let open = 0;
      let unclearInRow = 0;
      for (const event of events) {
        if (signal.aborted) throw new AppError("unavailable", { reason: "the worker stops" });
        const day = `${event.kind} ${event.day}`;
        // Only one event of a day may be in doubt: Stripe's sum of the day is what tells.
        if (waitingDays.has(day)) continue;
        const eventName = found.eventNames[event.kind];
        const fault = setup?.faultOf(eventName);
        const outcome =
          event.state === "held"
            ? "held"
            : fault === undefined
              ? await sendOne(meters, event, customer, eventName)
              : await refuse(event, fault);
        if (outcome === "locked") throw lockedError(log);
        if (typeof outcome === "object") throw laterError(outcome.afterMs);
        if (outcome === "dropped") continue;
        unclearInRow = outcome === "unclear" ? unclearInRow + 1 : 0;
        if (outcome !== "sent" && outcome !== "refused") waitingDays.add(day);
        if (outcome === "unclear" || outcome === "open") open++;
        else counts[outcome]++;
        if (unclearInRow === unclearBeforePause) break;
      }
      if (open > 0) throw laterError(undefined);
      await database.withControl(async (tx) => await closeAccount(tx, key));
      return counts;
    },
  };
}

function lockedError(log: InvoiceSenderDeps["log"]): AppError {
  log("ALARM: Stripe does not accept the API key");
  return new AppError("invalid_configuration", { client: { message: "Stripe does not accept the API key for meter events." } });
}

const laterError = (afterMs: number | undefined): AppError =>
  new AppError("unavailable", {
    client: {
      message: "Stripe has not taken everything yet.",
      ...(afterMs === undefined ? {} : { retryAfterSeconds: Math.ceil(afterMs / 1_000) }),
    },
  });

/** Of the UTC day: the usage of a day on which Stripe's billing period changes is in the new one. */
const lastSecondOf = (day: string): number => Date.parse(`${day}T23:59:59Z`) / 1_000;
