import { once } from "node:events";
import { request as httpRequest } from "node:http";
import { connect } from "node:net";
import type { FastifyPluginAsync } from "fastify";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { AppError } from "../../domain/app-error.ts";
import { errorBody, gatewayStage, listening } from "./gateway-stage.ts";

const requestId = expect.stringMatching(/^req_[0-7][0-9A-HJKMNP-TV-Z]{25}$/);
const asAcme = { authorization: "Bearer acme" };
const mebibyte = 1024 * 1024;

const echo: FastifyPluginAsync = async (routes) => {
  routes.post("/echo", { config: { access: "tenant" } }, async ({ body }) => ({ body: body ?? null }));
  routes.get("/things/:id", { config: { access: "public" } }, async ({ params }) => params);
};

describe("a body", () => {
  const post = async (payload: string | undefined, headers: Record<string, string> = { "content-type": "application/json" }) => {
    const { app } = await gatewayStage(echo);
    return await app.inject({
      method: "POST",
      url: "/echo",
      headers: { ...asAcme, ...headers },
      ...(payload === undefined ? {} : { payload }),
    });
  };
  const nested = (depth: number, inner = ""): string => "[".repeat(depth) + inner + "]".repeat(depth);

  test.each([
    ["an empty one", ""],
    ["half an object", '{"a":'],
    ["two values", "{} {}"],
    ["a comment", '{"a":1 /* one */}'],
    ["__proto__ as a key", '{"messages":[{"__proto__":{"isAdmin":true}}]}'],
    ["__proto__ in disguise", String.raw`{"\u005f_proto__":{"isAdmin":true}}`],
    ["a constructor's prototype", '{"constructor":{"prototype":{"isAdmin":true}}}'],
    ["65 levels", nested(65)],
    ["a million levels", nested(1_000_000)],
  ])("of %s is answered 400 invalid_json", async (_what, payload) => {
    const answer = await post(payload);

    expect(answer.statusCode).toBe(400);
    expect(answer.json()).toEqual(errorBody("invalid_json", { type: "invalid_request_error" }));
    expect(answer.headers["x-request-id"]).toEqual(requestId);
    expect({}).not.toHaveProperty("isAdmin");
  });

  test("of 64 levels is read", async () => {
    expect((await post(nested(64))).statusCode).toBe(200);
  });

  test("of 64 levels is read when the deepest holds a number, too: a number is no level", async () => {
    expect((await post(nested(64, "1"))).statusCode).toBe(200);
  });

  test.each(["text/plain", "application/x-www-form-urlencoded", "application/xml", "json", "application/json2"])(
    "of type %s is answered 415",
    async (type) => {
      const answer = await post("{}", { "content-type": type });

      expect(answer.statusCode).toBe(415);
      expect(answer.json()).toEqual(errorBody("unsupported_media_type", { type: "invalid_request_error" }));
    },
  );

  test("may name its charset, begin with a byte order mark, or be absent", async () => {
    expect((await post('{"a":1}', { "content-type": "application/json; charset=utf-8" })).json()).toEqual({ body: { a: 1 } });
    expect((await post('\uFEFF{"a":1}')).json()).toEqual({ body: { a: 1 } });
    expect((await post(undefined, {})).json()).toEqual({ body: null });
  });

  test("of 16 MiB is read; one byte more is answered 413", async () => {
    const { app } = await gatewayStage(async (routes) => {
      routes.post("/size", { config: { access: "tenant" } }, async ({ body }) => ({ characters: (body as string).length }));
    });
    const { url } = await listening(app);
    const postBytes = async (bytes: number) =>
      await fetch(`${url}/size`, {
        method: "POST",
        headers: { ...asAcme, "content-type": "application/json" },
        body: `"${"a".repeat(bytes - 2)}"`,
      });

    expect(await (await postBytes(16 * mebibyte)).json()).toEqual({ characters: 16 * mebibyte - 2 });
    const refused = await postBytes(16 * mebibyte + 1);
    expect(refused.status).toBe(413);
    expect(await refused.json()).toEqual(errorBody("request_too_large", { type: "invalid_request_error" }));
  });

  test("that is streamed without a length is refused once it grows beyond 16 MiB", async () => {
    const { app } = await gatewayStage(echo);
    const { port } = await listening(app);
    const call = httpRequest({
      port,
      host: "127.0.0.1",
      method: "POST",
      path: "/echo",
      headers: { ...asAcme, "content-type": "application/json" },
    });
    call.on("error", () => undefined); // the rest of the body is not wanted
    const answered = once(call, "response");
    const chunk = Buffer.alloc(mebibyte, " ");
    let sent = 0;
    const more = (): void => {
      while (sent++ < 20) if (!call.write(chunk)) return void call.once("drain", more);
      call.end();
    };

    more();
    const [answer] = await answered;

    expect(answer.statusCode).toBe(413);
    expect(JSON.parse(Buffer.concat(await Array.fromAsync(answer as AsyncIterable<Buffer>)).toString())).toEqual(
      errorBody("request_too_large"),
    );
    expect(call.getHeader("content-length")).toBeUndefined();
  });
});

