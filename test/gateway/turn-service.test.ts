import { noFiles } from "./scripted-turns.ts";
import { once } from "node:events";
import { request as httpRequest } from "node:http";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { SessionId } from "../../domain/session-id.ts";
import type { TenantContext } from "../../domain/tenant.ts";
import type { TurnSubmission } from "../../domain/turn.ts";
import { createChatRoutes } from "../../gateway/chat-routes.ts";
import { type Idempotency, type TurnService, createTurnService } from "../../gateway/turn-service.ts";
import { createTurnSlots } from "../../gateway/turn-slots.ts";
import { readFinishedTurn, readTranscript } from "../../storage/turn-repository.ts";
import { createInProcessTokenBus } from "../../streams/in-process-token-bus.ts";
import type { TurnEvent } from "../../streams/token-bus.ts";
import { type TenantClient, forTenant } from "../../temporal/tenant-client.ts";
import { startOpenTurnRelay } from "../../workers/open-turn-relay.ts";
import { type TurnStack, quiet, scriptedProvider, someTurn, startTurnStack, someStatelessTurn } from "../turn-stack.ts";
import { overlaysOf, someOverlay } from "../control-plane/some-overlay.ts";
import { gatewayStage, listening, steadyTokens } from "./gateway-stage.ts";

/** Calls that wait in the model until the test lets them go, by the text of their question. */
const held = new Map<string, { readonly arrived: PromiseWithResolvers<void>; readonly release: PromiseWithResolvers<void> }>();
const hold = (text: string) => {
  const entry = { arrived: Promise.withResolvers<void>(), release: Promise.withResolvers<void>() };
  held.set(text, entry);
  return entry;
};

const provider = scriptedProvider(async ({ messages }) => {
  const question = String(messages.at(-1)?.content);
  held.get(question)?.arrived.resolve();
  await held.get(question)?.release.promise;
  return { text: `you said ${question}` };
});
const callsOf = ({ turnId }: { readonly turnId: string }) => provider.calls.filter(({ callId }) => callId.startsWith(turnId));

let stack: TurnStack;
let acme: TenantContext;
let globex: TenantContext;
let turns: TurnService;

const serviceOf = (
  parts: {
    clientOf?: (real: TenantClient) => TenantClient;
    wake?: () => Promise<void>;
    slotsPerTenant?: number;
    bus?: TurnStack["bus"];
  } = {},
): TurnService =>
  createTurnService({
    database: stack.database,
    bus: parts.bus ?? stack.bus,
    slots: createTurnSlots({ slots: 1_000, slotsPerTenant: parts.slotsPerTenant ?? 64, waitMs: 50 }),
    clientOf: (tenantId) => (parts.clientOf ?? ((real) => real))(stack.clientOf(tenantId)),
    wake: parts.wake ?? stack.pool.wake,
    quota: stack.quota,
    log: quiet,
  });

beforeAll(async () => {
  stack = await startTurnStack({ provider });
  acme = await stack.addTenant("acme");
  globex = await stack.addTenant("globex");
  turns = serviceOf();
});
afterAll(async () => await stack.close());

const answerOf = async (turn: TurnSubmission, service: TurnService = turns, context: TenantContext = acme, idempotency?: Idempotency) =>
  await (
    await service.submit(context, turn, idempotency)
  ).finished;
const rowsOf = async (sql: string, ...values: readonly unknown[]) =>
  await stack.database.withTenant(acme, async (tx) => await tx.query(sql, values));
const stateOf = async ({ turnId }: TurnSubmission) => (await rowsOf("select state from turn where id = $1", turnId))[0]?.["state"];
const ledgerOf = async ({ turnId }: { readonly turnId: string }) =>
  await rowsOf("select id from control.usage_ledger where id like $1", `${turnId}.%`);

