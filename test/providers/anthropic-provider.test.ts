import fc from "fast-check";
import { inspect } from "node:util";
import { afterEach, beforeEach, expect, test } from "vitest";
import type { ChatMessage, SamplingSettings } from "../../domain/conversation.ts";
import { createAnthropicProvider, type AnthropicProviderOptions } from "../../providers/anthropic-provider.ts";
import { assemble, drainCall, failedCall, failureOf, finishCall, someRequest } from "./one-call.ts";
import { bytePieces, cut, hang, namedEvents, startWireServer, type WireServer, type WireStep } from "./wire-server.ts";

const apiKey = "sk-ant-verysecret0123456789";
let server: WireServer;

beforeEach(async () => {
  server = await startWireServer();
});
afterEach(async () => {
  await server.close();
});

const anthropic = (over: Partial<AnthropicProviderOptions> = {}) =>
  createAnthropicProvider({
    name: "claude",
    baseUrl: server.url,
    apiKey,
    limitsOf: () => ({ contextWindow: 200_000, maxOutputTokens: 8_000 }),
    countTokens: (_model, text) => text.length,
    ...over,
  });

type WireEvent = { readonly type: string; readonly [key: string]: unknown };
const start = (
  usage: object = { input_tokens: 25, cache_creation_input_tokens: 3, cache_read_input_tokens: 7, output_tokens: 1 },
): WireEvent => ({
  type: "message_start",
  message: {
    id: "msg_1",
    type: "message",
    role: "assistant",
    content: [],
    model: "test-model",
    stop_reason: null,
    stop_sequence: null,
    usage,
  },
});
const block = (index: number, contentBlock: object): WireEvent => ({ type: "content_block_start", index, content_block: contentBlock });
const piece = (index: number, delta: object): WireEvent => ({ type: "content_block_delta", index, delta });
const blockEnd = (index: number): WireEvent => ({ type: "content_block_stop", index });
const stopped = (reason: string, usage: object = { output_tokens: 15 }, more: object = {}): WireEvent => ({
  type: "message_delta",
  delta: { stop_reason: reason, stop_sequence: null, ...more },
  usage,
});
const end: WireEvent = { type: "message_stop" };
const helloText = [
  block(0, { type: "text", text: "" }),
  { type: "ping" },
  piece(0, { type: "text_delta", text: "Hello" }),
  piece(0, { type: "text_delta", text: " you" }),
  blockEnd(0),
];
const hello = namedEvents(start(), ...helloText, stopped("end_turn"), end);

test("a call streams its text and ends with the provider's cumulative count", async () => {
  server.answer({ steps: [hello] });

  const { deltas, result } = await finishCall(anthropic());

  expect(deltas).toEqual([
    { type: "text", text: "Hello" },
    { type: "text", text: " you" },
  ]);
  expect(result).toEqual({
    reply: { content: "Hello you", toolCalls: [], finishReason: "stop" },
    usage: { inputTokens: 25, cacheReadTokens: 7, cacheWriteTokens: 3, outputTokens: 15, reasoningTokens: 0, estimated: false },
    providerRequestId: "msg_1",
  });
});

test("an answer is the same wherever the network cuts it", async () => {
  const text = namedEvents(
    start(),
    block(0, { type: "text", text: "" }),
    piece(0, { type: "text_delta", text: "Grüße, 世界 👩‍👩‍👧" }),
    blockEnd(0),
    stopped("end_turn"),
    end,
  );
  await fc.assert(
    fc.asyncProperty(fc.array(fc.integer({ min: 1, max: 60 }), { minLength: 1, maxLength: 8 }), async (lengths) => {
      server.answer({ steps: bytePieces(text.replaceAll("\n", "\r\n"), lengths) });

      const { result } = await finishCall(anthropic());

      expect(result.reply.content).toBe("Grüße, 世界 👩‍👩‍👧");
      expect(result.usage.outputTokens).toBe(15);
    }),
    { numRuns: 30 },
  );
});

