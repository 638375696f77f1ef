import { randomBytes } from "node:crypto";
import OpenAI from "openai";
import type { ResponseStreamEvent } from "openai/resources/responses/responses";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { freshNamespace } from "../fresh-namespace.ts";
import { type RpcClient, openSocket } from "../gateway/rpc-stage.ts";
import { type RunningProduct, configWithProvider, startProduct } from "../product.ts";
import { freshDatabase } from "../storage/fresh-database.ts";
import { type ModelServer, startModelServer } from "./model-server.ts";

/** Two gateways and a worker as processes of their own, on one database: what is done in `first` has to bite in `second` at once. */
let model: ModelServer;
let first: RunningProduct;
let second: RunningProduct;
let worker: RunningProduct;

beforeAll(async () => {
  model = await startModelServer();
  const env = {
    DATABASE_URL: await freshDatabase(),
    TEMPORAL_ADDRESS: inject("temporalAddress"),
    TEMPORAL_NAMESPACE: await freshNamespace(inject("temporalAddress")),
  };
  const config = configWithProvider(model.url);
  first = await startProduct({ config, env, role: "gateway" });
  worker = await startProduct({ env, role: "worker", home: first.home });
  second = await startProduct({ config, env, role: "gateway", adminKey: first.adminKey });
});
afterAll(async () => {
  await second.stop();
  await worker.stop();
  await first.stop();
  await model.close();
});

type Ends = "token/rotate" | "token/revoke" | "suspend";
const ends: readonly Ends[] = ["token/rotate", "token/revoke", "suspend"];