describe("a submitted turn", () => {
  test("shows its words as they come and ends with what its row says", async () => {
    const turn = someTurn("api:plain:default", "good morning");
    const seen: TurnEvent[] = [];

    const running = await turns.submit(acme, turn);
    running.onEvent((event) => seen.push(event));
    const finished = await running.finished;

    expect(running.turnId).toBe(turn.turnId);
    expect(finished).toMatchObject({ state: "done", reply: { content: "you said good morning", modelCalls: 1 } });
    expect(finished).toEqual(await stack.database.withTenant(acme, async (tx) => await readFinishedTurn(tx, turn.turnId)));
    expect(seen.flatMap((event) => (event.type === "text" ? [event.text] : [])).join("")).toBe("you said good morning");
    expect(seen.at(-1)).toMatchObject({ type: "finished" });
    expect(await ledgerOf(turn)).toHaveLength(1);
  });

  test("keeps the events that came before anyone listened", async () => {
    const running = await turns.submit(acme, someStatelessTurn("early"));
    await running.finished;
    const seen: string[] = [];

    running.onEvent((event) => seen.push(event.type === "text" ? event.text : event.type));

    expect(seen).toEqual(["you ", "said ", "early", "finished"]);
  });

  test("leaves no session behind when it is stateless, and is found by its session when it is not", async () => {
    const turn = someStatelessTurn("no trace");
    await Promise.all([answerOf(turn), answerOf(someTurn("api:found:default", "trace"))]);

    expect(await turns.hasSession(acme, turn.sessionId)).toBe(false);
    expect(await turns.hasSession(acme, "api:found:default" as SessionId)).toBe(true);
    expect(await turns.hasSession(globex, "api:found:default" as SessionId)).toBe(false);
  });

  test("is answered when its lane moves to a new run before it has begun", async () => {
    const oneTurnPerRun = (tenantId: TenantContext["tenantId"]): TenantClient =>
      forTenant({ tenantId }, stack.connection, { windowMs: 2_000, modelCall: "remote", turnsPerRun: 1 });
    const moving = serviceOf({ clientOf: () => oneTurnPerRun(acme.tenantId) });
    const { arrived, release } = hold("hold while the lane moves");
    const first = answerOf(someTurn("api:moves:default", "hold while the lane moves"), moving);
    await arrived.promise;

    const second = await moving.submit(acme, someTurn("api:moves:default", "carried over"));
    await expect
      .poll(async () => (await oneTurnPerRun(acme.tenantId).laneState({ sessionId: "api:moves:default" as SessionId }))?.waiting)
      .toEqual([second.turnId]);
    release.resolve();

    expect(await first).toMatchObject({ state: "done" });
    expect(await second.finished).toMatchObject({ state: "done", reply: { content: "you said carried over" } });
    expect(callsOf(second)).toHaveLength(1);
  });

  test("beyond the tenant's slots waits, and is refused in time without a trace", async () => {
    const narrow = serviceOf({ slotsPerTenant: 1 });
    const { arrived, release } = hold("hold the only slot");
    const first = answerOf(someStatelessTurn("hold the only slot"), narrow);
    await arrived.promise;
    const second = someStatelessTurn("no room");

    await expect(narrow.submit(acme, second)).rejects.toMatchObject({ code: "unavailable", client: { retryAfterSeconds: 5 } });

    expect(await stateOf(second)).toBeUndefined();
    expect((await answerOf(someStatelessTurn("hello"), narrow, globex)).state).toBe("done"); // the other tenant's slots are its own
    release.resolve();
    expect((await first).state).toBe("done");
    expect((await answerOf(someStatelessTurn("room again"), narrow)).state).toBe("done");
  });

  test("keeps its slot until its answer has been taken", async () => {
    const service = serviceOf({ slotsPerTenant: 1 });
    const { promise: taken, resolve: take } = Promise.withResolvers<void>();
    const unread = await service.submit(acme, someStatelessTurn("unread"));
    unread.holdSlotUntil(taken);
    await unread.finished;

    await expect(service.submit(acme, someStatelessTurn("behind it"))).rejects.toMatchObject({ code: "unavailable" });
    take();
    expect(await answerOf(someStatelessTurn("after it"), service)).toMatchObject({ state: "done" });
  });

  test("that cannot be stored gives its slot back", async () => {
    const narrow = serviceOf({ slotsPerTenant: 1 });
    const broken = { ...someStatelessTurn("x"), sessionId: undefined as never };
    await expect(narrow.submit(acme, broken)).rejects.toThrow();

    expect((await answerOf(someStatelessTurn("after all"), narrow)).state).toBe("done");
  });
});