test("a conversation is put into Anthropic's shape", async () => {
  server.answer({ steps: [hello] });
  const messages: ChatMessage[] = [
    { role: "system", content: "You are kind." },
    { role: "user", content: "One" },
    {
      role: "user",
      content: [
        { type: "text", text: "Two" },
        { type: "image", url: "https://example.com/a.png" },
        { type: "image", url: "data:image/jpg;base64,AAAA" },
      ],
    },
    { role: "developer", content: "Be brief." },
    {
      role: "assistant",
      content: "Looking.",
      toolCalls: [
        { id: "call:1", name: "list", arguments: '{"path":"."}' },
        { id: "call_2", name: "exec", arguments: '{"command": "ls' },
        { id: "call_3", name: "time", arguments: "" },
      ],
    },
    { role: "tool", toolCallId: "call:1", content: "a.txt" },
    { role: "tool", toolCallId: "call_2", content: "" },
    { role: "tool", toolCallId: "call_3", content: "noon" },
    { role: "user", content: "Go on" },
  ];

  await finishCall(anthropic(), someRequest({ messages, tools: [{ name: "time" }] }));

  const seen = server.requests[0];
  expect(seen?.url).toBe("/v1/messages");
  expect(seen?.headers).toMatchObject({ authorization: `Bearer ${apiKey}`, "x-api-key": apiKey, "anthropic-version": "2026-10-21" });
  expect(seen?.body).toEqual({
    model: "test-model",
    max_tokens: 8_000,
    stream: true,
    system: [
      { type: "text", text: "You are kind." },
      { type: "text", text: "Be brief." },
    ],
    tools: [{ name: "time", input_schema: { type: "object" } }],
    messages: [
      {
        role: "user",
        content: [
          { type: "text", text: "One" },
          { type: "text", text: "Two" },
          { type: "image", source: { type: "url", url: "https://example.com/a.png" } },
          { type: "image", source: { type: "base64", media_type: "image/jpeg", data: "AAAA" } },
        ],
      },
      {
        role: "assistant",
        content: [
          { type: "text", text: "Looking." },
          { type: "tool_use", id: "call_1", name: "list", input: { path: "." } },
          { type: "tool_use", id: "call_2", name: "exec", input: { malformed_arguments: '{"command": "ls' } },
          { type: "tool_use", id: "call_3", name: "time", input: {} },
        ],
      },
      {
        role: "user",
        content: [
          { type: "tool_result", tool_use_id: "call_1", content: [{ type: "text", text: "a.txt" }] },
          { type: "tool_result", tool_use_id: "call_2", content: [] },
          { type: "tool_result", tool_use_id: "call_3", content: [{ type: "text", text: "noon" }] },
          { type: "text", text: "Go on" },
        ],
      },
    ],
  });
});

test("settings are sent under Anthropic's names", async () => {
  server.answer({ steps: [hello] });
  const schema = { type: "object", properties: { a: { type: "string" } } };
  const settings: SamplingSettings = {
    maxTokens: 50,
    stop: ["END"],
    presencePenalty: 0,
    reasoningEffort: "high",
    responseFormat: { type: "json_schema", json_schema: { name: "answer", strict: true, schema } },
    parallelToolCalls: false,
  };

  await finishCall(
    anthropic({ baseUrl: `${server.url}/v1/` }),
    someRequest({ settings, tools: [{ name: "list", description: "Lists", parameters: schema, strict: true }] }),
  );

  expect(server.requests[0]?.url).toBe("/v1/messages");
  expect(server.requests[0]?.body).toMatchObject({
    max_tokens: 50,
    stop_sequences: ["END"],
    thinking: { type: "adaptive" },
    output_config: { effort: "high", format: { type: "json_schema", schema: { ...schema, additionalProperties: false } } },
    tools: [{ name: "list", description: "Lists", input_schema: schema, strict: true }],
    tool_choice: { type: "auto", disable_parallel_tool_use: true },
  });
});

