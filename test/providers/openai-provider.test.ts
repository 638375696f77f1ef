import fc from "fast-check";
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { inspect } from "node:util";
import { afterEach, beforeEach, expect, test } from "vitest";
import { AppError } from "../../domain/app-error.ts";
import { createOpenAiProvider, type OpenAiProviderOptions } from "../../providers/openai-provider.ts";
import { assemble, drainCall, failedCall, failureOf, finishCall, someRequest } from "./one-call.ts";
import { bytePieces, cut, dataEvents, hang, startWireServer, type WireServer, type WireStep } from "./wire-server.ts";

const apiKey = "sk-proj-verysecret0123456789";
let server: WireServer;

beforeEach(async () => {
  server = await startWireServer();
});
afterEach(async () => {
  await server.close();
});

const openAi = (over: Partial<OpenAiProviderOptions> = {}) =>
  createOpenAiProvider({ name: "main", kind: "openai", baseUrl: `${server.url}/v1`, apiKey, ...over });
const compatible = (over: Partial<OpenAiProviderOptions> = {}) => openAi({ kind: "openai-compatible", ...over });

const chunk = (delta: object, finish: string | null = null, over: object = {}): object => ({
  id: "chatcmpl-1",
  object: "chat.completion.chunk",
  created: 1,
  model: "test-model",
  choices: [{ index: 0, delta, finish_reason: finish }],
  ...over,
});
const usage = { prompt_tokens: 12, completion_tokens: 4, total_tokens: 16 };
const usageChunk = (counts: object | null = usage): object => ({
  id: "chatcmpl-1",
  object: "chat.completion.chunk",
  choices: [],
  usage: counts,
});
const helloChunks = [chunk({ role: "assistant", content: "" }), chunk({ content: "Hello" }), chunk({ content: " you" }), chunk({}, "stop")];
const hello = dataEvents(...helloChunks, usageChunk(), "[DONE]");
const exactly = (inputTokens: number, outputTokens: number) => ({
  inputTokens,
  cacheReadTokens: 0,
  cacheWriteTokens: 0,
  outputTokens,
  reasoningTokens: 0,
  estimated: false,
});

test("a call streams its text and ends with the provider's count", async () => {
  server.answer({ steps: [hello] });

  const { deltas, result } = await finishCall(openAi());

  expect(deltas).toEqual([
    { type: "text", text: "Hello" },
    { type: "text", text: " you" },
  ]);
  expect(result).toEqual({
    reply: { content: "Hello you", toolCalls: [], finishReason: "stop" },
    usage: exactly(12, 4),
    providerRequestId: "chatcmpl-1",
  });
});

test("a delta is given before the provider sends the next", async () => {
  const more = Promise.withResolvers<void>();
  server.answer({
    steps: [dataEvents(chunk({ content: "first" })), more.promise, dataEvents(chunk({ content: "second" }, "stop"), "[DONE]")],
  });
  const call = openAi().call(someRequest(), new AbortController().signal);

  const first = await call.next();
  more.resolve();
  const rest = await drainCall(call);

  expect(first.value).toEqual({ type: "text", text: "first" });
  expect(rest.result.reply.content).toBe("firstsecond");
});

test("the request carries every setting under OpenAI's names", async () => {
  server.answer({ steps: [hello] });

  await finishCall(
    openAi(),
    someRequest({
      messages: [
        { role: "developer", content: "Be brief" },
        {
          role: "user",
          content: [
            { type: "text", text: "See" },
            { type: "image", url: "data:image/png;base64,AA==", detail: "low" },
          ],
        },
        { role: "assistant", content: null, toolCalls: [{ id: "call_1", name: "exec", arguments: '{"command":"ls"}' }] },
        { role: "tool", toolCallId: "call_1", content: "a.txt" },
      ],
      tools: [{ name: "exec", description: "Runs", parameters: { type: "object" }, strict: true }],
      settings: {
        maxTokens: 50,
        temperature: 0,
        topP: 0.5,
        stop: ["END"],
        seed: 7,
        presencePenalty: 0.1,
        frequencyPenalty: 0.2,
        reasoningEffort: "low",
        responseFormat: { type: "json_object" },
        parallelToolCalls: false,
        toolChoice: { name: "exec" },
      },
    }),
  );

  const seen = server.requests[0];
  expect(seen?.url).toBe("/v1/chat/completions");
  expect(seen?.headers).toMatchObject({ authorization: `Bearer ${apiKey}`, "idempotency-key": "trn_01JTEST0000000000000000000.0" });
  expect(seen?.body).toEqual({
    model: "test-model",
    stream: true,
    stream_options: { include_usage: true },
    messages: [
      { role: "developer", content: "Be brief" },
      {
        role: "user",
        content: [
          { type: "text", text: "See" },
          { type: "image_url", image_url: { url: "data:image/png;base64,AA==", detail: "low" } },
        ],
      },
      {
        role: "assistant",
        content: null,
        tool_calls: [{ id: "call_1", type: "function", function: { name: "exec", arguments: '{"command":"ls"}' } }],
      },
      { role: "tool", tool_call_id: "call_1", content: "a.txt" },
    ],
    tools: [{ type: "function", function: { name: "exec", description: "Runs", parameters: { type: "object" }, strict: true } }],
    max_completion_tokens: 50,
    temperature: 0,
    top_p: 0.5,
    stop: ["END"],
    seed: 7,
    presence_penalty: 0.1,
    frequency_penalty: 0.2,
    reasoning_effort: "low",
    response_format: { type: "json_object" },
    parallel_tool_calls: false,
    tool_choice: { type: "function", function: { name: "exec" } },
  });
});

