import fc from "fast-check";
import { inspect } from "node:util";
import { afterEach, beforeEach, expect, test } from "vitest";
import type { SamplingSettings } from "../../domain/conversation.ts";
import { createOpenAiProvider, type OpenAiProviderOptions } from "../../providers/openai-provider.ts";
import { assemble, drainCall, failedCall, failureOf, finishCall, someRequest } from "./one-call.ts";
import { bytePieces, cut, dataEvents, hang, namedEvents, startWireServer, type WireServer, type WireStep } from "./wire-server.ts";

const apiKey = "sk-proj-verysecret0123456789";
let server: WireServer;

beforeEach(async () => {
  server = await startWireServer();
});
afterEach(async () => {
  await server.close();
});

const responses = (over: Partial<OpenAiProviderOptions> = {}) =>
  createOpenAiProvider({
    name: "main",
    kind: "openai",
    api: "responses",
    baseUrl: `${server.url}/v1`,
    apiKey,
    countTokens: (_model, text) => text.length,
    ...over,
  });

type WireEvent = { readonly type: string; readonly [key: string]: unknown };
const usage = { input_tokens: 12, output_tokens: 9, total_tokens: 21, output_tokens_details: { reasoning_tokens: 5 } };
const counted = { inputTokens: 12, cacheReadTokens: 0, cacheWriteTokens: 0, outputTokens: 4, reasoningTokens: 5, estimated: false };
const created: WireEvent = { type: "response.created", response: { id: "resp_1", status: "in_progress", output: [], usage: null } };
const text = (delta: string, place = 0): WireEvent => ({
  type: "response.output_text.delta",
  output_index: place,
  content_index: 0,
  delta,
});
const message = (said: string): object => ({ type: "message", role: "assistant", content: [{ type: "output_text", text: said }] });
const completed = (more: object = {}): WireEvent => ({
  type: "response.completed",
  response: { id: "resp_1", status: "completed", error: null, output: [message("Hello you")], usage, ...more },
});
const helloText = [
  created,
  { type: "response.output_item.added", output_index: 0, item: { type: "message", content: [] } },
  text("Hello"),
  text(" you"),
  { type: "response.output_text.done", output_index: 0, content_index: 0, text: "Hello you" },
  { type: "response.output_item.done", output_index: 0, item: message("Hello you") },
];
const hello = namedEvents(...helloText, completed());

test("a call streams its text once, though the answer repeats it, and ends with the provider's count", async () => {
  server.answer({ steps: [hello] });

  const { deltas, result } = await finishCall(responses());

  expect(deltas).toEqual([
    { type: "text", text: "Hello" },
    { type: "text", text: " you" },
  ]);
  expect(result).toEqual({
    reply: { content: "Hello you", toolCalls: [], finishReason: "stop" },
    usage: counted,
    providerRequestId: "resp_1",
  });
});

test("the request carries the conversation and every setting under the names of Responses, and leaves nothing behind", async () => {
  server.answer({ steps: [hello] });
  const schema = { type: "object", properties: {} };

  await finishCall(
    responses(),
    someRequest({
      messages: [
        { role: "developer", content: "Be brief" },
        {
          role: "user",
          content: [
            { type: "text", text: "See" },
            { type: "image", url: "data:image/png;base64,AA==", detail: "low" },
            { type: "image", url: "https://example.com/a.png" },
          ],
        },
        { role: "assistant", content: "Looking.", toolCalls: [{ id: "call_1", name: "exec", arguments: '{"command":"ls"}' }] },
        { role: "tool", toolCallId: "call_1", content: "a.txt" },
        { role: "user", content: "Go on" },
      ],
      tools: [{ name: "exec", description: "Runs", parameters: schema, strict: true }, { name: "time" }],
      settings: {
        maxTokens: 50,
        temperature: 0,
        topP: 0.5,
        stop: [],
        presencePenalty: 0,
        reasoningEffort: "low",
        responseFormat: { type: "json_schema", json_schema: { name: "answer", schema, strict: true } },
        parallelToolCalls: false,
        toolChoice: { name: "exec" },
      },
    }),
  );

  const seen = server.requests[0];
  expect(seen?.url).toBe("/v1/responses");
  expect(seen?.headers).toMatchObject({ authorization: `Bearer ${apiKey}`, "idempotency-key": "trn_01JTEST0000000000000000000.0" });
  expect(seen?.body).toEqual({
    model: "test-model",
    stream: true,
    store: false,
    input: [
      { role: "developer", content: "Be brief" },
      {
        role: "user",
        content: [
          { type: "input_text", text: "See" },
          { type: "input_image", image_url: "data:image/png;base64,AA==", detail: "low" },
          { type: "input_image", image_url: "https://example.com/a.png", detail: "auto" },
        ],
      },
      { role: "assistant", content: "Looking." },
      { type: "function_call", call_id: "call_1", name: "exec", arguments: '{"command":"ls"}' },
      { type: "function_call_output", call_id: "call_1", output: "a.txt" },
      { role: "user", content: "Go on" },
    ],
    tools: [
      { type: "function", name: "exec", description: "Runs", parameters: schema, strict: true },
      { type: "function", name: "time", parameters: null, strict: false },
    ],
    max_output_tokens: 50,
    temperature: 0,
    top_p: 0.5,
    reasoning: { effort: "low" },
    text: { format: { type: "json_schema", name: "answer", schema, strict: true } },
    parallel_tool_calls: false,
    tool_choice: { type: "function", name: "exec" },
  });
});

