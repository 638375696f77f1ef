import type { ChatMessage } from "./conversation.ts";

/** How a conversation is cut to a model's context window without asking its tokenizer. */

/** Characters of a prompt per token: low, so that it errs towards a shorter prompt. */
export const charactersPerToken = 3;

export const charactersOf = (messages: readonly ChatMessage[]): number =>
  messages.reduce((size, message) => size + JSON.stringify(message).length, 0);

/** It tells the model what to do, and is no part of what was said. */
export const isInstruction = ({ role }: ChatMessage): boolean => role === "system" || role === "developer";

/**
 * The newest messages that fit, beginning with a user's: a provider refuses a tool's answer without the call before it.
 * @param room in characters
 */
export function newestThatFit(
  messages: readonly ChatMessage[],
  room: number,
  {
    atLeastOne = false,
  }: { /** The last of the user's messages stays, and what follows it, even if it does not fit. */ readonly atLeastOne?: boolean } = {},
): readonly ChatMessage[] {
  let left = room;
  let first = messages.length;
  for (let place = messages.length - 1; place >= 0; place--) {
    const message = messages[place];
    if (message === undefined) break;
    left -= charactersOf([message]);
    if (left < 0 && (!atLeastOne || first < messages.length)) break;
    if (message.role === "user") first = place;
  }
  return messages.slice(first);
}
