import pg from "pg";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { TenantContext } from "../../domain/tenant.ts";
import type { FinishedTurn, TurnSubmission } from "../../domain/turn.ts";
import { insertTurn, readFinishedTurn } from "../../storage/turn-repository.ts";
import { laneNameOf } from "../../temporal/tenant-client.ts";
import { type TurnStack, scriptedProvider, someTurn, startTurnStack } from "../turn-stack.ts";

/** What a hostile review found: each of these held up a session, lost an answer or asked for it again. */
const held = new Map<string, { arrived: PromiseWithResolvers<void>; release: PromiseWithResolvers<void> }>();
const hold = (text: string) => {
  const entry = { arrived: Promise.withResolvers<void>(), release: Promise.withResolvers<void>() };
  held.set(text, entry);
  return entry;
};
const manyCalls = Array.from({ length: 65 }, (_, n) => ({ id: `call_${n}`, name: "count", arguments: "{}" }));

const provider = scriptedProvider(async ({ messages }) => {
  const text = messages.findLast(({ role }) => role === "user")?.content as string;
  held.get(text)?.arrived.resolve();
  await held.get(text)?.release.promise;
  if (text === "ask for too many") return { toolCalls: manyCalls };
  if (text === "ask for a giant") return { toolCalls: [{ id: "call_0", name: "n".repeat(3_000_000), arguments: "{}" }] };
  return { text: `answer to ${text}` };
});

let stack: TurnStack;
let acme: TenantContext;
let owner: pg.Client;
beforeAll(async () => {
  stack = await startTurnStack({ provider });
  acme = await stack.addTenant("faults");
  owner = new pg.Client({ connectionString: stack.ownerUrl });
  await owner.connect();
});
afterAll(async () => {
  await owner.end();
  await stack.close();
});

const lane = ({ sessionId }: TurnSubmission) => ({ sessionId });
async function submit(turn: TurnSubmission) {
  await stack.database.withTenant(acme, async (tx) => await insertTurn(tx, turn, laneNameOf(lane(turn))));
  await stack.pool.wake(acme.tenantId);
  return await stack.clientOf(acme.tenantId).submitTurn(lane(turn), turn);
}
const rowOf = async ({ turnId }: TurnSubmission): Promise<FinishedTurn | undefined> =>
  await stack.database.withTenant(acme, async (tx) => await readFinishedTurn(tx, turnId));
const billedRows = async ({ turnId }: TurnSubmission): Promise<number> =>
  await stack.database.withTenant(
    acme,
    async (tx) => (await tx.query("select 1 from control.usage_ledger where id like $1", [`${turnId}.%`])).length,
  );
const callsOf = ({ turnId }: TurnSubmission): number => provider.calls.filter(({ callId }) => callId.startsWith(turnId)).length;
const workflowOf = (turn: TurnSubmission) => stack.connection.client.workflow.getHandle(`turn:${acme.tenantId}:${turn.sessionId}`);

test("an answer that the database cannot take for a while is kept and stored, not asked for again", async () => {
  await submit(someTurn("api:locked:default", "makes the daily row"));
  const turn = someTurn("api:locked:default", "paid for");
  const { arrived, release } = hold("paid for");
  const submitted = submit(turn);
  await arrived.promise;
  await owner.query("begin");
  await owner.query("select 1 from control.usage_daily where tenant_id = $1 for update", [acme.tenantId]);

  release.resolve();
  const blocked = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()";
  const countBlocked = async (): Promise<number> => (await stack.database.withControl(async (tx) => await tx.query(blocked))).length;
  await expect.poll(countBlocked, { timeout: 10_000 }).toBeGreaterThan(0); // the settlement meets the lock …
  await expect.poll(countBlocked, { timeout: 10_000 }).toBe(0); // … and gives it up in the database
  await owner.query("commit");

  expect(await submitted).toEqual({ state: "done" });
  expect(callsOf(turn)).toBe(1);
  expect(await billedRows(turn)).toBe(1);
});

test("an operator who cancels a lane ends its run; the turn in it is aborted, and the session goes on", async () => {
  const turn = someTurn("api:cancelled:default", "cancel me");
  const { arrived, release } = hold("cancel me");
  const submitted = submit(turn).then(
    (verdict) => verdict.state,
    () => "no verdict",
  );
  await arrived.promise;

  await workflowOf(turn).cancel();
  release.resolve();
  await submitted;

  await expect(workflowOf(turn).result()).rejects.toThrow("cancelled");
  expect(await rowOf(turn)).toBeDefined();
  expect(await submit(someTurn("api:cancelled:default", "and now"))).toEqual({ state: "done" });
});

test("a turn that has no row, aborted or not, does not hold up its session", async () => {
  const unknown = someTurn("api:unknown:default", "never stored");
  const client = stack.clientOf(acme.tenantId);
  await stack.pool.wake(acme.tenantId);

  await client.abortTurn(lane(unknown), unknown.turnId);
  await client.sendTurn(lane(unknown), unknown);
  await client.abortTurn(lane(unknown), unknown.turnId);

  expect(await submit(someTurn("api:unknown:default", "a real one"))).toEqual({ state: "done" });
});

test("an abort that comes before its turn does is not lost", async () => {
  const running = someTurn("api:early:default", "keeps the lane open");
  const early = someTurn("api:early:default", "aborted before it came");
  const { arrived, release } = hold("keeps the lane open");
  const first = submit(running);
  await arrived.promise;

  await stack.clientOf(acme.tenantId).abortTurn(lane(early), early.turnId);
  const second = submit(early);
  release.resolve();

  expect(await first).toEqual({ state: "done" });
  expect(await second).toEqual({ state: "aborted", code: "turn_aborted" });
  expect(callsOf(early)).toBe(0);
});

test.each(["ask for too many", "ask for a giant"])(
  "a reply that no turn can carry (%s) ends it, is billed, and the session goes on",
  async (text) => {
    const turn = someTurn("api:hostile:default", text);

    expect(await submit(turn)).toEqual({ state: "failed", code: "provider_error" });

    expect(callsOf(turn)).toBe(1);
    expect(await billedRows(turn)).toBe(1);
    expect(await submit(someTurn("api:hostile:default", "go on"))).toEqual({ state: "done" });
  },
);

test("turns that ran in one second are all found once the lane is idle", async () => {
  const turns = ["one", "two", "three"].map((text) => someTurn("api:found:default", text));
  for (const turn of turns) await submit(turn);

  await workflowOf(turns[0] as TurnSubmission).result(); // the window passes

  const found = async (turnId: string): Promise<number> => {
    const query = `TenantId = '${acme.tenantId}' AND TurnId = '${turnId}'`;
    return (await Array.fromAsync(stack.connection.client.workflow.list({ query }))).length;
  };
  for (const { turnId } of turns) await expect.poll(async () => await found(turnId), { timeout: 10_000 }).toBe(1);
});
