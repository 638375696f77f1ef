import { createHash } from "node:crypto";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { ChatMessage, ModelReply, ToolCall } from "../../domain/conversation.ts";
import type { NanoUsd } from "../../domain/money.ts";
import { noMarkup } from "../../domain/money.ts";
import type { RateCardHash } from "../../domain/rate-card.ts";
import type { SessionId } from "../../domain/session-id.ts";
import type { TenantContext } from "../../domain/tenant.ts";
import { callIdOf } from "../../domain/turn-id.ts";
import type { FinishedTurn, TurnSubmission } from "../../domain/turn.ts";
import { noUsage } from "../../domain/usage.ts";
import type { UsageRow } from "../../domain/usage-row.ts";
import { type Database, type TenantTx, openDatabase } from "../../storage/database.ts";
import * as turns from "../../storage/turn-repository.ts";
import { someTurn } from "../turn-stack.ts";
import { freshDatabase, quiet, someTenant } from "./fresh-database.ts";

const usage = { ...noUsage, inputTokens: 10, outputTokens: 5, estimated: false };
const replyOf = (content: string, toolCalls: ModelReply["toolCalls"] = []): ModelReply => ({
  content,
  toolCalls,
  finishReason: toolCalls.length > 0 ? "tool_calls" : "stop",
});
const doneWith = (content: string): FinishedTurn => ({
  state: "done",
  reply: {
    content,
    toolCalls: [],
    finishReason: "stop",
    model: "test-model",
    usage: { ...noUsage, inputTokens: 10, outputTokens: 5 },
    modelCalls: 1,
  },
});
const failed: FinishedTurn = { state: "failed", error: { code: "provider_error", message: "no" } };

let database: Database;
let uidIndex = 0;

beforeAll(async () => {
  database = await openDatabase({ ownerUrl: await freshDatabase(), log: quiet });
});
afterAll(async () => await database.close());

async function addTenant(name: string): Promise<TenantContext> {
  const context = someTenant(name);
  await database.withControl(
    async (tx) => await tx.execute("insert into tenant (id, os_uid_index) values ($1, $2)", [context.tenantId, uidIndex++]),
  );
  await database.createTenantSchema(context.tenantId);
  return context;
}

/** The repository of a new tenant, a transaction per call; `inGlobex` is another tenant's. */
async function stage() {
  const acme = await addTenant("acme");
  const openTurns = async () =>
    await database.withControl(
      async (tx) => await tx.query("select turn_id, lane, kind, attempts from control.open_turn where tenant_id = $1", [acme.tenantId]),
    );
  const as =
    (context: TenantContext) =>
    async <T>(work: (tx: TenantTx) => Promise<T>) =>
      await database.withTenant(context, work);
  return { acme, inAcme: as(acme), inGlobex: as(globex), openTurns };
}
let globex: TenantContext;
beforeAll(async () => {
  globex = await addTenant("globex");
});

const store = async (context: TenantContext, turn: TurnSubmission): Promise<boolean> =>
  await database.withTenant(context, async (tx) => await turns.insertTurn(tx, turn, turn.stateless ? "api.0" : turn.sessionId));
const rowOf = ({ turnId, sessionId }: TurnSubmission, more: Partial<UsageRow> = {}): UsageRow => ({
  id: callIdOf(turnId, 0),
  providerRequestId: "chatcmpl-1",
  atMs: Date.UTC(2026, 5, 3, 23, 59, 59, 999),
  sessionId,
  model: "test-model",
  usage,
  toolCalls: 2,
  costNanoUsd: 20_000n as NanoUsd,
  providerCostNanoUsd: 18_000n as NanoUsd,
  markupPpm: noMarkup,
  rateCardHash: "test" as RateCardHash,
  reason: "chat",
  ...more,
});