describe("an Idempotency-Key", () => {
  const withKey = (key: string, body: unknown = { a: 1 }): Idempotency => ({ key, body });

  test("gives a repeat the same turn and the stored answer, without a second call", async () => {
    const first = someStatelessTurn("only once");
    const again = someStatelessTurn("only once");
    const answer = await answerOf(first, turns, acme, withKey("repeat"));

    const running = await turns.submit(acme, again, withKey("repeat"));

    expect(running.turnId).toBe(first.turnId);
    expect(await running.finished).toEqual(answer);
    expect(callsOf(again)).toEqual([]);
    expect(await stateOf(again)).toBeUndefined();
    expect(await ledgerOf(first)).toHaveLength(1);
  });

  test("lets a repeat join a turn that still runs", async () => {
    const { arrived, release } = hold("hold and join");
    const first = someStatelessTurn("hold and join");
    const running = await turns.submit(acme, first, withKey("join"));
    await arrived.promise;

    const joined = await turns.submit(acme, someStatelessTurn("hold and join"), withKey("join"));
    const words: string[] = [];
    joined.onEvent((event) => words.push(event.type));
    release.resolve();

    expect(await joined.finished).toEqual(await running.finished);
    expect(words).toContain("text"); // the joined caller sees the same words
    expect(callsOf(first)).toHaveLength(1);
  });

  test("with another body is a conflict, and nothing runs", async () => {
    await answerOf(someStatelessTurn("one body"), turns, acme, withKey("mismatch", { a: 1 }));
    const other = someStatelessTurn("another body");

    await expect(turns.submit(acme, other, withKey("mismatch", { a: 2 }))).rejects.toMatchObject({ code: "idempotency_mismatch" });

    expect(await stateOf(other)).toBeUndefined();
    expect(callsOf(other)).toEqual([]);
  });

  test("is forgotten after its 24 hours", async () => {
    const first = someStatelessTurn("yesterday");
    await answerOf(first, turns, acme, withKey("expired"));
    const [claim] = await rowsOf("select expires_at from idempotency_key where turn_id = $1", first.turnId);
    const hours = ((claim?.["expires_at"] as Date).getTime() - Date.now()) / 3_600_000;
    expect(hours).toBeGreaterThan(23.9);
    expect(hours).toBeLessThanOrEqual(24);
    await rowsOf("update idempotency_key set expires_at = now() - interval '1 second' where turn_id = $1 returning 1", first.turnId);

    const running = await turns.submit(acme, someStatelessTurn("today"), withKey("expired", { b: 2 }));

    expect(running.turnId).not.toBe(first.turnId);
    expect(await running.finished).toMatchObject({ reply: { content: "you said today" } });
  });

  test("is the tenant's own: another tenant's same key is another turn", async () => {
    const [mine, theirs] = [someStatelessTurn("mine"), someStatelessTurn("theirs")];

    const answers = await Promise.all([
      answerOf(mine, turns, acme, withKey("shared", { a: 1 })),
      answerOf(theirs, turns, globex, withKey("shared", { a: 2 })),
    ]);

    expect(answers).toMatchObject([{ reply: { content: "you said mine" } }, { reply: { content: "you said theirs" } }]);
  });

  test("of twenty calls at once runs one turn, and all get its answer", async () => {
    const submissions = Array.from({ length: 20 }, () => someStatelessTurn("all at once"));

    const running = await Promise.all(submissions.map(async (turn) => await turns.submit(acme, turn, withKey("crowd"))));
    const answers = await Promise.all(running.map(async ({ finished }) => await finished));

    expect(new Set(running.map(({ turnId }) => turnId)).size).toBe(1);
    expect(answers).toEqual(answers.map(() => answers[0]));
    expect(answers[0]).toMatchObject({ state: "done", reply: { content: "you said all at once" } });
    expect(submissions.flatMap(callsOf)).toHaveLength(1);
  });
});

