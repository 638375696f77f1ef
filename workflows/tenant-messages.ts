import { defineQuery, defineUpdate } from "@temporalio/workflow";
import type { LedgerWire } from "../domain/quota-wire.ts";
import type { ChainHead, ChainState, ChangeOutcome, ChangeRequest } from "../domain/audit.ts";

/** What opens the workflow `tenant:<tenant>` or `tenant:_system`; all but the first two only by its own previous run. */
export type TenantInput = {
  /** The run moves to a new one after so many changes; undefined: when Temporal suggests it. */
  readonly changesPerRun?: number | undefined;
  readonly head?: ChainHead;
  readonly adoptedSeq?: number;
  readonly operations?: readonly RememberedOperation[];
  readonly broken?: string | undefined;
  readonly quota?: LedgerWire | undefined;
};

export type RememberedOperation = { readonly opId: string; readonly atMs: number; readonly outcome: ChangeOutcome };

/** `notAfterMs`: nobody waits for the answer any more, so the change must not begin. */
export type ChangeOrder = ChangeRequest & { readonly notAfterMs: number };

export type ChangeResult =
  | { readonly state: "done"; readonly outcome: ChangeOutcome }
  /** The run moves to a new one: nothing was done, send it again. */
  | { readonly state: "moved" }
  /** The chain in the database is not the one that the workflow knows: nothing was done. */
  | { readonly state: "broken"; readonly reason: string };

/** Makes one audited state change. The update id is the op id. */
export const changeState = defineUpdate<ChangeResult, [ChangeOrder]>("change");

export const tenantState = defineQuery<ChainState>("state");