test("what only some models can do is sent as it was asked", async () => {
  server.answer({ steps: [hello] }, { steps: [hello] });
  const request = someRequest({
    messages: [
      { role: "system", content: "Be brief", name: "boss" },
      {
        role: "user",
        name: "jane",
        content: [
          { type: "audio", data: "AAAA", format: "wav" },
          { type: "file", name: "a.pdf", file: { data: "data:application/pdf;base64,JVBERi0=" } },
        ],
      },
      { role: "assistant", content: null, refusal: "No.", name: "bot" },
      { role: "assistant", content: null, toolCalls: [{ id: "call_1", name: "sql", arguments: "SELECT 1", custom: true }] },
      { role: "tool", toolCallId: "call_1", content: [{ type: "text", text: "1" }] },
    ],
    tools: [
      { name: "sql", custom: { type: "grammar", syntax: "regex", definition: "S.*" } },
      { name: "note", custom: { type: "text" } },
      { name: "exec" },
    ],
    settings: {
      toolChoice: { allowed: ["sql", "exec"], mode: "required" },
      logprobs: true,
      topLogprobs: 2,
      logitBias: { "7": -100 },
      serviceTier: "flex",
      verbosity: "low",
      prediction: "1",
      promptCacheKey: "k",
      promptCacheRetention: "24h",
      promptCacheOptions: { mode: "implicit" },
      safetyIdentifier: "u1",
      webSearch: { search_context_size: "low" },
    },
  });

  await finishCall(openAi(), request);
  await finishCall(compatible(), request);

  const settings = {
    logprobs: true,
    top_logprobs: 2,
    logit_bias: { "7": -100 },
    service_tier: "flex",
    verbosity: "low",
    prediction: { type: "content", content: "1" },
    prompt_cache_key: "k",
    prompt_cache_retention: "24h",
    prompt_cache_options: { mode: "implicit" },
    safety_identifier: "u1",
    web_search_options: { search_context_size: "low" },
  };
  const sql = { type: "custom", custom: { name: "sql" } };
  const exec = { type: "function", function: { name: "exec" } };
  const [own, other] = server.requests;
  expect(own?.body).toMatchObject({
    ...settings,
    messages: [
      { role: "system", content: "Be brief", name: "boss" },
      {
        role: "user",
        name: "jane",
        content: [
          { type: "input_audio", input_audio: { data: "AAAA", format: "wav" } },
          { type: "file", file: { filename: "a.pdf", file_data: "data:application/pdf;base64,JVBERi0=" } },
        ],
      },
      { role: "assistant", content: "", refusal: "No.", name: "bot" },
      { role: "assistant", tool_calls: [{ id: "call_1", type: "custom", custom: { name: "sql", input: "SELECT 1" } }] },
      { role: "tool", tool_call_id: "call_1", content: [{ type: "text", text: "1" }] },
    ],
    tools: [
      { type: "custom", custom: { name: "sql", format: { type: "grammar", grammar: { syntax: "regex", definition: "S.*" } } } },
      { type: "custom", custom: { name: "note", format: { type: "text" } } },
      exec,
    ],
    tool_choice: { type: "allowed_tools", allowed_tools: { mode: "required", tools: [sql, exec] } },
  });
  // A compatible server knows no choice among some tools: it is offered those only.
  expect(other?.body).toMatchObject({ ...settings, tools: [sql, exec], tool_choice: "required" });
});