describe("a turn's row", () => {
  test("is stored once, with its line in the outbox and its session", async () => {
    const { acme, inAcme, openTurns } = await stage();
    const turn = someTurn("web:jane:default", "hello");

    const stored = [await store(acme, turn), await store(acme, { ...turn, request: { ...turn.request, model: "other" } })];

    expect(stored).toEqual([true, false]);
    expect(await openTurns()).toEqual([{ turn_id: turn.turnId, lane: "web:jane:default", kind: "chat", attempts: 0 }]);
    expect(await inAcme((tx) => tx.query("select id, channel from session"))).toEqual([{ id: "web:jane:default", channel: "web" }]);
    expect(await inAcme((tx) => turns.claimTurn(tx, turn.turnId))).toMatchObject({
      request: { model: "test-model" },
      mode: "agent",
      kind: "chat",
      stateless: false,
    });
  });

  test("of a stateless call makes no session", async () => {
    const { acme, inAcme } = await stage();
    const turn = someTurn("api:x:default", "hello", { stateless: true });

    await store(acme, turn);

    expect(await inAcme((tx) => turns.sessionExists(tx, turn.sessionId))).toBe(false);
  });

  test("is claimed as often as need be, and begins once", async () => {
    const { acme, inAcme } = await stage();
    const turn = someTurn("api:jane:default", "hello");
    await store(acme, turn);
    const startedAt = async () => (await inAcme((tx) => tx.query("select started_at from turn")))[0]?.["started_at"];

    const first = await inAcme((tx) => turns.claimTurn(tx, turn.turnId));
    const begun = await startedAt();
    const second = await inAcme((tx) => turns.claimTurn(tx, turn.turnId));

    expect(first).toEqual({ ...turn, state: "running", createdAtMs: expect.any(Number) });
    expect(Math.abs((first?.createdAtMs ?? 0) - Date.now())).toBeLessThan(60_000);
    expect(second).toEqual(first);
    expect(await startedAt()).toEqual(begun);
    expect(await inAcme((tx) => turns.claimTurn(tx, someTurn("api:x:default", "x").turnId))).toBeUndefined();
  });

  test("ends once: what came first stands, and the outbox forgets it", async () => {
    const { acme, inAcme, openTurns } = await stage();
    const turn = someTurn("api:jane:default", "hello");
    await store(acme, turn);
    const messages: ChatMessage[] = [
      { role: "user", content: "hello" },
      { role: "assistant", content: "hi" },
    ];

    const ended = await Promise.all(
      [doneWith("hi"), failed, doneWith("hi again")].map(async (end) => await inAcme((tx) => turns.finishTurn(tx, turn, end, messages))),
    );

    expect(ended.filter((isFirst) => isFirst)).toHaveLength(1);
    const standing = [doneWith("hi"), failed, doneWith("hi again")][ended.indexOf(true)];
    expect(await inAcme((tx) => turns.readFinishedTurn(tx, turn.turnId))).toEqual(standing);
    expect(await inAcme((tx) => turns.readTranscript(tx, turn.sessionId, 50))).toEqual(messages);
    expect(await openTurns()).toEqual([]);
    expect(await inAcme((tx) => turns.claimTurn(tx, turn.turnId))).toMatchObject({ state: standing?.state });
  });

  test("says nothing of its end before it has one", async () => {
    const { acme, inAcme } = await stage();
    const turn = someTurn("api:jane:default", "hello");
    const read = async () => await inAcme((tx) => turns.readFinishedTurn(tx, turn.turnId));

    expect(await read()).toBeUndefined();
    await store(acme, turn);
    expect(await read()).toBeUndefined();
    await inAcme((tx) => turns.claimTurn(tx, turn.turnId));
    expect(await read()).toBeUndefined();
  });

  test("ends together with what it is written with, or not at all", async () => {
    const { acme, inAcme, openTurns } = await stage();
    const turn = someTurn("api:jane:default", "hello");
    await store(acme, turn);

    const broken = inAcme(async (tx) => {
      await turns.finishTurn(tx, turn, doneWith("hi"), [{ role: "assistant", content: "hi" }]);
      throw new Error("the power went");
    });

    await expect(broken).rejects.toThrow("the power went");
    expect(await inAcme((tx) => turns.readFinishedTurn(tx, turn.turnId))).toBeUndefined();
    expect(await inAcme((tx) => turns.readTranscript(tx, turn.sessionId, 50))).toEqual([]);
    expect(await openTurns()).toHaveLength(1);
  });
});

