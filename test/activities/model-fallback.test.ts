import { afterAll, beforeAll, expect, test } from "vitest";
import type { Overlay } from "../../control-plane/overlay.ts";
import { AppError } from "../../domain/app-error.ts";
import type { TenantContext } from "../../domain/tenant.ts";
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
import { someOverlay } from "../control-plane/some-overlay.ts";
import { type TurnStack, someTurn, startTurnStack } from "../turn-stack.ts";

type Answer = (request: ModelRequest) => AsyncGenerator<ModelDelta, ModelResult, undefined>;
type Script = Readonly<Record<string, Answer>>;

/** What each model does, by the text of the question; `calls` holds every request that reached a provider. */
const scripts = new Map<string, Script>();
const calls: ModelRequest[] = [];
const provider: ModelProvider = {
  name: "scripted",
  async *call(request) {
    calls.push(request);
    const question = String(request.messages.findLast(({ role }) => role === "user")?.content);
    const answer = scripts.get(question)?.[request.model];
    if (answer === undefined) throw new Error(`${request.model} has no script for ${question}`);
    return yield* answer(request);
  },
};
const usage = { ...noUsage, inputTokens: 10, outputTokens: 5, estimated: false };

const says = (text: string): Answer =>
  async function* () {
    yield { type: "text", text };
    return { reply: { content: text, toolCalls: [], finishReason: "stop" }, usage, providerRequestId: undefined };
  };
const fails = (kind: ModelCallError["kind"], facts: ConstructorParameters<typeof ModelCallError>[2] = {}, ...words: string[]): Answer =>
  async function* () {
    for (const text of words) yield { type: "text", text };
    throw new ModelCallError(kind, `it says ${kind}`, facts);
  };
const busy = fails("busy", { retryAfterMs: 1 });

const list: Tool = { definition: { name: "list" }, idempotent: true, run: async () => ({ content: "a.txt", failed: false, facts: {} }) };

/** Overlays by what stands for their digest. */
const overlays: Readonly<Record<string, Overlay>> = {
  two: { ...someOverlay(""), fallbacks: ["other-model", "last-model"] },
  allowed: {
    ...someOverlay(""),
    fallbacks: ["other-model", "last-model"],
    api: { ...someOverlay("").api, models: new Set(["test-model", "last-model"]) },
  },
  odd: { ...someOverlay(""), fallbacks: ["test-model", "free-model", "keyless-model", "last-model", "last-model"] },
};

let stack: TurnStack;
let acme: TenantContext;
beforeAll(async () => {
  stack = await startTurnStack({
    provider,
    tools: [list],
    overlayOf: async (_tenantId, digest) => overlays[digest ?? ""] ?? someOverlay(""),
    modelOf(id) {
      if (id === "keyless-model") throw new AppError("provider_error", { model: id });
      const fallbacks = id === "last-model" ? ["other-model"] : [];
      return { id, provider, contextWindow: 100_000, maxOutputTokens: id === "other-model" ? 300 : 4_000, fallbacks };
    },
  });
  acme = await stack.addTenant("acme");
  await stack.pool.wake(acme.tenantId);
});
afterAll(async () => await stack.close());

/** Runs one turn whose question is its script's name. */
async function run(script: Script, { model = "test-model", overlay }: { model?: string; overlay?: string } = {}) {
  const question = `question ${scripts.size}`;
  scripts.set(question, script);
  const plain = someTurn(`api:fallback-${scripts.size}:default`, question);
  const turn = { ...plain, request: { ...plain.request, model, overlay } };
  await stack.database.withTenant(acme, async (tx) => await insertTurn(tx, turn, turn.sessionId));
  await stack.clientOf(acme.tenantId).submitTurn({ sessionId: turn.sessionId }, turn);
  const [finished, ledger, journal] = await stack.database.withTenant(acme, async (tx) => [
    await readFinishedTurn(tx, turn.turnId),
    await tx.query("select model, cost_nano_usd from control.usage_ledger where id like $1 order by id", [`${turn.turnId}.%`]),
    await tx.query("select model, state from model_call where turn_id = $1 order by step", [turn.turnId]),
  ]);
  const made = calls.filter(({ callId }) => callId.startsWith(turn.turnId));
  return { turn, finished, ledger, journal, made, models: made.map((request) => request.model) };
}

test.each(["busy", "unreachable", "rejected", "garbage"] as const)(
  "a model that is %s before its first word gives way to the next, which is billed at its own price",
  async (kind) => {
    const { finished, ledger, journal, models, made, turn } = await run(
      { "test-model": fails(kind), "other-model": says("Hello.") },
      { overlay: "two" },
    );

    expect(finished).toMatchObject({ state: "done", reply: { content: "Hello.", model: "other-model", modelCalls: 1 } });
    expect(models).toEqual(["test-model", "other-model"]);
    expect(ledger).toEqual([{ model: "other-model", cost_nano_usd: 10n * 3_000n + 5n * 5_000n }]);
    expect(journal).toEqual([{ model: "other-model", state: "done" }]);
    expect(made.map(({ callId }) => callId)).toEqual([`${turn.turnId}.0`, `${turn.turnId}.0/other-model`]);
    expect(made.map(({ settings }) => settings.maxTokens)).toEqual([4_000, 300]);
  },
);

