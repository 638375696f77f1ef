import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import type { TenantContext } from "../../domain/tenant.ts";
import { statelessSessionOf } from "../../domain/session-id.ts";
import type { TurnSubmission } from "../../domain/turn.ts";
import { insertTurn } from "../../storage/turn-repository.ts";
import { type Lane, laneNameOf } from "../../temporal/tenant-client.ts";
import { runSql } from "../storage/fresh-database.ts";
import { type TurnStack, scriptedProvider, someTurn, startTurnStack } from "../turn-stack.ts";
import { raceLane } from "./lane-race.ts";

const lanes = 40;
const turnsPerLane = 50;
/** Every tenth turn is a stateless one, of a lane of the pool. */
const poolLanes = 4;
const sendingMs = 45_000;
const killsAtMs = [8_000, 20_000, 32_000];

let stack: TurnStack;
let tenant: TenantContext;
let worker: ChildProcess;

/** The serving process is another one; this one only submits, so it needs no model. */
const nobody = scriptedProvider(async () => {
  throw new Error("the submitting process serves no turn");
});

beforeAll(async () => {
  stack = await startTurnStack({ provider: nobody, lane: raceLane });
  tenant = await stack.addTenant("race");
  await runSql(
    stack.ownerUrl,
    `create table public.race_call (id bigint generated always as identity, call_id text not null, session text not null, pid int not null,
       begun_at timestamptz not null default clock_timestamp(), ended_at timestamptz)`,
  );
  worker = await startWorker();
});
afterAll(async () => {
  worker.kill("SIGKILL");
  await stack.close();
});

