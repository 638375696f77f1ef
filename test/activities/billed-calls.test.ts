import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import type { TenantContext } from "../../domain/tenant.ts";
import type { UsageDoubt } from "../../domain/usage.ts";
import type { ModelProvider } from "../../providers/model-provider.ts";
import { createProviders } from "../../providers/provider-registry.ts";
import { insertTurn, readFinishedTurn } from "../../storage/turn-repository.ts";
import { cut, dataEvents, namedEvents, startWireServer, type WireReply, type WireServer, type WireStep } from "../providers/wire-server.ts";
import { type TurnStack, someTurn, startTurnStack } from "../turn-stack.ts";

type Event = { readonly type: string; readonly [key: string]: unknown };

/** How a provider's API says what every answer is made of; the count is always 20 tokens of prompt and 7 of answer. */
type Wire = {
  readonly begin: string;
  readonly word: (text: string) => string;
  readonly halfToolCall: string;
  readonly refusal: string;
  readonly end: (how: "done" | "filtered") => string;
  readonly error: string;
  readonly errorAfterCount: string;
  /** What is known of the prompt once the answer has begun, without a last count. */
  readonly promptTokens: number | undefined;
};

const chunk = (delta: object, finish: string | null = null): object => ({
  id: "answer-1",
  choices: [{ index: 0, delta, finish_reason: finish }],
});
const chatCount = { id: "answer-1", choices: [], usage: { prompt_tokens: 20, completion_tokens: 7, total_tokens: 27 } };
const chat: Wire = {
  begin: dataEvents(chunk({ role: "assistant", content: "" })),
  word: (text) => dataEvents(chunk({ content: text })),
  halfToolCall: dataEvents(chunk({ tool_calls: [{ index: 0, id: "c", function: { name: "list", arguments: '{"path"' } }] })),
  refusal: dataEvents(chunk({ refusal: "I cannot." })),
  end: (how) => dataEvents(chunk({}, how === "done" ? "stop" : "content_filter"), chatCount, "[DONE]"),
  error: dataEvents({ error: { message: "broken", type: "server_error" } }),
  errorAfterCount: dataEvents(chatCount, { error: { message: "broken", type: "server_error" } }),
  promptTokens: undefined,
};

const response = (status: string, more: object): Event => ({
  type: `response.${status}`,
  response: { id: "answer-1", status, output: [], usage: { input_tokens: 20, output_tokens: 7, total_tokens: 27 }, ...more },
});
const broken = { error: { code: "server_error", message: "broken" } };
const call = { type: "function_call", call_id: "c", name: "list", arguments: "" };
const responses: Wire = {
  begin: namedEvents({ type: "response.created", response: { id: "answer-1", status: "in_progress", usage: null } }),
  word: (delta) => namedEvents({ type: "response.output_text.delta", output_index: 0, delta }),
  halfToolCall: namedEvents(
    { type: "response.output_item.added", output_index: 1, item: call },
    { type: "response.function_call_arguments.delta", output_index: 1, delta: '{"path"' },
  ),
  refusal: namedEvents({ type: "response.refusal.delta", output_index: 0, delta: "I cannot." }),
  end: (how) =>
    namedEvents(how === "done" ? response("completed", {}) : response("incomplete", { incomplete_details: { reason: "content_filter" } })),
  error: namedEvents(response("failed", { ...broken, usage: null })),
  errorAfterCount: namedEvents(response("failed", broken)),
  promptTokens: undefined,
};

const block = (index: number, content_block: object): Event => ({ type: "content_block_start", index, content_block });
const blockPiece = (index: number, delta: object): Event => ({ type: "content_block_delta", index, delta });
const stopped = (stop_reason: string | null): Event => ({ type: "message_delta", delta: { stop_reason }, usage: { output_tokens: 7 } });
const failing: Event = { type: "error", error: { type: "api_error", message: "broken" } };
const messages: Wire = {
  begin: namedEvents(
    { type: "message_start", message: { id: "answer-1", usage: { input_tokens: 20, output_tokens: 0 } } },
    block(0, { type: "text", text: "" }),
  ),
  word: (text) => namedEvents(blockPiece(0, { type: "text_delta", text })),
  halfToolCall: namedEvents(
    block(1, { type: "tool_use", id: "c", name: "list", input: {} }),
    blockPiece(1, { type: "input_json_delta", partial_json: '{"path"' }),
  ),
  refusal: "",
  end: (how) => namedEvents(stopped(how === "done" ? "end_turn" : "refusal"), { type: "message_stop" }),
  error: namedEvents(failing),
  errorAfterCount: namedEvents(stopped(null), failing),
  promptTokens: 20,
};