test.each([{ id: "file-1" }, { url: "https://example.org/a.pdf" }])("a file that stands elsewhere is refused: %j", async (file) => {
  const messages = [{ role: "user" as const, content: [{ type: "file" as const, file }] }];

  const error = await failedCall(openAi(), someRequest({ messages }));

  expect(error).toMatchObject({ kind: "refused", unsupported: "file", status: 400 });
  expect(server.requests).toHaveLength(0);
});

test("what a provider tells beside its text is kept: probabilities, sources, its tier and fingerprint", async () => {
  const token = (text: string) => ({ token: text, bytes: null, logprob: -0.5, top_logprobs: [] });
  const withLogprobs = (delta: object, logprobs: object) => ({
    ...chunk(delta),
    choices: [{ index: 0, delta, logprobs, finish_reason: null }],
  });
  const annotation = { type: "url_citation", url_citation: { url: "https://example.org", title: "E", start_index: 0, end_index: 1 } };
  server.answer({
    steps: [
      dataEvents(
        { ...withLogprobs({ content: "é" }, { content: [token("\\xc3"), token("\\xa9")], refusal: null }), service_tier: "flex" },
        withLogprobs({ content: "" }, { content: [token("")], refusal: null }),
        withLogprobs({ refusal: "No" }, { content: null, refusal: [token("No")] }),
        { ...chunk({ annotations: [annotation] }, "stop"), system_fingerprint: "fp_1" },
        usageChunk(),
        "[DONE]",
      ),
    ],
  });

  const { deltas, result } = await finishCall(openAi());

  expect(deltas).toEqual([
    { type: "text", text: "é", logprobs: [token("\\xc3"), token("\\xa9")] },
    { type: "text", text: "", logprobs: [token("")] },
    { type: "refusal", text: "No", logprobs: [token("No")] },
  ]);
  expect(result.reply).toEqual({
    content: "é",
    refusal: "No",
    toolCalls: [],
    finishReason: "stop",
    logprobs: [token("\\xc3"), token("\\xa9"), token("")],
    refusalLogprobs: [token("No")],
    annotations: [annotation],
    serviceTier: "flex",
    systemFingerprint: "fp_1",
  });
});

test("a custom tool's call is streamed as text", async () => {
  const called = (piece: object) => chunk({ tool_calls: [{ index: 0, ...piece }] });
  server.answer({
    steps: [
      dataEvents(
        called({ id: "call_1", type: "custom", custom: { name: "sql", input: "SEL" } }),
        called({ custom: { input: "ECT" } }),
        chunk({}, "tool_calls"),
        usageChunk(),
        "[DONE]",
      ),
    ],
  });

  const { deltas, result } = await finishCall(openAi());

  expect(deltas).toEqual([
    { type: "tool_call", index: 0, id: "call_1", name: "sql", arguments: "SEL", custom: true },
    { type: "tool_call", index: 0, arguments: "ECT" },
  ]);
  expect(result.reply.toolCalls).toEqual([{ id: "call_1", name: "sql", arguments: "SELECT", custom: true }]);
});

test("a compatible server gets the older names, and no credential where none is configured", async () => {
  server.answer({ steps: [hello] });
  const messages = [
    { role: "developer" as const, content: "Be brief" },
    { role: "user" as const, content: "Hi" },
  ];

  await finishCall(compatible({ apiKey: undefined }), someRequest({ messages, settings: { maxTokens: 50 } }));

  const seen = server.requests[0];
  expect(seen?.headers.authorization).toBeUndefined();
  expect(seen?.body).toMatchObject({ max_tokens: 50, messages: [{ role: "system" }, { role: "user" }] });
  expect(seen?.body).not.toHaveProperty("max_completion_tokens");
});

test("no credential or account of our environment is sent", async () => {
  server.answer({ steps: [hello] });
  const others = {
    OPENAI_ADMIN_KEY: "sk-admin-of-somebody-else",
    OPENAI_ORG_ID: "org-else",
    OPENAI_PROJECT_ID: "proj-else",
    OPENAI_BASE_URL: "http://127.0.0.1:9",
  };
  Object.assign(process.env, others);
  try {
    await finishCall(openAi());
  } finally {
    for (const name of Object.keys(others)) delete process.env[name];
  }

  expect(server.requests[0]?.headers.authorization).toBe(`Bearer ${apiKey}`);
  expect(JSON.stringify(server.requests[0]?.headers)).not.toContain("else");
});