describe("a turn that is taken back", () => {
  test("never begins, is told as unavailable, and leaves outbox and key", async () => {
    const { acme, inAcme, openTurns } = await stage();
    const turn = someTurn("api:jane:default", "hello");
    const claim = { keyHash: digest("key"), fingerprint: digest("body"), expiresAtMs: Date.now() + 60_000 };
    await inAcme((tx) => turns.claimIdempotencyKey(tx, turn.turnId, claim));
    await store(acme, turn);

    const taken = [await inAcme((tx) => turns.voidTurn(tx, turn.turnId)), await inAcme((tx) => turns.voidTurn(tx, turn.turnId))];

    expect(taken).toEqual([true, false]);
    expect(await inAcme((tx) => turns.claimTurn(tx, turn.turnId))).toMatchObject({ state: "void" });
    expect(await inAcme((tx) => turns.finishTurn(tx, turn, doneWith("hi"), []))).toBe(false);
    expect(await inAcme((tx) => turns.readFinishedTurn(tx, turn.turnId))).toMatchObject({
      state: "failed",
      error: { code: "unavailable" },
    });
    expect(await openTurns()).toEqual([]);
    const next = someTurn("api:jane:default", "hello");
    expect(await inAcme((tx) => turns.claimIdempotencyKey(tx, next.turnId, { ...claim, fingerprint: digest("another body") }))).toEqual({
      turnId: next.turnId,
      matches: true,
    });
  });

  test("is not, once it has begun or ended", async () => {
    const { acme, inAcme, openTurns } = await stage();
    const [running, ended] = [someTurn("api:a:default", "a"), someTurn("api:b:default", "b")];
    for (const turn of [running, ended]) await store(acme, turn);
    await inAcme((tx) => turns.claimTurn(tx, running.turnId));
    await inAcme((tx) => turns.finishTurn(tx, ended, doneWith("hi"), []));

    expect(await inAcme((tx) => turns.voidTurn(tx, running.turnId))).toBe(false);
    expect(await inAcme((tx) => turns.voidTurn(tx, ended.turnId))).toBe(false);
    expect(await openTurns()).toMatchObject([{ turn_id: running.turnId }]);
  });
});

const digest = (text: string): Uint8Array => createHash("sha256").update(text).digest();

describe("an idempotency key", () => {
  const [first, second] = [someTurn("api:a:default", "a").turnId, someTurn("api:a:default", "a").turnId];
  const claim = { keyHash: digest("key"), fingerprint: digest("body"), expiresAtMs: Date.now() + 60_000 };

  test("stands for its first turn, and knows another body", async () => {
    const { inAcme, inGlobex } = await stage();

    expect(await inAcme((tx) => turns.claimIdempotencyKey(tx, first, claim))).toEqual({ turnId: first, matches: true });
    expect(await inAcme((tx) => turns.claimIdempotencyKey(tx, second, claim))).toEqual({ turnId: first, matches: true });
    expect(await inAcme((tx) => turns.claimIdempotencyKey(tx, second, { ...claim, fingerprint: digest("other") }))).toEqual({
      turnId: first,
      matches: false,
    });
    expect(await inGlobex((tx) => turns.claimIdempotencyKey(tx, second, claim))).toEqual({ turnId: second, matches: true });
  });

  test("starts anew once it has expired", async () => {
    const { inAcme } = await stage();
    await inAcme((tx) => turns.claimIdempotencyKey(tx, first, { ...claim, expiresAtMs: Date.now() - 1 }));

    expect(await inAcme((tx) => turns.claimIdempotencyKey(tx, second, { ...claim, fingerprint: digest("other") }))).toEqual({
      turnId: second,
      matches: true,
    });
    expect(await inAcme((tx) => turns.claimIdempotencyKey(tx, first, claim))).toEqual({ turnId: second, matches: false });
  });

  test("of ten claims at once has one winner", async () => {
    const { inAcme } = await stage();
    const turnIds = Array.from({ length: 10 }, () => someTurn("api:a:default", "a").turnId);

    const claims = await Promise.all(turnIds.map(async (turnId) => await inAcme((tx) => turns.claimIdempotencyKey(tx, turnId, claim))));

    expect(new Set(claims.map(({ turnId }) => turnId)).size).toBe(1);
  });
});