describe("a place that does not exist", () => {
  test.each([
    ["GET", "/v1/nothing"],
    ["DELETE", "/echo"],
    ["GET", "/things/%ZZ"],
    ["GET", "/%E0%A4%A"],
    ["GET", "//echo"],
    ["GET", "/echo/"],
  ] as const)("%s %s is answered 404 in the error shape", async (method, url) => {
    const { app } = await gatewayStage(echo);

    const answer = await app.inject({ method, url });

    expect(answer.statusCode).toBe(404);
    expect(answer.json()).toEqual(errorBody("not_found", { type: "invalid_request_error" }));
  });

  test("has a request id when its URL cannot be decoded, too", async () => {
    const { app } = await gatewayStage(echo);

    expect((await app.inject("/things/%ZZ")).headers["x-request-id"]).toEqual(requestId);
  });

  test("is not told from one that needs a credential by reading its body", async () => {
    const { app } = await gatewayStage(echo);

    const answer = await app.inject({ method: "POST", url: "/v1/nothing", headers: { "content-type": "application/json" }, payload: "{" });

    expect(answer.statusCode).toBe(404);
  });
});

describe("bytes that are no HTTP", () => {
  /** Sends raw text and reads until the server closes. */
  async function say(text: string): Promise<{ status: number; body: string }> {
    const { app } = await gatewayStage(echo);
    const { port } = await listening(app);
    const socket = connect(port, "127.0.0.1");
    socket.on("error", () => undefined);
    socket.end(text);
    const answer = Buffer.concat(await Array.fromAsync(socket as AsyncIterable<Buffer>)).toString();
    const [, status, body = ""] = /^HTTP\/1\.1 (\d+) [\s\S]*?\r\n\r\n([\s\S]*)$/.exec(answer) ?? [];
    return { status: Number(status), body };
  }

  test.each([
    ["a broken request line", "NONSENSE\r\n\r\n", 400],
    ["two lengths", "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}", 400],
    ["a header of 32 KiB", `GET /echo HTTP/1.1\r\nHost: x\r\nX-Long: ${"a".repeat(32 * 1024)}\r\n\r\n`, 431],
  ])("%s is answered in the error shape", async (_what, text, status) => {
    const answer = await say(text);

    expect(answer.status).toBe(status);
    expect(JSON.parse(answer.body)).toEqual(errorBody("invalid_request", { type: "invalid_request_error" }));
  });
});

describe("a failure of our own", () => {
  const secret = "/srv/openclaw/tenants/globex/kek";
  const failures: Readonly<Record<string, () => unknown>> = {
    "an error with a path": () => Object.assign(new Error(`ENOENT: no such file, open '${secret}'`), { code: "ENOENT", path: secret }),
    "an error with a status of its own": () => Object.assign(new Error(secret), { statusCode: 502 }),
    "an error that claims success": () => Object.assign(new Error(secret), { statusCode: 200 }),
    "an error whose message cannot be read": () =>
      Object.defineProperty(new Error(), "message", {
        get: () => {
          throw new Error(secret);
        },
      }),
    "a string": () => secret,
    "a plain object": () => ({ path: secret }),
    "a symbol": () => Symbol(secret),
    null: () => null,
    undefined: () => undefined,
    "our own error with details": () => new AppError("internal", { path: secret }, { cause: new Error(secret) }),
  };

  test.each(Object.entries(failures))("that is %s tells nothing: no path, no stack", async (_what, failure) => {
    const { app, logged } = await gatewayStage(async (routes) => {
      routes.get("/fails", { config: { access: "public" } }, async () => {
        throw failure();
      });
    });

    const answer = await app.inject("/fails");

    expect(answer.statusCode).toBe(500);
    expect(answer.json()).toEqual({
      error: { message: "Something went wrong here.", type: "internal_error", param: null, code: "internal" },
    });
    expect(answer.headers["x-request-id"]).toEqual(requestId);
    expect(answer.body + JSON.stringify(answer.headers)).not.toMatch(/srv|globex|\.ts|node:|\bat /);
    expect(logged).toHaveLength(1);
    expect(logged[0]).toMatchObject({ requestId: answer.headers["x-request-id"] });
  });

  test("is logged with its cause, under the id that the caller was given", async () => {
    const { app, logged } = await gatewayStage(async (routes) => {
      routes.get("/fails", { config: { access: "public" } }, async () => {
        throw new AppError("provider_error", { kind: "garbage" }, { cause: new Error("the socket hung up") });
      });
    });

    const answer = await app.inject("/fails");

    expect(answer.statusCode).toBe(502);
    expect(logged).toMatchObject([{ requestId: answer.headers["x-request-id"], details: { kind: "garbage" } }]);
    expect(JSON.stringify(logged)).toContain("the socket hung up");
  });
});

