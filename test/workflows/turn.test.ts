import { randomBytes } from "node:crypto";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { TenantContext } from "../../domain/tenant.ts";
import { type TurnId, mintTurnId } from "../../domain/turn-id.ts";
import type { FinishedTurn, TurnSubmission } from "../../domain/turn.ts";
import { ModelCallError } from "../../providers/model-provider.ts";
import type { Tool } from "../../sandbox/tool.ts";
import { insertTurn, readFinishedTurn, readTranscript, voidTurn } from "../../storage/turn-repository.ts";
import { type Lane, laneNameOf } from "../../temporal/tenant-client.ts";
import { type TurnStack, scriptedProvider, someTurn, startTurnStack } from "../turn-stack.ts";

/** Calls that wait in the model until the test lets them go, by the text of their question. */
const held = new Map<string, { arrived: PromiseWithResolvers<void>; release: PromiseWithResolvers<void> }>();
const hold = (text: string) => {
  const entry = { arrived: Promise.withResolvers<void>(), release: Promise.withResolvers<void>() };
  held.set(text, entry);
  return entry;
};

const provider = scriptedProvider(async ({ messages }, signal) => {
  const last = messages.at(-1);
  const text = typeof last?.content === "string" ? last.content : "";
  const waiting = held.get(text);
  if (waiting !== undefined) {
    waiting.arrived.resolve();
    const aborted = new Promise<never>((_resolve, reject) => {
      signal.addEventListener("abort", () => {
        reject(
          new ModelCallError("aborted", "aborted", {
            usage: { inputTokens: 7, cacheReadTokens: 0, cacheWriteTokens: 0, outputTokens: 1, reasoningTokens: 0, estimated: true },
          }),
        );
      });
    });
    await Promise.race([waiting.release.promise, aborted]);
  }
  if (text.startsWith("refuse")) throw new ModelCallError("refused", "the model says no", { status: 400 });
  if (text.startsWith("loop") || last?.role === "tool") {
    const asked = messages.filter(({ role }) => role === "tool").length;
    const first = messages.findLast(({ role }) => role === "user")?.content;
    if (first === "loop for ever" || asked < 2) return { toolCalls: [{ id: `call_${asked}`, name: "count", arguments: `{"n":${asked}}` }] };
  }
  return { text: `you said ${JSON.stringify(text)}` };
});
const toolRuns: string[] = [];
const countTool: Tool = {
  definition: { name: "count" },
  idempotent: true,
  async run(_place, argumentsJson) {
    toolRuns.push(argumentsJson);
    return { content: `counted ${argumentsJson}`, failed: false, facts: {} };
  },
};

let stack: TurnStack;
let acme: TenantContext;

beforeAll(async () => {
  stack = await startTurnStack({ provider, tools: [countTool] });
  acme = await stack.addTenant("acme");
});
afterAll(async () => await stack.close());

const sessionLane = ({ sessionId }: TurnSubmission): Lane => ({ sessionId });

async function store(turn: TurnSubmission, lane: Lane = sessionLane(turn)): Promise<void> {
  await stack.database.withTenant(acme, async (tx) => await insertTurn(tx, turn, laneNameOf(lane)));
  await stack.pool.wake(acme.tenantId);
}

async function submit(turn: TurnSubmission, lane: Lane = sessionLane(turn)) {
  await store(turn, lane);
  return await stack.clientOf(acme.tenantId).submitTurn(lane, turn);
}

const rowOf = async ({ turnId }: { turnId: TurnId }): Promise<FinishedTurn | undefined> =>
  await stack.database.withTenant(acme, async (tx) => await readFinishedTurn(tx, turnId));

const ledgerOf = async ({ turnId }: TurnSubmission) =>
  await stack.database.withTenant(
    acme,
    async (tx) =>
      await tx.query(
        "select id, input_tokens, output_tokens, cost_nano_usd, estimated from control.usage_ledger where id like $1 order by id",
        [`${turnId}.%`],
      ),
  );
const transcriptOf = async ({ sessionId }: TurnSubmission) =>
  await stack.database.withTenant(acme, async (tx) => await readTranscript(tx, sessionId, 50));