describe("the journal of model calls", () => {
  async function openedTurn() {
    const opened = await stage();
    const turn = someTurn("api:jane:default", "hello");
    await store(opened.acme, turn);
    const open = async (step = 0) => await opened.inAcme((tx) => turns.openCall(tx, { turnId: turn.turnId, step, model: "test-model" }));
    const close = async (attempt: number, reply: ModelReply | undefined, step = 0) =>
      await opened.inAcme((tx) =>
        turns.closeCall(tx, {
          callId: callIdOf(turn.turnId, step),
          attempt,
          model: "test-model",
          reply,
          usage,
          providerRequestId: undefined,
        }),
      );
    return { ...opened, turn, open, close };
  }

  test("counts attempts, and only the newest may end the call, once", async () => {
    const { open, close, inAcme, turn } = await openedTurn();

    expect(await open()).toMatchObject({ attempt: 1 });
    expect(await open()).toMatchObject({ attempt: 2 });
    expect(await close(1, replyOf("late"))).toBe(false); // the first attempt was overtaken
    expect(await close(2, replyOf("answer"))).toBe(true);
    expect(await close(2, replyOf("again"))).toBe(false);

    expect(await open()).toEqual({ finished: { step: 0, model: "test-model", reply: replyOf("answer"), usage } });
    expect(await inAcme((tx) => turns.readCalls(tx, turn.turnId))).toHaveLength(1);
  });

  test("two attempts that end at the same time: one does", async () => {
    const { open, close } = await openedTurn();
    await open();

    const closed = await Promise.all(Array.from({ length: 5 }, async (_, place) => await close(1, replyOf(`answer ${place}`))));

    expect(closed.filter((isClosed) => isClosed)).toHaveLength(1);
  });

  test("a call that ended without a reply is not made again", async () => {
    const { open, close, inAcme, turn } = await openedTurn();
    await open(0);
    await close(1, undefined, 0); // failed after the provider had counted
    await open(1);
    await inAcme((tx) => turns.voidCall(tx, callIdOf(turn.turnId, 1), 1));
    await open(2);
    await inAcme((tx) => turns.voidOpenCalls(tx, turn.turnId));

    expect([await open(0), await open(1), await open(2)]).toEqual([{ voided: true }, { voided: true }, { voided: true }]);
    expect(await close(1, replyOf("too late"), 2)).toBe(false);
    expect(await inAcme((tx) => turns.readCalls(tx, turn.turnId))).toEqual([]);
  });

  test("an overtaken attempt voids nothing", async () => {
    const { open, close, inAcme, turn } = await openedTurn();
    await open();
    await open();

    await inAcme((tx) => turns.voidCall(tx, callIdOf(turn.turnId, 0), 1));

    expect(await close(2, replyOf("answer"))).toBe(true);
  });

  test("tool runs keep their first outcome and are read by step and place", async () => {
    const { open, close, inAcme, turn } = await openedTurn();
    await open();
    await close(1, replyOf("", [{ id: "call_a", name: "a", arguments: "{" }]));
    const call = { id: "call_a", name: "a", arguments: '{"n":\u0000' };
    const run = (step: number, n: number) => ({ turnId: turn.turnId, step, n });
    for (const [step, n] of [
      [1, 0],
      [0, 10],
      [0, 2],
    ] as const) {
      await inAcme((tx) => turns.openToolRun(tx, run(step, n), { ...call, arguments: "{" }));
      await inAcme((tx) => turns.settleToolRun(tx, run(step, n), { failed: n === 2, content: `${step}.${n}`, facts: {} }));
    }

    expect(await inAcme((tx) => turns.openToolRun(tx, run(0, 3), { ...call, arguments: "{" }))).toEqual({ state: "started", attempt: 1 });
    expect(await inAcme((tx) => turns.openToolRun(tx, run(0, 3), { ...call, arguments: "{" }))).toEqual({ state: "started", attempt: 2 });
    expect(await inAcme((tx) => turns.openToolRun(tx, run(0, 2), { ...call, arguments: "{" }))).toEqual({ state: "failed", attempt: 1 });
    await inAcme((tx) => turns.settleToolRun(tx, run(0, 2), { failed: false, content: "changed", facts: {} }));
    expect((await inAcme((tx) => turns.readToolRuns(tx, turn.turnId))).map(({ content }) => content)).toEqual(["0.2", "0.10", "1.0"]);
  });
});