describe("an error thrown on purpose", () => {
  const answerTo = async (error: unknown) => {
    const { app, logged } = await gatewayStage(async (routes) => {
      routes.get("/refuses", { config: { access: "public" } }, async () => {
        throw error;
      });
    });
    return { answer: await app.inject("/refuses"), logged };
  };

  test("names its parameter and when to come back", async () => {
    const { answer } = await answerTo(
      new AppError("rate_limited", { client: { message: "Slow down.", param: "x", retryAfterSeconds: 17 } }),
    );

    expect(answer.statusCode).toBe(429);
    expect(answer.headers["retry-after"]).toBe("17");
    expect(answer.json()).toEqual({ error: { message: "Slow down.", type: "rate_limited", param: "x", code: "rate_limited" } });
  });

  test.each(["unavailable", "provider_busy"] as const)("of 503 %s always says when to come back", async (code) => {
    const { answer } = await answerTo(new AppError(code));

    expect(answer.statusCode).toBe(503);
    expect(answer.headers["retry-after"]).toMatch(/^[1-9]\d*$/);
  });

  test("by a schema names the field, and null where no field is at fault", async () => {
    const query = z.strictObject({ period: z.string() });
    const { error: named } = query.safeParse({ period: 1 });
    const { error: unnamed } = query.safeParse({ period: "today", other: 1 });

    expect((await answerTo(named)).answer.json()).toEqual(errorBody("invalid_request", { param: "period" }));
    expect((await answerTo(unnamed)).answer.json()).toEqual(errorBody("invalid_request", { param: null }));
  });

  test("by the caller's fault is no entry in the log", async () => {
    const { answer, logged } = await answerTo(new AppError("model_not_found"));

    expect(answer.statusCode).toBe(404);
    expect(logged).toEqual([]);
  });
});

test("every answer has a request id of its own, also one that succeeds", async () => {
  const { app } = await gatewayStage(echo);

  const ids = await Promise.all(
    Array.from(
      { length: 20 },
      async () =>
        (await app.inject({ url: "/things/1", headers: { "x-request-id": "mine", "request-id": "mine" } })).headers["x-request-id"],
    ),
  );

  expect(ids).toEqual(ids.map(() => requestId));
  expect(new Set(ids).size).toBe(20);
});

test.each(["tenant_deleted", "data_key_erased"] as const)(
  "%s is told to its own tenant as its next request will be, and to an administrator as what is not there",
  async (code) => {
    const gone: FastifyPluginAsync = async (routes) => {
      routes.get("/gone", { config: { access: "tenant-or-admin:read" } }, async () => {
        throw new AppError(code, { tenantId: "acme" });
      });
    };
    const tenants = await gatewayStage(gone);
    const admins = await gatewayStage(gone, async () => ({ kind: "admin", keyId: "root", scopes: ["all"] }));

    const toTenant = await tenants.app.inject({ url: "/gone", headers: asAcme });
    const toAdmin = await admins.app.inject({ url: "/gone", headers: asAcme });

    expect([toTenant.statusCode, toTenant.headers["www-authenticate"]]).toEqual([401, "Bearer"]);
    expect(toTenant.json()).toEqual(errorBody("invalid_api_key", { type: "invalid_request_error" }));
    expect([toAdmin.statusCode, toAdmin.json()]).toEqual([404, errorBody(code, { type: "invalid_request_error" })]);
  },
);
