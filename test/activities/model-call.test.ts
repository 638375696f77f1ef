import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Overlay } from "../../control-plane/overlay.ts";
import { AppError } from "../../domain/app-error.ts";
import type { TenantContext } from "../../domain/tenant.ts";
import type { TurnSubmission } from "../../domain/turn.ts";
import { noUsage } from "../../domain/usage.ts";
import {
  type ModelDelta,
  ModelCallError,
  type ModelProvider,
  type ModelRequest,
  type ModelResult,
} from "../../providers/model-provider.ts";
import type { Tool } from "../../sandbox/tool.ts";
import { insertTurn, readFinishedTurn } from "../../storage/turn-repository.ts";
import type { TurnEvent } from "../../streams/token-bus.ts";
import { someOverlay } from "../control-plane/some-overlay.ts";
import { type TurnStack, someTurn, startTurnStack } from "../turn-stack.ts";

type Attempt = (request: ModelRequest, attempt: number) => AsyncGenerator<ModelDelta, ModelResult, undefined>;

/** What the model does, by the text of the question; `calls` holds every request that reached it. */
const scripts = new Map<string, Attempt>();
const calls: ModelRequest[] = [];
const callsOf = ({ turnId }: TurnSubmission) => calls.filter(({ callId }) => callId.startsWith(turnId));
const provider: ModelProvider = {
  name: "scripted",
  async *call(request) {
    calls.push(request);
    const question = String(request.messages.findLast(({ role }) => role === "user")?.content);
    const attempt = calls.filter(({ callId }) => callId === request.callId).length;
    return yield* (scripts.get(question) ?? answering("Hello."))(request, attempt);
  },
};
const usage = { ...noUsage, inputTokens: 10, outputTokens: 5, estimated: false };

const answering = (...words: readonly string[]): Attempt =>
  async function* () {
    for (const text of words) yield { type: "text", text };
    return { reply: { content: words.join(""), toolCalls: [], finishReason: "stop" }, usage, providerRequestId: undefined };
  };
const failing = (
  kind: ModelCallError["kind"],
  facts: ConstructorParameters<typeof ModelCallError>[2] = {},
  ...words: readonly string[]
): Attempt =>
  async function* () {
    for (const text of words) yield { type: "text", text };
    throw new ModelCallError(kind, `the provider at /srv says ${kind}`, facts);
  };
/** Fails so often, then answers. */
const failingTimes =
  (times: number, failure: Attempt): Attempt =>
  (request, attempt) =>
    (attempt <= times ? failure : answering("Hello."))(request, attempt);

const list: Tool = { definition: { name: "list" }, idempotent: true, run: async () => ({ content: "a.txt", failed: false, facts: {} }) };

/** Overlays by what stands for their digest. */
function overlayOf(digest: string | undefined): Overlay {
  if (digest === "refused")
    throw new AppError("overlay_refused", { client: { message: "overlay line 3: model: is gone", param: "model" } });
  if (digest === "strict") return someOverlay("system_prompt: Be kind.\nmax_tokens: 9\ntemperature: 0.5\ndenied_tools: [list]\n");
  return someOverlay("");
}

let stack: TurnStack;
let acme: TenantContext;

beforeAll(async () => {
  stack = await startTurnStack({ provider, tools: [list], overlayOf: async (_tenantId, digest) => overlayOf(digest) });
  acme = await stack.addTenant("acme");
  await stack.pool.wake(acme.tenantId);
});
afterAll(async () => await stack.close());

/** Runs one turn whose question is its script's name. */
async function run(script: Attempt, more: Partial<TurnSubmission> = {}, overlay?: string) {
  const question = `question ${scripts.size}`;
  scripts.set(question, script);
  const plain = someTurn(`api:call-${scripts.size}:default`, question, more);
  const turn = { ...plain, request: { ...plain.request, overlay } };
  const events: TurnEvent[] = [];
  stack.bus.subscribe(turn.turnId, (event) => events.push(event));
  await stack.database.withTenant(acme, async (tx) => await insertTurn(tx, turn, turn.sessionId));
  await stack.clientOf(acme.tenantId).submitTurn({ sessionId: turn.sessionId }, turn);
  const [finished, ledger] = await stack.database.withTenant(acme, async (tx) => [
    await readFinishedTurn(tx, turn.turnId),
    await tx.query("select input_tokens, output_tokens, estimated from control.usage_ledger where id like $1 order by id", [
      `${turn.turnId}.%`,
    ]),
  ]);
  const text = events.flatMap((event) => (event.type === "text" ? [event.text] : [])).join("");
  return { turn, finished, ledger, text, events };
}

test.each(["busy", "unreachable"] as const)(
  "a provider that is %s before its first word is asked again, and the call is billed once",
  async (kind) => {
    const { turn, finished, ledger } = await run(failingTimes(2, failing(kind, { retryAfterMs: 1 })));

    expect(finished).toMatchObject({ state: "done", reply: { content: "Hello." } });
    expect(callsOf(turn)).toHaveLength(3);
    expect(new Set(callsOf(turn).map(({ callId }) => callId)).size).toBe(1); // the provider sees one idempotency key
    expect(ledger).toEqual([{ input_tokens: 10n, output_tokens: 5n, estimated: false }]);
  },
);

