import { expect, test } from "vitest";
import { mintTurnId } from "../../domain/turn-id.ts";
import type { TurnReply } from "../../domain/turn.ts";
import { toChatCompletion, toChunk, toOpenAiUsage, toUsageChunk } from "../../gateway/chat-response.ts";

const head = { turnId: mintTurnId(1_780_481_662_999, new Uint8Array(10)), model: "m", createdAtMs: 1_780_481_662_999 };
const id = `chatcmpl-${head.turnId.slice(4)}`;
const usage = { inputTokens: 100, cacheReadTokens: 20, cacheWriteTokens: 3, outputTokens: 40, reasoningTokens: 5 };
const plain = { includeUsage: false, obfuscate: false, withFunctions: false, metadata: undefined };
const reply: TurnReply = { content: "Hello.", toolCalls: [], finishReason: "stop", model: "m", usage, modelCalls: 1 };

test("cached tokens stand inside the prompt and reasoning inside the completion, as OpenAI counts", () => {
  expect(toOpenAiUsage(usage)).toEqual({
    prompt_tokens: 123,
    completion_tokens: 45,
    total_tokens: 168,
    prompt_tokens_details: { cached_tokens: 20 },
    completion_tokens_details: { reasoning_tokens: 5 },
  });
});

test("a completion has the reply, its time in whole seconds and its turn's id", () => {
  expect(toChatCompletion(head, reply, plain)).toEqual({
    id,
    object: "chat.completion",
    created: 1_780_481_662,
    model: "m",
    choices: [
      {
        index: 0,
        message: { role: "assistant", content: "Hello.", refusal: null, annotations: [] },
        logprobs: null,
        finish_reason: "stop",
      },
    ],
    usage: toOpenAiUsage(usage),
  });
});

test("tool calls and a refusal stand in the message; content is null where there is none", () => {
  const toolCalls = [{ id: "call_1", name: "open", arguments: '{"box":1' }]; // as the model wrote it
  const answer: TurnReply = { ...reply, content: null, toolCalls, finishReason: "tool_calls", refusal: "No." };
  const { choices } = toChatCompletion(head, answer, plain);

  expect(choices).toEqual([
    {
      index: 0,
      message: {
        role: "assistant",
        content: null,
        refusal: "No.",
        tool_calls: [{ id: "call_1", type: "function", function: { name: "open", arguments: '{"box":1' } }],
        annotations: [],
      },
      logprobs: null,
      finish_reason: "tool_calls",
    },
  ]);
});

test("a chunk says usage: null only to those who asked for usage, and the last one has no choice", () => {
  const asking = { ...plain, includeUsage: true };
  expect(toChunk(head, plain, { delta: { content: "Hi" } })).toEqual({
    id,
    object: "chat.completion.chunk",
    created: 1_780_481_662,
    model: "m",
    choices: [{ index: 0, delta: { content: "Hi" }, logprobs: null, finish_reason: null }],
  });
  expect(toChunk(head, asking, { finishReason: "length" })).toMatchObject({
    usage: null,
    choices: [{ delta: {}, finish_reason: "length" }],
  });
  expect(toUsageChunk(head, reply)).toMatchObject({ id, choices: [], usage: { total_tokens: 168 } });
});

test("what the provider told of itself and of each token is handed on, and the caller's metadata given back", () => {
  const token = { token: "Hello", bytes: [72], logprob: -0.1, top_logprobs: [] };
  const citation = { type: "url_citation", url_citation: { url: "https://example.org", title: "E", start_index: 0, end_index: 5 } };
  const told = { ...reply, logprobs: [token], serviceTier: "flex", systemFingerprint: "fp_1", annotations: [citation] };

  const completion = toChatCompletion(head, told, { ...plain, metadata: { a: "b" } });

  expect(completion).toMatchObject({ service_tier: "flex", system_fingerprint: "fp_1", metadata: { a: "b" } });
  expect(completion.choices[0]).toMatchObject({ message: { annotations: [citation] }, logprobs: { content: [token], refusal: null } });
});

test("who asked with functions is answered with a function call", () => {
  const toolCalls = [{ id: "call_1", name: "open", arguments: "{}" }];

  const { choices } = toChatCompletion(head, { ...reply, toolCalls, finishReason: "tool_calls" }, { ...plain, withFunctions: true });

  expect(choices[0]).toMatchObject({ message: { function_call: { name: "open", arguments: "{}" } }, finish_reason: "function_call" });
  expect(choices[0]?.message).not.toHaveProperty("tool_calls");
});

test("a custom tool's call carries its text", () => {
  const toolCalls = [{ id: "call_1", name: "sql", arguments: "SELECT 1", custom: true as const }];

  const { choices } = toChatCompletion(head, { ...reply, toolCalls, finishReason: "tool_calls" }, plain);

  expect(choices[0]?.message).toMatchObject({ tool_calls: [{ id: "call_1", type: "custom", custom: { name: "sql", input: "SELECT 1" } }] });
});
