import { AppError } from "./app-error.ts";

/** What is told to Stripe about a tenant, so that it writes the invoice (docs/adr/014). Money is whole nano-dollars. */

/** `usage`: what the calls of a UTC day cost. `platform_fee`: a month's fee, on the day that it falls due. */
export type InvoiceKind = "usage" | "platform_fee";

/** Stripe's two worlds: what was told to one is not known in the other. */
export type InvoiceMode = "live" | "test";

/**
 * `open`: still to be told. `sent`: Stripe has it. `refused`: Stripe said no. `held`: nobody can tell whether Stripe has it, and
 * an administrator has to look. `dropped`: an administrator gave it up.
 */
export type InvoiceState = "open" | "sent" | "refused" | "held" | "dropped";

/** How an administrator resolves an event that is held or refused. */
export const invoiceResolutions = ["sent", "open", "dropped"] as const satisfies readonly InvoiceState[];
export type InvoiceResolution = (typeof invoiceResolutions)[number];

/** An event never changes its amount; what a day has more than was told is the next revision. */
export type InvoiceEventKey = {
  readonly tenantId: string;
  readonly mode: InvoiceMode;
  readonly kind: InvoiceKind;
  /** `YYYY-MM-DD`, UTC. */
  readonly day: string;
  /** From 1. */
  readonly revision: number;
};

/** An event within its tenant and mode: `usage.2026-11-22.1`. */
export const invoiceEventIdOf = ({ kind, day, revision }: Omit<InvoiceEventKey, "tenantId" | "mode">): string =>
  `${kind}.${day}.${revision}`;

/** @throws {AppError} `invalid_request` */
export function parseInvoiceEventId(text: string): Pick<InvoiceEventKey, "kind" | "day" | "revision"> {
  const [, kind, day, revision] = /^(usage|platform_fee)\.(\d{4}-\d{2}-\d{2})\.([1-9]\d{0,5})$/.exec(text) ?? [];
  if (kind === undefined || day === undefined || Number.isNaN(Date.parse(day))) {
    throw new AppError("invalid_request", {
      client: { message: "An event is named as the status shows it, usage.2026-11-22.1 for example.", param: "event" },
    });
  }
  return { kind: kind as InvoiceKind, day, revision: Number(revision) };
}

/** The days that a run is about, both included; absent: all that were not told. Days that have not ended are left for a later run. */
export type InvoiceRun = { readonly firstDay?: string; readonly lastDay?: string };

/** How many events a run left in which state. */
export type InvoiceReport = { readonly planned: number; readonly sent: number; readonly refused: number; readonly held: number };