test("the administrator's fallbacks count where the tenant names none", async () => {
  const { finished, models } = await run({ "last-model": busy, "other-model": says("Hello.") }, { model: "last-model" });

  expect(finished).toMatchObject({ state: "done", reply: { model: "other-model" } });
  expect(models).toEqual(["last-model", "other-model"]);
});

test("a fallback that fails too gives way to the next, whatever it says", async () => {
  const { finished, models, ledger } = await run(
    { "test-model": busy, "other-model": fails("refused"), "last-model": says("Hello.") },
    { overlay: "two" },
  );

  expect(finished).toMatchObject({ state: "done", reply: { model: "last-model" } });
  expect(models).toEqual(["test-model", "other-model", "last-model"]);
  expect(ledger).toHaveLength(1);
});

test("what the caller did wrong is no reason to try another model", async () => {
  const { finished, models, ledger } = await run({ "test-model": fails("refused"), "other-model": says("never") }, { overlay: "two" });

  expect(finished).toMatchObject({ state: "failed", error: { code: "provider_refused" } });
  expect(models).toEqual(["test-model"]);
  expect(ledger).toEqual([]);
});

test.each<[string, Answer]>([
  ["after its first word", fails("unreachable", { usage }, "Hel")],
  ["after it counted tokens", fails("unreachable", { usage })],
])("a model that fails %s is billed and keeps the turn", async (_what, answer) => {
  const { finished, models, ledger } = await run({ "test-model": answer, "other-model": says("never") }, { overlay: "two" });

  expect(finished).toMatchObject({ state: "failed", error: { code: "provider_error" } });
  expect(models).toEqual(["test-model"]);
  expect(ledger).toEqual([{ model: "test-model", cost_nano_usd: 20_000n }]);
});

test("a fallback that fails after its first word is billed, and nothing else is tried", async () => {
  const { finished, models, ledger, journal } = await run(
    { "test-model": busy, "other-model": fails("unreachable", { usage }, "Hel"), "last-model": says("never") },
    { overlay: "two" },
  );

  expect(finished).toMatchObject({ state: "failed", error: { code: "provider_error" } });
  expect(models).toEqual(["test-model", "other-model"]);
  expect(ledger).toEqual([{ model: "other-model", cost_nano_usd: 55_000n }]);
  expect(journal).toEqual([{ model: "other-model", state: "done" }]);
});

test("when no model answers the turn's own is asked twice more, and its error is told", async () => {
  const { finished, models, ledger, journal } = await run(
    { "test-model": busy, "other-model": fails("rejected"), "last-model": fails("garbage") },
    { overlay: "two" },
  );

  expect(finished).toMatchObject({ state: "failed", error: { code: "provider_busy", retryAfterSeconds: 1 } });
  expect(models).toEqual(["test-model", "other-model", "last-model", "test-model", "test-model"]);
  expect(ledger).toEqual([]);
  expect(journal).toEqual([{ model: "test-model", state: "void" }]);
});

test("a tenant falls back on no model that it may not call", async () => {
  const { models } = await run({ "test-model": busy, "last-model": says("Hello.") }, { overlay: "allowed" });

  expect(models).toEqual(["test-model", "last-model"]);
});

test("models without a price or a key, the turn's own and repeats are passed over", async () => {
  const { models, finished } = await run({ "test-model": busy, "last-model": busy }, { overlay: "odd" });

  expect(models).toEqual(["test-model", "last-model", "test-model", "test-model"]);
  expect(finished).toMatchObject({ state: "failed", error: { code: "provider_busy" } });
});

test("each step of a turn begins with the turn's own model, and each is billed by the one that answered", async () => {
  const asks: Answer = async function* () {
    yield { type: "tool_call", index: 0, id: "call_a", name: "list", arguments: "{}" };
    return {
      reply: { content: null, toolCalls: [{ id: "call_a", name: "list", arguments: "{}" }], finishReason: "tool_calls" },
      usage,
      providerRequestId: undefined,
    };
  };
  const { ledger, models } = await run(
    {
      "test-model": (request) => (request.messages.some(({ role }) => role === "tool") ? says("a.txt it is") : busy)(request),
      "other-model": asks,
    },
    { overlay: "two" },
  );

  expect(models).toEqual(["test-model", "other-model", "test-model"]);
  expect(ledger).toEqual([
    { model: "other-model", cost_nano_usd: 55_000n },
    { model: "test-model", cost_nano_usd: 20_000n },
  ]);
});
