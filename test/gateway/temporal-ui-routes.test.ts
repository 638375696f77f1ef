import { once } from "node:events";
import { type IncomingMessage, createServer } from "node:http";
import type { AddressInfo } from "node:net";
import type { FastifyInstance } from "fastify";
import pino from "pino";
import { expect, onTestFinished, test } from "vitest";
import type { AdminScope, Principal } from "../../control-plane/authentication.ts";
import type { ChangeOptions, Changes } from "../../control-plane/changes.ts";
import type { Command } from "../../domain/audit.ts";
import { AppError } from "../../domain/app-error.ts";
import { createGateway } from "../../gateway/gateway.ts";
import { createTemporalUiRoutes } from "../../gateway/temporal-ui-routes.ts";
import { quiet } from "../turn-stack.ts";

/** A server in the Web UI's place that tells what reached it. */
async function startUi() {
  const seen: { readonly method: string; readonly url: string; readonly headers: IncomingMessage["headers"]; readonly body: string }[] = [];
  const server = createServer(async (request, response) => {
    let body = "";
    for await (const chunk of request) body += String(chunk);
    seen.push({ method: request.method ?? "", url: request.url ?? "", headers: request.headers, body });
    response.setHeader("set-cookie", ["_csrf=token; Path=/", "openclaw_admin=planted; Path=/"]);
    response.setHeader("access-control-allow-origin", "*");
    response.end("the page");
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  onTestFinished(() => void server.close());
  return { seen, url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/temporal`, close: () => server.close() };
}

type Stage = { readonly app: FastifyInstance; readonly made: (readonly [string, Command, ChangeOptions])[] };

/** The bearer names the scope of its key. */
async function stage(uiUrl: string | undefined, { isRecorded = true } = {}): Promise<Stage> {
  const made: (readonly [string, Command, ChangeOptions])[] = [];
  const changes: Pick<Changes, "make"> = {
    async make(owner, command, options) {
      if (!isRecorded) throw new AppError("unavailable");
      made.push([owner, command, options]);
    },
  };
  const keyOf = async (name: string | undefined): Promise<Principal & { kind: "admin" }> => {
    if (name === undefined) throw new AppError("invalid_api_key");
    return { kind: "admin", keyId: name, scopes: [name as AdminScope] };
  };
  const app = await createGateway({
    authenticate: async (authorization) => await keyOf(authorization?.replace("Bearer ", "")),
    authenticateSession: async (id) => await keyOf(id),
    logger: pino({ level: "silent" }),
    routes: [createTemporalUiRoutes({ uiUrl, changes, log: quiet })],
  });
  onTestFinished(async () => await app.close());
  return { app, made };
}

const host = "127.0.0.1:18789";
const own = { host, origin: `http://${host}` };
const terminate = "/temporal/api/v1/namespaces/default/workflows/turn%3Aacme%3Aweb%3Ax%3Adefault/terminate?run=1";

test("what a browser asks for reaches the Web UI as it was asked, without any credential of ours", async () => {
  const ui = await startUi();
  const { app } = await stage(ui.url);
  const path = "/temporal/api/v1/namespaces/default/workflows?query=WorkflowType%20%3D%20%27turn%27&next=a%2Bb";

  const answer = await app.inject({
    url: path,
    headers: { host, cookie: "a=1; openclaw_admin=read; _csrf=mine; __Host-openclaw_admin=read" },
  });
  const byKey = await app.inject({ url: "/temporal", headers: { host, authorization: "Bearer read" } });

  expect([answer.statusCode, answer.body, byKey.statusCode]).toEqual([200, "the page", 200]);
  expect(ui.seen.map(({ url }) => url)).toEqual([path, "/temporal"]);
  expect(ui.seen.map(({ headers }) => [headers.cookie, headers.authorization])).toEqual([
    ["_csrf=mine", undefined],
    [undefined, undefined],
  ]);
});

test("what comes back is under our policy and sets no cookie of ours", async () => {
  const ui = await startUi();
  const { app } = await stage(ui.url);

  const { headers } = await app.inject({ url: "/temporal", headers: { host, cookie: "openclaw_admin=read" } });

  expect(headers["set-cookie"]).toEqual(["_csrf=token; Path=/"]);
  expect(headers["access-control-allow-origin"]).toBeUndefined();
  expect(headers["content-security-policy"]).toContain("frame-ancestors 'none'");
  expect(headers).toMatchObject({ "x-frame-options": "DENY", "x-content-type-options": "nosniff" });
});

test("whoever may only look ends nothing, and may ask a workflow where it stands", async () => {
  const ui = await startUi();
  const { app, made } = await stage(ui.url);
  const act = async (method: "POST" | "PUT" | "DELETE", url: string): Promise<number> =>
    (
      await app.inject({
        method,
        url,
        headers: { ...own, cookie: "openclaw_admin=read", "content-type": "application/json" },
        payload: "{}",
      })
    ).statusCode;
  const query = "/temporal/api/v1/namespaces/default/workflows/turn%3Aacme%3Aweb%3Ax%3Adefault/query/__stack_trace";

  expect([await act("POST", terminate), await act("PUT", terminate), await act("DELETE", terminate)]).toEqual([403, 403, 403]);
  expect(await act("POST", `${query}/../../terminate`)).toBe(403);
  expect(await act("POST", `${terminate.split("?")[0]}%2Fquery%2Fx`)).toBe(403);
  for (const disguise of ["%2F", "%2f..%2f", "%5c", "%2e%2e%2f", "\\"]) expect(await act("POST", `${query}${disguise}terminate`)).toBe(403);
  expect(ui.seen).toEqual([]);
  expect(await act("POST", query)).toBe(200);
  expect(made).toEqual([]);
});

test("what is done with the scope all is recorded before it is passed on", async () => {
  const ui = await startUi();
  const { app, made } = await stage(ui.url);

  const answer = await app.inject({
    method: "POST",
    url: terminate,
    headers: { ...own, cookie: "openclaw_admin=all", "content-type": "application/json", "x-csrf-token": "t" },
    payload: JSON.stringify({ reason: "stuck" }),
  });

  expect(answer.statusCode).toBe(200);
  expect(made).toEqual([
    [
      "_system",
      { type: "temporal.operate", method: "POST", path: terminate.replace("/temporal", "").replace("?run=1", "") },
      expect.objectContaining({ actor: { type: "admin", id: "all" } }),
    ],
  ]);
  expect(ui.seen).toMatchObject([{ method: "POST", url: terminate, body: JSON.stringify({ reason: "stuck" }) }]);
  expect(ui.seen[0]?.headers["x-csrf-token"]).toBe("t");
});

test("what is done twice is recorded twice, whatever Idempotency-Key it carries", async () => {
  const ui = await startUi();
  const { app, made } = await stage(ui.url);
  const headers = { ...own, cookie: "openclaw_admin=all", "content-type": "application/json", "idempotency-key": "same" };

  for (let n = 0; n < 2; n++) await app.inject({ method: "POST", url: terminate, headers, payload: "{}" });

  expect(ui.seen).toHaveLength(2);
  expect(made.map(([, , { idempotency }]) => idempotency)).toEqual([undefined, undefined]);
  expect(new Set(made.map(([, , { requestId }]) => requestId)).size).toBe(2);
});

test("what cannot be recorded does not happen", async () => {
  const ui = await startUi();
  const { app } = await stage(ui.url, { isRecorded: false });
  const headers = { ...own, cookie: "openclaw_admin=all", "content-type": "application/json" };

  expect((await app.inject({ method: "POST", url: terminate, headers, payload: "{}" })).statusCode).toBe(503);
  expect(ui.seen).toEqual([]);
});

test.each([
  ["nobody", {}, 401],
  ["a key without the scope", { cookie: "openclaw_admin=billing" }, 403],
  ["another site", { cookie: "openclaw_admin=all", origin: "https://evil.example", "content-type": "application/json" }, 403],
])("%s gets nothing from it", async (_name, headers, status) => {
  const ui = await startUi();
  const { app } = await stage(ui.url);
  const method = "origin" in headers ? "POST" : "GET";

  expect(
    (await app.inject({ method, url: terminate, headers: { host, ...headers }, ...(method === "POST" ? { payload: "{}" } : {}) }))
      .statusCode,
  ).toBe(status);
  expect(ui.seen).toEqual([]);
});

test.each([
  "/temporal/..%2f..%2fmetrics",
  "/temporal/%2e%2e/%2e%2e/metrics",
  "/temporal/..\\metrics",
  "/temporal//evil.example/x",
  "/temporal/%00",
])("%s leads nowhere but below the Web UI's own path", async (url) => {
  const ui = await startUi();
  const { app } = await stage(ui.url);

  const { statusCode } = await app.inject({ url, headers: { host, cookie: "openclaw_admin=read" } });

  expect(statusCode === 200 || (statusCode >= 400 && statusCode < 500)).toBe(true);
  expect(ui.seen.every((request) => request.url.startsWith("/temporal"))).toBe(true);
  expect(ui.seen.some((request) => /\.\.|%2e%2e/i.test(request.url))).toBe(false);
});

test("a Web UI that is away is 503 in our shape", async () => {
  const ui = await startUi();
  const { app } = await stage(ui.url);
  ui.close();

  const answer = await app.inject({ url: "/temporal", headers: { host, cookie: "openclaw_admin=read" } });

  expect([answer.statusCode, answer.json()]).toMatchObject([503, { error: { code: "unavailable" } }]);
});

test("where there is no Web UI a page says what to set", async () => {
  const { app } = await stage(undefined);

  const answer = await app.inject({ url: "/temporal/namespaces", headers: { host, cookie: "openclaw_admin=read" } });

  expect([answer.statusCode, answer.body]).toEqual([404, expect.stringContaining("TEMPORAL_UI_URL")]);
  expect((await app.inject({ url: "/temporal", headers: { host } })).statusCode).toBe(401);
});