test("an answer is the same wherever the network cuts it", async () => {
  const text = dataEvents(
    chunk({ content: "Grüße, 世界 " }),
    chunk({ content: "👩‍👩‍👧 \u2028 end" }, "stop"),
    usageChunk(),
    "[DONE]",
  ).replaceAll("\n", "\r\n");
  await fc.assert(
    fc.asyncProperty(fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1, maxLength: 8 }), async (lengths) => {
      server.answer({ steps: bytePieces(text, lengths) });

      const { deltas, result } = await finishCall(openAi());

      expect(assemble(deltas).text).toBe("Grüße, 世界 👩‍👩‍👧 \u2028 end");
      expect(result.usage).toEqual(exactly(12, 4));
    }),
    { numRuns: 30 },
  );
});

test("a connection whose answer ends after its last event is used again", async () => {
  const end = Promise.withResolvers<void>();
  server.answer({ steps: [hello, end.promise] }, ...Array.from({ length: 8 }, () => ({ steps: [hello] })));
  const provider = openAi();

  await finishCall(provider);
  end.resolve();
  for (let n = 0; n < 8; n += 1) await finishCall(provider);

  expect(server.requests.slice(1).map(({ connection }) => connection)).toContain(server.requests[0]?.connection);
});

test.each<[string, readonly (object | string)[], object]>([
  ["in a chunk with choices", [...helloChunks.slice(0, 3), chunk({}, "stop", { usage }), "[DONE]"], exactly(12, 4)],
  [
    "in every chunk, cumulative",
    [
      chunk({ content: "Hello" }, null, { usage: { prompt_tokens: 12, completion_tokens: 1, total_tokens: 13 } }),
      chunk({ content: " you" }, "stop", { usage: { prompt_tokens: 12, completion_tokens: 2, total_tokens: 14 } }),
      "[DONE]",
    ],
    exactly(12, 2),
  ],
  ["as null in every chunk but the last", [...helloChunks.map((one) => ({ ...one, usage: null })), usageChunk(), "[DONE]"], exactly(12, 4)],
  ["in a chunk before the last", [usageChunk(), ...helloChunks, "[DONE]"], exactly(12, 4)],
  ["as zeros", [...helloChunks, usageChunk({ prompt_tokens: 0, completion_tokens: 0, total_tokens: 0 }), "[DONE]"], exactly(0, 0)],
  ["in Groq's own field", [...helloChunks.slice(0, 3), chunk({}, "stop", { x_groq: { id: "req", usage } }), "[DONE]"], exactly(12, 4)],
])("usage is understood %s", async (_, events, expected) => {
  server.answer({ steps: [dataEvents(...events)] });

  const { result } = await finishCall(compatible());

  expect(result.usage).toEqual(expected);
});

test.each<[string, object | undefined, string]>([
  ["missing", undefined, "missing"],
  ["negative", { prompt_tokens: -4, completion_tokens: 2, total_tokens: -2 }, "unbelievable"],
  ["fractional", { prompt_tokens: 4.5, completion_tokens: 2, total_tokens: 6.5 }, "unbelievable"],
  ["more than 100 context windows", { prompt_tokens: 100_001, completion_tokens: 2, total_tokens: 100_003 }, "unbelievable"],
])("usage that is %s is counted here and marked", async (_, counts, doubt) => {
  server.answer({ steps: [dataEvents(...helloChunks, ...(counts === undefined ? [] : [usageChunk(counts)]), "[DONE]")] });
  const limitsOf = () => ({ contextWindow: 1_000, maxOutputTokens: 100 });

  const { result } = await finishCall(compatible({ limitsOf, countTokens: (_model, text) => text.length }));

  expect(result.usage).toEqual({ ...exactly(3 + 4 + "Hello there".length, "Hello you".length), estimated: true, doubt });
});

test("a count that a context window allows is believed", async () => {
  server.answer({
    steps: [dataEvents(...helloChunks, usageChunk({ prompt_tokens: 100_000, completion_tokens: 2, total_tokens: 100_002 }), "[DONE]")],
  });

  const { result } = await finishCall(openAi({ limitsOf: () => ({ contextWindow: 1_001, maxOutputTokens: 100 }) }));

  expect(result.usage).toEqual(exactly(100_000, 2));
});

test("a server that answers plain JSON works too", async () => {
  const completion = {
    id: "chatcmpl-2",
    object: "chat.completion",
    choices: [
      {
        index: 0,
        finish_reason: "tool_calls",
        message: {
          role: "assistant",
          content: "Looking.",
          tool_calls: [{ id: "c1", type: "function", function: { name: "list", arguments: '{"path":"."}' } }],
        },
      },
    ],
    usage,
  };
  server.answer({ headers: { "content-type": "application/json" }, steps: [JSON.stringify(completion, null, 2)] });

  const { deltas, result } = await finishCall(compatible());

  expect(assemble(deltas)).toEqual({ text: "Looking.", toolCalls: result.reply.toolCalls });
  expect(result).toEqual({
    reply: { content: "Looking.", toolCalls: [{ id: "c1", name: "list", arguments: '{"path":"."}' }], finishReason: "tool_calls" },
    usage: exactly(12, 4),
    providerRequestId: "chatcmpl-2",
  });
});