test.each<[string, SamplingSettings]>([
  ["seed", { seed: 1 }],
  ["stop", { stop: ["END"] }],
  ["presence_penalty", { presencePenalty: 0.5 }],
  ["frequency_penalty", { frequencyPenalty: -1 }],
  ["response_format", { responseFormat: { type: "grammar" } }],
  ["response_format", { responseFormat: { type: "json_schema", json_schema: { name: "no schema" } } }],
])("%s is refused by name before anything is sent", async (parameter, settings) => {
  const error = await failedCall(responses(), someRequest({ settings }));

  expect(error).toMatchObject({ kind: "refused", status: 400, usage: undefined });
  expect(error.message).toContain(`'${parameter}'`);
  expect(server.requests).toHaveLength(0);
});

test("an answer is the same wherever the network cuts it", async () => {
  const answer = namedEvents(created, text("Grüße, 世界 "), text("👩‍👩‍👧"), completed()).replaceAll("\n", "\r\n");
  await fc.assert(
    fc.asyncProperty(fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1, maxLength: 8 }), async (lengths) => {
      server.answer({ steps: bytePieces(answer, lengths) });

      const { result } = await finishCall(responses());

      expect(result.reply.content).toBe("Grüße, 世界 👩‍👩‍👧");
      expect(result.usage).toEqual(counted);
    }),
    { numRuns: 20 },
  );
});

const call = (place: number, id: string, name: string, args: string): object => ({
  output_index: place,
  item: { type: "function_call", id: `fc_${id}`, call_id: id, name, arguments: args },
});
const piece = (place: number, delta: string): WireEvent => ({
  type: "response.function_call_arguments.delta",
  output_index: place,
  delta,
});

test.each<[string, readonly WireEvent[]]>([
  [
    "in pieces",
    [
      { type: "response.output_item.added", ...call(1, "a", "list", "") },
      piece(1, '{"path"'),
      piece(1, ":1}"),
      { type: "response.function_call_arguments.done", output_index: 1, arguments: '{"path":1}' },
      { type: "response.output_item.done", ...call(1, "a", "list", '{"path":1}') },
      { type: "response.output_item.added", ...call(2, "b", "exec", "") },
      piece(2, "{}"),
      { type: "response.output_item.done", ...call(2, "b", "exec", "{}") },
    ],
  ],
  [
    "whole",
    [
      { type: "response.output_item.added", ...call(0, "a", "list", "") },
      { type: "response.output_item.done", ...call(0, "a", "list", '{"path":1}') },
      { type: "response.output_item.done", ...call(1, "b", "exec", "{}") },
    ],
  ],
])("tool calls that come %s are the same calls", async (_, events) => {
  server.answer({ steps: [namedEvents(created, ...events, completed({ output: [] }))] });

  const { deltas, result } = await finishCall(responses());

  expect(result.reply).toEqual({
    content: null,
    toolCalls: [
      { id: "a", name: "list", arguments: '{"path":1}' },
      { id: "b", name: "exec", arguments: "{}" },
    ],
    finishReason: "tool_calls",
  });
  expect(assemble(deltas).toolCalls).toEqual(result.reply.toolCalls);
});

test("a refusal is apart from the content, thoughts are not passed on", async () => {
  server.answer({
    steps: [
      namedEvents(
        created,
        { type: "response.reasoning_summary_text.delta", output_index: 0, delta: "Hmm" },
        { type: "response.refusal.delta", output_index: 1, delta: "I cannot." },
        completed({ usage: null }),
      ),
    ],
  });

  const { deltas, result } = await finishCall(responses());

  expect(deltas).toEqual([{ type: "refusal", text: "I cannot." }]);
  expect(result.reply).toEqual({ content: null, toolCalls: [], finishReason: "stop", refusal: "I cannot." });
  expect(result.usage).toMatchObject({ outputTokens: 9, reasoningTokens: 3, estimated: true, doubt: "missing" });
});

