import { expect, test } from "vitest";
import { mintTurnId } from "../../domain/turn-id.ts";
import type { TurnReply } from "../../domain/turn.ts";
import { toChatCompletion, toChunk, toOpenAiUsage, toUsageChunk } from "../../gateway/chat-response.ts";

const head = { turnId: mintTurnId(1_780_481_662_999, new Uint8Array(10)), model: "m", createdAtMs: 1_780_481_662_999 };
const id = `chatcmpl-${head.turnId.slice(4)}`;
const usage = { inputTokens: 100, cacheReadTokens: 20, cacheWriteTokens: 3, outputTokens: 40, reasoningTokens: 5 };
const reply: TurnReply = { content: "Hello.", toolCalls: [], finishReason: "stop", model: "m", usage, modelCalls: 1 };

test("cached tokens stand inside the prompt and reasoning inside the completion, as OpenAI counts", () => {
  expect(toOpenAiUsage(usage)).toMatchObject({
    prompt_tokens: 123,
    completion_tokens: 45,
    total_tokens: 168,
    prompt_tokens_details: { cached_tokens: 20 },
    completion_tokens_details: { reasoning_tokens: 5 },
  });
});

test("a completion has the reply, its time in whole seconds and its turn's id", () => {
  expect(toChatCompletion(head, reply)).toEqual({
    id,
    object: "chat.completion",
    created: 1_780_481_662,
    model: "m",
    choices: [{ index: 0, message: { role: "assistant", content: "Hello.", refusal: null }, logprobs: null, finish_reason: "stop" }],
    usage: toOpenAiUsage(usage),
  });
});

test("tool calls and a refusal stand in the message; content is null where there is none", () => {
  const toolCalls = [{ id: "call_1", name: "open", arguments: '{"box":1' }]; // as the model wrote it
  const { choices } = toChatCompletion(head, { ...reply, content: null, toolCalls, finishReason: "tool_calls", refusal: "No." });

  expect(choices).toEqual([
    {
      index: 0,
      message: {
        role: "assistant",
        content: null,
        refusal: "No.",
        tool_calls: [{ id: "call_1", type: "function", function: { name: "open", arguments: '{"box":1' } }],
      },
      logprobs: null,
      finish_reason: "tool_calls",
    },
  ]);
});

test("a chunk says usage: null only to those who asked for usage, and the last one has no choice", () => {
  expect(toChunk(head, false, { content: "Hi" })).toEqual({
    id,
    object: "chat.completion.chunk",
    created: 1_780_481_662,
    model: "m",
    choices: [{ index: 0, delta: { content: "Hi" }, logprobs: null, finish_reason: null }],
  });
  expect(toChunk(head, true, {}, "length")).toMatchObject({ usage: null, choices: [{ delta: {}, finish_reason: "length" }] });
  expect(toUsageChunk(head, usage)).toMatchObject({ id, choices: [], usage: { total_tokens: 168 } });
});
