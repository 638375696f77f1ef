import { expect, test } from "vitest";
import type { ChatMessage, ToolDefinition } from "../../domain/conversation.ts";
import { createDemoProvider } from "../../providers/demo-provider.ts";
import { assemble, drainCall, failedCall, failureOf, finishCall, someRequest } from "./one-call.ts";

const demo = createDemoProvider();
const tool = (name: string, ...properties: readonly string[]): ToolDefinition => ({
  name,
  parameters: {
    type: "object",
    properties: Object.fromEntries(properties.map((property) => [property, { type: "string" }])),
    required: properties,
  },
});
const tools = [
  tool("exec", "command"),
  tool("read", "path"),
  tool("write", "path", "content"),
  tool("edit", "path", "old_text", "new_text"),
  tool("list", "path"),
];
const ask = (content: string, over: Parameters<typeof someRequest>[0] = {}) =>
  finishCall(demo, someRequest({ messages: [{ role: "user", content }], tools, ...over }));
const callsOf = async (content: string, over: Parameters<typeof someRequest>[0] = {}) =>
  (await ask(content, over)).result.reply.toolCalls.map(({ name, arguments: args }) => [name, JSON.parse(args)]);

test("it is labelled, echoes, and counts words", async () => {
  const { deltas, result } = await ask("Hello there", { tools: [] });

  expect(result.reply).toEqual({
    content: '[demo model] You said: Hello there\nThis session has no earlier messages. Write "help" to see what I can do.',
    toolCalls: [],
    finishReason: "stop",
  });
  expect(assemble(deltas).text).toBe(result.reply.content);
  expect(deltas).toHaveLength(20);
  expect(result.usage).toEqual({
    inputTokens: 2,
    cacheReadTokens: 0,
    cacheWriteTokens: 0,
    outputTokens: 20,
    reasoningTokens: 0,
    estimated: false,
  });
});

test("the same request has the same answer", async () => {
  expect(await ask("/exec date")).toEqual(await ask("/exec date"));
});

test("it sees the conversation", async () => {
  const messages: ChatMessage[] = [
    { role: "system", content: "Be kind" },
    { role: "user", content: "One" },
    { role: "assistant", content: "Two" },
    { role: "user", content: "Three" },
  ];

  const { result } = await finishCall(demo, someRequest({ messages }));

  expect(result.reply.content).toContain("This session has 2 earlier messages.");
});

test.each<[string, [string, object]]>([
  ["/exec ls -la", ["exec", { command: "ls -la" }]],
  ["run: ls -la", ["exec", { command: "ls -la" }]],
  ["/write notes.txt Hello  world", ["write", { path: "notes.txt", content: "Hello  world" }]],
  ["/read notes.txt", ["read", { path: "notes.txt" }]],
  ["/edit a.txt old words => new", ["edit", { path: "a.txt", old_text: "old words", new_text: "new" }]],
  ["/list", ["list", { path: "." }]],
  ["/list src", ["list", { path: "src" }]],
  ['/call read {"path":"x"}', ["read", { path: "x" }]],
])("%s calls a tool", async (line, expected) => {
  expect(await callsOf(line)).toEqual([expected]);
});

test("arguments take the names of the tool's own schema", async () => {
  expect(await callsOf("/exec ls", { tools: [tool("exec", "cmd")] })).toEqual([["exec", { cmd: "ls" }]]);
});

test("several lines call several tools, and their results are the answer", async () => {
  const question: ChatMessage = { role: "user", content: "/exec a\n/list" };
  const first = await finishCall(demo, someRequest({ messages: [question], tools }));
  const [one, two] = first.result.reply.toolCalls;

  const answers: ChatMessage[] = [
    question,
    { role: "assistant", content: null, toolCalls: first.result.reply.toolCalls },
    { role: "tool", toolCallId: one?.id ?? "", content: "result one" },
    { role: "tool", toolCallId: two?.id ?? "", content: "result two" },
  ];
  const second = await finishCall(demo, someRequest({ messages: answers, tools }));

  expect(first.result.reply).toMatchObject({ content: null, finishReason: "tool_calls" });
  expect(assemble(first.deltas).toolCalls).toEqual(first.result.reply.toolCalls);
  expect(first.result.usage.outputTokens).toBe(4);
  expect(second.result.reply.content).toBe("[demo model] The tools answered:\n```\nresult one\n```\n```\nresult two\n```");
});

