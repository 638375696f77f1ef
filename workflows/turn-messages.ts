import { defineQuery, defineSignal, defineUpdate } from "@temporalio/workflow";
import type { SessionId } from "../domain/session-id.ts";
import type { TenantId } from "../domain/tenant.ts";
import type { TurnId } from "../domain/turn-id.ts";
import type { TurnTicket, TurnVerdict } from "../domain/turn.ts";

/** What opens a lane: the workflow `turn:<tenant>:<session id>`, or `turn:<tenant>:api.<k>` of the stateless pool. */
export type LaneInput = {
  readonly tenantId: TenantId;
  /** Undefined for a lane of the pool. */
  readonly sessionId: SessionId | undefined;
  /** Turns that run at once: 1 for a session. */
  readonly concurrency: number;
  /** The run closes after this long without a message; server timers fire up to 1 s late, so 2,000 at least. */
  readonly windowMs: number;
  /** `local` runs the model call as a local activity: faster, but an abort is noticed later. */
  readonly modelCall: "remote" | "local";
  /** The run moves to a new one after so many turns; undefined: when Temporal suggests it. */
  readonly turnsPerRun?: number | undefined;
  /** Turns that the previous run had accepted and not begun. */
  readonly carried?: readonly CarriedTurn[];
};

export type CarriedTurn = TurnTicket & { readonly aborted: boolean };

export type LaneState = { readonly waiting: readonly TurnId[]; readonly running: readonly TurnId[]; readonly served: number };

/** Submits a turn and answers when it has ended, or `queued` when the lane moves to a new run. The update id is the turn id. */
export const submitTurn = defineUpdate<TurnVerdict, [TurnTicket]>("turn");

/** Hands a turn to the lane without waiting for it: channels, and the relay of turns that were never handed over. */
export const turnArrived = defineSignal<[TurnTicket]>("message");

/** Ends one turn, waiting or running. Cancelling the workflow instead would end the session's lane and all that waits in it. */
export const abortTurn = defineSignal<[TurnId]>("abort");

export const laneState = defineQuery<LaneState>("lane");