describe("a bill", () => {
  test("is written once per call, and can be neither repeated nor changed", async () => {
    const { acme, inAcme, inGlobex } = await stage();
    const turn = someTurn("api:jane:default", "hello");
    await store(acme, turn);

    await inAcme((tx) => turns.recordUsage(tx, rowOf(turn)));

    await expect(inAcme((tx) => turns.recordUsage(tx, rowOf(turn)))).rejects.toMatchObject({ code: "23505" });
    await expect(inAcme((tx) => tx.execute("update control.usage_ledger set cost_nano_usd = 0"))).rejects.toMatchObject({ code: "42501" });
    expect(await inAcme((tx) => tx.query('select tenant_id, "timestamp", cost_nano_usd, tool_calls from control.usage_ledger'))).toEqual([
      { tenant_id: acme.tenantId, timestamp: new Date("2026-06-03T23:59:59.999Z"), cost_nano_usd: 20_000n, tool_calls: 2 },
    ]);
    expect(await inAcme((tx) => tx.query("select day, calls, tokens_in, tokens_out from control.usage_daily"))).toEqual([
      { day: "2026-06-03", calls: 1n, tokens_in: 10n, tokens_out: 5n },
    ]);
    expect(await inGlobex((tx) => tx.query("select id from control.usage_ledger"))).toEqual([]);
  });

  test("keeps money beyond what a double holds", async () => {
    const { acme, inAcme } = await stage();
    const turn = someTurn("api:jane:default", "hello");
    await store(acme, turn);

    await inAcme((tx) => turns.recordUsage(tx, rowOf(turn, { costNanoUsd: 9_007_199_254_740_993n as NanoUsd })));

    expect(await inAcme((tx) => tx.query("select cost_nano_usd from control.usage_ledger"))).toEqual([
      { cost_nano_usd: 9_007_199_254_740_993n },
    ]);
  });
});