/** Without the relay, which would send again what a lane had lost: only the sender repeats, as a gateway does. */
async function startWorker(): Promise<ChildProcess> {
  const script = fileURLToPath(new URL("lane-race-worker.ts", import.meta.url));
  const child = spawn(process.execPath, [script, stack.ownerUrl, inject("temporalAddress"), inject("bundleDirectory"), tenant.tenantId], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  await once(child.stdout, "data");
  return child;
}

const sleep = async (ms: number): Promise<void> => await new Promise((resolve) => setTimeout(resolve, ms));

/** Sends a turn as the gateway does, by Update or by signal, with the same id again after an error. */
async function send(lane: Lane, turn: TurnSubmission, how: "update" | "signal"): Promise<void> {
  await stack.database.withTenant(tenant, async (tx) => await insertTurn(tx, turn, laneNameOf(lane)));
  const client = stack.clientOf(tenant.tenantId);
  for (let attempt = 0; attempt < 100; attempt++) {
    try {
      if (how === "signal") return await client.sendTurn(lane, turn);
      const verdict = await client.submitTurn(lane, turn);
      verdicts.push({ turnId: turn.turnId, state: verdict.state });
      return;
    } catch {
      await sleep(100);
    }
  }
  throw new Error(`${turn.turnId} could not be sent`);
}
const verdicts: { turnId: string; state: string }[] = [];

test("2,000 turns at random moments over lanes that close and move, a tenth sent twice, the worker killed three times: some aborted, and no relay: none lost, doubled or overlapping", async () => {
  const turns = Array.from({ length: lanes * turnsPerLane }, (_, n) => {
    if (n % 10 === 0) return statelessTurn(n);
    const session = `api:lane-${n % lanes}:default`;
    const turn = someTurn(session, JSON.stringify({ session, n }));
    return { turn, lane: { sessionId: turn.sessionId } };
  });
  const isAborting = new Set<string>(turns.filter(() => Math.random() < 0.02).map(({ turn }) => turn.turnId));
  const sent = turns.flatMap(({ turn, lane }) => {
    const how = Math.random() < 0.5 ? ("update" as const) : ("signal" as const);
    const once_ = { turn, lane, how, atMs: Math.random() * sendingMs };
    return Math.random() < 0.1 ? [once_, { ...once_, how: "update" as const, atMs: once_.atMs + Math.random() * 2_000 }] : [once_];
  });

  const killing = (async () => {
    let passedMs = 0;
    for (const atMs of killsAtMs) {
      await sleep(atMs - passedMs);
      passedMs = atMs;
      const killed = once(worker, "exit");
      worker.kill("SIGKILL");
      await killed;
      await runSql(stack.ownerUrl, "update public.race_call set ended_at = clock_timestamp() where ended_at is null");
      worker = await startWorker();
    }
  })();
  const errors: unknown[] = [];
  await Promise.all([
    killing,
    ...sent.map(async ({ turn, lane, how, atMs }) => {
      await sleep(atMs);
      if (!isAborting.has(turn.turnId)) return await send(lane, turn, how).catch((error: unknown) => errors.push(error));
      const sending = send(lane, turn, how).catch((error: unknown) => errors.push(error));
      await sleep(Math.random() * 60);
      await stack
        .clientOf(tenant.tenantId)
        .abortTurn(lane, turn.turnId)
        .catch(() => {}); // one that is lost leaves the turn to end as done
      return await sending;
    }),
  ]);
  await allEnded(turns.length);

  expect(errors).toEqual([]);
  expect(
    verdicts.filter(({ turnId, state }) => !["done", "queued"].includes(state) && !(state === "aborted" && isAborting.has(turnId))),
  ).toEqual([]);
  const ended = await rows(`select id, state, stateless from ${schema()}.turn`);
  expect(ended).toHaveLength(turns.length);
  expect(ended.filter(({ id, state }) => state !== "done" && !(state === "aborted" && isAborting.has(id as string)))).toEqual([]);
  const done = ended.filter(({ state }) => state === "done");
  expect(done.length).toBeLessThan(turns.length); // some aborts came in time
  const ledger = await rows("select count(*)::int as rows, count(distinct id)::int as ids from control.usage_ledger");
  expect(ledger).toEqual([{ rows: done.length, ids: done.length }]);
  const transcript = await rows(`select count(*)::int as messages from ${schema()}.message`);
  expect(transcript).toEqual([{ messages: 2 * done.filter(({ stateless }) => stateless === false).length }]);
  // Nothing calls the model for a turn that has ended: one that was aborted before it began is never asked.
  const late = await rows(
    `select call_id from public.race_call join ${schema()}.turn on turn.id = split_part(call_id, '.', 1)
     where begun_at > finished_at or not exists (select from ${schema()}.model_call where model_call.id = call_id)`,
  );
  expect(late).toEqual([]);
  // A call is made again only when the process that made it was killed: each process calls once.
  const repeated = await rows("select call_id, pid, count(*)::int from public.race_call group by call_id, pid having count(*) > 1");
  expect(repeated).toEqual([]);
  const overlapping = await rows(
    `select a.call_id, b.call_id from public.race_call a join public.race_call b
       on a.session = b.session and a.id < b.id and tstzrange(a.begun_at, a.ended_at) && tstzrange(b.begun_at, b.ended_at)`,
  );
  expect(overlapping).toEqual([]);
  const calls = await rows("select count(*)::int as calls, count(distinct pid)::int as processes from public.race_call");
  expect(calls[0]?.["processes"]).toBe(killsAtMs.length + 1);
}, 300_000);

function statelessTurn(n: number): { turn: TurnSubmission; lane: Lane } {
  const { turnId } = someTurn("api:any:default", "");
  const session = statelessSessionOf(turnId);
  return { turn: someTurn(session, JSON.stringify({ session, n }), { turnId, stateless: true }), lane: { pool: (n / 10) % poolLanes } };
}

const schema = (): string => `tenant_${tenant.tenantId.replaceAll("-", "_")}`;
const rows = async (sql: string): Promise<Record<string, unknown>[]> =>
  (await runSql(stack.ownerUrl, sql)).rows as Record<string, unknown>[];

async function allEnded(count: number): Promise<void> {
  for (const endMs = Date.now() + 120_000; Date.now() < endMs; await sleep(500)) {
    const [row] = await rows(`select count(*)::int as ended from ${schema()}.turn where state not in ('queued', 'running')`);
    if (row?.["ended"] === count) return;
  }
}
