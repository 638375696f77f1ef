import { defineQuery, defineUpdate } from "@temporalio/workflow";
import type { LedgerWire } from "../domain/quota-wire.ts";
import type { ChainHead, ChainState, ChangeNote, ChangeOutcome, ChangeRequest, TenantFacts } from "../domain/audit.ts";

/** What opens the workflow `tenant:<tenant>` or `tenant:_system`; what only its own previous run gives is marked. */
export type TenantInput = {
  /** The run moves to a new one after so many changes; undefined: when Temporal suggests it. */
  readonly changesPerRun?: number | undefined;
  /** Of the tenant when the run began. */
  readonly tenant?: TenantFacts | undefined;
  // From the previous run:
  readonly head?: ChainHead;
  readonly adoptedSeq?: number;
  readonly operations?: readonly RememberedOperation[];
  readonly broken?: string | undefined;
  readonly quota?: LedgerWire | undefined;
  readonly lastChanges?: readonly ChangeNote[];
};

export type RememberedOperation = { readonly opId: string; readonly atMs: number; readonly outcome: ChangeOutcome };

/** `notAfterMs`: nobody waits for the answer any more, so the change must not begin. */
export type ChangeOrder = ChangeRequest & { readonly notAfterMs: number };

export type ChangeResult =
  | { readonly state: "done"; readonly outcome: ChangeOutcome }
  /** The run moves to a new one: nothing was done, send it again. */
  | { readonly state: "moved" }
  /** The chain in the database is not the one that the workflow knows: nothing was done. */
  | { readonly state: "broken"; readonly reason: string }
  /** The tenant is erased: its chain takes no change any more. */
  | { readonly state: "closed" };

/** Makes one audited state change. The update id is the op id. */
export const changeState = defineUpdate<ChangeResult, [ChangeOrder]>("change");

export const tenantState = defineQuery<ChainState>("state");