describe("what was said", () => {
  /** The characters that Postgres refuses inside jsonb, and beside them some that must survive. */
  const hostile = "a\u0000b\uD83Dc\uDE00d🦞\u2028\uFFFF";
  const mended = "a\uFFFDb\uFFFDc\uFFFDd🦞\u2028\uFFFF";

  test("keeps every character but NUL and lone surrogates, which become U+FFFD", async () => {
    const { acme, inAcme } = await stage();
    const turn = someTurn("api:jane:default", hostile);
    await store(acme, turn);
    const row = await inAcme((tx) => turns.claimTurn(tx, turn.turnId));
    await inAcme((tx) => turns.openCall(tx, { turnId: turn.turnId, step: 0, model: "test-model" }));
    await inAcme((tx) =>
      turns.closeCall(tx, {
        callId: callIdOf(turn.turnId, 0),
        attempt: 1,
        model: "test-model",
        reply: replyOf(hostile),
        usage,
        providerRequestId: undefined,
      }),
    );
    const key = { turnId: turn.turnId, step: 0, n: 0 };
    await inAcme((tx) => turns.openToolRun(tx, key, { id: "call_a", name: "exec", arguments: "{}" }));
    await inAcme((tx) => turns.settleToolRun(tx, key, { failed: false, content: hostile, facts: { stderr: hostile } }));
    await inAcme((tx) =>
      turns.finishTurn(tx, turn, doneWith(hostile), [
        { role: "user", content: hostile },
        { role: "tool", toolCallId: hostile, content: hostile },
      ]),
    );

    expect(row?.request.messages).toEqual([{ role: "user", content: mended }]);
    expect((await inAcme((tx) => turns.readCalls(tx, turn.turnId)))[0]?.reply.content).toBe(mended);
    expect((await inAcme((tx) => turns.readToolRuns(tx, turn.turnId)))[0]?.content).toBe(mended);
    expect(await inAcme((tx) => turns.readFinishedTurn(tx, turn.turnId))).toMatchObject({ reply: { content: mended } });
    expect(await inAcme((tx) => turns.readTranscript(tx, turn.sessionId, 50))).toEqual([
      { role: "user", content: mended },
      { role: "tool", toolCallId: mended, content: mended },
    ]);
  });

  test("by a model in a tool call's id, name or arguments can be run and answered", async () => {
    const { acme, inAcme } = await stage();
    const turn = someTurn("api:jane:default", "hello");
    await store(acme, turn);
    const key = { turnId: turn.turnId, step: 0, n: 0 };
    const reply = replyOf("", [{ id: hostile, name: hostile, arguments: hostile }]);
    await inAcme((tx) => turns.openCall(tx, { turnId: turn.turnId, step: 0, model: "test-model" }));
    await inAcme((tx) =>
      turns.closeCall(tx, {
        callId: callIdOf(turn.turnId, 0),
        attempt: 1,
        model: "test-model",
        reply,
        usage,
        providerRequestId: undefined,
      }),
    );

    const [asked] = (await inAcme((tx) => turns.readCalls(tx, turn.turnId)))[0]?.reply.toolCalls ?? [];
    const opened = await inAcme((tx) => turns.openToolRun(tx, key, asked as ToolCall));

    expect(asked).toEqual({ id: mended, name: mended, arguments: mended });
    expect(opened).toEqual({ state: "started", attempt: 1 });
  });

  test("by a provider in its request id cannot keep the answer from being stored and billed", async () => {
    const { acme, inAcme } = await stage();
    const turn = someTurn("api:jane:default", "hello");
    await store(acme, turn);
    await inAcme((tx) => turns.openCall(tx, { turnId: turn.turnId, step: 0, model: "test-model" }));

    const closed = await inAcme(async (tx) => {
      const isClosed = await turns.closeCall(tx, {
        callId: callIdOf(turn.turnId, 0),
        attempt: 1,
        model: "test-model",
        reply: replyOf("hi"),
        usage,
        providerRequestId: hostile,
      });
      await turns.recordUsage(tx, rowOf(turn, { providerRequestId: hostile }));
      return isClosed;
    });

    expect(closed).toBe(true);
    expect(await inAcme((tx) => tx.query("select provider_request_id from control.usage_ledger"))).toEqual([
      { provider_request_id: mended },
    ]);
  });

  test("text that only looks like an escape stays what it is", async () => {
    const { acme, inAcme } = await stage();
    const turn = someTurn("api:jane:default", String.raw`\u0000 and \ud83d, C:\users`);

    await store(acme, turn);

    expect((await inAcme((tx) => turns.claimTurn(tx, turn.turnId)))?.request.messages).toEqual([
      { role: "user", content: String.raw`\u0000 and \ud83d, C:\users` },
    ]);
  });

  test("is read newest last, at most so many, in the order in which turns ended", async () => {
    const { acme, inAcme } = await stage();
    const session = "api:jane:default";
    const ended = Array.from({ length: 4 }, (_, place) => someTurn(session, `question ${place}`));
    for (const turn of ended) await store(acme, turn);

    for (const [place, turn] of ended.entries()) {
      await inAcme((tx) =>
        turns.finishTurn(tx, turn, doneWith("x"), [
          { role: "user", content: `question ${place}` },
          { role: "assistant", content: `answer ${place}` },
        ]),
      );
    }

    const read = async (limit: number) =>
      (await inAcme((tx) => turns.readTranscript(tx, session as SessionId, limit))).map(({ content }) => content);
    expect(await read(50)).toEqual(ended.flatMap((_, place) => [`question ${place}`, `answer ${place}`]));
    expect(await read(3)).toEqual(["answer 2", "question 3", "answer 3"]);
  });

  test("by turns that end at the same time is not mixed", async () => {
    const { acme, inAcme } = await stage();
    const ended = Array.from({ length: 8 }, (_, place) => someTurn("api:crowd:default", `${place}`));
    for (const turn of ended) await store(acme, turn);

    await Promise.all(
      ended.map(
        async (turn, place) =>
          await inAcme((tx) =>
            turns.finishTurn(tx, turn, doneWith("x"), [
              { role: "user", content: `q${place}` },
              { role: "assistant", content: `a${place}` },
            ]),
          ),
      ),
    );

    const texts = (await inAcme((tx) => turns.readTranscript(tx, "api:crowd:default" as SessionId, 50))).map(({ content }) =>
      String(content),
    );
    expect(texts).toHaveLength(16);
    for (let place = 0; place < 16; place += 2) expect(texts[place + 1]).toBe(texts[place]?.replace("q", "a"));
  });
});

