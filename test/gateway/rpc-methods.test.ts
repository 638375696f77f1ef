import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type RpcReply, type RpcStage, type RpcTenant, startRpcStage } from "./rpc-stage.ts";

type HistoryMessage = { readonly role: string; readonly content: unknown; readonly turn_id: string; readonly at: string };
type History = { readonly messages: readonly HistoryMessage[]; readonly next_before: string | null };
type List = {
  readonly sessions: readonly { readonly session_id: string; readonly messages: number }[];
  readonly next_before: string | null;
};

let stage: RpcStage;
beforeAll(async () => {
  stage = await startRpcStage();
});
afterAll(async () => await stage.close());

const history = async (sessionId: string, more: object = {}, tenant: RpcTenant = stage.acme) =>
  (await stage.result("chat.history", { session_id: sessionId, ...more }, tenant.token)) as History;
const list = async (params: object, tenant: RpcTenant = stage.acme) => (await stage.result("sessions.list", params, tenant.token)) as List;
const send = async (sessionId: string, text: string, tenant: RpcTenant = stage.acme) =>
  String((await stage.result("chat.send", { session_id: sessionId, text }, tenant.token))["turn_id"]);
const notFound = { error: { code: -32_004, data: { code: "not_found", status: 404 } } };
const rows = async (sql: string, ...values: readonly unknown[]) =>
  await stage.stack.database.withTenant(stage.acme.context, async (tx) => await tx.query(sql, values));
const ended = async (turnId: string, state: string, tenant: RpcTenant = stage.acme) =>
  await expect.poll(async () => await stage.stateOf(turnId, tenant), { timeout: 20_000 }).toBe(state);

describe("chat.send", () => {
  test("answers once the turn is stored, before the model has", async () => {
    const held = stage.hold("is it stored?");

    const turnId = await send("api:stored:default", "is it stored?");

    expect(turnId).toMatch(/^trn_[0-9A-HJKMNP-TV-Z]{26}$/);
    expect(["queued", "running"]).toContain(await stage.stateOf(turnId));
    held.release();
    await ended(turnId, "done");
  });

  test("makes sessions of one's own, and finds those of channels only", async () => {
    await stage.say("web:jane:default", "hello web");
    expect(await stage.call("chat.send", { session_id: "tg:jane:default", text: "hi" })).toMatchObject(notFound);

    await rows("insert into session (id, channel) values ('tg:jane:default', 'tg')");

    expect(await stage.call("chat.send", { session_id: "tg:jane:default", text: "hi" })).toHaveProperty("result");
  });

  test("with an Idempotency-Key is one turn, however often it comes; with another text it is a conflict", async () => {
    const post = async (text: string, key: string) => {
      const body = JSON.stringify({ jsonrpc: "2.0", id: 1, method: "chat.send", params: { session_id: "api:idem:default", text } });
      return JSON.parse((await stage.post(body, undefined, { headers: { "idempotency-key": key } })).text) as RpcReply;
    };

    const [first, second] = await Promise.all([post("only once", "k1"), post("only once", "k1")]);

    expect(first.result).toEqual(second.result);
    expect(await post("something else", "k1")).toMatchObject({ error: { code: -32_009, data: { code: "idempotency_mismatch" } } });
    await ended(String(first.result?.["turn_id"]), "done");
    expect(stage.asked.filter((text) => text === "only once")).toHaveLength(1);
  });

  test("in a batch runs in the batch's order", async () => {
    const batch = ["one", "two", "three"].map((text, id) => ({
      jsonrpc: "2.0",
      id,
      method: "chat.send",
      params: { session_id: "api:batch:default", text: `batch ${text}` },
    }));

    const answers = JSON.parse((await stage.post(JSON.stringify(batch))).text) as RpcReply[];

    for (const { result } of answers) await ended(String(result?.["turn_id"]), "done");
    expect((await history("api:batch:default")).messages.map(({ content }) => content)).toEqual(
      ["one", "two", "three"].flatMap((text) => [`batch ${text}`, `you said batch ${text}`]),
    );
  });

  test("takes any text, also what Postgres does not", async () => {
    const text = "NUL \u0000, half a pair \ud800, \u{1F600}, ' or 1=1; --";

    await stage.say("api:odd:default", text);

    expect((await history("api:odd:default")).messages[0]?.content).toBe("NUL \uFFFD, half a pair \uFFFD, \u{1F600}, ' or 1=1; --");
  });
});