test("a turn is answered, stored, billed and remembered by its session", async () => {
  const turn = someTurn("api:jane:default", "hello");

  const verdict = await submit(turn);

  expect(verdict).toEqual({ state: "done" });
  expect(await rowOf(turn)).toMatchObject({ state: "done", reply: { content: 'you said "hello"', finishReason: "stop", modelCalls: 1 } });
  expect(await transcriptOf(turn)).toEqual([
    { role: "user", content: "hello" },
    { role: "assistant", content: 'you said "hello"' },
  ]);
  expect(await ledgerOf(turn)).toEqual([
    { id: `${turn.turnId}.0`, input_tokens: 10n, output_tokens: 5n, cost_nano_usd: 20_000n, estimated: false },
  ]);
});

test("tools run between the model calls, and each call has its own row", async () => {
  const turn = someTurn("api:tools:default", "loop twice");

  await submit(turn);

  expect(await rowOf(turn)).toMatchObject({ state: "done", reply: { modelCalls: 3, usage: { inputTokens: 30, outputTokens: 15 } } });
  expect(await ledgerOf(turn)).toHaveLength(3);
  expect((await transcriptOf(turn)).map(({ role }) => role)).toEqual(["user", "assistant", "tool", "assistant", "tool", "assistant"]);
  expect(toolRuns).toEqual(['{"n":0}', '{"n":1}']);
});

test("a loop of tools that never ends is stopped, and all its calls are billed", async () => {
  const turn = someTurn("api:loop:default", "loop for ever");

  const verdict = await submit(turn);

  expect(verdict).toEqual({ state: "failed", code: "turn_limit" });
  expect(await ledgerOf(turn)).toHaveLength(32);
});

test("a repeat of a turn id is the same turn: one model call, the stored answer", async () => {
  const turn = someTurn("api:repeat:default", "once");
  await submit(turn);
  const callsBefore = provider.calls.length;

  const again = await Promise.all([submit(turn), submit(turn)]);

  expect(again).toEqual([{ state: "done" }, { state: "done" }]);
  expect(provider.calls).toHaveLength(callsBefore);
  expect(await ledgerOf(turn)).toHaveLength(1);
});

test("a repeat that comes after its lane has closed finds the row", async () => {
  const turn = someTurn("api:late:default", "only once");
  await submit(turn);
  const client = stack.clientOf(acme.tenantId);
  await expect
    .poll(async () => await client.laneState(sessionLane(turn)).then((state) => state?.served ?? "closed"), { timeout: 20_000 })
    .toBe(1);
  await stack.connection.client.workflow.getHandle(`turn:${acme.tenantId}:${turn.sessionId}`).result(); // the window passes and the run ends
  const callsBefore = provider.calls.length;

  const verdict = await submit(turn);

  expect(verdict).toEqual({ state: "done" });
  expect(provider.calls).toHaveLength(callsBefore);
});

test("two turns of a session run one after the other; those of other sessions do not wait", async () => {
  const first = someTurn("api:order:default", "hold the first");
  const second = someTurn("api:order:default", "second");
  const elsewhere = someTurn("api:elsewhere:default", "elsewhere");
  const { arrived, release } = hold("hold the first");

  const both = submit(first).then(async () => await Promise.resolve("first"));
  await arrived.promise;
  const next = submit(second);
  await submit(elsewhere);
  const callsOfSecond = provider.calls.filter(({ callId }) => callId.startsWith(second.turnId)).length;
  release.resolve();
  await Promise.all([both, next]);

  expect(callsOfSecond).toBe(0);
  expect((await transcriptOf(first)).map(({ content }) => content)).toEqual([
    "hold the first",
    'you said "hold the first"',
    "second",
    'you said "second"',
  ]);
});

test("an abort ends one turn, bills what the provider had counted, and the session goes on", async () => {
  const turn = someTurn("api:abort:default", "hold me");
  const next = someTurn("api:abort:default", "and now");
  const { arrived } = hold("hold me");
  const submitted = submit(turn);
  await arrived.promise;

  await stack.clientOf(acme.tenantId).abortTurn(sessionLane(turn), turn.turnId);

  expect(await submitted).toEqual({ state: "aborted", code: "turn_aborted" });
  expect(await ledgerOf(turn)).toMatchObject([{ input_tokens: 7n, output_tokens: 1n, estimated: true }]);
  expect(await submit(next)).toEqual({ state: "done" });
});

