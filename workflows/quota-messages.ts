import { defineSignal, defineUpdate } from "@temporalio/workflow";
import type { HolderId } from "../domain/quota-ledger.ts";
import type { AnswerWire, OrderWire } from "../domain/quota-wire.ts";

/** `moved`: the run moves to a new one and nothing was done: send it again. */
export type LeaseResult = AnswerWire | { readonly state: "moved" };

/** Reports and asks for quota (docs/adr/012). Its workflow is `tenant:<tenant>`; a repeat of holder and seq is answered as the first. */
export const leaseQuota = defineUpdate<LeaseResult, [OrderWire]>("lease");

/** The holder's process stops: its lease is taken back at once instead of after a minute. */
export const endLease = defineSignal<[HolderId]>("end-lease");