test("another tenant finds nothing, ends nothing and takes nothing back, though it knows every id", async () => {
  const { acme, inAcme, inGlobex, openTurns } = await stage();
  const turn = someTurn("api:jane:default", "a secret");
  await store(acme, turn);
  await inAcme((tx) => turns.openCall(tx, { turnId: turn.turnId, step: 0, model: "test-model" }));
  await inAcme((tx) =>
    turns.closeCall(tx, {
      callId: callIdOf(turn.turnId, 0),
      attempt: 1,
      model: "test-model",
      reply: replyOf("hidden"),
      usage,
      providerRequestId: undefined,
    }),
  );

  expect(await inGlobex((tx) => turns.claimTurn(tx, turn.turnId))).toBeUndefined();
  expect(await inGlobex((tx) => turns.readCalls(tx, turn.turnId))).toEqual([]);
  expect(await inGlobex((tx) => turns.sessionExists(tx, turn.sessionId))).toBe(false);
  expect(await inGlobex((tx) => turns.voidTurn(tx, turn.turnId))).toBe(false);
  expect(await inGlobex((tx) => turns.finishTurn(tx, turn, failed, []))).toBe(false);
  expect(await inGlobex((tx) => tx.execute("delete from control.open_turn"))).toBe(0);
  expect(await openTurns()).toHaveLength(1);

  await inAcme((tx) => turns.finishTurn(tx, turn, doneWith("hidden"), [{ role: "assistant", content: "hidden" }]));
  expect(await inGlobex((tx) => turns.readFinishedTurn(tx, turn.turnId))).toBeUndefined();
  expect(await inGlobex((tx) => turns.readTranscript(tx, turn.sessionId, 50))).toEqual([]);
});