describe("chat.history", () => {
  test("is what was said, oldest first, with its turn and time", async () => {
    const turnId = await stage.say("api:said:default", "good morning");

    expect(await history("api:said:default")).toEqual({
      messages: [
        { role: "user", content: "good morning", turn_id: turnId, at: expect.stringMatching(/^\d{4}-\d\d-\d\dT.*Z$/) },
        { role: "assistant", content: "you said good morning", turn_id: turnId, at: expect.any(String) },
      ],
      next_before: null,
    });
  });

  test("comes in pages that leave nothing out and show nothing twice", async () => {
    for (const text of ["a", "b", "c"]) await stage.say("api:pages:default", text);
    const whole = (await history("api:pages:default")).messages;

    const found: HistoryMessage[] = [];
    for (let before: string | null | undefined; before !== null;) {
      const page: History = await history("api:pages:default", { limit: 2, ...(before === undefined ? {} : { before }) });
      expect(page.messages.length).toBeLessThanOrEqual(2);
      found.unshift(...page.messages);
      before = page.next_before;
    }

    expect(found).toEqual(whole);
    expect(whole).toHaveLength(6);
  });

  test("ends before a turn or an instant, where one is named", async () => {
    const turnIds = [];
    for (const text of ["a", "b", "c"]) turnIds.push(await stage.say("api:before:default", text));
    const whole = (await history("api:before:default")).messages;

    expect((await history("api:before:default", { before: turnIds[1] })).messages).toEqual(whole.slice(0, 2));
    expect((await history("api:before:default", { before: whole[4]?.at })).messages).toEqual(whole.slice(0, 4));
    expect((await history("api:before:default", { before: "2999-01-01T00:00:00Z" })).messages).toEqual(whole);
    expect((await history("api:before:default", { before: "1999-01-01T00:00:00Z" })).messages).toEqual([]);
    expect(await stage.call("chat.history", { session_id: "api:before:default", before: `trn_0${"0".repeat(25)}` })).toMatchObject({
      error: { code: -32_004, data: { param: "before" } },
    });
  });

  test("carries a few megabytes a page, and a larger message by itself", async () => {
    const large = "x".repeat(5 * 1024 * 1024);
    await stage.say("api:large:default", "small");
    await rows(
      `insert into message (session_id, seq, role, content)
       select 'api:large:default', 100 + n, 'user', jsonb_build_object('role', 'user', 'content', $1::text) from generate_series(1, 2) n`,
      large,
    );

    const newest = await history("api:large:default");
    const next = await history("api:large:default", { before: newest.next_before });
    const last = await history("api:large:default", { before: next.next_before });

    expect([newest, next].map(({ messages }) => messages.map(({ content }) => String(content).length))).toEqual([
      [large.length],
      [large.length],
    ]);
    expect(last.messages.map(({ content }) => content)).toEqual(["small", "you said small"]);
  });

  test("leaves out the bytes of images that came inline", async () => {
    await stage.say("api:image:default", "small");
    await rows(
      `insert into message (session_id, seq, role, content) values ('api:image:default', 100, 'user', $1)`,
      JSON.stringify({
        role: "user",
        content: [
          { type: "text", text: "look" },
          { type: "image", url: "data:image/png;base64,AAAA" },
          { type: "image", url: "https://example.com/a.png" },
        ],
      }),
    );

    expect((await history("api:image:default")).messages.at(-1)?.content).toEqual([
      { type: "text", text: "look" },
      { type: "image", url: null },
      { type: "image", url: "https://example.com/a.png" },
    ]);
  });
});

