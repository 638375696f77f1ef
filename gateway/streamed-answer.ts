import { AppError } from "../domain/app-error.ts";
import type { TokenLogprob, ToolCall } from "../domain/conversation.ts";
import type { TurnEvent } from "../streams/token-bus.ts";

/** What the caller of a stream has of an answer, and what the end of the turn has to bring. */

export type Piece = { readonly text: string; readonly tokens: readonly TokenLogprob[] };

/** What the caller has of a text that comes in pieces, of which one may be lost or come twice; the end brings the rest. */
export function createVoice() {
  let sent = "";
  let tokensSent = 0;
  const add = (text: string, tokens: readonly TokenLogprob[]): Piece => {
    sent += text;
    tokensSent += tokens.length;
    return { text, tokens };
  };
  return {
    hear({ offset, text, logprobs }: Extract<TurnEvent, { offset: number }>): Piece {
      if (offset !== sent.length) return { text: "", tokens: [] };
      return add(text, logprobs?.offset === tokensSent ? logprobs.tokens : []);
    },
    /** @throws {AppError} `provider_error` where the whole is not what was begun */
    restOf(whole: string, tokens: readonly TokenLogprob[] = []): Piece {
      if (!whole.startsWith(sent)) throw new AppError("provider_error", { why: "a repeated call answered otherwise than what was sent" });
      return add(whole.slice(sent.length), tokens.slice(tokensSent));
    },
  };
}

export type SentCall = { readonly id: string | undefined; readonly arguments: string; readonly custom: boolean };
export type CallPiece = {
  readonly index: number;
  readonly id?: string;
  readonly name?: string;
  readonly arguments: string;
  readonly custom: boolean;
};

/** What the caller does not have of a tool call yet. @throws {AppError} `provider_error` where the whole is not what was begun */
export function restOfCall(
  index: number,
  { id, name, arguments: whole, custom }: ToolCall,
  sent: SentCall | undefined,
): CallPiece | undefined {
  if (sent === undefined) return { index, id, name, arguments: whole, custom: custom === true };
  if (sent.id !== id || !whole.startsWith(sent.arguments))
    throw new AppError("provider_error", { why: "a repeated call asked otherwise than what was sent" });
  const rest = whole.slice(sent.arguments.length);
  return rest === "" ? undefined : { index, arguments: rest, custom: sent.custom };
}
