import { defineQuery, defineSignal, defineUpdate } from "@temporalio/workflow";
import type { HolderId, UtcDay } from "../domain/quota-ledger.ts";
import type { AmountWire, AnswerWire, OrderWire, QuotaBooks } from "../domain/quota-wire.ts";

/** `moved`: the run moves to a new one and nothing was done: send it again. */
export type LeaseResult = AnswerWire | { readonly state: "moved" };

/** Reports and asks for quota (docs/adr/012). Its workflow is `tenant:<tenant>`; a repeat of holder and seq is answered as the first. */
export const leaseQuota = defineUpdate<LeaseResult, [OrderWire]>("lease");

/** The holder's process stops: its lease is taken back at once instead of after a minute. */
export const endLease = defineSignal<[HolderId]>("end-lease");

/** The counters of the day that the workflow is in. */
export type QuotaCount = {
  readonly day: UtcDay;
  readonly used: AmountWire;
  /** What providers counted above what was reserved. */
  readonly overshoot: AmountWire;
  readonly held: AmountWire;
  readonly leases: number;
  readonly calls: number;
};

/** Null before the first order, and while the tenant has no ceiling: then only the rows count. */
export const quotaCount = defineQuery<QuotaCount | null>("quota-count");

/** Null as for `quotaCount`. */
export const quotaBooks = defineQuery<QuotaBooks | null>("quota-books");
