import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { KeyRest } from "../../providers/key-ring.ts";
import { ModelCallError, type ModelDelta, type ModelProvider, type ModelRequest } from "../../providers/model-provider.ts";
import { createProviders } from "../../providers/provider-registry.ts";
import { type WireReply, type WireServer, cut, hang, startWireServer } from "./wire-server.ts";

let server: WireServer;
beforeAll(async () => {
  server = await startWireServer();
});
afterAll(async () => await server.close());

const chunk = (delta: object, finish: string | null = null): string =>
  `data: ${JSON.stringify({ id: "c", object: "chat.completion.chunk", choices: [{ index: 0, delta, finish_reason: finish }] })}\n\n`;
const usage = `data: ${JSON.stringify({ id: "c", choices: [], usage: { prompt_tokens: 5, completion_tokens: 1, total_tokens: 6 } })}\n\n`;
const answer: WireReply = { steps: [chunk({ content: "Hello" }), chunk({}, "stop"), usage, "data: [DONE]\n\n"] };
const failing = (status: number, headers: Record<string, string> = {}): WireReply => ({
  status,
  headers,
  steps: [JSON.stringify({ error: { message: `told to fail with ${status}`, code: "x" } })],
});

/** A provider with so many keys on a clock of the test's, and what it told of its keys. */
function someProvider(keys: number) {
  const clock = { nowMs: 0 };
  const rests: KeyRest[] = [];
  const before = server.requests.length;
  const providers = createProviders(
    [{ name: "o", kind: "openai", baseUrl: `${server.url}/v1` }],
    new Map([["o", Array.from({ length: keys }, (_, n) => ({ name: `KEY_${n}`, secret: `sk-secret-${n}` }))]]),
    { now: () => clock.nowMs, onKeyRest: (rest) => rests.push(rest), limitsOf: () => ({ contextWindow: 1_000, maxOutputTokens: 50 }) },
  );
  return {
    provider: providers.get("o") ?? expect.fail(),
    clock,
    rests,
    /** The keys of the requests so far, by their number. */
    used: () => server.requests.slice(before).map(({ headers }) => Number(/sk-secret-(\d+)$/.exec(headers.authorization ?? "")?.[1])),
    callIds: () => server.requests.slice(before).map(({ headers }) => headers["idempotency-key"]),
  };
}

const request = (model = "m"): ModelRequest => ({
  model,
  messages: [{ role: "user", content: "hi" }],
  tools: [],
  settings: {},
  callId: "turn.0",
});

/** The text of a call, or the error that it ended with. */
async function call(provider: ModelProvider, model?: string): Promise<string | ModelCallError> {
  const deltas: ModelDelta[] = [];
  try {
    const running = provider.call(request(model), new AbortController().signal);
    for (let step = await running.next(); step.done !== true; step = await running.next()) deltas.push(step.value);
    return deltas.map((delta) => (delta.type === "text" ? delta.text : "")).join("");
  } catch (error) {
    if (error instanceof ModelCallError) return error;
    throw error;
  }
}