test("sampling parameters go to the API version that knows them, defaults are left out", async () => {
  server.answer({ steps: [hello] }, { steps: [hello] });

  await finishCall(anthropic(), someRequest({ settings: { temperature: 0.2, topP: 0.9 } }));
  await finishCall(anthropic(), someRequest({ settings: { temperature: 1, topP: 1 } }));

  const [chosen, usual] = server.requests;
  expect(chosen?.headers["anthropic-version"]).toBe("2023-06-01");
  expect(chosen?.body).toMatchObject({ temperature: 0.2, top_p: 0.9 });
  expect(usual?.headers["anthropic-version"]).toBe("2026-10-21");
  expect(usual?.body).toHaveProperty("model");
  expect(usual?.body).not.toHaveProperty("temperature");
  expect(usual?.body).not.toHaveProperty("top_p");
});

test.each<[SamplingSettings["toolChoice"], object]>([
  ["auto", { type: "auto" }],
  ["none", { type: "none" }],
  ["required", { type: "any" }],
  [{ name: "list" }, { type: "tool", name: "list" }],
  [{ allowed: ["list"], mode: "auto" }, { type: "auto" }],
  [{ allowed: ["list"], mode: "required" }, { type: "any" }],
])("the tool choice %j is sent as %j", async (toolChoice, expected) => {
  server.answer({ steps: [hello] });

  const tools = [{ name: "list" }, { name: "time" }];
  await finishCall(anthropic(), someRequest({ tools, settings: { toolChoice } }));

  expect(server.requests[0]?.body["tool_choice"]).toEqual(expected);
  const names = (server.requests[0]?.body["tools"] as { name: string }[]).map(({ name }) => name);
  expect(names).toEqual(typeof toolChoice === "object" && "allowed" in toolChoice ? ["list"] : ["list", "time"]);
});

test.each<[string, string, number, object]>([
  ["none", "claude-opus-4-8", 8_000, { thinking: { type: "disabled" } }],
  ["minimal", "claude-opus-4-8", 8_000, { thinking: { type: "adaptive" }, output_config: { effort: "low" } }],
  ["max", "claude-sonnet-5", 8_000, { thinking: { type: "adaptive" }, output_config: { effort: "max" } }],
  ["low", "claude-sonnet-4-5-20250929", 8_000, { thinking: { type: "enabled", budget_tokens: 2_048 } }],
  ["high", "claude-sonnet-4-20250514", 8_000, { thinking: { type: "enabled", budget_tokens: 7_999 } }],
])("the effort %s of %s is sent in the words of that model", async (reasoningEffort, model, maxTokens, expected) => {
  server.answer({ steps: [hello] });

  await finishCall(anthropic(), someRequest({ model, settings: { reasoningEffort, maxTokens } }));

  const { thinking, output_config } = server.requests[0]?.body ?? {};
  expect({ ...(thinking === undefined ? {} : { thinking }), ...(output_config === undefined ? {} : { output_config }) }).toEqual(expected);
});

test("a model with a budget to think does without between a tool's call and its answer", async () => {
  server.answer({ steps: [hello] });
  const messages: ChatMessage[] = [
    { role: "user", content: "List" },
    { role: "assistant", content: null, toolCalls: [{ id: "c", name: "list", arguments: "{}" }] },
    { role: "tool", toolCallId: "c", content: "a.txt" },
  ];

  await finishCall(anthropic(), someRequest({ model: "claude-opus-4-5", messages, settings: { reasoningEffort: "high" } }));

  expect(server.requests[0]?.body).not.toHaveProperty("thinking");
});