const piece = (index: number | undefined, id: string | undefined, name: string | undefined, args: unknown): object =>
  chunk({ tool_calls: [{ index, id, type: "function", function: { name, arguments: args } }] });

test.each<[string, readonly object[], string]>([
  [
    "OpenAI's own",
    [
      piece(0, "a", "list", ""),
      piece(0, undefined, undefined, '{"pa'),
      piece(0, undefined, undefined, 'th":1}'),
      piece(1, "b", "exec", "{}"),
    ],
    "ab",
  ],
  ["all with index 0, whole", [piece(0, "a", "list", '{"path":1}'), piece(0, "b", "exec", "{}")], "ab"],
  [
    "without index",
    [piece(undefined, "a", "list", '{"path"'), piece(undefined, "a", undefined, ":1}"), piece(undefined, "b", "exec", "{}")],
    "ab",
  ],
  [
    "without index and id",
    [
      piece(undefined, undefined, "list", '{"path"'),
      piece(undefined, undefined, undefined, ":1}"),
      piece(undefined, undefined, "exec", "{}"),
    ],
    "",
  ],
  ["with a new id in every piece", [piece(0, "a", "list", '{"path"'), piece(0, "x", undefined, ":1}"), piece(1, "b", "exec", "{}")], "ab"],
  ["with one id for all", [piece(0, "a", "list", '{"path":1}'), piece(1, "a", "exec", "{}")], "a"],
  ["with objects as arguments", [piece(0, "a", "list", { path: 1 }), piece(1, "b", "exec", {})], "ab"],
  [
    "with the name after the id",
    [piece(0, "a", undefined, '{"path"'), piece(0, undefined, "list", ":1}"), piece(1, "b", "exec", "{}")],
    "ab",
  ],
])("tool calls are put together from pieces %s", async (_, pieces, ids) => {
  const answer = dataEvents(...pieces, chunk({}, "stop"), "[DONE]");
  server.answer({ steps: [answer] }, { steps: [answer] });

  const { deltas, result } = await finishCall(compatible());
  const again = await finishCall(compatible());

  expect(result.reply.toolCalls.map(({ name, arguments: args }) => [name, args])).toEqual([
    ["list", '{"path":1}'],
    ["exec", "{}"],
  ]);
  expect(result.reply).toMatchObject({ content: null, finishReason: "tool_calls" });
  expect(assemble(deltas).toolCalls).toEqual(result.reply.toolCalls);
  for (const [at, id] of ids.split("").entries()) expect(result.reply.toolCalls[at]?.id).toBe(id);
  expect(new Set(result.reply.toolCalls.map(({ id }) => id)).size).toBe(2);
  expect(again.result.reply.toolCalls).toEqual(result.reply.toolCalls);
});

test("the older function_call is a tool call", async () => {
  server.answer({
    steps: [
      dataEvents(
        chunk({ function_call: { name: "list", arguments: "{" } }),
        chunk({ function_call: { arguments: "}" } }),
        chunk({}, "function_call"),
        "[DONE]",
      ),
    ],
  });

  const { result } = await finishCall(compatible());

  expect(result.reply).toMatchObject({ toolCalls: [{ name: "list", arguments: "{}" }], finishReason: "tool_calls" });
  expect(result.reply.toolCalls[0]?.id).toMatch(/^call_[0-9a-f]{24}$/);
});

test.each<[string | null, string]>([
  ["stop", "stop"],
  ["length", "length"],
  ["content_filter", "content_filter"],
  ["eos", "stop"],
  [null, "stop"],
])("the finish reason %s before [DONE] is %s", async (given, expected) => {
  server.answer({ steps: [dataEvents(chunk({ content: "Hi" }), chunk({}, given), "[DONE]")] });

  const { result } = await finishCall(compatible());

  expect(result.reply.finishReason).toBe(expected);
});

test("a refusal is apart from the content", async () => {
  server.answer({
    steps: [dataEvents(chunk({ refusal: "I can" }), chunk({ refusal: "not." }), chunk({}, "stop"), usageChunk(), "[DONE]")],
  });

  const { deltas, result } = await finishCall(openAi());

  expect(deltas.map(({ type }) => type)).toEqual(["refusal", "refusal"]);
  expect(result.reply).toEqual({ content: null, toolCalls: [], finishReason: "stop", refusal: "I cannot." });
});