test("a turn that waits in its lane can be aborted before it begins", async () => {
  const running = someTurn("api:abort-waiting:default", "hold the runner");
  const waiting = someTurn("api:abort-waiting:default", "never asked");
  const { arrived, release } = hold("hold the runner");
  const first = submit(running);
  await arrived.promise;
  const second = submit(waiting);
  const client = stack.clientOf(acme.tenantId);
  await expect.poll(async () => (await client.laneState(sessionLane(running)))?.waiting).toEqual([waiting.turnId]);

  await client.abortTurn(sessionLane(waiting), waiting.turnId);
  release.resolve();

  expect(await first).toEqual({ state: "done" });
  expect(await second).toEqual({ state: "aborted", code: "turn_aborted" });
  expect(provider.calls.filter(({ callId }) => callId.startsWith(waiting.turnId))).toEqual([]);
});

test("a turn that fails is told, not billed, and does not fail its lane", async () => {
  const turn = someTurn("api:fails:default", "refuse this");
  const next = someTurn("api:fails:default", "go on");

  expect(await submit(turn)).toEqual({ state: "failed", code: "provider_refused" });
  expect(await rowOf(turn)).toMatchObject({ state: "failed", error: { code: "provider_refused", message: "the model says no" } });
  expect(await ledgerOf(turn)).toEqual([]);
  expect(await submit(next)).toEqual({ state: "done" });
  expect((await transcriptOf(next)).map(({ role }) => role)).toEqual(["user", "assistant"]);
});

test("a turn that was taken back before it began never runs", async () => {
  const turn = someTurn("api:void:default", "taken back");
  await store(turn);
  expect(await stack.database.withTenant(acme, async (tx) => await voidTurn(tx, turn.turnId))).toBe(true);

  await stack.clientOf(acme.tenantId).submitTurn(sessionLane(turn), turn);

  expect(provider.calls.filter(({ callId }) => callId.startsWith(turn.turnId))).toEqual([]);
});

test("stateless turns share a lane of the pool and run at once", async () => {
  const turns = ["a", "b", "c"].map((name) => {
    const turnId = mintTurnId(Date.now(), randomBytes(10));
    return someTurn(`api:${turnId}:default`, `hold ${name}`, { turnId, stateless: true });
  });
  const holds = ["a", "b", "c"].map((name) => hold(`hold ${name}`));

  const submitted = turns.map(async (turn) => await submit(turn, { pool: 0 }));
  await Promise.all(holds.map(async ({ arrived }) => await arrived.promise)); // all three are in the model at the same time
  for (const { release } of holds) release.resolve();

  expect(await Promise.all(submitted)).toEqual([{ state: "done" }, { state: "done" }, { state: "done" }]);
  expect(await stack.database.withTenant(acme, async (tx) => await tx.query("select id from session where id like 'api:trn_%'"))).toEqual(
    [],
  );
});

test("a run is found by its tenant, session and turn, and says in words what it does", async () => {
  const turn = someTurn("api:seen:default", "look at me");
  await submit(turn);
  const { client } = stack.connection;
  const query = `TenantId = '${acme.tenantId}' AND SessionId = '${turn.sessionId}' AND TurnId = '${turn.turnId}'`;

  const found = async () => (await Array.fromAsync(client.workflow.list({ query }))).map(({ workflowId }) => workflowId);
  await expect.poll(found, { timeout: 10_000 }).toEqual([`turn:${acme.tenantId}:${turn.sessionId}`]);

  const description = await client.workflow.getHandle(`turn:${acme.tenantId}:${turn.sessionId}`).describe();
  expect(await description.staticSummary()).toBe(`session ${turn.sessionId} of ${acme.tenantId}`);
  expect(description.typedSearchAttributes.getAll().map(({ key, value }) => [key.name, value])).toEqual(
    expect.arrayContaining([
      ["TenantId", acme.tenantId],
      ["Channel", "api"],
      ["TurnKind", "chat"],
    ]),
  );
});

test("histories hold ids, never what was said", async () => {
  const turn = someTurn("api:secret:default", "the password is xylophone-42");
  await submit(turn);

  const history = await stack.connection.client.workflow.getHandle(`turn:${acme.tenantId}:${turn.sessionId}`).fetchHistory();
  const payloads = JSON.stringify(history, (_key, value) => (value instanceof Uint8Array ? Buffer.from(value).toString() : value));

  expect(payloads).toContain(turn.turnId);
  expect(payloads).not.toContain("xylophone");
});
