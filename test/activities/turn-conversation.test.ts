import { expect, test } from "vitest";
import { composeMessages, promptOf, transcriptOf } from "../../activities/turn-conversation.ts";
import type { ChatMessage, ModelReply } from "../../domain/conversation.ts";
import { noUsage } from "../../domain/usage.ts";
import type { JournaledCall, ToolRun, TurnRow } from "../../storage/turn-repository.ts";
import { someTurn } from "../turn-stack.ts";

const user = (content: string): ChatMessage => ({ role: "user", content });
const assistant = (content: string): ChatMessage => ({ role: "assistant", content });
const system: ChatMessage = { role: "system", content: "Be brief." };
const turnOf = (messages: readonly ChatMessage[], stateless = false): TurnRow => {
  const { request, ...turn } = someTurn("api:jane:default", "", { stateless });
  return { ...turn, state: "running", createdAtMs: 0, request: { ...request, messages } };
};
const asks: ModelReply = {
  content: "Let me look.",
  toolCalls: [
    { id: "call_a", name: "list", arguments: "{}" },
    { id: "call_b", name: "read", arguments: "{}" },
  ],
  finishReason: "tool_calls",
};
const calls: JournaledCall[] = [{ step: 0, model: "m", reply: asks, usage: { ...noUsage, estimated: false } }];
const toolRuns: ToolRun[] = [
  { step: 0, n: 0, toolCallId: "call_a", name: "list", content: "a.txt" },
  { step: 0, n: 1, toolCallId: "call_b", name: "read", content: "hello" },
];
const roomy = { contextWindow: 100_000, maxOutputTokens: 4_000 };
const steps: ChatMessage[] = [
  { role: "assistant", content: "Let me look.", toolCalls: asks.toolCalls },
  { role: "tool", toolCallId: "call_a", content: "a.txt" },
  { role: "tool", toolCallId: "call_b", content: "hello" },
];

test("a model reads instructions, what was said before, what is asked now, and what was done about it so far", () => {
  const transcript = [user("before"), assistant("yes")];

  const messages = composeMessages({ turn: turnOf([system, user("now")]), transcript, calls, toolRuns, model: roomy });

  expect(messages).toEqual([system, ...transcript, user("now"), ...steps]);
});

test("a stateless call is sent as it came, its instructions where they stood", () => {
  const sent = [user("a"), system, assistant("b"), user("c")];

  expect(composeMessages({ turn: turnOf(sent, true), transcript: [], calls: [], toolRuns: [], model: roomy })).toEqual(sent);
});

test("a transcript that is too long loses its oldest messages, and begins with a user's", () => {
  const long = "x".repeat(3_000);
  const transcript = Array.from({ length: 20 }, (_, place) => [
    user(`${place} ${long}`),
    { role: "assistant", content: null, toolCalls: asks.toolCalls },
    ...steps.slice(1),
    assistant("done"),
  ]).flat() as ChatMessage[];

  const messages = composeMessages({
    turn: turnOf([system, user("now")]),
    transcript,
    calls: [],
    toolRuns: [],
    model: { contextWindow: 8_000, maxOutputTokens: 4_000 },
  });

  expect(messages[0]).toEqual(system);
  expect(messages[1]?.role).toBe("user");
  expect(messages.at(-1)).toEqual(user("now"));
  const kept = messages.slice(1, -1);
  expect(kept.length).toBeGreaterThan(0);
  expect(kept).toEqual(transcript.slice(-kept.length));
  expect(JSON.stringify(messages).length).toBeLessThanOrEqual(3 * 4_000);
});

test("what is asked now is sent whole, even where it leaves no room for what was said", () => {
  const asked = user("y".repeat(50_000));

  expect(
    composeMessages({
      turn: turnOf([asked]),
      transcript: [user("before"), assistant("yes")],
      calls: [],
      toolRuns: [],
      model: { contextWindow: 2_000, maxOutputTokens: 1_000 },
    }),
  ).toEqual([asked]);
});

test("a session remembers what was asked, done and answered, but not the instructions of one turn", () => {
  const reply: ModelReply = { content: "There is a.txt.", toolCalls: [], finishReason: "stop" };

  expect(transcriptOf({ turn: turnOf([system, user("now")]), earlier: calls, toolRuns, reply })).toEqual([
    user("now"),
    ...steps,
    assistant("There is a.txt."),
  ]);
  expect(transcriptOf({ turn: turnOf([user("now")], true), earlier: [], toolRuns: [], reply })).toEqual([]);
});

test("the tenant's prompt stands in front of everything, in a session as in a stateless call", () => {
  const prompt = promptOf("You are Acme's.", [{ name: "SOUL.md", text: "Be kind." }]);
  const front: ChatMessage = { role: "system", content: "You are Acme's.\n\n# SOUL.md\n\nBe kind." };
  const given = { prompt, transcript: [user("before")], calls: [], toolRuns: [], model: roomy };

  expect(composeMessages({ ...given, turn: turnOf([system, user("now")]) })).toEqual([front, system, user("before"), user("now")]);
  expect(composeMessages({ ...given, transcript: [], turn: turnOf([user("now"), system], true) })).toEqual([front, user("now"), system]);
  expect(promptOf(" \n", [])).toBeUndefined();
});