test("thoughts are not passed on but count where the server does not", async () => {
  server.answer({ steps: [dataEvents(chunk({ reasoning_content: "Hmm, let me see" }), chunk({ content: "Yes" }, "stop"), "[DONE]")] });

  const { deltas, result } = await finishCall(compatible({ countTokens: (_model, text) => text.length }));

  expect(deltas).toEqual([{ type: "text", text: "Yes" }]);
  expect(result.usage).toMatchObject({ outputTokens: 3, reasoningTokens: 15, estimated: true });
});

test.each<[number, string]>([
  [400, "refused"],
  [404, "refused"],
  [413, "refused"],
  [422, "refused"],
  [401, "rejected"],
  [402, "rejected"],
  [403, "rejected"],
  [429, "busy"],
  [529, "busy"],
  [408, "unreachable"],
  [500, "unreachable"],
  [503, "unreachable"],
])("status %i is %s, and asked once", async (status, kind) => {
  server.answer({
    status,
    headers: { "content-type": "application/json", "x-request-id": "req_9" },
    steps: ['{"error":{"message":"Something about it","type":"x"}}'],
  });

  const error = await failedCall(openAi());

  expect(error).toMatchObject({ kind, status, usage: undefined, providerRequestId: "req_9" });
  expect(server.requests).toHaveLength(1);
  if (kind === "refused") expect(error.message).toBe("Something about it");
  else expect(error).toMatchObject({ message: expect.not.stringContaining("about it"), cause: { message: "Something about it" } });
});

test("a redirect is not followed", async () => {
  server.answer({ status: 307, headers: { location: `${server.url}/elsewhere` }, steps: [] }, { steps: [hello] });

  const error = await failedCall(openAi());

  expect(error.kind).toBe("garbage");
  expect(server.requests).toHaveLength(1);
});

test.each<[string, Record<string, string>, number | undefined]>([
  ["seconds", { "retry-after": "7" }, 7_000],
  ["milliseconds first", { "retry-after-ms": "250", "retry-after": "1" }, 250],
  ["a date", { "retry-after": "Sun, 22 Nov 2026 10:00:30 GMT" }, 30_000],
  ["a date that is past", { "retry-after": "Sun, 22 Nov 2026 09:00:00 GMT" }, 0],
  ["nonsense", { "retry-after": "soon" }, undefined],
  ["nothing", {}, undefined],
])("when to come back is read from %s", async (_, headers, expected) => {
  server.answer({ status: 429, headers, steps: ["{}"] });

  const error = await failedCall(openAi({ now: () => Date.parse("2026-11-22T10:00:00Z") }));

  expect(error.retryAfterMs).toBe(expected);
});

test.each<[string, string, string]>([
  ["a plain sentence", "model not loaded", "model not loaded"],
  ["an error that is a text", '{"error":"model not found"}', "model not found"],
  ["FastAPI's detail", '{"detail":[{"msg":"field required"}]}', '[{"msg":"field required"}]'],
  ["vLLM's object", '{"object":"error","message":"too long","code":400}', "too long"],
  ["a web page", "<html><body>secret host name</body></html>", "The model provider refused the request with status 400."],
  ["nothing", "", "The model provider refused the request with status 400."],
  [
    "our key in it",
    JSON.stringify({ error: { message: `bad key ${apiKey}, Bearer abc.def, tk_acme_0123456789abcdef` } }),
    "bad key [redacted], [redacted], [redacted]",
  ],
])("a refusal with %s is shown clean", async (_, body, expected) => {
  server.answer({ status: 400, headers: { "content-type": "application/json" }, steps: [body] });

  const error = await failedCall(openAi());

  expect(error.message).toBe(expected);
});

test("a long refusal is cut to 1,000 characters", async () => {
  server.answer({ status: 400, steps: [JSON.stringify({ error: { message: "💥".repeat(5_000) } })] });

  const error = await failedCall(openAi());

  expect(error.message.length).toBeLessThanOrEqual(1_000);
  expect(error.message.isWellFormed()).toBe(true);
  expect(error.message.endsWith("💥…")).toBe(true);
});

test("no error shows the key, however it fails", async () => {
  const leaky = JSON.stringify({ error: { message: `Incorrect API key provided: ${apiKey}`, code: "invalid_api_key" } });
  server.answer(
    { status: 401, steps: [leaky] },
    { status: 500, steps: [`oops ${apiKey}`] },
    { status: 400, steps: [leaky] },
    { steps: [dataEvents(leaky)] },
  );

  const errors = [await failedCall(openAi()), await failedCall(openAi()), await failedCall(openAi()), await failedCall(openAi())];

  expect(errors.map(({ kind }) => kind)).toEqual(["rejected", "unreachable", "refused", "rejected"]);
  expect(inspect(errors, { depth: 10, showHidden: true })).not.toContain(apiKey);
});

