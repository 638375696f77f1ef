import { randomBytes } from "node:crypto";
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