test("any JSON object is the input of a tool that takes the answer, and is given as the content", async () => {
  const pieces = ['{"a":', " 1}"].map((partial_json) => piece(0, { type: "input_json_delta", partial_json }));
  const call = block(0, { type: "tool_use", id: "toolu_1", name: "answer_as_json_object", input: {} });
  server.answer({ steps: [namedEvents(start(), call, ...pieces, blockEnd(0), stopped("tool_use"), end)] });

  const { deltas, result } = await finishCall(anthropic(), someRequest({ settings: { responseFormat: { type: "json_object" } } }));

  expect(server.requests[0]?.body).toMatchObject({
    tools: [{ name: "answer_as_json_object", input_schema: { type: "object" } }],
    tool_choice: { type: "any" },
  });
  expect(result.reply).toEqual({ content: '{"a": 1}', toolCalls: [], finishReason: "stop" });
  expect(deltas).toEqual([
    { type: "text", text: '{"a":' },
    { type: "text", text: " 1}" },
  ]);
});

test("a schema is put into the words that the API knows, and one that it cannot know is refused", async () => {
  server.answer({ steps: [hello] });
  const formatOf = (schema: object) => ({ responseFormat: { type: "json_schema", json_schema: { name: "a", schema } } });
  const schema = { type: "object", properties: { age: { type: "integer", minimum: 0 } }, required: ["age"] };

  await finishCall(anthropic(), someRequest({ settings: formatOf(schema) }));
  const refused = await failedCall(anthropic(), someRequest({ settings: formatOf({ properties: {} }) }));

  expect(server.requests).toHaveLength(1);
  expect(server.requests[0]?.body["output_config"]).toEqual({
    format: {
      type: "json_schema",
      schema: {
        type: "object",
        properties: { age: { type: "integer", description: "{minimum: 0}" } },
        required: ["age"],
        additionalProperties: false,
      },
    },
  });
  expect(refused).toMatchObject({ kind: "refused", unsupported: "response_format" });
});

test("who asks for caching, a tier or abuse detection is sent so", async () => {
  server.answer({
    steps: [namedEvents(start({ input_tokens: 5, output_tokens: 1, service_tier: "standard" }), ...helloText, stopped("end_turn"), end)],
  });
  const settings: SamplingSettings = {
    promptCacheKey: "k",
    promptCacheRetention: "in_memory",
    serviceTier: "default",
    safetyIdentifier: "u1",
  };

  const { result } = await finishCall(anthropic(), someRequest({ settings }));

  expect(server.requests[0]?.body).toMatchObject({
    cache_control: { type: "ephemeral" },
    service_tier: "standard_only",
    metadata: { user_id: "u1" },
  });
  expect(result.reply.serviceTier).toBe("default");
});

test("files are documents: PDF, text and addresses", async () => {
  server.answer({ steps: [hello] });
  const file = (source: { data: string } | { url: string }, name?: string) => ({ type: "file" as const, file: source, name });
  const text = Buffer.from("Hi there").toString("base64");
  const content = [
    file({ data: "data:application/pdf;base64,JVBERi0=" }, "a.pdf"),
    file({ data: "JVBERi0=" }),
    file({ data: `data:text/csv;base64,${text}` }),
    file({ url: "https://example.com/b.pdf" }),
  ];

  await finishCall(anthropic(), someRequest({ messages: [{ role: "user", content }] }));

  const pdf = { type: "base64", media_type: "application/pdf", data: "JVBERi0=" };
  expect(server.requests[0]?.body["messages"]).toEqual([
    {
      role: "user",
      content: [
        { type: "document", source: pdf, title: "a.pdf" },
        { type: "document", source: pdf },
        { type: "document", source: { type: "text", media_type: "text/plain", data: "Hi there" } },
        { type: "document", source: { type: "url", url: "https://example.com/b.pdf" } },
      ],
    },
  ]);
});