test("a key of no known form is kept out of errors too", async () => {
  server.answer({ status: 400, steps: ['{"error":"the credential plainwords is unknown"}'] });

  const error = await failedCall(openAi({ apiKey: "plainwords" }));

  expect(error.message).toBe("the credential [redacted] is unknown");
});

test("a provider that is not there is unreachable, and its address is not told", async () => {
  const closed = createServer().listen(0, "127.0.0.1");
  await once(closed, "listening");
  const { port } = closed.address() as AddressInfo;
  closed.close();
  await once(closed, "close");

  const error = await failedCall(openAi({ baseUrl: `http://127.0.0.1:${port}/v1` }));

  expect(error).toMatchObject({ kind: "unreachable", usage: undefined, cause: { message: "ECONNREFUSED" } });
  expect(inspect(error)).not.toContain(String(port));
});

test.each<[string, string]>([
  ["a web page", "<html><h1>Welcome</h1></html>"],
  ["nothing", ""],
  ["JSON that is no completion", '{"hello":"world"}'],
  ["half a JSON", '{"choices":[{"mess'],
  ["events that are not JSON", "data: hello\n\n"],
  ["events of another kind", dataEvents({ type: "message_start" }, "[DONE]")],
])("an answer that is %s is garbage, and nothing is counted", async (_, body) => {
  server.answer({ steps: body === "" ? [] : [body] });

  const error = await failedCall(compatible());

  expect(error).toMatchObject({ kind: "garbage", usage: undefined });
});

test("an answer that ends before it is whole is garbage, with the tokens so far", async () => {
  server.answer({ steps: [dataEvents(chunk({ content: "Hello" }), chunk({ content: " you" }))] });

  const error = await failedCall(openAi({ countTokens: (_model, text) => text.length }));

  expect(error).toMatchObject({
    kind: "garbage",
    providerRequestId: "chatcmpl-1",
    usage: { ...exactly(18, 9), estimated: true, doubt: "cut" },
  });
});

test("a connection that breaks in the middle is unreachable, with the provider's count so far, or more", async () => {
  const counted = { prompt_tokens: 12, completion_tokens: 1, total_tokens: 13 };
  server.answer({ steps: [dataEvents(chunk({ content: "Hello you" }, null, { usage: counted })), cut] });

  const error = await failedCall(openAi({ countTokens: (_model, text) => text.length }));

  expect(error).toMatchObject({ kind: "unreachable", usage: { inputTokens: 12, outputTokens: 9, estimated: true } });
});

test.each<[string, readonly WireStep[]]>([
  ["its connection breaks", [dataEvents(...helloChunks), cut]],
  ["it ends without [DONE]", [dataEvents(...helloChunks)]],
  ["its last chunk is cut", [dataEvents(...helloChunks), 'data: {"usage":{"pro']],
])("a whole reply stands although %s before the count", async (_, steps) => {
  server.answer({ steps });

  const { result } = await finishCall(openAi());

  expect(result.reply).toMatchObject({ content: "Hello you", finishReason: "stop" });
  expect(result.usage).toMatchObject({ estimated: true, doubt: "cut" });
});

test("a count that came before the reply does not stand for it when the connection breaks before the last count", async () => {
  server.answer({ steps: [dataEvents(usageChunk({ prompt_tokens: 12, completion_tokens: 0, total_tokens: 12 }), ...helloChunks), cut] });

  const { result } = await finishCall(compatible({ countTokens: (_model, text) => text.length }));

  expect(result.usage).toEqual({ ...exactly(12, 9), estimated: true, doubt: "cut" });
});

test.each<[string, object, string]>([
  ["a rate limit", { message: "slow down", type: "rate_limit_exceeded" }, "busy"],
  ["a status as its code", { message: "upstream", code: 529 }, "busy"],
  ["a server error", { message: "broken", type: "server_error" }, "unreachable"],
  ["the caller's fault", { message: "too long", code: "context_length_exceeded" }, "refused"],
])("an error event with %s in the middle ends the call", async (_, error, kind) => {
  server.answer({ steps: [dataEvents(chunk({ content: "Hello" }), { error })] });

  const failure = await failedCall(openAi({ countTokens: (_model, text) => text.length }));

  expect(failure).toMatchObject({ kind, usage: { outputTokens: 5, estimated: true } });
});