describe("while Temporal is away or silent", () => {
  const away = async (): Promise<never> => await Promise.reject(new Error("14 UNAVAILABLE: no connection established"));
  const unreachable = (real: TenantClient): TenantClient => ({ ...real, offerTurn: away });

  // These wait for time-outs of 5 and 10 s: side by side, and no more of them than run at once.
  test.concurrent("a turn is told by its row when the process that ran it cannot send events here", async () => {
    const deaf = serviceOf({ bus: createInProcessTokenBus() });

    expect(await answerOf(someStatelessTurn("over there"), deaf)).toMatchObject({
      state: "done",
      reply: { content: "you said over there" },
    });
  });

  test.concurrent("a turn is taken back: its caller is told to come again, and it never runs", async () => {
    const turn = someTurn("api:away:default", "lost words");
    const service = serviceOf({ clientOf: unreachable });

    await expect(answerOf(turn, service)).rejects.toMatchObject({ code: "unavailable", client: { retryAfterSeconds: 5 } });

    expect(await stateOf(turn)).toBe("void");
    const relay = startOpenTurnRelay({ database: stack.database, clientOf: stack.clientOf, wake: stack.pool.wake, log: quiet });
    await relay.stop(); // its first sweep is over: it found nothing to send
    await stack.pool.wake(acme.tenantId);
    const verdict = await stack.clientOf(acme.tenantId).submitTurn({ sessionId: turn.sessionId }, turn); // nor does a late delivery run it
    expect(verdict).toEqual({ state: "aborted", code: "turn_aborted" });
    expect(callsOf(turn)).toEqual([]);
    expect(await ledgerOf(turn)).toEqual([]);
  });

  test.concurrent("a repeat that joined a turn which was taken back is told as well, and the key is free again", async () => {
    const service = serviceOf({ clientOf: unreachable });
    const key = { key: "joined-and-lost", body: {} };
    const first = await service.submit(acme, someStatelessTurn("lost"), key);
    const joined = await service.submit(acme, someStatelessTurn("lost"), key);

    await expect(first.finished).rejects.toMatchObject({ code: "unavailable" });

    expect(await joined.finished).toMatchObject({ state: "failed", error: { code: "unavailable" } });
    expect(await answerOf(someStatelessTurn("second try"), turns, acme, key)).toMatchObject({ reply: { content: "you said second try" } });
  });

  test.concurrent("a turn that runs is never taken back, however long nobody can ask about it", async () => {
    const { arrived, release } = hold("hold through the outage");
    const turn = someStatelessTurn("hold through the outage");
    const service = serviceOf({
      clientOf: (real) => ({
        ...real,
        async offerTurn(lane, ticket) {
          await real.sendTurn(lane, ticket);
          await away();
        },
      }),
    });
    const running = await service.submit(acme, turn);
    await arrived.promise;
    const told = await Promise.race([running.finished, new Promise((resolve) => setTimeout(resolve, 12_000, "nothing yet"))]); // beyond the 10 s of the hand-over
    release.resolve();

    expect(told).toBe("nothing yet");
    expect(await running.finished).toMatchObject({ state: "done", reply: { content: "you said hold through the outage" } });
    expect(callsOf(turn)).toHaveLength(1);
  });

  test.concurrent("and no worker can be started, it is the same", async () => {
    const turn = someStatelessTurn("nobody there");
    const service = serviceOf({ wake: async () => await Promise.reject(new Error("the server is draining")) });

    await expect(answerOf(turn, service)).rejects.toMatchObject({ code: "unavailable" });
    expect(await stateOf(turn)).toBe("void");
  });

  test("a turn is handed over as soon as it is back", async () => {
    let failures = 3;
    const service = serviceOf({
      clientOf: (real) => ({ ...real, offerTurn: async (lane, ticket) => await (failures-- > 0 ? away() : real.offerTurn(lane, ticket)) }),
    });
    const turn = someStatelessTurn("in the end");

    expect(await answerOf(turn, service)).toMatchObject({ state: "done", reply: { content: "you said in the end" } });
    expect(callsOf(turn)).toHaveLength(1);
  });

  test("a turn whose hand-over was lost on its way back runs once and is answered", async () => {
    let isLost = false;
    const service = serviceOf({
      clientOf: (real) => ({
        ...real,
        async offerTurn(lane, ticket) {
          await real.offerTurn(lane, ticket);
          if (isLost) return;
          isLost = true;
          await away();
        },
      }),
      bus: createInProcessTokenBus(), // no event tells: the second offer's row does
    });
    const turn = someTurn("api:lost-answer:default", "twice sent");

    expect(await answerOf(turn, service)).toMatchObject({ state: "done", reply: { content: "you said twice sent" } });
    expect(callsOf(turn)).toHaveLength(1);
    expect(await ledgerOf(turn)).toHaveLength(1);
  });
});

test("a caller that hangs up changes nothing: the turn goes on, is billed and remembered", async () => {
  const { app } = await gatewayStage(
    createChatRoutes({
      turns,
      tokens: steadyTokens,
      overlays: overlaysOf(someOverlay("")),
      resolveModel: () => "test-model",
      inputFiles: noFiles,
    }),
    async () => ({
      kind: "tenant",
      tenantId: acme.tenantId,
      displayName: undefined,
      tokenHashPrefix: "00000000",
      tokenEpoch: 1,
    }),
  );
  const { port } = await listening(app);
  const connected = once(app.server, "connection");
  const { arrived, release } = hold("hold and hang up");
  const call = httpRequest({
    port,
    host: "127.0.0.1",
    method: "POST",
    path: "/v1/chat/completions",
    headers: { authorization: "Bearer acme", "content-type": "application/json", "x-openclaw-session": "api:hangs-up:default" },
  });
  call.on("error", () => undefined);
  call.end(JSON.stringify({ model: "m", stream: true, messages: [{ role: "user", content: "hold and hang up" }] }));
  const [[serverSide]] = await Promise.all([connected, arrived.promise]);

  const gone = once(serverSide, "close");
  call.destroy();
  await gone;
  release.resolve();

  const transcript = async () =>
    await stack.database.withTenant(acme, async (tx) => await readTranscript(tx, "api:hangs-up:default" as SessionId, 10));
  await expect.poll(transcript, { timeout: 10_000 }).toEqual([
    { role: "user", content: "hold and hang up" },
    { role: "assistant", content: "you said hold and hang up" },
  ]);
  expect(await rowsOf("select input_tokens from control.usage_ledger where session_id = 'api:hangs-up:default'")).toEqual([
    { input_tokens: 10n },
  ]);
});