describe("chat.abort", () => {
  test("ends a turn that runs, once", async () => {
    const { arrived } = stage.hold("abort me");
    const turnId = await send("api:abort:default", "abort me");
    await arrived;

    expect(await stage.result("chat.abort", { turn_id: turnId })).toEqual({ turn_id: turnId, aborted: true });

    await ended(turnId, "aborted");
    expect(await stage.result("chat.abort", { turn_id: turnId })).toEqual({ turn_id: turnId, aborted: false });
    expect((await history("api:abort:default")).messages).toEqual([]);
  });

  test("ends a turn that waits for another one, which goes on", async () => {
    const { arrived, release } = stage.hold("I hold the lane");
    const first = await send("api:lane:default", "I hold the lane");
    await arrived;
    const second = await send("api:lane:default", "I wait");

    expect(await stage.result("chat.abort", { turn_id: second })).toEqual({ turn_id: second, aborted: true });

    await ended(second, "aborted");
    release();
    await ended(first, "done");
    await stage.say("api:lane:default", "the lane is free");
    expect(stage.asked).not.toContain("I wait");
  });
});

describe("sessions", () => {
  test("are listed by their last message, newest first, in pages, and by prefix", async () => {
    const tenant = await stage.addTenant("lister");
    const names = ["api:a:default", "api:b:default", "web:c:default"];
    for (const name of names) await stage.say(name, "hello", tenant);
    await stage.say("api:a:default", "again", tenant);

    const whole = await list({}, tenant);
    expect(whole.sessions.map(({ session_id, messages }) => [session_id, messages])).toEqual([
      ["api:a:default", 4],
      ["web:c:default", 2],
      ["api:b:default", 2],
    ]);
    expect(whole.next_before).toBeNull();
    expect((await list({ prefix: "api:" }, tenant)).sessions.map(({ session_id }) => session_id)).toEqual([
      "api:a:default",
      "api:b:default",
    ]);
    const found: string[] = [];
    for (let before: string | null | undefined; before !== null;) {
      const page: List = await list({ limit: 1, ...(before === undefined ? {} : { before }) }, tenant);
      found.push(...page.sessions.map(({ session_id }) => session_id));
      before = page.next_before;
    }
    expect(found).toEqual(whole.sessions.map(({ session_id }) => session_id));
    expect((await list({ prefix: "%" }, tenant)).sessions).toEqual([]);
  });

  test("say what they are and which turns are open", async () => {
    const { arrived, release } = stage.hold("still thinking");
    const turnId = await send("api:get:default", "still thinking");
    await arrived;

    expect(await stage.result("sessions.get", { session_id: "api:get:default" })).toEqual({
      session_id: "api:get:default",
      channel: "api",
      created_at: expect.any(String),
      updated_at: expect.any(String),
      messages: 0,
      open_turns: [turnId],
    });
    release();
    await ended(turnId, "done");
    expect(await stage.result("sessions.get", { session_id: "api:get:default" })).toMatchObject({ messages: 2, open_turns: [] });
  });

  test("that are reset are there, without anything said; what comes next begins anew", async () => {
    await stage.say("api:reset:default", "remember the blue door");

    expect(await stage.result("sessions.reset", { session_id: "api:reset:default" })).toEqual({
      session_id: "api:reset:default",
      aborted_turns: [],
    });

    expect(await history("api:reset:default")).toEqual({ messages: [], next_before: null });
    await stage.say("api:reset:default", "what now?");
    expect((await history("api:reset:default")).messages.map(({ content }) => content)).toEqual(["what now?", "you said what now?"]);
  });

  test("that are deleted are gone, with what was said in their turns; the bill stays", async () => {
    const turnId = await stage.say("api:delete:default", "the secret word is heliotrope");

    expect(await stage.result("sessions.delete", { session_id: "api:delete:default" })).toMatchObject({ deleted: true });

    for (const method of ["sessions.get", "chat.history", "sessions.reset", "sessions.delete"]) {
      expect(await stage.call(method, { session_id: "api:delete:default" })).toMatchObject(notFound);
    }
    const left = await rows(
      "select to_jsonb(turn) as row from turn union all select to_jsonb(model_call) from model_call union all select to_jsonb(message) from message",
    );
    expect(JSON.stringify(left)).not.toContain("heliotrope");
    expect(await rows("select id from control.usage_ledger where id = $1", `${turnId}.0`)).toHaveLength(1);
    await stage.say("api:delete:default", "a new one");
    expect((await history("api:delete:default")).messages).toHaveLength(2);
  });

  test.each(["sessions.reset", "sessions.delete"])("%s ends the turns that run and wait, and none of them speaks again", async (method) => {
    const session = `api:${method.slice(9)}-open:default`;
    await stage.say(session, "before");
    const { arrived } = stage.hold(`${method} while I run`);
    const running = await send(session, `${method} while I run`);
    await arrived;
    const waiting = await send(session, `${method} while I wait`);

    const answer = await stage.result(method, { session_id: session });

    expect(new Set(answer["aborted_turns"] as string[])).toEqual(new Set([running, waiting]));
    for (const turnId of [running, waiting]) await ended(turnId, "aborted");
    await stage.say(session, "after");
    expect((await history(session)).messages.map(({ content }) => content)).toEqual(["after", "you said after"]);
    expect(stage.asked).not.toContain(`${method} while I wait`);
  });

  test("an answer that comes in spite of the abort is billed, and no message of a session that was deleted and made again", async () => {
    const session = "api:phoenix:default";
    const { arrived, release } = stage.hold("I cannot be stopped");
    const turnId = await send(session, "I cannot be stopped");
    await arrived;

    // What a delete does to the rows, without the abort that usually follows in time.
    await rows("update turn set detached = true where id = $1", turnId);
    await rows("delete from session where id = $1", session);
    await rows("insert into session (id, channel) values ($1, 'api')", session);
    release();

    await ended(turnId, "done");
    expect((await history(session)).messages).toEqual([]);
    expect(await rows("select id from control.usage_ledger where id = $1", `${turnId}.0`)).toHaveLength(1);
  });

  test("many resets, deletes and turns of one session at once leave it in order", async () => {
    const session = "api:storm:default";
    const storm = Array.from({ length: 60 }, async (_, place) =>
      place % 3 === 0
        ? await stage.call("chat.send", { session_id: session, text: `storm ${place}` })
        : await stage.call(place % 3 === 1 ? "sessions.reset" : "sessions.delete", { session_id: session }),
    );
    const answers = await Promise.all(storm);
    expect(stage.logged).toEqual([]);
    for (const { error } of answers) expect([undefined, -32_004]).toContain(error?.code);

    await expect
      .poll(async () => await rows("select id from turn where session_id = $1 and state in ('queued', 'running')", session), {
        timeout: 20_000,
      })
      .toEqual([]);
    await stage.say(session, "calm");
    const { messages } = await history(session);
    expect(messages.slice(-2).map(({ content }) => content)).toEqual(["calm", "you said calm"]);
    expect(messages.map(({ role }) => role)).toEqual(messages.map((_, place) => (place % 2 === 0 ? "user" : "assistant")));
    expect(stage.logged).toEqual([]);
  });
});

