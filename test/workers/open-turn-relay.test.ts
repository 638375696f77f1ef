import { afterAll, beforeAll, expect, test } from "vitest";
import type { TenantContext } from "../../domain/tenant.ts";
import type { FinishedTurn, TurnSubmission } from "../../domain/turn.ts";
import { takeOpenTurns } from "../../storage/open-turn-repository.ts";
import { insertTurn, readFinishedTurn } from "../../storage/turn-repository.ts";
import type { TenantClient } from "../../temporal/tenant-client.ts";
import { type OpenTurnRelayOptions, startOpenTurnRelay } from "../../workers/open-turn-relay.ts";
import { type TurnStack, quiet, scriptedProvider, someTurn, startTurnStack, someStatelessTurn } from "../turn-stack.ts";

const held = new Map<string, { readonly arrived: PromiseWithResolvers<void>; readonly release: PromiseWithResolvers<void> }>();
const provider = scriptedProvider(async ({ messages }) => {
  const question = String(messages.at(-1)?.content);
  held.get(question)?.arrived.resolve();
  await held.get(question)?.release.promise;
  return { text: `you said ${question}` };
});
const callsOf = ({ turnId }: TurnSubmission) => provider.calls.filter(({ callId }) => callId.startsWith(turnId));

let stack: TurnStack;
let acme: TenantContext;
let globex: TenantContext;

beforeAll(async () => {
  stack = await startTurnStack({ provider });
  acme = await stack.addTenant("acme");
  globex = await stack.addTenant("globex");
});
afterAll(async () => await stack.close());

/** Stores a turn as a process would that dies before it hands the turn over. */
async function store(turn: TurnSubmission, context = acme): Promise<void> {
  await stack.database.withTenant(context, async (tx) => await insertTurn(tx, turn, turn.stateless ? "api.0" : turn.sessionId));
}
const startRelay = (more: Partial<OpenTurnRelayOptions> = {}) =>
  startOpenTurnRelay({ database: stack.database, clientOf: stack.clientOf, wake: stack.pool.wake, log: quiet, ...more });
/** One sweep over all open turns, as at a process's start. */
const sweep = async (more: Partial<OpenTurnRelayOptions> = {}): Promise<void> => await startRelay(more).stop();

const endOf = ({ turnId }: TurnSubmission): Promise<void> => {
  const { promise, resolve } = Promise.withResolvers<void>();
  stack.bus.subscribe(turnId, ({ type }) => void (type === "finished" && resolve()));
  return promise;
};
const rowOf = async ({ turnId }: TurnSubmission, context = acme): Promise<FinishedTurn | undefined> =>
  await stack.database.withTenant(context, async (tx) => await readFinishedTurn(tx, turnId));
const ledgerOf = async ({ turnId }: TurnSubmission) =>
  await stack.database.withTenant(
    acme,
    async (tx) => await tx.query("select id from control.usage_ledger where id like $1", [`${turnId}.%`]),
  );
const outboxOf = async ({ turnId }: TurnSubmission) =>
  (
    await stack.database.withControl(
      async (tx) =>
        await tx.query("select attempts, extract(epoch from due_at - now())::float8 as due_in from control.open_turn where turn_id = $1", [
          turnId,
        ]),
    )
  )[0] as { attempts: number; due_in: number | null } | undefined;
const forget = async (...turns: readonly TurnSubmission[]): Promise<void> => {
  await stack.database.withControl(
    async (tx) => await tx.execute("delete from control.open_turn where turn_id = any($1)", [turns.map(({ turnId }) => turnId)]),
  );
};
const unreachable = async (): Promise<never> => await Promise.reject(new Error("14 UNAVAILABLE"));

test("a turn that was stored and never handed over is run: of a session, of the pool, of every tenant", async () => {
  const turns = [someTurn("api:relayed:default", "in a session"), someStatelessTurn("stateless")];
  const foreign = someTurn("api:relayed:default", "elsewhere");
  await Promise.all([...turns.map(async (turn) => await store(turn)), store(foreign, globex)]);
  const ends = [...turns, foreign].map(endOf);

  await sweep();
  await Promise.all(ends);

  expect(await Promise.all(turns.map(async (turn) => await rowOf(turn)))).toMatchObject([
    { reply: { content: "you said in a session" } },
    { reply: { content: "you said stateless" } },
  ]);
  expect(await rowOf(foreign, globex)).toMatchObject({ reply: { content: "you said elsewhere" } });
  expect(await Promise.all([...turns, foreign].map(outboxOf))).toEqual([undefined, undefined, undefined]);
});

test("a turn that is on its way is not run twice by being sent again", async () => {
  const turn = someTurn("api:twice:default", "hold on");
  const arrived = Promise.withResolvers<void>();
  const release = Promise.withResolvers<void>();
  held.set("hold on", { arrived, release });
  await store(turn);
  await stack.pool.wake(acme.tenantId);
  const verdict = stack.clientOf(acme.tenantId).submitTurn({ sessionId: turn.sessionId }, turn);
  await arrived.promise;

  await sweep();
  await sweep();
  release.resolve();

  expect(await verdict).toEqual({ state: "done" });
  expect(callsOf(turn)).toHaveLength(1);
  expect(await ledgerOf(turn)).toHaveLength(1);
});

