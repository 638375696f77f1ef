import { expect, test } from "vitest";
import { type ConversationId, mintConversationId } from "../../domain/conversation-id.ts";
import { noUsage } from "../../domain/usage.ts";
import {
  addItems,
  addResponse,
  deleteConversation,
  insertConversation,
  readConversation,
  readEntries,
} from "../../storage/conversation-repository.ts";
import type { TenantTx } from "../../storage/database.ts";
import { deleteResponse, insertResponse, readResponse } from "../../storage/response-repository.ts";
import { finishTurn, insertTurn, voidTurn } from "../../storage/turn-repository.ts";
import { someStatelessTurn } from "../turn-stack.ts";
import { databaseWith } from "./fresh-database.ts";

const gone = { code: "not_found", message: "gone" } as const;

/** A conversation of one tenant, a transaction per call. */
async function stage() {
  const { database, tenants } = await databaseWith({}, "acme", "globex");
  const [acme, globex] = tenants;
  const id = mintConversationId(Date.now(), new Uint8Array(10));
  const inAcme = async <T>(work: (tx: TenantTx) => Promise<T>): Promise<T> => await database.withTenant(acme, work);
  const inGlobex = async <T>(work: (tx: TenantTx) => Promise<T>): Promise<T> => await database.withTenant(globex, work);
  await inAcme(async (tx) => await insertConversation(tx, id, { a: "b" }));
  return { id, inAcme, inGlobex };
}

/** A response of the conversation as it was at a version. */
async function begin(tx: TenantTx, id: ConversationId, version: bigint, isKept = true) {
  const turn = someStatelessTurn("hello");
  const responseId = turn.turnId.replace("trn_", "resp_");
  await insertTurn(tx, turn, "api.0");
  await insertResponse(tx, { id: responseId, turnId: turn.turnId, previousId: null, head: {}, input: [{ id: "msg_1" }], isKept });
  const isAdded = await addResponse(tx, { id, version, responseId, sizeBytes: 10 });
  const finish = async (done: TenantTx): Promise<void> => {
    const reply = { content: "hi", toolCalls: [], finishReason: "stop" as const, model: "m", usage: noUsage, modelCalls: 1 };
    await finishTurn(done, turn, { state: "done", reply }, []);
  };
  return { turnId: turn.turnId, responseId, isAdded, finish };
}
const entriesOf = async (tx: TenantTx, id: ConversationId) => await readEntries(tx, id, { order: "asc", from: undefined, limit: 10 });

test("a response is added to the version that it was asked from, or not at all", async () => {
  const { id, inAcme } = await stage();
  await inAcme(async (tx) => await addItems(tx, id, [{ id: "msg_a" }, { id: "msg_b" }]));

  const late = await inAcme(async (tx) => await begin(tx, id, 0n));
  const right = await inAcme(async (tx) => await begin(tx, id, 2n));
  const second = await inAcme(async (tx) => await begin(tx, id, 2n));

  expect([late.isAdded, right.isAdded, second.isAdded]).toEqual([false, true, false]);
  expect(await inAcme(async (tx) => await readConversation(tx, id))).toEqual({ metadata: { a: "b" }, version: 3n, isLocked: true });
  await inAcme(right.finish);
  expect(await inAcme(async (tx) => await readConversation(tx, id))).toMatchObject({ version: 3n, isLocked: false });
  expect(await inAcme(async (tx) => await entriesOf(tx, id))).toMatchObject([
    { place: 0n, item: { id: "msg_a" } },
    { place: 1n, item: { id: "msg_b" } },
    { place: 2n, turnId: right.turnId, state: "done", input: [{ id: "msg_1" }], reply: { content: "hi" } },
  ]);
});

test("a turn that was taken back before it began holds no lock", async () => {
  const { id, inAcme } = await stage();
  const { turnId } = await inAcme(async (tx) => await begin(tx, id, 0n));

  await inAcme(async (tx) => await voidTurn(tx, turnId));

  expect(await inAcme(async (tx) => await readConversation(tx, id))).toMatchObject({ isLocked: false });
});

test("what a deleted response said stays for its conversation, and goes with it; a kept one stays", async () => {
  const { id, inAcme } = await stage();
  const textOf = async (turnId: string) =>
    (
      await inAcme(
        async (tx) => await tx.query<{ request: unknown; reply: unknown }>("SELECT request, reply FROM turn WHERE id = $1", [turnId]),
      )
    )[0];
  const make = async (version: bigint, isKept: boolean) => {
    const response = await inAcme(async (tx) => await begin(tx, id, version, isKept));
    await inAcme(response.finish);
    return response;
  };
  const [deleted, hidden, kept] = [await make(0n, true), await make(1n, false), await make(2n, true)];

  expect(await inAcme(async (tx) => await deleteResponse(tx, deleted.responseId, gone))).toBe(true);
  expect(await inAcme(async (tx) => await deleteResponse(tx, deleted.responseId, gone))).toBe(false); // twice at once
  expect(await inAcme(async (tx) => await readResponse(tx, deleted.responseId))).toBeUndefined();
  expect(await inAcme(async (tx) => await entriesOf(tx, id))).toHaveLength(3);
  await inAcme(async (tx) => await deleteConversation(tx, id, gone));

  expect(await inAcme(async (tx) => await readConversation(tx, id))).toBeUndefined();
  expect([await textOf(deleted.turnId), await textOf(hidden.turnId)]).toEqual(Array(2).fill({ request: null, reply: null }));
  expect(await inAcme(async (tx) => await readResponse(tx, kept.responseId))).toMatchObject({ reply: { content: "hi" } });
});

test("another tenant has none of it", async () => {
  const { id, inGlobex } = await stage();

  expect(await inGlobex(async (tx) => await readConversation(tx, id))).toBeUndefined();
  expect((await inGlobex(async (tx) => await begin(tx, id, 0n).catch(() => undefined)))?.isAdded).toBe(false);
  expect(await inGlobex(async (tx) => await entriesOf(tx, id))).toEqual([]);
});