test("it is asked three times at most, and the caller learns when to come back", async () => {
  const { turn, finished, ledger } = await run(failing("busy", { retryAfterMs: 1 }));

  expect(finished).toMatchObject({ state: "failed", error: { code: "provider_busy", retryAfterSeconds: 1 } });
  expect(callsOf(turn)).toHaveLength(3);
  expect(ledger).toEqual([]);
});

test("it is not waited for beyond ten seconds: the caller is told how long it asked for", async () => {
  const { turn, finished } = await run(failing("busy", { retryAfterMs: 42_000 }));

  expect(finished).toMatchObject({ state: "failed", error: { code: "provider_busy", retryAfterSeconds: 42 } });
  expect(callsOf(turn)).toHaveLength(1);
});

test("after its first word a call is not made again; what the provider had counted is billed", async () => {
  const { turn, finished, ledger, text } = await run(
    failing("unreachable", { usage: { ...usage, outputTokens: 1, estimated: true } }, "Hel"),
  );

  expect(finished).toMatchObject({ state: "failed", error: { code: "provider_error" } });
  expect(callsOf(turn)).toHaveLength(1);
  expect(text).toBe("Hel");
  expect(ledger).toEqual([{ input_tokens: 10n, output_tokens: 1n, estimated: true }]);
});

test("a failure for which the provider counted tokens is not tried again, though nothing was said", async () => {
  const { turn, ledger } = await run(failing("unreachable", { usage }));

  expect(callsOf(turn)).toHaveLength(1);
  expect(ledger).toHaveLength(1);
});

test("a setting that its provider cannot honour is refused by its name, and the call is none", async () => {
  const { finished, ledger } = await run(failing("refused", { unsupported: "seed" }));

  const error = { code: "unsupported_parameter", message: expect.any(String), param: "seed", isRefusal: true };
  expect(finished).toEqual({ state: "failed", error });
  expect(ledger).toEqual([]);
});

test("refusals and logprobs are shown as they come, each in its place, and stand in the reply", async () => {
  const token = (text: string) => ({ token: text, bytes: null, logprob: -1, top_logprobs: [] });
  const said = { logprobs: [token("Hel"), token("lo")], refusalLogprobs: [token("No.")], refusal: "No.", serviceTier: "flex" };
  const deltas: ModelDelta[] = [
    { type: "text", text: "Hel", logprobs: [token("Hel")] },
    { type: "refusal", text: "No.", logprobs: [token("No.")] },
    { type: "text", text: "lo", logprobs: [token("lo")] },
  ];
  const { finished, events } = await run(async function* () {
    yield* deltas;
    const reply = { content: "Hello", toolCalls: [], finishReason: "stop" as const, ...said };
    return { reply, usage, providerRequestId: "chatcmpl-1" };
  });

  expect(events.slice(0, -1)).toEqual([
    { type: "text", offset: 0, text: "Hel", logprobs: { offset: 0, tokens: [token("Hel")] } },
    { type: "refusal", offset: 0, text: "No.", logprobs: { offset: 0, tokens: [token("No.")] } },
    { type: "text", offset: 3, text: "lo", logprobs: { offset: 1, tokens: [token("lo")] } },
  ]);
  expect(finished).toMatchObject({ state: "done", reply: { content: "Hello", ...said } });
});

test.each([
  ["refused", "provider_refused", /says refused/], // the caller's fault: in the provider's own words
  ["rejected", "provider_error", /^The model provider did not answer\.$/], // our credential: nobody else's business
  ["garbage", "provider_error", /^The model provider did not answer\.$/],
] as const)("an answer that is %s ends the turn at once as %s", async (kind, code, message) => {
  const { turn, finished, ledger } = await run(failing(kind));

  expect(finished).toEqual({ state: "failed", error: { code, message: expect.stringMatching(message) } });
  expect(callsOf(turn)).toHaveLength(1);
  expect(ledger).toEqual([]);
});

test.each(["free", "dearest-model"])("a model without a price that a row can hold is not called: %s", async (model) => {
  const { turn, finished } = await run(answering("never"), {
    request: { model, messages: [{ role: "user", content: "hi" }], tools: [], settings: {} },
  });

  expect(finished).toMatchObject({ state: "failed", error: { code: "model_not_priced" } });
  expect(callsOf(turn)).toEqual([]);
});

