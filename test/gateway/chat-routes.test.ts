import { describe, expect, test } from "vitest";
import { parseTurnId } from "../../domain/turn-id.ts";
import { errorBody } from "./gateway-stage.ts";
import { chatBody, chatHeaders, chatStage, done, requestIdOf, scriptedTurns } from "./scripted-turns.ts";

async function chat({
  headers = {},
  body = {},
  sessions = [],
  overlay = "",
}: {
  overlay?: string;
  headers?: Record<string, string>;
  body?: object;
  sessions?: readonly string[];
}) {
  const turns = scriptedTurns(async () => done({ content: "Hello." }), sessions);
  const { app } = await chatStage(turns, overlay);
  const answer = await app.inject({
    method: "POST",
    url: "/v1/chat/completions",
    headers: { ...chatHeaders, ...headers },
    payload: chatBody(body),
  });
  return { answer, submitted: turns.submitted };
}

test("a call without a session is stateless: its session is its turn's own, and all its messages count", async () => {
  const messages = [
    { role: "user", content: "a" },
    { role: "assistant", content: "b" },
    { role: "user", content: "c" },
  ];

  const { answer, submitted } = await chat({ body: { messages, user: "jane", max_tokens: 7 } });

  const [{ submission, tenant, idempotency } = { submission: undefined, tenant: undefined, idempotency: undefined }] = submitted;
  const turnId = parseTurnId(submission?.turnId ?? "");
  expect(submission).toMatchObject({
    sessionId: `api:${turnId}:default`,
    stateless: true,
    kind: "chat",
    mode: "agent",
    request: { model: "m", settings: { maxTokens: 7 } },
  });
  expect(submission?.request.messages).toHaveLength(3);
  expect({ tenant, idempotency }).toEqual({ tenant: "acme", idempotency: undefined });
  expect(answer.headers["x-request-id"]).toBe(turnId);
  expect(answer.json()).toMatchObject({
    id: requestIdOf(turnId),
    model: "m",
    choices: [{ message: { content: "Hello." } }],
    usage: { total_tokens: 15 },
  });
  expect(Math.abs(answer.json().created - Date.now() / 1_000)).toBeLessThan(10);
});

test("a session continues: only what is new is handed in", async () => {
  const messages = [
    { role: "user", content: "a" },
    { role: "assistant", content: "b" },
    { role: "user", content: "c" },
  ];

  const { submitted } = await chat({ headers: { "x-openclaw-session": "api:jane:default" }, body: { messages } });

  expect(submitted[0]?.submission).toMatchObject({
    sessionId: "api:jane:default",
    stateless: false,
    request: { messages: [{ role: "user", content: "c" }] },
  });
});

describe("a session id", () => {
  test.each(["", "jane", "api:jane", "xx:jane:default", "api:ja ne:default", `api:${"a".repeat(201)}:default`])(
    "%j is malformed: 400",
    async (id) => {
      const { answer, submitted } = await chat({ headers: { "x-openclaw-session": id } });

      expect(answer.statusCode).toBe(400);
      expect(answer.json()).toEqual(errorBody("invalid_session_id", { type: "invalid_request_error", param: "X-OpenClaw-Session" }));
      expect(submitted).toEqual([]);
    },
  );

  test.each(["api:new:default", "web:new:g.room"])("%s is made by its first message", async (id) => {
    expect((await chat({ headers: { "x-openclaw-session": id } })).submitted[0]?.submission.sessionId).toBe(id);
  });

  test("of a channel has to exist", async () => {
    const headers = { "x-openclaw-session": "wa:+15551234567:default" };

    const unknown = await chat({ headers });
    const known = await chat({ headers, sessions: ["wa:+15551234567:default"] });

    expect(unknown.answer.statusCode).toBe(404);
    expect(unknown.answer.json()).toEqual(errorBody("not_found", { param: "X-OpenClaw-Session" }));
    expect(unknown.submitted).toEqual([]);
    expect(known.answer.statusCode).toBe(200);
  });
});

test("the mode is one of two, and agent by default", async () => {
  expect((await chat({})).submitted[0]?.submission.mode).toBe("agent");
  expect((await chat({ headers: { "x-openclaw-mode": "gateway" } })).submitted[0]?.submission.mode).toBe("gateway");
  expect((await chat({ headers: { "x-openclaw-mode": "raw" } })).answer.json()).toEqual(
    errorBody("invalid_request", { param: "X-OpenClaw-Mode" }),
  );
});

test("an Idempotency-Key goes with the body, the session and the mode that it stands for", async () => {
  const { submitted } = await chat({
    headers: { "idempotency-key": "k-1", "x-openclaw-session": "api:jane:default", "x-openclaw-mode": "gateway" },
  });

  expect(submitted[0]?.idempotency).toEqual({
    key: "k-1",
    body: { session: "api:jane:default", mode: "gateway", body: JSON.parse(chatBody()) },
  });
});

test.each([
  ["nothing-like-it", 404, "model_not_found"],
  ["free", 400, "model_not_priced"],
])("the model %s is refused before anything is handed in", async (model, status, code) => {
  const { answer, submitted } = await chat({ body: { model } });

  expect(answer.statusCode).toBe(status);
  expect(answer.json()).toEqual(errorBody(code, { param: "model" }));
  expect(submitted).toEqual([]);
});

test("an answer names the model that spoke, not the alias that was asked for", async () => {
  expect((await chat({ body: { model: "default" } })).answer.json().model).toBe("m");
});

describe("the overlay", () => {
  test("decides the mode and the session where the call does not, and its digest stays with the turn", async () => {
    const overlay = "api: { mode: gateway, sessions: by-user }";

    const { submitted: asked } = await chat({ overlay, body: { user: "jane doe" } });
    const { submitted: told } = await chat({
      overlay,
      body: { user: "jane doe" },
      headers: { "x-openclaw-mode": "agent", "x-openclaw-session": "api:else:default" },
    });
    const { submitted: nameless } = await chat({ overlay, body: { user: "" } });

    expect(asked[0]?.submission).toMatchObject({ mode: "gateway", sessionId: "api:jane%20doe:default", stateless: false });
    expect(asked[0]?.submission.request.overlay).toMatch(/^[0-9a-f]{64}$/);
    expect(told[0]?.submission).toMatchObject({ mode: "agent", sessionId: "api:else:default" });
    expect(nameless[0]?.submission).toMatchObject({ stateless: true });
  });

  test("is no part of what an Idempotency-Key stands for: a repeat after its change is a repeat", async () => {
    const call = { body: { user: "jane" }, headers: { "idempotency-key": "k" } };

    const { submitted: before } = await chat(call);
    const { submitted: after } = await chat({ ...call, overlay: "api: { mode: gateway, sessions: by-user }" });

    expect(after[0]?.idempotency).toEqual(before[0]?.idempotency);
  });
});