const wires: readonly [string, string, Wire][] = [
  ["Chat Completions", "test-model", chat],
  ["Responses", "other-model", responses],
  ["Anthropic Messages", "last-model", messages],
];
const ratesOf: Readonly<Record<string, readonly [bigint, bigint]>> = {
  "test-model": [1_000n, 2_000n],
  "other-model": [3_000n, 5_000n],
  "last-model": [7_000n, 11_000n],
};

let server: WireServer;
let stack: TurnStack;
let acme: TenantContext;
const alarms: { readonly callId: string; readonly model: string; readonly doubt: UsageDoubt }[] = [];

beforeAll(async () => {
  server = await startWireServer();
  const served = createProviders(
    [
      { name: "test-model", kind: "openai-compatible", baseUrl: `${server.url}/v1` },
      { name: "other-model", kind: "openai-compatible", api: "responses", baseUrl: `${server.url}/v1` },
      { name: "last-model", kind: "anthropic", baseUrl: server.url },
    ],
    new Map([["last-model", [{ name: "ANTHROPIC_API_KEY", secret: "sk-ant-key" }]]]),
    { limitsOf: () => ({ contextWindow: 100_000, maxOutputTokens: 4_000 }) },
  );
  const providerOf = (id: string): ModelProvider => served.get(id) ?? expect.fail(`no provider of ${id}`);
  stack = await startTurnStack({
    provider: providerOf("test-model"),
    modelOf: (id) => ({ id, provider: providerOf(id), contextWindow: 100_000, maxOutputTokens: 4_000, fallbacks: [] }),
    alarms: { raise: (_tenantId, alarm) => void alarms.push(alarm) },
  });
  acme = await stack.addTenant("acme");
  await stack.pool.wake(acme.tenantId);
});
afterAll(async () => {
  await stack.close();
  await server.close();
});
afterEach(() => void alarms.splice(0));

let turns = 0;

/** Begins a turn of one question, "Hello there", that meets these answers. */
async function begin(model: string, ...replies: readonly (WireReply | readonly WireStep[])[]) {
  server.answer(...replies.map((reply) => ("steps" in reply ? reply : { steps: reply })));
  const plain = someTurn(`api:billed-${(turns += 1)}:default`, "Hello there", { mode: "gateway", stateless: true });
  const turn = { ...plain, request: { ...plain.request, model } };
  await stack.database.withTenant(acme, async (tx) => await insertTurn(tx, turn, turn.sessionId));
  const before = server.requests.length;
  const submitted = stack.clientOf(acme.tenantId).submitTurn({ sessionId: turn.sessionId }, turn);
  return {
    turn,
    /** How the turn ended, and every row of it. */
    async end() {
      await submitted;
      const [finished, rows] = await stack.database.withTenant(acme, async (tx) => [
        await readFinishedTurn(tx, turn.turnId),
        await tx.query<Row>("select * from control.usage_ledger where id like $1 order by id", [`${turn.turnId}.%`]),
      ]);
      return { finished, rows, requests: server.requests.length - before };
    },
  };
}

type Row = {
  id: string;
  model: string;
  provider_request_id: string | null;
  input_tokens: bigint;
  output_tokens: bigint;
  reasoning_tokens: bigint;
  cost_nano_usd: bigint;
  estimated: boolean;
  doubt: UsageDoubt | null;
};

/** The one row of a turn: its tokens, at its model's price, from the provider that answered. */
function expectRow(rows: readonly Row[], model: string, inputTokens: number, outputTokens: number, doubt?: UsageDoubt): void {
  const [inputRate, outputRate] = ratesOf[model] ?? [0n, 0n];
  expect(rows).toHaveLength(1);
  expect(rows[0]).toMatchObject({
    model,
    provider_request_id: "answer-1",
    input_tokens: BigInt(inputTokens),
    output_tokens: BigInt(outputTokens),
    reasoning_tokens: 0n,
    cost_nano_usd: BigInt(inputTokens) * inputRate + BigInt(outputTokens) * outputRate,
    estimated: doubt !== undefined,
    doubt: doubt ?? null,
  });
  expect(alarms).toEqual(doubt === undefined ? [] : [{ callId: rows[0]?.id, model, doubt }]);
}