test("aborting closes the provider's connection and tells what was used", async () => {
  server.answer({ steps: [dataEvents(chunk({ content: "Hello" })), hang] });
  const abort = new AbortController();
  const call = openAi({ countTokens: (_model, text) => text.length }).call(someRequest(), abort.signal);
  await call.next();

  abort.abort();
  const error = await failureOf(drainCall(call));
  await server.requests[0]?.clientLeft;

  expect(error).toMatchObject({ kind: "aborted", usage: { inputTokens: 18, outputTokens: 5, estimated: true } });
});

test("aborting before the answer begins counts nothing", async () => {
  const arrived = Promise.withResolvers<void>();
  const abort = new AbortController();
  const silent = createServer((request) => {
    request.resume();
    request.once("end", () => arrived.resolve());
  }).listen(0, "127.0.0.1");
  await once(silent, "listening");
  const provider = openAi({ baseUrl: `http://127.0.0.1:${(silent.address() as AddressInfo).port}/v1` });
  const failed = failedCall(provider, someRequest(), abort.signal);
  await arrived.promise;

  abort.abort();
  const error = await failed;
  const late = await failedCall(provider, someRequest(), abort.signal);
  silent.closeAllConnections();
  silent.close();

  expect(error).toMatchObject({ kind: "aborted", usage: undefined });
  expect(late).toMatchObject({ kind: "aborted", usage: undefined });
});

test("a caller that stops listening closes the provider's connection", async () => {
  server.answer({ steps: [dataEvents(chunk({ content: "Hello" })), hang] });
  const call = openAi().call(someRequest(), new AbortController().signal);
  await call.next();

  await call.return(undefined as never);

  await expect(server.requests[0]?.clientLeft).resolves.toBeUndefined();
});

test.each<[string, object, readonly WireStep[]]>([
  ["silence in the middle", { idleMs: 40 }, [dataEvents(chunk({ content: "Hello" })), hang]],
  ["silence before the first chunk", { idleMs: 40 }, [hang]],
  ["a total that is too long", { totalMs: 80 }, [dataEvents(chunk({ content: "Hello" })), hang]],
])("%s ends the call as unreachable and closes the connection", async (_, timeouts, steps) => {
  server.answer({ steps });

  const error = await failedCall(openAi({ timeouts }));
  await server.requests[0]?.clientLeft;

  expect(error.kind).toBe("unreachable");
  expect(error.message).toMatch(/stopped sending|took too long/);
});

test("a server that takes the request and says nothing is unreachable", async () => {
  const silent = createServer((request) => void request.resume()).listen(0, "127.0.0.1");
  await once(silent, "listening");

  const error = await failedCall(
    openAi({ baseUrl: `http://127.0.0.1:${(silent.address() as AddressInfo).port}`, timeouts: { headersMs: 40 } }),
  );
  silent.closeAllConnections();
  silent.close();

  expect(error).toMatchObject({ kind: "unreachable", message: expect.stringContaining("no answer in time"), usage: undefined });
});

test("a slow reader is not an idle provider", async () => {
  server.answer({ steps: [dataEvents(...helloChunks.slice(0, 3)), dataEvents(chunk({}, "stop"), "[DONE]")] });
  const call = openAi({ timeouts: { idleMs: 500 } }).call(someRequest(), new AbortController().signal);
  await call.next();
  const clock = Promise.withResolvers<void>();
  setTimeout(clock.resolve, 600);
  await clock.promise; // the reader, not the provider, takes longer than the limit

  const { result } = await drainCall(call);

  expect(result.reply.content).toBe("Hello you");
});

test.each<[string, Partial<OpenAiProviderOptions>, string]>([
  ["no key", { apiKey: undefined }, "providers.main.api_key_env"],
  ["a blank key", { apiKey: " \n" }, "providers.main.api_key_env"],
  ["a key with a line end in it", { apiKey: `${apiKey}\nsecond` }, "providers.main.api_key_env"],
  ["an address that is none", { baseUrl: "not an address" }, "providers.main.base_url"],
  ["an address with a password", { baseUrl: "https://me:hunter22@example.com/v1" }, "providers.main.base_url"],
  ["a compatible server without an address", { kind: "openai-compatible", baseUrl: undefined }, "providers.main.base_url"],
])("%s is refused when the provider is made", (_, over, param) => {
  const make = (): unknown => openAi(over);

  expect(make).toThrow(AppError);
  try {
    make();
  } catch (error) {
    expect(error).toMatchObject({ code: "invalid_configuration", client: { param } });
    expect(inspect(error)).not.toMatch(/hunter22|verysecret/);
  }
});
