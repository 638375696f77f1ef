/** The nightly comparison of what is billed (docs/adr/015). */

/** Where a run goes on, and what it has counted so far. */
export type ReconcileProgress = {
  /** The last tenant that was compared; the empty string before the first. */
  readonly after: string;
  readonly compared: number;
  readonly rows: number;
  /** Tenants of which something could not be read. */
  readonly unread: readonly string[];
};

/** One batch: the tenants behind `after`, or the ones that are named. */
export type ReconcileBatch = { readonly after: string } | { readonly tenants: readonly string[] };

/** `last` undefined: there are no tenants behind. */
export type ReconciledBatch = Pick<ReconcileProgress, "compared" | "rows" | "unread"> & { readonly last: string | undefined };

export type ReconcileReport = Omit<ReconcileProgress, "after"> & {
  /** Differences that no earlier run had found. */
  readonly found: number;
  /** Differences that are not gone. */
  readonly open: number;
};

export const reconcileScheduleId = "reconcile:_system";