test.each<[string, Parameters<typeof someRequest>[0]]>([
  ["tools", { tools: [{ name: "t", custom: { type: "text" } }] }],
  ["name", { messages: [{ role: "user", content: "hi", name: "jane" }] }],
  ["input_audio", { messages: [{ role: "user", content: [{ type: "audio", data: "AAAA", format: "wav" }] }] }],
  ["file", { messages: [{ role: "user", content: [{ type: "file", file: { data: "data:image/bmp;base64,AA==" } }] }] }],
  ["file_id", { messages: [{ role: "user", content: [{ type: "file", file: { id: "file-1" } }] }] }],
])("%s is refused by name in a message or tool", async (parameter, request) => {
  const error = await failedCall(anthropic(), someRequest(request));

  expect(error).toMatchObject({ kind: "refused", status: 400, unsupported: parameter });
  expect(error.message).toContain("'test-model'");
  expect(server.requests).toHaveLength(0);
});

test.each<[string, SamplingSettings]>([
  ["seed", { seed: 1 }],
  ["presence_penalty", { presencePenalty: 0.5 }],
  ["frequency_penalty", { frequencyPenalty: -1 }],
  ["response_format", { responseFormat: { type: "json_schema" } }],
  ["reasoning_effort", { reasoningEffort: "extreme" }],
  ["tool_choice", { toolChoice: "required" }],
  ["logprobs", { logprobs: true }],
  ["logit_bias", { logitBias: { "1": 1 } }],
  ["verbosity", { verbosity: "low" }],
  ["prediction", { prediction: "x" }],
  ["service_tier", { serviceTier: "flex" }],
  ["prompt_cache_retention", { promptCacheRetention: "24h" }],
  ["prompt_cache_options", { promptCacheOptions: {} }],
  ["web_search_options", { webSearch: {} }],
])("%s is refused by name before anything is sent", async (parameter, settings) => {
  const error = await failedCall(anthropic(), someRequest({ settings }));

  expect(error).toMatchObject({ kind: "refused", status: 400, usage: undefined, unsupported: parameter });
  expect(error.message).toContain(`'${parameter}'`);
  expect(server.requests).toHaveLength(0);
});

test("an image that the API cannot take, and a call without any maximum, are refused", async () => {
  const image = someRequest({ messages: [{ role: "user", content: [{ type: "image", url: "data:image/tiff;base64,AA==" }] }] });

  const errors = [await failedCall(anthropic(), image), await failedCall(anthropic({ limitsOf: () => undefined }))];

  expect(errors.map(({ kind, message }) => [kind, message.includes("'messages'") || message.includes("'max_tokens'")])).toEqual([
    ["refused", true],
    ["refused", true],
  ]);
});

test("tool calls stream as JSON text, and one without arguments is an empty object", async () => {
  server.answer({
    steps: [
      namedEvents(
        start(),
        block(0, { type: "text", text: "" }),
        piece(0, { type: "text_delta", text: "Looking." }),
        blockEnd(0),
        block(1, { type: "tool_use", id: "toolu_1", name: "list", input: {} }),
        piece(1, { type: "input_json_delta", partial_json: "" }),
        piece(1, { type: "input_json_delta", partial_json: '{"path"' }),
        piece(1, { type: "input_json_delta", partial_json: ': "."}' }),
        blockEnd(1),
        block(2, { type: "tool_use", id: "toolu_2", name: "time", input: {} }),
        blockEnd(2),
        stopped("tool_use"),
        end,
      ),
    ],
  });

  const { deltas, result } = await finishCall(anthropic());

  expect(result.reply).toEqual({
    content: "Looking.",
    toolCalls: [
      { id: "toolu_1", name: "list", arguments: '{"path": "."}' },
      { id: "toolu_2", name: "time", arguments: "{}" },
    ],
    finishReason: "tool_calls",
  });
  expect(assemble(deltas)).toEqual({ text: "Looking.", toolCalls: result.reply.toolCalls });
});

