import type { ErrorCode, StoredError } from "./app-error.ts";
import type { ChatMessage, ModelReply, SamplingSettings, ToolDefinition } from "./conversation.ts";
import type { FileId } from "./file-id.ts";
import type { ServiceKind, ServiceRequest } from "./service-request.ts";
import type { SessionId } from "./session-id.ts";
import type { TurnId } from "./turn-id.ts";
import type { Usage } from "./usage.ts";

/** Why a model is called: the billing `reason` and the search attribute `TurnKind`. */
export type TurnKind = "chat" | "cron" | "heartbeat" | "compaction" | ServiceKind;

/** `agent` adds the tenant's own tools and prompt, `gateway` adds nothing to what was sent. */
export type TurnMode = "agent" | "gateway";

/** `void`: given up by its submitter before it began, so it never runs. */
export type TurnState = "queued" | "running" | "done" | "failed" | "aborted" | "void";

/** What a lane is given: everything else stands in the turn's row. */
export type TurnTicket = { readonly turnId: TurnId; readonly sessionId: SessionId; readonly kind: TurnKind };

/** What a lane answers. `queued`: the lane moved to a new run and carries the turn; its row will tell. */
export type TurnVerdict = { readonly state: "done" | "failed" | "aborted" | "queued"; readonly code?: ErrorCode | undefined };

/**
 * The answer of a finished turn, as its row holds it: the texts of all its model calls, the rest of the last one's. `toolCalls` are
 * those that the client has to run; none when the tenant's own tools ran inside the turn.
 */
export type TurnReply = ModelReply & {
  readonly model: string;
  /** Summed over the turn's model calls. */
  readonly usage: Usage;
  readonly modelCalls: number;
  /** Of a service: where its answer is kept, at most a day. */
  readonly resultFile?: FileId | undefined;
};

export type FinishedTurn =
  | { readonly state: "done"; readonly reply: TurnReply }
  | { readonly state: "failed" | "aborted"; readonly error: StoredError };

/** What a turn was asked to do, as its row holds it. */
export type TurnRequest = {
  /** A key of the configured models. */
  readonly model: string;
  /** In a session: the new messages only (and system messages, which hold for this turn). */
  readonly messages: readonly ChatMessage[];
  /** The client's own tools; when there are any, the tenant's own are not offered. */
  readonly tools: readonly ToolDefinition[];
  readonly settings: SamplingSettings;
  /** Digest of the tenant's overlay at admission, which the turn keeps to its end; without one, the overlay in force at each step. */
  readonly overlay?: string | undefined;
};

/** A turn as it is handed in. */
export type TurnSubmission = TurnTicket & {
  readonly mode: TurnMode;
  /** No transcript is read or kept. */
  readonly stateless: boolean;
  /** The W3C traceparent that its spans are under; undefined where nothing is traced. */
  readonly trace?: string | undefined;
  readonly request: TurnRequest;
};

/** The same for a call of a model that is no chat model. */
export type ServiceSubmission = Omit<TurnSubmission, "request"> & { readonly kind: ServiceKind; readonly request: ServiceRequest };