test("without parallel calls it makes one after the other", async () => {
  const question: ChatMessage = { role: "user", content: "/exec a\n/exec b" };
  const settings = { parallelToolCalls: false };
  const first = await finishCall(demo, someRequest({ messages: [question], tools, settings }));

  const second = await finishCall(
    demo,
    someRequest({
      messages: [
        question,
        { role: "assistant", content: null, toolCalls: first.result.reply.toolCalls },
        { role: "tool", toolCallId: "x", content: "one" },
      ],
      tools,
      settings,
    }),
  );

  expect(first.result.reply.toolCalls.map((call) => call.arguments)).toEqual(['{"command":"a"}']);
  expect(second.result.reply.toolCalls.map((call) => call.arguments)).toEqual(['{"command":"b"}']);
});

test("a tool that is not offered is said so", async () => {
  const { result } = await ask("/exec ls", { tools: [] });

  expect(result.reply).toMatchObject({ content: '[demo model] The tool "exec" is not offered to me in this call.', toolCalls: [] });
});

test("a forced tool is called, a forbidden one is not", async () => {
  expect(await callsOf("hello", { settings: { toolChoice: { name: "read" } } })).toEqual([["read", { path: "hello" }]]);
  expect(await callsOf("hello", { settings: { toolChoice: "required" } })).toEqual([["exec", { command: "hello" }]]);
  expect(await callsOf("/exec ls", { settings: { toolChoice: "none" } })).toEqual([]);
});

test("a line of many blanks costs no time", async () => {
  const { result } = await ask(`/edit a${" ".repeat(20_000)}b`);

  expect(result.reply.content).toContain("You said");
});

test("help explains itself", async () => {
  const { result } = await ask("help");

  expect(result.reply.content).toMatch(/^\[demo model\].*not a language model[^]*\/exec ls -la/);
});

test("a token limit and a stop sequence cut it", async () => {
  const limited = await ask("Hello there", { settings: { maxTokens: 3 } });
  const stopped = await ask("Hello there", { settings: { stop: [" there"] } });

  expect(limited.result).toMatchObject({ reply: { content: "[demo model] You", finishReason: "length" }, usage: { outputTokens: 3 } });
  expect(stopped.result.reply).toMatchObject({ content: "[demo model] You said: Hello", finishReason: "stop" });
});

test("it answers in JSON where asked to, and refuses a schema", async () => {
  const { result } = await ask("Hi", { settings: { responseFormat: { type: "json_object" } } });
  const error = await failedCall(demo, someRequest({ settings: { responseFormat: { type: "json_schema" } } }));

  expect(JSON.parse(result.reply.content ?? "")).toEqual({ demo_model: true, answer: expect.stringContaining("[demo model]") });
  expect(error).toMatchObject({ kind: "refused", message: expect.stringContaining("'response_format'") });
});

test.each<[string, Parameters<typeof someRequest>[0]]>([
  ["tools", { tools: [{ name: "sql", custom: { type: "text" } }] }],
  ["logprobs", { settings: { logprobs: true } }],
  ["logit_bias", { settings: { logitBias: { "1": 1 } } }],
  ["prediction", { settings: { prediction: "x" } }],
  ["verbosity", { settings: { verbosity: "low" } }],
  ["web_search_options", { settings: { webSearch: {} } }],
])("%s is refused: it takes a model", async (parameter, request) => {
  expect(await failedCall(demo, someRequest(request))).toMatchObject({ kind: "refused", unsupported: parameter });
});

test("of allowed tools it calls those only", async () => {
  const settings = { toolChoice: { allowed: ["list"], mode: "required" as const } };

  expect(await callsOf("Hello", { settings })).toEqual([["list", { path: "Hello" }]]);
  expect(await callsOf("/exec ls", { settings: { toolChoice: { allowed: ["list"], mode: "auto" } } })).toEqual([]);
});

test("aborting ends it with the words so far", async () => {
  const abort = new AbortController();
  const call = demo.call(someRequest(), abort.signal);
  await call.next();
  await call.next();

  abort.abort();
  const error = await failureOf(drainCall(call));
  const late = await failedCall(demo, someRequest(), abort.signal);

  expect(error).toMatchObject({ kind: "aborted", usage: { inputTokens: 2, outputTokens: 2, estimated: false } });
  expect(late).toMatchObject({ kind: "aborted", usage: undefined });
});