test("thinking is a class of its own where it is reported, and part of the output where not", async () => {
  const thinking = [
    block(0, { type: "thinking", thinking: "" }),
    piece(0, { type: "thinking_delta", thinking: "Hmm" }),
    piece(0, { type: "signature_delta", signature: "x" }),
    blockEnd(0),
  ];
  const reported = { output_tokens: 15, output_tokens_details: { thinking_tokens: 9 } };
  server.answer(
    { steps: [namedEvents(start(), ...thinking, stopped("end_turn", reported), end)] },
    { steps: [namedEvents(start(), ...thinking, stopped("end_turn"), end)] },
  );

  const told = await finishCall(anthropic());
  const untold = await finishCall(anthropic());

  expect(told.deltas).toEqual([]);
  expect(told.result.usage).toMatchObject({ outputTokens: 6, reasoningTokens: 9, estimated: false });
  expect(untold.result.usage).toMatchObject({ outputTokens: 15, reasoningTokens: 0, estimated: false });
});

test.each([
  ["end_turn", "stop"],
  ["stop_sequence", "stop"],
  ["max_tokens", "length"],
  ["model_context_window_exceeded", "length"],
  ["pause_turn", "length"],
  ["tool_use", "tool_calls"],
  ["refusal", "content_filter"],
])("the stop reason %s is %s", async (reason, expected) => {
  server.answer({ steps: [namedEvents(start(), ...helloText, stopped(reason), end)] });

  const { result } = await finishCall(anthropic());

  expect(result.reply.finishReason).toBe(expected);
});

test("a refusal's explanation is given apart from the content", async () => {
  server.answer({
    steps: [
      namedEvents(
        start(),
        stopped("refusal", { output_tokens: 1 }, { stop_details: { type: "refusal", category: "cyber", explanation: "Not this." } }),
        end,
      ),
    ],
  });

  const { result } = await finishCall(anthropic());

  expect(result.reply).toEqual({ content: null, toolCalls: [], finishReason: "content_filter", refusal: "Not this." });
});

test("a server that answers plain JSON works too", async () => {
  const message = {
    id: "msg_2",
    type: "message",
    role: "assistant",
    content: [
      { type: "text", text: "Looking." },
      { type: "tool_use", id: "toolu_1", name: "list", input: { path: "." } },
    ],
    stop_reason: "tool_use",
    usage: { input_tokens: 4, output_tokens: 6 },
  };
  server.answer({ headers: { "content-type": "application/json" }, steps: [JSON.stringify(message)] });

  const { deltas, result } = await finishCall(anthropic());

  expect(assemble(deltas)).toEqual({ text: "Looking.", toolCalls: [{ id: "toolu_1", name: "list", arguments: '{"path":"."}' }] });
  expect(result).toMatchObject({ usage: { inputTokens: 4, outputTokens: 6, estimated: false }, providerRequestId: "msg_2" });
});

test("counts that cannot be believed are counted here and marked", async () => {
  server.answer({ steps: [namedEvents(start({ input_tokens: 20_000_001, output_tokens: 1 }), ...helloText, stopped("end_turn"), end)] });

  const { result } = await finishCall(anthropic());

  expect(result.usage).toEqual({
    inputTokens: 18,
    cacheReadTokens: 0,
    cacheWriteTokens: 0,
    outputTokens: 9,
    reasoningTokens: 0,
    estimated: true,
    doubt: "unbelievable",
  });
});

test("a stream whose last count is left out is billed for what arrived, not for its first tokens", async () => {
  server.answer({ steps: [namedEvents(start(), ...helloText, stopped("end_turn", {}), end)] });

  const { result } = await finishCall(anthropic());

  expect(result.usage).toMatchObject({ inputTokens: 25, outputTokens: 9, estimated: true, doubt: "missing" });
});

