import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { abuse } from "./rpc-abuse.ts";
import { type RpcReply, type RpcStage, startRpcStage } from "./rpc-stage.ts";

let stage: RpcStage;
beforeAll(async () => {
  stage = await startRpcStage();
});
afterAll(async () => await stage.close());

const send = async (value: unknown) => await stage.post(JSON.stringify(value));
const answer = async (value: unknown): Promise<RpcReply> => JSON.parse((await send(value)).text) as RpcReply;
const health = (more: object = {}) => ({ jsonrpc: "2.0", method: "health", ...more });

describe("one request", () => {
  test("is answered under its id, which comes back as it was", async () => {
    for (const id of [1, 0, -7, 1.5, Number.MAX_SAFE_INTEGER, "", "a", "1", "\u{1F600}", null]) {
      const { status, headers, text } = await send(health({ id }));

      expect(status).toBe(200);
      expect(headers.get("content-type")).toBe("application/json; charset=utf-8");
      expect(JSON.parse(text)).toEqual({ jsonrpc: "2.0", id, result: { status: "ok", checks: { database: "ok" } } });
    }
  });

  test("may leave its params out, or give none by name", async () => {
    expect(await answer(health({ id: 1 }))).toHaveProperty("result");
    expect(await answer(health({ id: 1, params: {} }))).toHaveProperty("result");
  });

  test("gets no answer when it is a notification, whatever comes of it", async () => {
    for (const note of [
      health(),
      health({ method: "no.such" }),
      health({ params: { x: 1 } }),
      health({ method: "chat.send", params: {} }),
    ]) {
      expect(await send(note)).toMatchObject({ status: 204, text: "" });
    }
  });

  test("acts as a notification, too", async () => {
    await send({ jsonrpc: "2.0", method: "chat.send", params: { session_id: "api:note:default", text: "as a notification" } });

    await expect.poll(() => stage.asked, { timeout: 20_000 }).toContain("as a notification");
  });

  test("that is none has the id that could be read in it, and null otherwise", async () => {
    expect(await answer({ jsonrpc: "2.0", id: "x" })).toMatchObject({ id: "x", error: { code: -32_600 } });
    expect(await answer({ jsonrpc: "2.0", method: "health", id: {} })).toMatchObject({ id: null, error: { code: -32_600 } });
    expect(await answer({ jsonrpc: "2.0", method: 1 })).toMatchObject({ id: null, error: { code: -32_600 } });
  });
});

describe("a batch", () => {
  test("is answered in its order, without its notifications", async () => {
    expect(await answer([health({ id: "a" }), health(), 1, health({ id: "b", method: "no.such" }), health({ id: "c" })])).toMatchObject([
      { id: "a", result: { status: "ok" } },
      { id: null, error: { code: -32_600 } },
      { id: "b", error: { code: -32_601 } },
      { id: "c", result: { status: "ok" } },
    ]);
  });

  test("of notifications is not answered", async () => {
    expect(await send([health(), health()])).toMatchObject({ status: 204, text: "" });
  });

  test("holds 1 to 20 requests", async () => {
    expect(await answer([])).toMatchObject({ id: null, error: { code: -32_600 } });
    expect(await answer(Array.from({ length: 20 }, (_, id) => health({ id })))).toHaveLength(20);
    expect(await answer(Array.from({ length: 21 }, (_, id) => health({ id })))).toMatchObject({ id: null, error: { code: -32_600 } });
    expect(await answer([[health({ id: 1 })]])).toMatchObject([{ id: null, error: { code: -32_600 } }]);
  });
});

describe("our errors", () => {
  test("say in their data what they say over HTTP", async () => {
    expect(await stage.call("sessions.get", { session_id: "api:nobody:default" })).toMatchObject({
      error: {
        code: -32_004,
        message: "There is no such session.",
        data: { type: "invalid_request_error", code: "not_found", param: "session_id", status: 404 },
      },
    });
    expect(await stage.call("usage.get", { period: "never" })).toMatchObject({
      error: { code: -32_000, data: { type: "invalid_request_error", code: "invalid_period", status: 400 } },
    });
    expect(await stage.call("chat.send", { session_id: "api:p:default", text: "look", parts: [{ type: "image" }] })).toMatchObject({
      error: { code: -32_000, data: { code: "unsupported_parameter", param: "parts" } },
    });
    expect(await stage.call("chat.send", { session_id: "api:x:default", text: "hi", tenant: "globex" })).toMatchObject({
      error: { code: -32_602, data: { type: "invalid_request_error", code: "invalid_request", status: 400 } },
    });
  });
});

describe("what comes before JSON-RPC", () => {
  const anRequest = JSON.stringify(health({ id: 1 }));

  test("is answered as on every route: who it is, the content type, the size", async () => {
    expect((await stage.post(anRequest, "tk_nobody")).status).toBe(401);
    expect((await stage.post("{", "tk_nobody")).status).toBe(401);
    expect((await stage.post(anRequest, undefined, { headers: { "content-type": "text/plain" } })).status).toBe(415);
    expect((await stage.post(`"${"x".repeat(17 * 1024 * 1024)}"`)).status).toBe(413);
    expect((await stage.post(anRequest, undefined, { headers: { "idempotency-key": "ü".repeat(3) } })).status).toBe(400);
    expect((await fetch(`${stage.url}/rpc`)).status).toBe(404);
  });

  test("an admin key is no key of a tenant, and a tenant's token none of an administrator", async () => {
    const key = await stage.addAdmin("all", "all");

    expect((await stage.post(anRequest, key)).status).toBe(401);
    expect((await stage.post(anRequest, stage.acme.token, { path: `/v1/tenants/${stage.acme.context.tenantId}/rpc` })).status).toBe(403);
  });
});

describe("abuse", () => {
  test("of more than 100 kinds is answered by the protocol, logged by nobody, and changes nothing", async () => {
    expect(abuse.length).toBeGreaterThan(100);
    const asked = stage.asked.length;

    for (const [text, code] of abuse) {
      const { status, text: answered } = await stage.post(text);
      expect({ text: text.slice(0, 200), status, answered: JSON.parse(answered) as unknown }).toMatchObject({
        text: text.slice(0, 200),
        status: 200,
        answered: { jsonrpc: "2.0", error: { code, message: expect.stringMatching(/\S/) } },
      });
      expect(answered).not.toMatch(/\/work\/|node_modules|\.ts:|globex-/);
    }

    expect(stage.asked).toHaveLength(asked);
    expect(stage.logged).toEqual([]);
  });

  test("in batches, where it is no batch of its own, is answered request by request", async () => {
    const one = abuse.filter(([text, code]) => code !== -32_700 && !text.includes("[[") && !text.startsWith("[") && text.length < 10_000);
    for (let first = 0; first < one.length; first += 20) {
      const batch = one.slice(first, first + 20);

      const { text } = await stage.post(`[${batch.map(([body]) => body).join()}]`);

      expect((JSON.parse(text) as RpcReply[]).map(({ error }) => error?.code)).toEqual(batch.map(([, code]) => code));
    }
  });

  test("from many callers at once holds nobody up", async () => {
    const answers = await Promise.all(abuse.map(async ([text]) => await stage.post(text)));

    expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([200]));
    expect(await stage.result("health")).toMatchObject({ status: "ok" });
  });
});