describe("config and quota", () => {
  test("config.set is an audited change by the token, and config.get answers the text and nothing of the administrator's", async () => {
    const tenant = await stage.addTenant("configured");
    const text = "system_prompt: be brief\nmodel: large\n";

    expect(await stage.result("config.get", {}, tenant.token)).toEqual({ text: "", fault: null });
    expect(await stage.result("config.set", { text }, tenant.token)).toEqual({ text });

    expect(await stage.result("config.get", {}, tenant.token)).toEqual({ text, fault: null });
    const entries = await stage.stack.database.withControl(
      async (tx) =>
        await tx.query("select action, actor_type, actor_id, outcome from audit_entry where chain = $1", [tenant.context.tenantId]),
    );
    expect(entries).toEqual([
      { action: "overlay.write", actor_type: "tenant", actor_id: expect.stringMatching(/^[0-9a-f]{8}$/), outcome: "applied" },
    ]);
  });

  test("a refused config names its key and changes nothing", async () => {
    const tenant = await stage.addTenant("refused");

    const reply = await stage.call("config.set", { text: "api:\n  mode: agent\nbilling:\n  markup: 0\n" }, tenant.token);

    expect(reply).toMatchObject({ error: { data: { code: "overlay_refused", param: "billing", status: 422 } } });
    expect(await stage.result("config.get", {}, tenant.token)).toEqual({ text: "", fault: null });
  });

  test("no params name a tenant", async () => {
    for (const method of ["config.get", "quota.get"]) {
      expect(await stage.call(method, { tenant: stage.globex.context.tenantId })).toMatchObject({ error: { code: -32_602 } });
    }
    expect(await stage.result("quota.get", {})).toEqual({ tokens_per_day: null, cost_per_day_usd: null, requests_per_minute: null });
  });
});