/** Of "Hello there" as our estimate has it. */
const estimatedPrompt = 9;

test.each(wires)("%s: an answer, one that is filtered and one that is refused are billed as counted", async (_api, model, wire) => {
  const whole = await (await begin(model, [wire.begin, wire.word("Hello"), wire.end("done")])).end();
  const filtered = await (await begin(model, [wire.begin, wire.word("Hel"), wire.end("filtered")])).end();
  const refused = await (await begin(model, [wire.begin, wire.refusal, wire.end("done")])).end();

  for (const { finished, rows } of [whole, filtered, refused]) {
    expect(finished?.state).toBe("done");
    expectRow(rows, model, 20, 7);
  }
  expect(filtered.finished).toMatchObject({ reply: { content: "Hel", finishReason: "content_filter" } });
});

test.each(wires)("%s: errors before the first token have no row, and the try that answers has one", async (_api, model, wire) => {
  const down = { status: 503, headers: { "retry-after-ms": "1" }, steps: ["down"] };

  const never = await (await begin(model, down, down, down)).end();
  const second = await (await begin(model, down, [cut], [wire.begin, wire.word("Hello"), wire.end("done")])).end();

  expect(never).toMatchObject({ finished: { state: "failed", error: { code: "provider_error" } }, rows: [], requests: 3 });
  expect(second).toMatchObject({ finished: { state: "done" }, requests: 3 });
  expectRow(second.rows, model, 20, 7);
});

test.each(wires)("%s: a call that fails after its first token has a row, and is not made again", async (_api, model, wire) => {
  const prompt = wire.promptTokens ?? estimatedPrompt;

  const uncounted = await (await begin(model, [wire.begin, wire.word("Hello"), wire.word(" you"), wire.error])).end();
  expect(uncounted).toMatchObject({ finished: { state: "failed", error: { code: "provider_error" } }, requests: 1 });
  expectRow(uncounted.rows, model, prompt, 2, "cut");
  alarms.splice(0);

  const broken = await (await begin(model, [wire.begin, wire.word("Hello"), wire.word(" you"), cut])).end();
  expect(broken).toMatchObject({ finished: { state: "failed", error: { code: "provider_error" } }, requests: 1 });
  expectRow(broken.rows, model, prompt, 2, "cut");
  alarms.splice(0);

  const inToolCall = await (await begin(model, [wire.begin, wire.halfToolCall, cut])).end();
  expect(inToolCall).toMatchObject({ finished: { state: "failed", error: { code: "provider_error" } }, requests: 1 });
  expectRow(inToolCall.rows, model, prompt, 4, "cut"); // list, {", path, "
});

test.each(wires)("%s: a call that fails after its count is billed as counted", async (_api, model, wire) => {
  const { finished, rows, requests } = await (await begin(model, [wire.begin, wire.word("Hello"), wire.errorAfterCount])).end();

  expect(finished?.state).toBe("failed");
  expect(requests).toBe(1);
  expectRow(rows, model, 20, 7);
});

test("a prompt that was counted is billed although its provider failed before the first word, and the call is not made again", async () => {
  const { finished, rows, requests } = await (await begin("last-model", [messages.begin, messages.error])).end();

  expect(finished).toMatchObject({ state: "failed", error: { code: "provider_error" } });
  expect(requests).toBe(1);
  expectRow(rows, "last-model", 20, 0);
});

test.each(wires)(
  "%s: a turn that is aborted after its third word is billed for what came, and the provider is left",
  async (_api, model, wire) => {
    const held = Promise.withResolvers<void>();
    const third = Promise.withResolvers<void>();
    const words = ["One", " two", " three"].map(wire.word);
    const running = await begin(model, [wire.begin, ...words, held.promise, wire.end("done")]);
    stack.bus.subscribe(running.turn.turnId, (event) => event.type === "text" && event.text.includes("three") && third.resolve());
    await third.promise;

    await stack.clientOf(acme.tenantId).abortTurn({ sessionId: running.turn.sessionId }, running.turn.turnId);
    const { finished, rows } = await running.end();
    await server.requests.at(-1)?.clientLeft;
    held.resolve();

    expect(finished).toMatchObject({ state: "aborted" });
    expectRow(rows, model, wire.promptTokens ?? estimatedPrompt, 3, "cut");
  },
);