test.each<[number, string, string]>([
  [400, "invalid_request_error", "refused"],
  [401, "authentication_error", "rejected"],
  [403, "permission_error", "rejected"],
  [404, "not_found_error", "refused"],
  [413, "request_too_large", "refused"],
  [429, "rate_limit_error", "busy"],
  [500, "api_error", "unreachable"],
  [529, "overloaded_error", "busy"],
])("status %i, %s, is %s, and asked once", async (status, type, kind) => {
  const body = JSON.stringify({ type: "error", error: { type, message: `Something with ${apiKey}` }, request_id: "req_1" });
  server.answer({ status, headers: { "content-type": "application/json", "request-id": "req_1", "retry-after": "3" }, steps: [body] });

  const error = await failedCall(anthropic());

  expect(error).toMatchObject({ kind, status, retryAfterMs: 3_000, providerRequestId: "req_1", usage: undefined });
  expect(server.requests).toHaveLength(1);
  expect(inspect(error, { depth: 10 })).not.toContain(apiKey);
  if (kind === "refused") expect(error.message).toBe("Something with [redacted]");
});

test.each<[string, string]>([
  ["overloaded_error", "busy"],
  ["rate_limit_error", "busy"],
  ["api_error", "unreachable"],
  ["timeout_error", "unreachable"],
  ["invalid_request_error", "refused"],
  ["authentication_error", "rejected"],
])("an error event of type %s in the middle is %s, with what was used", async (type, kind) => {
  server.answer({ steps: [namedEvents(start(), ...helloText.slice(0, 3), { type: "error", error: { type, message: "in the middle" } })] });

  const error = await failedCall(anthropic());

  expect(error).toMatchObject({
    kind,
    providerRequestId: "msg_1",
    usage: { inputTokens: 25, cacheReadTokens: 7, cacheWriteTokens: 3, outputTokens: 5, reasoningTokens: 0, estimated: true },
  });
});

test.each<[string, readonly WireStep[], string]>([
  ["ends before it is whole", [namedEvents(start(), ...helloText)], "garbage"],
  ["loses its connection", [namedEvents(start(), ...helloText), cut], "unreachable"],
  ["turns into something else", [namedEvents(start(), ...helloText), "data: {broken\n\n"], "garbage"],
])("an answer that %s is told with what was used", async (_, steps, kind) => {
  server.answer({ steps });

  const error = await failedCall(anthropic());

  expect(error).toMatchObject({ kind, usage: { inputTokens: 25, outputTokens: 9, estimated: true } });
});

test("an answer that is no answer is garbage, and nothing is counted", async () => {
  server.answer({ steps: ["<html></html>"] }, { steps: ['{"hello":1}'] }, { steps: [] });

  const errors = [await failedCall(anthropic()), await failedCall(anthropic()), await failedCall(anthropic())];

  expect(errors.map(({ kind, usage }) => [kind, usage])).toEqual(Array.from({ length: 3 }, () => ["garbage", undefined]));
});

test("a whole reply stands although its connection breaks before the end", async () => {
  server.answer({ steps: [namedEvents(start(), ...helloText, stopped("end_turn")), cut] });

  const { result } = await finishCall(anthropic());

  expect(result.usage).toMatchObject({ outputTokens: 15, estimated: false });
});

test("aborting closes the provider's connection and tells what was used", async () => {
  server.answer({ steps: [namedEvents(start(), ...helloText.slice(0, 3)), hang] });
  const abort = new AbortController();
  const call = anthropic().call(someRequest(), abort.signal);
  await call.next();

  abort.abort();
  const error = await failureOf(drainCall(call));
  await server.requests[0]?.clientLeft;

  expect(error).toMatchObject({
    kind: "aborted",
    usage: { inputTokens: 25, cacheReadTokens: 7, cacheWriteTokens: 3, outputTokens: 5, estimated: true },
  });
});

test("silence ends the call as unreachable and closes the connection", async () => {
  server.answer({ steps: [namedEvents(start()), hang] });

  const error = await failedCall(anthropic({ timeouts: { idleMs: 40 } }));
  await server.requests[0]?.clientLeft;

  expect(error).toMatchObject({ kind: "unreachable", usage: { inputTokens: 25, outputTokens: 1, estimated: false } });
});