test("a lane that an operator terminates in the middle of a turn: the turn still ends, once, and the session goes on", async () => {
  const turn = someTurn("api:terminated:default", "hold and terminate");
  const arrived = Promise.withResolvers<void>();
  const release = Promise.withResolvers<void>();
  held.set("hold and terminate", { arrived, release });
  await store(turn);
  await stack.pool.wake(acme.tenantId);
  const ends: string[] = [];
  stack.bus.subscribe(turn.turnId, ({ type }) => void (type === "finished" && ends.push(type)));
  await stack.clientOf(acme.tenantId).sendTurn({ sessionId: turn.sessionId }, turn);
  await arrived.promise;
  const lane = stack.connection.client.workflow.getHandle(`turn:${acme.tenantId}:${turn.sessionId}`);

  await lane.terminate("an operator did it");
  await sweep();
  await expect
    .poll(async () => (await stack.clientOf(acme.tenantId).laneState({ sessionId: turn.sessionId }))?.running)
    .toEqual([turn.turnId]);
  release.resolve();

  await lane.result(); // the new run closes when it is idle
  expect(await rowOf(turn)).toMatchObject({ state: "done", reply: { content: "you said hold and terminate", modelCalls: 1 } });
  expect(callsOf(turn)).toHaveLength(1);
  expect(await ledgerOf(turn)).toHaveLength(1);
  expect(await outboxOf(turn)).toBeUndefined();
  const next = someTurn("api:terminated:default", "and now?");
  await store(next);
  expect(await stack.clientOf(acme.tenantId).submitTurn({ sessionId: next.sessionId }, next)).toEqual({ state: "done" });
});

test("each sending puts the next one off: 15 s, 30 s, 60 s, up to 10 minutes", async () => {
  const turn = someTurn("api:backs-off:default", "later");
  await store(turn);
  const before = await outboxOf(turn);
  const seen: (number | undefined)[][] = [];

  for (let sweeps = 0; sweeps < 8; sweeps++) {
    await sweep({ wake: unreachable });
    const row = await outboxOf(turn);
    seen.push([row?.attempts, Math.round((row?.due_in ?? 0) / 5) * 5]);
  }
  await forget(turn);

  expect(before).toEqual({ attempts: 0, due_in: null });
  expect(seen).toEqual([
    [1, 15],
    [2, 30],
    [3, 60],
    [4, 120],
    [5, 240],
    [6, 480],
    [7, 600],
    [8, 600],
  ]);
  expect(callsOf(turn)).toEqual([]);
});

test("a turn that was just handed in, or is not due yet, is left alone while the relay runs", async () => {
  const [young, notDue, due] = [
    someTurn("api:young:default", "young"),
    someTurn("api:not-due:default", "not due"),
    someTurn("api:due:default", "due"),
  ];
  const relay = startRelay({ intervalMs: 20 });
  const ended = endOf(due);

  // One transaction, so that no sweep of the relay sees the turns before they have their age.
  await stack.database.withTenant(acme, async (tx) => {
    for (const turn of [young, notDue, due]) await insertTurn(tx, turn, turn.sessionId);
    await tx.execute("update control.open_turn set created_at = now() - interval '1 minute' where turn_id = any($1)", [
      [notDue.turnId, due.turnId],
    ]);
    await tx.execute("update control.open_turn set due_at = now() + interval '1 minute' where turn_id = $1", [notDue.turnId]);
  });
  await ended;
  await relay.stop();

  expect(await rowOf(due)).toMatchObject({ state: "done" });
  expect(await outboxOf(young)).toMatchObject({ attempts: 0 });
  expect(await outboxOf(notDue)).toMatchObject({ attempts: 0 });
  await forget(young, notDue);
});

test("one tenant that cannot be served keeps nobody else waiting", async () => {
  const [mine, theirs] = [someTurn("api:served:default", "mine"), someTurn("api:unserved:default", "theirs")];
  await store(mine);
  await store(theirs, globex);
  const ended = endOf(mine);
  const logged: string[] = [];

  await sweep({
    wake: async (tenantId) => await (tenantId === globex.tenantId ? unreachable() : stack.pool.wake(tenantId)),
    log: (message) => void logged.push(message),
  });
  await ended;

  expect(await outboxOf(theirs)).toMatchObject({ attempts: 1 });
  expect(logged.toSorted()).toEqual(["an open turn was not sent", "an open turn was sent to its lane again"]);
  await forget(theirs);
});

test("a lane is suspected of being stuck from the third sending on, and ended before the turn is sent again", async () => {
  const turn = someTurn("api:stuck:default", "stuck");
  await store(turn);
  const did: string[] = [];
  const watched = (real: TenantClient): TenantClient => ({
    ...real,
    endStuckLane: async () => did.push("end") > 0,
    sendTurn: async () => void did.push("send"),
  });

  for (let sweeps = 0; sweeps < 4; sweeps++) await sweep({ clientOf: (tenantId) => watched(stack.clientOf(tenantId)) });
  await forget(turn);

  expect(did).toEqual(["send", "send", "end", "send", "end", "send"]);
});

test("two relays at once share the open turns between them", async () => {
  const turns = Array.from({ length: 6 }, (_, place) => someTurn(`api:share-${place}:default`, "x"));
  for (const turn of turns) await store(turn);
  const ids = turns.map(({ turnId }) => turnId).toSorted();

  const [one, other] = await stack.database.withControl(async (tx) => {
    const taken = await takeOpenTurns(tx, 0);
    return [taken, await stack.database.withControl(async (second) => await takeOpenTurns(second, 0))] as const; // while the first still holds its own
  });
  await forget(...turns);

  expect(one.map(({ turnId }) => turnId).toSorted()).toEqual(ids);
  expect(other).toEqual([]);
});
