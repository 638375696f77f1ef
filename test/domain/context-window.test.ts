import { expect, test } from "vitest";
import { charactersOf, newestThatFit } from "../../domain/context-window.ts";
import type { ChatMessage } from "../../domain/conversation.ts";

const conversation: readonly ChatMessage[] = [
  { role: "user", content: "one" },
  { role: "assistant", content: null, toolCalls: [{ id: "c", name: "f", arguments: "{}" }] },
  { role: "tool", toolCallId: "c", content: "two" },
  { role: "user", content: "three" },
  { role: "assistant", content: "four" },
];
const newest = conversation.slice(3);

test("what fits begins with a user's message: a tool's answer does not stand without its call", () => {
  expect(newestThatFit(conversation, charactersOf(conversation))).toEqual(conversation);
  expect(newestThatFit(conversation, charactersOf(conversation) - 1)).toEqual(newest);
  expect(newestThatFit(conversation, charactersOf(newest) - 1)).toEqual([]);
});

test("the last of the user's messages may stay even where it does not fit", () => {
  expect(newestThatFit(conversation, 0, { atLeastOne: true })).toEqual(newest);
  expect(newestThatFit(conversation.slice(1, 3), 0, { atLeastOne: true })).toEqual([]);
});
