import { AppError } from "../domain/app-error.ts";
import type { TokenLogprob, ToolCall } from "../domain/conversation.ts";
import type { TurnEvent } from "../streams/token-bus.ts";

/** What has been heard of an answer, what its caller has been told of it, and what the end of the turn has to bring. */

export type Piece = { readonly text: string; readonly tokens: readonly TokenLogprob[] };

/** Logprobs that wait for a slow reader, in tokens; each may be some kilobytes. */
const untoldTokens = 256;

/**
 * A text that comes in pieces, of which one may be lost or come twice. What a slow reader is not told at once is told later in one
 * piece; the end brings what was not heard.
 */
export function createVoice() {
  let heard = "";
  let told = 0;
  let untold: readonly TokenLogprob[] = [];
  let tokensTold = 0;
  return {
    hear({ offset, text, logprobs }: Extract<TurnEvent, { offset: number }>): void {
      if (offset !== heard.length || untold.length > untoldTokens) return;
      heard += text;
      if (logprobs?.offset === tokensTold + untold.length) untold = [...untold, ...logprobs.tokens];
    },
    /** The turn has ended with this. @throws {AppError} `provider_error` where the whole is not what was begun */
    hearWhole(whole: string, tokens: readonly TokenLogprob[] = []): void {
      if (!whole.startsWith(heard)) throw new AppError("provider_error", { why: "a repeated call answered otherwise than what was sent" });
      heard = whole;
      untold = tokens.slice(tokensTold);
    },
    /** What has been heard and not been told, which now has been. */
    next(): Piece {
      const piece = { text: heard.slice(told), tokens: untold };
      told = heard.length;
      tokensTold += untold.length;
      untold = [];
      return piece;
    },
  };
}

/** A piece of a tool call; the first one of a call names it. */
export type CallPiece = {
  readonly index: number;
  readonly id?: string;
  readonly name?: string;
  readonly arguments: string;
  readonly custom: boolean;
};

type HeardCall = { readonly id: string; readonly name: string; readonly custom: boolean; arguments: string; told: number | undefined };

/** The same for the tool calls of an answer, by index. */
export function createCalls() {
  const calls = new Map<number, HeardCall>();
  return {
    hear({ index, id, name, arguments: given, custom }: Extract<TurnEvent, { type: "tool_call" }>): void {
      const heard = calls.get(index);
      if (heard !== undefined) heard.arguments += given;
      else if (id !== undefined && name !== undefined)
        calls.set(index, { id, name, custom: custom === true, arguments: given, told: undefined });
      // else its beginning was lost: it is told whole at the end
    },
    /** The turn has ended with these. @throws {AppError} `provider_error` where one is not what was begun */
    hearWhole(whole: readonly ToolCall[]): void {
      for (const [index, { id, name, arguments: given, custom }] of whole.entries()) {
        const heard = calls.get(index);
        if (heard === undefined) calls.set(index, { id, name, custom: custom === true, arguments: given, told: undefined });
        else if (heard.id === id && given.startsWith(heard.arguments)) heard.arguments = given;
        else throw new AppError("provider_error", { why: "a repeated call asked otherwise than what was sent" });
      }
    },
    /** What has been heard and not been told, which now has been. */
    next(): readonly CallPiece[] {
      const pieces: CallPiece[] = [];
      for (const [index, call] of calls) {
        const { id, name, custom, told } = call;
        const rest = call.arguments.slice(told);
        if (told === undefined) pieces.push({ index, id, name, arguments: rest, custom });
        else if (rest !== "") pieces.push({ index, arguments: rest, custom });
        call.told = call.arguments.length;
      }
      return pieces;
    },
  };
}
