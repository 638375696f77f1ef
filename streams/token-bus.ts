import type { TokenLogprob } from "../domain/conversation.ts";
import type { FinishedTurn } from "../domain/turn.ts";
import type { TurnId } from "../domain/turn-id.ts";

type TextPiece = {
  readonly offset: number;
  readonly text: string;
  /** `offset` counts the logprobs before these. */
  readonly logprobs?: { readonly offset: number; readonly tokens: readonly TokenLogprob[] };
};

/** What a running turn shows to whoever watches it. Nothing here is durable: the turn's row is the truth. */
export type TurnEvent =
  /** Text of the answer, or of its refusal; `offset` is where it stands in the whole, in UTF-16 units, so a repeated or lost piece shows. */
  | ({ readonly type: "text" | "refusal" } & TextPiece)
  | {
      readonly type: "tool_call";
      readonly index: number;
      readonly id?: string;
      readonly name?: string;
      readonly arguments: string;
      readonly custom?: true;
    }
  /** The tenant's own tool runs inside the turn. */
  | {
      readonly type: "tool";
      readonly id: string;
      readonly name: string;
      readonly summary: string;
      readonly state: "started" | "done" | "failed";
    }
  /** The row is committed; `finished` is absent when it was too large to be sent along: read the row. */
  | { readonly type: "finished"; readonly finished?: FinishedTurn };

/** Carries a turn's events from the worker that runs it to the gateways that wait for it. */
export interface TokenBus {
  publish(turnId: TurnId, event: TurnEvent): void;
  /** Calls `listener` for every event from now on, in order, until the returned function is called. */
  subscribe(turnId: TurnId, listener: (event: TurnEvent) => void): () => void;
}
