import type { ChatMessage, ModelReply, SamplingSettings, TokenLogprob, ToolDefinition } from "../domain/conversation.ts";
import type { CountedUsage } from "../domain/usage.ts";
import type { ModelServices } from "./model-services.ts";

/** One call of a model. */
export type ModelRequest = {
  /** The id that the provider knows the model by. */
  readonly model: string;
  readonly messages: readonly ChatMessage[];
  readonly tools: readonly ToolDefinition[];
  readonly settings: SamplingSettings;
  /** Sent as the provider's idempotency header where it has one: `<turn id>.<step>`. */
  readonly callId: string;
};

/** What a call yields while it runs, in the provider's order. */
export type ModelDelta =
  /** `logprobs` may come without text: a token may hold a part of a character. */
  | { readonly type: "text" | "refusal"; readonly text: string; readonly logprobs?: readonly TokenLogprob[] }
  /** A piece of the `index`-th tool call; `id`, `name` and `custom` come with its first piece. */
  | {
      readonly type: "tool_call";
      readonly index: number;
      readonly id?: string;
      readonly name?: string;
      readonly arguments: string;
      readonly custom?: true;
    };

/** The end of a call. */
export type ModelResult = {
  readonly reply: ModelReply;
  /** The provider's own count, split into disjoint classes; counted here and `estimated` when it gave none or garbage. */
  readonly usage: CountedUsage;
  /** The provider's id of the answer (`chatcmpl-…`, `msg_…`), for disputes; empty ids are undefined. */
  readonly providerRequestId: string | undefined;
};

/**
 * A call that ended badly. `usage` is what the provider had counted by then (undefined: it reported nothing and nothing was
 * generated); the error tells whether the caller may try again, which is allowed before the first delta only.
 */
export class ModelCallError extends Error {
  override readonly name = "ModelCallError";
  /**
   * `busy`: 429 or 529, `unreachable`: connection, 5xx, time-out; both may be retried. `refused`: 400, 404, 413 or 422 with the
   * provider's message for the caller. `rejected`: 401 or 403, our credential. `garbage`: an answer that cannot be understood.
   */
  readonly kind: "busy" | "unreachable" | "refused" | "rejected" | "garbage" | "aborted";
  readonly status: number | undefined;
  /** The parameter that was refused before the provider heard of the call, because it could not honour it. */
  readonly unsupported: string | undefined;
  readonly retryAfterMs: number | undefined;
  readonly usage: CountedUsage | undefined;
  readonly providerRequestId: string | undefined;

  constructor(
    kind: ModelCallError["kind"],
    message: string,
    facts: {
      readonly status?: number | undefined;
      readonly unsupported?: string | undefined;
      readonly retryAfterMs?: number | undefined;
      readonly usage?: CountedUsage | undefined;
      readonly providerRequestId?: string | undefined;
      readonly cause?: unknown;
    } = {},
  ) {
    super(message, facts.cause === undefined ? undefined : { cause: facts.cause });
    this.kind = kind;
    this.status = facts.status;
    this.unsupported = facts.unsupported;
    this.retryAfterMs = facts.retryAfterMs;
    this.usage = facts.usage;
    this.providerRequestId = facts.providerRequestId;
  }
}

/** The port that every model provider stands behind. One instance serves all tenants: it holds no tenant's state. */
export interface ModelProvider {
  readonly name: string;
  /** What it has beside chat; undefined where that is nothing. */
  readonly services?: ModelServices | undefined;
  /**
   * Runs one call, always streamed from the provider so that its usage and a partial answer are known at any time.
   * The iterator yields deltas as they come and returns the result.
   * @param signal aborting it closes the connection to the provider and throws `aborted` with the usage known so far
   * @throws {ModelCallError}
   */
  call(request: ModelRequest, signal: AbortSignal): AsyncGenerator<ModelDelta, ModelResult, undefined>;
}