test.each([
  ["max_output_tokens", "length"],
  ["content_filter", "content_filter"],
  ["something_new", "length"],
])("an answer that is incomplete for %s ends with %s", async (reason, expected) => {
  const incomplete = { type: "response.incomplete", response: { id: "resp_1", incomplete_details: { reason }, output: [], usage } };
  server.answer({ steps: [namedEvents(created, text("Hel"), incomplete)] });

  const { result } = await finishCall(responses());

  expect(result).toMatchObject({ reply: { content: "Hel", finishReason: expected }, usage: counted });
});

test("a server that answers plain JSON works too", async () => {
  const output = [
    { type: "reasoning", summary: [{ type: "summary_text", text: "Hmm" }] },
    message("Looking."),
    { type: "function_call", call_id: "c1", name: "list", arguments: "{}" },
  ];
  const whole = { id: "resp_2", object: "response", status: "completed", error: null, output, usage };
  server.answer({ headers: { "content-type": "application/json" }, steps: [JSON.stringify(whole)] });

  const { deltas, result } = await finishCall(responses());

  expect(assemble(deltas)).toEqual({ text: "Looking.", toolCalls: result.reply.toolCalls });
  expect(result).toEqual({
    reply: { content: "Looking.", toolCalls: [{ id: "c1", name: "list", arguments: "{}" }], finishReason: "tool_calls" },
    usage: counted,
    providerRequestId: "resp_2",
  });
});

test.each<[string, object | undefined, string]>([
  ["server_error", usage, "unreachable"],
  ["rate_limit_exceeded", undefined, "busy"],
  ["invalid_prompt", undefined, "refused"],
  ["image_content_policy_violation", undefined, "refused"],
])("a response that fails with %s in the middle is told with what was used", async (code, count, kind) => {
  const failed = {
    type: "response.failed",
    response: { id: "resp_1", status: "failed", error: { code, message: `Something with ${apiKey}` }, usage: count ?? null },
  };
  server.answer({ steps: [namedEvents(created, text("Hel"), failed)] });

  const error = await failedCall(responses());

  expect(error).toMatchObject({
    kind,
    providerRequestId: "resp_1",
    usage: count === undefined ? { inputTokens: 18, outputTokens: 3, estimated: true, doubt: "cut" } : counted,
  });
  expect(inspect(error, { depth: 10 })).not.toContain(apiKey);
});

test.each<[string, readonly WireStep[], string, object | undefined]>([
  ["is an error event", [namedEvents({ type: "error", code: "rate_limit_exceeded", message: "slow" })], "busy", undefined],
  ["is an error in plain JSON", ['{"error":{"message":"broken","type":"server_error"}}'], "unreachable", undefined],
  ["ends before it is whole", [namedEvents(created, text("Hello"))], "garbage", { inputTokens: 18, outputTokens: 5 }],
  ["loses its connection", [namedEvents(created, text("Hello")), cut], "unreachable", { inputTokens: 18, outputTokens: 5 }],
  ["turns into something else", [namedEvents(created), "data: {broken\n\n"], "garbage", undefined],
  ["is a web page", ["<html></html>"], "garbage", undefined],
  ["is JSON that is no response", ['{"hello":1}'], "garbage", undefined],
  ["is a chat completion", [dataEvents({ choices: [{ delta: { content: "x" } }] }, "[DONE]")], "garbage", undefined],
  ["was given up", ['{"id":"r","status":"cancelled","output":[]}'], "unreachable", undefined],
])("an answer that %s is an error, with what was used", async (_, steps, kind, used) => {
  server.answer({ steps });

  const error = await failedCall(responses());

  expect(error.kind).toBe(kind);
  if (used === undefined) expect(error.usage).toBeUndefined();
  else expect(error.usage).toMatchObject({ ...used, estimated: true, doubt: "cut" });
});

test("aborting closes the provider's connection and tells what was used", async () => {
  server.answer({ steps: [namedEvents(created, text("Hello")), hang] });
  const abort = new AbortController();
  const running = responses().call(someRequest(), abort.signal);
  await running.next();

  abort.abort();
  const error = await failureOf(drainCall(running));
  await server.requests[0]?.clientLeft;

  expect(error).toMatchObject({ kind: "aborted", usage: { inputTokens: 18, outputTokens: 5, estimated: true } });
});