test("the text that is shown while tools run is the text of the answer, place by place", async () => {
  const { finished, events, text, ledger } = await run(async function* ({ messages }) {
    const isFirst = !messages.some(({ role }) => role === "tool");
    const words = isFirst ? ["Let me ", "look."] : ["There is ", "a.txt."];
    for (const word of words) yield { type: "text", text: word };
    const toolCalls = isFirst ? [{ id: "call_a", name: "list", arguments: "{}" }] : [];
    return {
      reply: { content: words.join(""), toolCalls, finishReason: isFirst ? "tool_calls" : "stop" },
      usage,
      providerRequestId: undefined,
    };
  });

  expect(finished).toMatchObject({
    state: "done",
    reply: { content: text, toolCalls: [], modelCalls: 2, usage: { inputTokens: 20, outputTokens: 10 } },
  });
  let length = 0;
  for (const event of events) {
    if (event.type !== "text") continue;
    expect(event.offset).toBe(length);
    length += event.text.length;
  }
  expect(events.filter(({ type }) => type === "tool")).toMatchObject([
    { name: "list", state: "started" },
    { name: "list", state: "done" },
  ]);
  expect(events.at(-1)).toEqual({ type: "finished", finished });
  expect(ledger).toHaveLength(2);
});

test.each<[string, Partial<TurnSubmission>]>([
  [
    "the client's own tools",
    { request: { model: "test-model", messages: [{ role: "user", content: "ask" }], tools: [{ name: "mine" }], settings: {} } },
  ],
  [
    "any tool in mode gateway",
    { mode: "gateway", request: { model: "test-model", messages: [{ role: "user", content: "ask" }], tools: [], settings: {} } },
  ],
])("%s are left to the client", async (_what, more) => {
  scripts.set("ask", async function* () {
    yield { type: "tool_call", index: 0, id: "call_a", name: "list", arguments: "{}" };
    return {
      reply: { content: null, toolCalls: [{ id: "call_a", name: "list", arguments: "{}" }], finishReason: "tool_calls" },
      usage,
      providerRequestId: undefined,
    };
  });

  const { turn, finished, events } = await run(answering("never"), more);

  expect(finished).toMatchObject({
    state: "done",
    reply: { content: null, finishReason: "tool_calls", toolCalls: [{ id: "call_a", name: "list" }], modelCalls: 1 },
  });
  expect(events.map(({ type }) => type)).toEqual(["tool_call", "finished"]);
  expect(callsOf(turn)[0]?.tools.map(({ name }) => name)).toEqual(more.request?.tools.map(({ name }) => name));
});

test("a call is sent the client's limit, and without one the model's", async () => {
  const messages = [{ role: "user", content: "limits" }] as const;
  const [limited, unlimited] = [{ maxTokens: 7, temperature: 0 }, {}].map((settings) => ({
    request: { model: "test-model", messages, tools: [], settings },
  }));

  const [{ turn: one }, { turn: other }] = [await run(answering(), limited), await run(answering(), unlimited)];

  expect(callsOf(one)[0]?.settings).toEqual({ maxTokens: 7, temperature: 0 });
  expect(callsOf(other)[0]?.settings).toEqual({ maxTokens: 4_000 });
});

describe("the overlay that a turn was admitted under", () => {
  const askFor = (name: string): Attempt =>
    async function* (request) {
      const isAnswered = request.messages.some(({ role }) => role === "tool");
      const toolCalls = isAnswered ? [] : [{ id: "call_0", name, arguments: "{}" }];
      const content = isAnswered ? String(request.messages.at(-1)?.content) : null;
      if (content !== null) yield { type: "text", text: content };
      return { reply: { content, toolCalls, finishReason: isAnswered ? "stop" : "tool_calls" }, usage, providerRequestId: undefined };
    };

  test("gives every call of it prompt, ceiling and temperature, and holds where a tool would run", async () => {
    const { turn, finished } = await run(askFor("list"), {}, "strict");

    expect(callsOf(turn)).toHaveLength(2);
    for (const { messages, tools, settings } of callsOf(turn)) {
      expect(messages[0]).toEqual({ role: "system", content: "Be kind." });
      expect(tools).toEqual([]);
      expect(settings).toMatchObject({ maxTokens: 9, temperature: 0.5 });
    }
    expect(finished).toMatchObject({ state: "done", reply: { content: 'The tool "list" is not allowed here.' } });
  });

  test("adds nothing but the ceiling in gateway mode, and goes behind what the call says itself", async () => {
    const { turn: gateway } = await run(answering("Hello."), { mode: "gateway" }, "strict");
    const { request } = someTurn("api:x:default", "plain question");
    const { turn: own } = await run(answering("Hello."), { request: { ...request, settings: { maxTokens: 5, temperature: 0 } } }, "strict");

    expect(callsOf(gateway)[0]).toMatchObject({ messages: [{ role: "user" }], tools: [], settings: { maxTokens: 9 } });
    expect(callsOf(gateway)[0]?.settings.temperature).toBeUndefined();
    expect(callsOf(own)[0]?.settings).toMatchObject({ maxTokens: 5, temperature: 0 });
  });

  test("that cannot be used any more ends it before the provider hears of it, and says why", async () => {
    const { turn, finished, ledger, events } = await run(answering("Hello."), {}, "refused");

    const error = { code: "overlay_refused", message: "overlay line 3: model: is gone", param: "model", isRefusal: true };
    expect(finished).toEqual({ state: "failed", error });
    expect(callsOf(turn)).toEqual([]);
    expect(ledger).toEqual([]);
    expect(events.at(-1)).toMatchObject({ type: "finished", finished: { error } });
  });
});