const admin = async (path: string, method = "POST", body?: object, key = first.adminKey, on = first) =>
  await fetch(`${on.url}${path}`, {
    method,
    headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
const tenant = async () => {
  const id = `two-${randomBytes(4).toString("hex")}`;
  return { id, token: await first.createTenant(id) };
};
const end = async (id: string, how: Ends): Promise<{ token?: string }> => {
  const answer = await admin(`/v1/tenants/${id}/${how}`);
  expect(answer.status).toBe(200);
  return (await answer.json()) as { token?: string };
};
const models = async (token: string): Promise<number> =>
  (await fetch(`${second.url}/v1/models`, { headers: { authorization: `Bearer ${token}` } })).status;
const health = JSON.stringify({ jsonrpc: "2.0", id: 1, method: "health" });
const rpc = async (token: string): Promise<number> =>
  (
    await fetch(`${second.url}/rpc`, {
      method: "POST",
      headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
      body: health,
    })
  ).status;
const billedCalls = async (id: string): Promise<number> => {
  const answer = await admin(`/v1/billing/report?tenant=${id}&period=today&format=json&detail=true`, "GET");
  return ((await answer.json()) as { rows: readonly unknown[] }).rows.length;
};

describe.each(ends)("%s in one gateway", (how) => {
  const refused = how === "suspend" ? 403 : 401;

  test("is known to the very next request at the other", async () => {
    const { id, token } = await tenant();
    expect([await models(token), await rpc(token)]).toEqual([200, 200]);

    const { token: newToken } = await end(id, how);

    expect([await models(token), await rpc(token)]).toEqual([refused, refused]);
    if (how === "token/rotate") expect(await models(String(newToken))).toBe(200);
    if (how !== "suspend") return;
    await admin(`/v1/tenants/${id}/resume`);
    expect(await models(token)).toBe(200);
  });

  test("ends a stream at the other while its model still speaks; the turn completes and is billed", async () => {
    const { id, token } = await tenant();
    const question = `STREAM ${how} meanwhile`;
    const held = model.hold(question, 2);
    const answer = await fetch(`${second.url}/v1/chat/completions`, {
      method: "POST",
      headers: { authorization: `Bearer ${token}`, "content-type": "application/json", "x-openclaw-session": "api:two:default" },
      body: JSON.stringify({ model: "default", stream: true, messages: [{ role: "user", content: question }] }),
    });
    expect(answer.status).toBe(200);

    await end(id, how);
    const streamed = await answer.text(); // comes to its end although the model is still held

    expect(held.isReleased()).toBe(false);
    expect(streamed).toContain("data: {");
    expect(streamed).toContain('"code":"invalid_api_key"');
    expect(streamed).not.toContain("[DONE]");
    expect(await billedCalls(id)).toBe(0);
    held.release();
    await expect.poll(async () => await billedCalls(id), { timeout: 30_000 }).toBe(1);
    const history = await admin(`/v1/tenants/${id}/rpc`, "POST", {
      jsonrpc: "2.0",
      id: 1,
      method: "chat.history",
      params: { session_id: "api:two:default" },
    });
    expect(await history.json()).toMatchObject({
      result: {
        messages: [
          { role: "user", content: question },
          { role: "assistant", content: expect.stringContaining(question) },
        ],
      },
    });
  });

  test("closes idle sockets at the other, the next frame of a busy one, and no one else's", async () => {
    const [mine, other] = [await tenant(), await tenant()];
    const opened = await Promise.all([
      openSocket(second.url, { token: mine.token }),
      openSocket(first.url, { token: mine.token }),
      openSocket(second.url, { origin: second.url }),
    ]);
    opened[2].send({ type: "auth", token: mine.token });
    const bystander = await openSocket(second.url, { token: other.token });
    for (const socket of [...opened, bystander]) expect(await socket.call("health")).toHaveProperty("result");
    const busy = await openSocket(second.url, { token: mine.token });
    const isCut = keepAsking(busy);

    await end(mine.id, how);

    for (const socket of [...opened, busy]) expect(await socket.ended).toEqual({ code: 4401 });
    await isCut;
    expect(await bystander.call("health")).toHaveProperty("result");
    const late = await openSocket(second.url, { token: mine.token });
    expect(await late.ended).toEqual({ code: 4401 });
  });
});

/** Asks again and again until the socket is closed. */
async function keepAsking(client: RpcClient): Promise<void> {
  try {
    for (;;) await client.call("health");
  } catch {
    await client.ended;
  }
}

test("a turn that was sent over a socket of one gateway is told of there, wherever it runs, and aborted through the other", async () => {
  const { token } = await tenant();
  const [here, there] = [await openSocket(first.url, { token }), await openSocket(second.url, { token })];
  const held = model.hold("across the gateways", 2);
  here.send({
    jsonrpc: "2.0",
    id: "sent",
    method: "chat.send",
    params: { session_id: "api:across:default", text: "across the gateways" },
  });
  const sent = await here.next(({ id }) => id === "sent");
  await here.next(({ method }) => method === "chat.delta");

  expect(await there.call("chat.abort", { turn_id: sent.result?.["turn_id"] })).toMatchObject({ result: { aborted: true } });

  expect(await here.next(({ method }) => method === "chat.finished")).toMatchObject({
    params: { turn_id: sent.result?.["turn_id"], state: "aborted" },
  });
  held.release();
  expect(await there.call("sessions.delete", { session_id: "api:across:default" })).toMatchObject({ result: { deleted: true } });
  expect(await here.call("sessions.get", { session_id: "api:across:default" })).toMatchObject({ error: { code: -32_004 } });
});

describe("responses over two gateways", () => {
  const clientsOf = (token: string): readonly [OpenAI, OpenAI] => {
    const at = ({ url }: RunningProduct): OpenAI => new OpenAI({ baseURL: `${url}/v1`, apiKey: token, maxRetries: 0, timeout: 60_000 });
    return [at(first), at(second)];
  };
  const locked = { status: 400, code: "conversation_locked", param: "conversation" };

  test("a conversation takes one response at a time, and nothing else meanwhile", async () => {
    const [here, there] = clientsOf((await tenant()).token);
    const { id } = await here.conversations.create({ items: [{ type: "message", role: "user", content: "before" }] });
    const [item] = (await here.conversations.items.list(id)).data;
    const held = model.hold("one at a time");
    const making = here.responses.create({ model: "default", input: "one at a time", conversation: id });
    await held.arrived;

    for (const client of [here, there]) {
      await expect(client.responses.create({ model: "default", input: "another", conversation: id })).rejects.toMatchObject(locked);
      const more = { items: [{ type: "message" as const, role: "user" as const, content: "meanwhile" }] };
      await expect(client.conversations.items.create(id, more)).rejects.toMatchObject(locked);
      await expect(client.conversations.items.delete(item?.id ?? "", { conversation_id: id })).rejects.toMatchObject(locked);
      await expect(client.conversations.delete(id)).rejects.toMatchObject(locked);
      expect((await client.conversations.items.list(id)).data).toEqual([item]);
    }
    held.release();
    const made = await making;

    expect((await there.conversations.items.list(id)).data.map(({ id: itemId }) => itemId)).toEqual([
      made.output[0]?.id,
      expect.stringMatching(/^msg_/),
      item?.id,
    ]);
    expect((await there.responses.create({ model: "default", input: "the next", conversation: id })).status).toBe("completed");
    expect(model.callsOf("another")).toBe(0);
  });

  test("of a race of both for one conversation each call that is made is in it, once", async () => {
    const [here, there] = clientsOf((await tenant()).token);
    const { id } = await here.conversations.create();

    const race = [here, there, here, there].map(async (client, n) => {
      return await client.responses.create({ model: "default", input: `race ${n}`, conversation: id });
    });
    const ends = await Promise.allSettled(race);

    const made = ends.flatMap((end) => (end.status === "fulfilled" ? [end.value.output[0]?.id] : []));
    for (const end of ends) if (end.status === "rejected") expect(end.reason).toMatchObject(locked);
    const held = (await there.conversations.items.list(id)).data.map((item) => item.id);
    expect(made.length).toBeGreaterThan(0);
    expect(held).toHaveLength(2 * made.length);
    expect(held).toEqual(expect.arrayContaining(made));
  });

  test("a response that was cancelled leaves its conversation as it was, and open", async () => {
    const [here, there] = clientsOf((await tenant()).token);
    const { id } = await here.conversations.create();
    const held = model.hold("to be cancelled");
    const begun = await here.responses.create({ model: "default", input: "to be cancelled", conversation: id, background: true });
    await held.arrived;

    await there.responses.cancel(begun.id);
    held.release();

    expect((await here.conversations.items.list(id)).data).toEqual([]);
    expect((await here.responses.create({ model: "default", input: "on it goes", conversation: id })).status).toBe("completed");
  });

  type Seen = {
    readonly events: ResponseStreamEvent[];
    readonly id: Promise<string>;
    readonly firstDelta: Promise<void>;
    readonly ended: Promise<void>;
  };

  /** Reads a stream to its end, beside whatever else is done. */
  function seen(stream: AsyncIterable<ResponseStreamEvent>): Seen {
    const events: ResponseStreamEvent[] = [];
    const [id, firstDelta] = [Promise.withResolvers<string>(), Promise.withResolvers<void>()];
    const read = async (): Promise<void> => {
      for await (const event of stream) {
        events.push(event);
        if (event.type === "response.created") id.resolve(event.response.id);
        if (event.type === "response.output_text.delta") firstDelta.resolve();
      }
    };
    return { events, id: id.promise, firstDelta: firstDelta.promise, ended: read() };
  }

  test("a background response is followed at either gateway while it runs, from any event on, to the same end", async () => {
    const [here, there] = clientsOf((await tenant()).token);
    const question = `STREAM followed ${"and so on ".repeat(20)}`;
    const [unsaid, halfSaid] = [model.hold(question), model.hold(question, 20)];
    const begun = seen(await here.responses.create({ model: "default", input: question, background: true, stream: true }));
    await unsaid.arrived;
    const id = await begun.id;
    const follow = async (client: OpenAI, starting_after = -1): Promise<Seen> =>
      seen(await client.responses.retrieve(id, { stream: true, ...(starting_after < 0 ? {} : { starting_after }) }));
    const early = await follow(there);

    unsaid.release();
    await halfSaid.arrived;
    // Whoever has listened from the beginning hears it as it comes; where the text is kept, also who comes later.
    await Promise.all([begun.firstDelta, early.firstDelta]);
    const late = await follow(here, 1);
    await late.firstDelta;
    const elsewhere = follow(there, 6); // hears nothing new before the end: what was said before is not known there
    expect([begun, early, late].every(({ events }) => events.at(-1)?.type === "response.output_text.delta")).toBe(true);
    halfSaid.release();
    const followers = [early, late, await elsewhere];
    await Promise.all([begun, ...followers].map(async ({ ended }) => await ended));

    const { events } = begun;
    expect(events.at(-1)?.type).toBe("response.completed");
    expect(followers.map((follower) => follower.events)).toEqual([events, events.slice(2), events.slice(7)]);
  });

  test("a follower who has left gives his slot back, and a rotation ends the stream of one who stays, not the response", async () => {
    const { id: name, token } = await tenant();
    const [here, there] = clientsOf(token);
    const held = model.hold("left alone");
    const begun = await here.responses.create({ model: "default", input: "left alone", background: true });
    await held.arrived;
    for (let n = 0; n < 70; n++) (await there.responses.retrieve(begun.id, { stream: true })).controller.abort();
    const staying = seen(await there.responses.retrieve(begun.id, { stream: true }));

    const { token: next } = await end(name, "token/rotate");
    await staying.ended;
    held.release();

    expect(staying.events.at(-1)).toMatchObject({ type: "response.failed" });
    const [renewed] = clientsOf(String(next));
    const events = seen(await renewed.responses.retrieve(begun.id, { stream: true }));
    await events.ended;
    expect(events.events.at(-1)).toMatchObject({ type: "response.completed", response: { id: begun.id } });
  });
});

test("an admin key that is revoked in one gateway is none in the other, which is told nothing", async () => {
  const made = await admin("/v1/admin-keys", "POST", { id: "leaver", scopes: ["read", "tenants"] });
  const { key } = (await made.json()) as { key: string };
  const { id } = await tenant();
  const asLeaver = async (path: string, method = "GET", body?: object) => (await admin(path, method, body, key, second)).status;
  expect(await asLeaver("/v1/tenants")).toBe(200);
  expect(await asLeaver(`/v1/tenants/${id}/rpc`, "POST", { jsonrpc: "2.0", id: 1, method: "health" })).toBe(200);

  expect((await admin("/v1/admin-keys/leaver", "DELETE")).status).toBe(202);

  expect(await asLeaver("/v1/tenants")).toBe(401);
  expect(await asLeaver(`/v1/tenants/${id}/rpc`, "POST", { jsonrpc: "2.0", id: 1, method: "health" })).toBe(401);
  expect(await asLeaver(`/v1/tenants/${id}/suspend`, "POST")).toBe(401);
});