test("what only some models can do is sent in the words of Responses", async () => {
  server.answer({ steps: [hello] });

  await finishCall(
    responses(),
    someRequest({
      messages: [
        {
          role: "user",
          content: [
            { type: "file", name: "a.pdf", file: { data: "JVBERi0=" } },
            { type: "file", file: { url: "https://example.org/b.pdf" } },
          ],
        },
        { role: "assistant", content: "Hm.", refusal: "No." },
        { role: "assistant", content: null, toolCalls: [{ id: "call_1", name: "sql", arguments: "SELECT 1", custom: true }] },
        { role: "tool", toolCallId: "call_1", content: [{ type: "image", url: "https://example.org/a.png" }] },
      ],
      tools: [{ name: "sql", custom: { type: "text" } }, { name: "exec" }],
      settings: {
        toolChoice: { allowed: ["sql", "exec"], mode: "auto" },
        logprobs: true,
        topLogprobs: 2,
        serviceTier: "flex",
        verbosity: "low",
        promptCacheKey: "k",
        promptCacheRetention: "24h",
        promptCacheOptions: { mode: "implicit" },
        safetyIdentifier: "u1",
      },
    }),
  );

  expect(server.requests[0]?.body).toMatchObject({
    input: [
      {
        role: "user",
        content: [
          { type: "input_file", filename: "a.pdf", file_data: "JVBERi0=" },
          { type: "input_file", file_url: "https://example.org/b.pdf" },
        ],
      },
      { role: "assistant", content: "Hm.\nNo." },
      { type: "custom_tool_call", call_id: "call_1", name: "sql", input: "SELECT 1" },
      { type: "custom_tool_call_output", call_id: "call_1", output: [{ type: "input_image", image_url: "https://example.org/a.png" }] },
    ],
    tools: [
      { type: "custom", name: "sql", format: { type: "text" } },
      { type: "function", name: "exec" },
    ],
    tool_choice: {
      type: "allowed_tools",
      mode: "auto",
      tools: [
        { type: "custom", name: "sql" },
        { type: "function", name: "exec" },
      ],
    },
    include: ["message.output_text.logprobs"],
    top_logprobs: 2,
    service_tier: "flex",
    text: { verbosity: "low" },
    prompt_cache_key: "k",
    prompt_cache_retention: "24h",
    prompt_cache_options: { mode: "implicit" },
    safety_identifier: "u1",
  });
});

test.each<[string, Parameters<typeof someRequest>[0]]>([
  ["logit_bias", { settings: { logitBias: { "1": 1 } } }],
  ["prediction", { settings: { prediction: "x" } }],
  ["web_search_options", { settings: { webSearch: {} } }],
  ["name", { messages: [{ role: "user", content: "hi", name: "jane" }] }],
  ["input_audio", { messages: [{ role: "user", content: [{ type: "audio", data: "AAAA", format: "mp3" }] }] }],
  ["file_id", { messages: [{ role: "user", content: [{ type: "file", file: { id: "file-1" } }] }] }],
])("%s is refused by its name and the model's", async (parameter, request) => {
  const error = await failedCall(responses(), someRequest(request));

  expect(error).toMatchObject({ kind: "refused", status: 400, unsupported: parameter });
  expect(error.message).toContain("'test-model'");
  expect(server.requests).toHaveLength(0);
});

test("what a provider tells beside its text is put into the words of Chat Completions", async () => {
  const citation = { url: "https://example.org", title: "E", start_index: 0, end_index: 5 };
  const annotations = [
    { type: "url_citation", ...citation },
    { type: "file_path", file_id: "f", index: 0 },
  ];
  const item = { type: "message", role: "assistant", content: [{ type: "output_text", text: "Hello", annotations }] };
  const logprobs = [{ token: "Hello", logprob: -1, top_logprobs: [{ token: "Hi", logprob: -2 }] }];
  server.answer({
    steps: [
      namedEvents(
        created,
        { ...text("Hello"), logprobs },
        { type: "response.output_item.done", output_index: 0, item },
        { type: "response.output_item.added", output_index: 1, item: { type: "custom_tool_call", call_id: "call_1", name: "sql" } },
        { type: "response.custom_tool_call_input.delta", output_index: 1, delta: "SELECT" },
        completed({ output: [item], service_tier: "flex" }),
      ),
    ],
  });

  const { result } = await finishCall(responses());

  expect(result.reply).toEqual({
    content: "Hello",
    toolCalls: [{ id: "call_1", name: "sql", arguments: "SELECT", custom: true }],
    finishReason: "tool_calls",
    logprobs: [{ token: "Hello", logprob: -1, bytes: null, top_logprobs: [{ token: "Hi", logprob: -2, bytes: null }] }],
    annotations: [{ type: "url_citation", url_citation: citation }],
    serviceTier: "flex",
  });
});