describe("usage.get", () => {
  test("is what the usage route answers", async () => {
    const tenant = await stage.addTenant("user");
    await stage.say("api:usage:default", "count me", tenant);

    const usage = await stage.result("usage.get", { period: "today" }, tenant.token);

    expect(usage).toMatchObject({ tenant: tenant.context.tenantId, currency: "USD", rows: [{ tokens_in: 10, tokens_out: 5 }] });
    expect(await stage.result("usage.get", {}, tenant.token)).toMatchObject({ rows: [{ tokens_in: 10 }] });
  });
});

describe("another tenant", () => {
  test("finds nothing of one's sessions and turns, and ends nothing", async () => {
    const { globex } = stage;
    const { arrived, release } = stage.hold("acme's own");
    await stage.say("api:own:default", "acme's first");
    const turnId = await send("api:own:default", "acme's own");
    await arrived;

    expect(await stage.call("chat.abort", { turn_id: turnId }, globex.token)).toMatchObject(notFound);
    for (const method of ["chat.history", "sessions.get", "sessions.reset", "sessions.delete"]) {
      expect(await stage.call(method, { session_id: "api:own:default" }, globex.token)).toMatchObject(notFound);
    }
    expect((await list({ prefix: "api:own" }, globex)).sessions).toEqual([]);
    await stage.say("api:own:default", "globex's", globex);

    release();
    await ended(turnId, "done");
    expect((await history("api:own:default")).messages).toHaveLength(4);
    expect((await history("api:own:default", {}, globex)).messages).toHaveLength(2);
    expect(await stage.call("chat.history", { session_id: "api:own:default", before: turnId }, globex.token)).toMatchObject(notFound);
  });
});

describe("an administrator for a tenant", () => {
  const ask = async (token: string, tenant: string, method: string, params: object) =>
    await stage.post(JSON.stringify({ jsonrpc: "2.0", id: 1, method, params }), token, { path: `/v1/tenants/${tenant}/rpc` });

  test("uses the same methods with a key of scope tenants, and no other", async () => {
    const { tenantId } = stage.acme.context;
    const [tenants, read] = [await stage.addAdmin("tenants", "tenants"), await stage.addAdmin("read", "read")];
    await stage.say("api:admin:default", "hello");

    const seen = await ask(tenants, tenantId, "chat.history", { session_id: "api:admin:default" });
    const sent = await ask(tenants, tenantId, "chat.send", { session_id: "api:admin:default", text: "from the admin" });

    expect((JSON.parse(seen.text) as RpcReply).result).toMatchObject({ messages: [{ content: "hello" }, {}] });
    await ended(String((JSON.parse(sent.text) as RpcReply).result?.["turn_id"]), "done");
    expect((await ask(read, tenantId, "health", {})).status).toBe(403);
    expect((await ask(tenants, "nobody-here", "health", {})).status).toBe(404);
    expect((await ask(tenants, "NOT A TENANT", "health", {})).status).toBe(400);
  });

  test("sees what a suspended tenant has, but begins no turn for it", async () => {
    const key = await stage.addAdmin("keeper", "tenants");
    const tenant = await stage.addTenant("late");
    await stage.say("api:s:default", "hello", tenant);
    const { tenantId } = tenant.context;
    await stage.stack.database.withControl((tx) => tx.execute("update control.tenant set state = 'suspended' where id = $1", [tenantId]));

    expect(JSON.parse((await ask(key, tenantId, "chat.history", { session_id: "api:s:default" })).text)).toHaveProperty("result");
    expect(JSON.parse((await ask(key, tenantId, "chat.send", { session_id: "api:s:default", text: "hi" })).text)).toMatchObject({
      error: { code: -32_003, data: { code: "tenant_suspended", status: 403 } },
    });
  });
});