describe("a provider with several keys", () => {
  test("uses them by turns", async () => {
    const { provider, used } = someProvider(3);
    server.answer(answer, answer, answer, answer);
    for (let n = 0; n < 4; n++) expect(await call(provider)).toBe("Hello");
    expect(used()).toEqual([0, 1, 2, 0]);
  });

  test("makes the same call with the next one when one is told to wait, and leaves that alone for as long", async () => {
    const { provider, clock, rests, used, callIds } = someProvider(2);
    server.answer(failing(429, { "retry-after": "30" }), answer, answer, answer, answer);
    expect(await call(provider)).toBe("Hello");
    expect(await call(provider)).toBe("Hello");
    clock.nowMs = 29_999;
    expect(await call(provider)).toBe("Hello");
    expect(used()).toEqual([0, 1, 1, 1]);
    expect(new Set(callIds())).toEqual(new Set(["turn.0"]));
    clock.nowMs = 30_001;
    expect(await call(provider)).toBe("Hello");
    expect(used().at(-1)).toBe(0);
    expect(rests).toEqual([{ provider: "o", key: "KEY_0", model: "m", why: "rate_limited", status: 429, ms: 30_000 }]);
  });

  test("knows a limit as the model's that it was said of", async () => {
    const { provider, used } = someProvider(2);
    server.answer(failing(429, { "retry-after": "30" }), answer, answer, answer);
    await call(provider, "large");
    await call(provider, "small");
    await call(provider, "large");
    expect(used()).toEqual([0, 1, 0, 1]);
  });

  test.each([401, 402])("puts a key that is answered with %i aside for all models, longer each time, and tells it once", async (status) => {
    const { provider, clock, rests, used } = someProvider(2);
    server.answer(failing(status), answer, answer, answer, failing(status), answer);
    expect(await call(provider, "large")).toBe("Hello");
    expect(await call(provider, "small")).toBe("Hello");
    expect(await call(provider, "large")).toBe("Hello");
    expect(used()).toEqual([0, 1, 1, 1]);
    clock.nowMs = 60_001;
    expect(await call(provider, "large")).toBe("Hello");
    expect(used().slice(4)).toEqual([0, 1]);
    expect(rests).toEqual([
      { provider: "o", key: "KEY_0", model: undefined, why: "rejected", status, ms: 60_000 },
      { provider: "o", key: "KEY_0", model: undefined, why: "rejected", status, ms: 120_000 },
    ]);
    expect(JSON.stringify(rests)).not.toContain("sk-secret");
  });

  test("takes a 403 as said of the model only: a key's project may lack it", async () => {
    const { provider, used } = someProvider(2);
    server.answer(failing(403), answer, answer, answer);
    await call(provider, "preview");
    await call(provider, "preview");
    await call(provider, "other");
    expect(used()).toEqual([0, 1, 1, 0]);
  });

  test.each([400, 404, 413, 422, 500, 503, 529])("says nothing about a key with %i, which no other key mends", async (status) => {
    const { provider, rests, used } = someProvider(2);
    server.answer(failing(status), answer, answer);
    expect(await call(provider)).toMatchObject({ status });
    expect(await call(provider)).toBe("Hello");
    expect(await call(provider)).toBe("Hello");
    expect(used()).toEqual([0, 1, 0]);
    expect(rests).toEqual([]);
  });

  test("does not begin anew once a word was said", async () => {
    const { provider, used } = someProvider(2);
    const error = `data: ${JSON.stringify({ error: { message: "slow down", code: "rate_limit_exceeded" } })}\n\n`;
    server.answer({ steps: [chunk({ content: "Hel" }), error] }, { steps: [chunk({ content: "Hel" }), cut] });
    expect(await call(provider)).toMatchObject({ kind: "busy" });
    expect(await call(provider)).toMatchObject({ kind: "unreachable" });
    expect(used()).toEqual([0, 1]);
  });

  test("all of which were told to wait is busy for as long, without a request", async () => {
    const { provider, clock, used } = someProvider(2);
    server.answer(failing(429, { "retry-after": "30" }), failing(429, { "retry-after": "5" }), answer);
    expect(await call(provider)).toMatchObject({ kind: "busy", status: 429 });
    clock.nowMs = 1_000;
    expect(await call(provider)).toMatchObject({ kind: "busy", status: 429, retryAfterMs: 4_000 });
    expect(used()).toEqual([0, 1]);
    clock.nowMs = 5_001;
    expect(await call(provider)).toBe("Hello");
    expect(used()).toEqual([0, 1, 1]);
  });

  test("of which there is one is always tried: there is nothing better to do", async () => {
    const { provider, used, rests } = someProvider(1);
    server.answer(failing(429, { "retry-after": "30" }), answer);
    expect(await call(provider)).toMatchObject({ kind: "busy", retryAfterMs: 30_000 });
    expect(await call(provider)).toBe("Hello");
    expect(used()).toEqual([0, 0]);
    expect(rests).toHaveLength(1);
  });

  test("none of which is taken says so, and is asked again at the next call: nobody told it to wait", async () => {
    const { provider, used } = someProvider(2);
    server.answer(failing(401), failing(401), answer);
    expect(await call(provider)).toMatchObject({ kind: "rejected", status: 401 });
    expect(await call(provider)).toBe("Hello");
    expect(used()).toEqual([0, 1, 0]);
  });

  test("closes the call that is left early", async () => {
    const { provider } = someProvider(2);
    server.answer({ steps: [chunk({ content: "Hel" }), hang] });
    const running = provider.call(request(), new AbortController().signal);
    await running.next();
    const left = server.requests.at(-1)?.clientLeft;
    await running.return({ reply: { content: null, toolCalls: [], finishReason: "stop" }, usage: someUsage, providerRequestId: undefined });
    await left;
  });
});

const someUsage = {
  inputTokens: 0,
  cacheReadTokens: 0,
  cacheWriteTokens: 0,
  outputTokens: 0,
  reasoningTokens: 0,
  estimated: false,
};

test("a service's calls go by the same keys as the conversations'", async () => {
  const { provider, used } = someProvider(2);
  const vectors = { data: [{ index: 0, embedding: [1, 2] }], usage: { prompt_tokens: 3, total_tokens: 3 } };
  server.answer(failing(429, { "retry-after": "30" }), {
    steps: [JSON.stringify(vectors)],
    headers: { "content-type": "application/json" },
  });
  const { services } = provider;
  const served = await services?.serve(
    { service: "embedding", model: "m", input: ["a"], dimensions: undefined, user: undefined, callId: "turn.0" },
    new AbortController().signal,
  );
  expect(served?.usage.inputTokens).toBe(3);
  expect(used()).toEqual([0, 1]);
});
