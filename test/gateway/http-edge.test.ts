import { once } from "node:events";
import { connect, type Socket } from "node:net";
import type { FastifyPluginAsync } from "fastify";
import { describe, expect, onTestFinished, test } from "vitest";
import { createHealthRoutes } from "../../gateway/health-routes.ts";
import { createPageRoutes } from "../../gateway/page-routes.ts";
import { serverLimits } from "../../gateway/http-edge.ts";
import { errorBody, gatewayStage, listening } from "./gateway-stage.ts";

const anyMethod: FastifyPluginAsync = async (app) => {
  await app.register(createHealthRoutes({}));
  await app.register(createPageRoutes());
  app.all("/thing", { config: { access: "tenant" } }, async () => ({ done: true }));
  app.get("/local", { config: { access: "local-or-admin:read" } }, async () => "local");
};
const authorization = "Bearer acme";

describe("headers", () => {
  test("an answer of the API is stored nowhere, framed nowhere and runs nothing", async () => {
    const { app } = await gatewayStage(anyMethod);

    const answers = [
      await app.inject({ url: "/thing", headers: { authorization } }),
      await app.inject({ url: "/thing" }),
      await app.inject({ url: "/nothing" }),
      await app.inject({ url: "/healthz" }),
    ];

    expect(answers.map(({ statusCode }) => statusCode)).toEqual([200, 401, 404, 200]);
    for (const { headers } of answers) {
      expect(headers).toMatchObject({
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "referrer-policy": "no-referrer",
      });
      expect(headers["content-security-policy"]).toMatch(/^default-src 'none';.*frame-ancestors 'none';base-uri 'none'/);
      expect(headers).not.toHaveProperty("strict-transport-security");
      expect(headers).not.toHaveProperty("access-control-allow-origin");
      expect(headers).not.toHaveProperty("x-powered-by");
    }
  });

  test("a page keeps its own stricter policy", async () => {
    const { app } = await gatewayStage(anyMethod);

    const { headers } = await app.inject({ url: "/chat" });

    expect(headers["content-security-policy"]).toContain("trusted-types 'none'");
    expect(headers["cache-control"]).toBe("no-cache");
  });

  test("only a name that is reached by TLS through a trusted proxy is bound to TLS", async () => {
    const { app } = await gatewayStage(anyMethod, undefined, { trustedProxies: ["192.0.2.0/24"] });
    const proxied = (remoteAddress: string, host: string) =>
      app.inject({ url: "/healthz", remoteAddress, headers: { host, "x-forwarded-proto": "https", "x-forwarded-for": "198.51.100.7" } });

    expect((await proxied("192.0.2.1", "claw.example.com")).headers["strict-transport-security"]).toMatch(/^max-age=\d+/);
    expect((await proxied("203.0.113.1", "claw.example.com")).headers).not.toHaveProperty("strict-transport-security");
    expect((await proxied("192.0.2.1", "127.0.0.1:18789")).headers).not.toHaveProperty("strict-transport-security");
  });
});

describe("origins", () => {
  const page = "https://chat.example.com";
  const call = async (
    method: "GET" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS",
    headers: Record<string, string>,
    allowedOrigins: string[] = [],
  ) => {
    const { app } = await gatewayStage(anyMethod, undefined, { allowedOrigins });
    return await app.inject({ method, url: "/thing", headers: { authorization, host: "127.0.0.1:18789", ...headers } });
  };

  test("a page of another origin changes nothing, whatever it carries", async () => {
    const foreign = [
      "https://evil.example",
      "null",
      "http://127.0.0.1:1",
      "http://127.0.0.1",
      "http://127.0.0.1:18789.evil.example",
      "http://127.0.0.1:18789@evil.example",
      "http://localhost:18789",
      "https://chat.example.com.evil.example",
      "https://CHAT.example.com:8443",
      "file://",
      "app://client",
      "",
    ];
    for (const origin of foreign) {
      for (const method of ["POST", "PUT", "PATCH", "DELETE"] as const) {
        const refused = await call(method, { origin }, [page]);
        expect([origin, refused.statusCode, refused.json()]).toEqual([origin, 403, errorBody("forbidden", { type: "forbidden" })]);
        expect(refused.headers).not.toHaveProperty("access-control-allow-origin");
      }
      expect((await call("GET", { origin, upgrade: "websocket", connection: "upgrade" }, [page])).statusCode).toBe(403);
    }
  });

  test("programs without an origin and our own pages call as ever", async () => {
    expect((await call("POST", {})).statusCode).toBe(200);
    expect((await call("POST", { origin: "http://127.0.0.1:18789" })).statusCode).toBe(200);
    expect((await call("GET", { origin: "https://evil.example" })).headers).not.toHaveProperty("access-control-allow-origin");
  });

  test("a page of an allowed origin calls and reads, by the browser's rules", async () => {
    const asked = await call(
      "OPTIONS",
      {
        origin: page,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-os",
      },
      [page],
    );
    const called = await call("POST", { origin: page }, [page]);
    const without = await call("POST", { origin: page, authorization: "" }, [page]);

    expect(asked.statusCode).toBe(204);
    expect(asked.headers).toMatchObject({
      "access-control-allow-origin": page,
      "access-control-allow-headers": "authorization,content-type,x-stainless-os",
      vary: "Origin",
    });
    expect(asked.headers["access-control-allow-methods"]).toContain("POST");
    expect(asked.headers).not.toHaveProperty("access-control-allow-credentials");
    expect([called.statusCode, called.headers["access-control-allow-origin"]]).toEqual([200, page]);
    expect(called.headers["access-control-expose-headers"]).toContain("x-request-id");
    // It may read why it was refused.
    expect([without.statusCode, without.headers["access-control-allow-origin"]]).toEqual([401, page]);
  });

  test("a question of a foreign page, or with headers that are none, is not answered with a yes", async () => {
    const foreign = await call("OPTIONS", { origin: "https://evil.example", "access-control-request-method": "POST" }, [page]);
    const odd = await call(
      "OPTIONS",
      { origin: page, "access-control-request-method": "POST", "access-control-request-headers": "a, *, b(c)" },
      [page],
    );

    expect(foreign.headers).not.toHaveProperty("access-control-allow-origin");
    expect(odd.headers).not.toHaveProperty("access-control-allow-headers");
  });
});

describe("addresses", () => {
  const failing = async (trustedProxies: string[], remoteAddress: string) => {
    const { app } = await gatewayStage(anyMethod, undefined, { trustedProxies });
    const statuses: number[] = [];
    for (let index = 0; index < 25; index++) {
      const { statusCode } = await app.inject({ url: "/thing", remoteAddress, headers: { "x-forwarded-for": `198.51.100.${index}` } });
      statuses.push(statusCode);
    }
    return statuses;
  };

  test("a forged X-Forwarded-For does not get around the limiter", async () => {
    expect((await failing([], "203.0.113.9")).at(-1)).toBe(429);
    expect((await failing(["192.0.2.0/24"], "203.0.113.9")).at(-1)).toBe(429);
  });

  test("behind a trusted proxy, callers are told apart", async () => {
    expect(new Set(await failing(["203.0.113.0/24"], "203.0.113.9"))).toEqual(new Set([401]));
  });

  test("what is open to this machine is open to its programs only", async () => {
    const { app } = await gatewayStage(anyMethod);
    const ask = async (remoteAddress: string, headers: Record<string, string> = {}) =>
      (await app.inject({ url: "/local", remoteAddress, headers: { host: "127.0.0.1:18789", ...headers } })).statusCode;

    expect([await ask("127.0.0.1"), await ask("::1"), await ask("::ffff:127.0.0.1"), await ask("127.3.2.1")]).toEqual([200, 200, 200, 200]);
    expect(await ask("127.0.0.1", { host: "localhost:18789" })).toBe(200);
    expect(await ask("192.0.2.7")).toBe(401);
    expect(await ask("192.0.2.7", { "x-forwarded-for": "127.0.0.1" })).toBe(401);
    for (const header of ["x-forwarded-for", "forwarded", "via", "x-real-ip", "x-forwarded-proto"])
      expect([header, await ask("127.0.0.1", { [header]: "127.0.0.1" })]).toEqual([header, 401]);
    // A page whose name was pointed at this machine.
    for (const host of ["evil.example:18789", "127.evil.example", "localhost.evil.example", "127.0.0.1.evil.example"])
      expect([host, await ask("127.0.0.1", { host })]).toEqual([host, 401]);
    expect(await ask("127.0.0.1", { origin: "http://127.0.0.1:18789" })).toBe(401);
    // A tenant's token opens nothing here.
    expect(await ask("127.0.0.1", { authorization })).toBe(403);
  });
});

describe("slow and large requests", () => {
  test("200 half-open connections are closed in time, and meanwhile others are answered", async () => {
    const { app } = await gatewayStage(anyMethod);
    const { url, port } = await listening(app);
    const sockets: Socket[] = [];
    onTestFinished(() => {
      for (const socket of sockets) socket.destroy();
    });
    const beginnings = ["", "G", "GET /healthz HTTP/1.1\r\n", "POST /thing HTTP/1.1\r\nhost: x\r\nx-slow: a"];
    const closed = await Promise.all(
      Array.from({ length: 200 }, async (_, index) => {
        const socket = connect(port, "127.0.0.1");
        sockets.push(socket);
        await once(socket, "connect");
        socket.on("error", () => {}).resume();
        socket.write(beginnings[index % beginnings.length] ?? "");
        return { over: once(socket, "close") };
      }),
    );

    let areClosed = false;
    const all = Promise.all(closed.map(({ over }) => over)).then(() => (areClosed = true));
    let answered = 0;
    while (!areClosed) {
      const health = await fetch(`${url}/healthz`);
      expect(health.status).toBe(200);
      await health.text();
      answered++;
      // A byte now and then does not buy more time.
      for (const socket of sockets.slice(0, 10)) if (socket.writable && answered % 50 === 0) socket.write("x");
    }
    await all;

    expect(answered).toBeGreaterThan(10);
    expect(app.server).toMatchObject({ headersTimeout: serverLimits.headersMs, requestTimeout: serverLimits.requestMs });
  });

  test("more than 16 KB of headers are refused in the contract's shape", async () => {
    const { app } = await gatewayStage(anyMethod);
    const { url } = await listening(app);

    const refused = await fetch(`${url}/healthz`, { headers: { "x-large": "x".repeat(serverLimits.maxHeaderBytes) } });
    const taken = await fetch(`${url}/healthz`, { headers: { "x-large": "x".repeat(serverLimits.maxHeaderBytes - 1_024) } });

    expect([refused.status, await refused.json()]).toEqual([431, errorBody("invalid_request")]);
    expect(taken.status).toBe(200);
  });

  test("a connection serves a thousand requests and is closed then", async () => {
    const { app } = await gatewayStage(anyMethod);

    expect(app.server.maxRequestsPerSocket).toBe(serverLimits.requestsPerSocket);
  });
});

test("an offer of HTTP/2, as Java's and curl's clients make with every request, is ignored", async () => {
  const { app } = await gatewayStage(anyMethod);
  const { port } = await listening(app);
  const socket = connect(port, "127.0.0.1");
  const offer = "Connection: close, Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA";
  let answer = "";
  socket.on("data", (chunk: Buffer) => (answer += chunk.toString()));
  const closed = once(socket, "close");

  socket.write(
    `POST /thing HTTP/1.1\r\nHost: x\r\nAuthorization: ${authorization}\r\n${offer}\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}`,
  );
  await closed;

  expect(answer).toMatch(/^HTTP\/1\.1 200 /);
  expect(answer).toContain('{"done":true}');
});

test("an address that holds a NUL is refused before anything reads it", async () => {
  const { app } = await gatewayStage(anyMethod);

  for (const url of ["/thing?a=%00", "/thing%00", "/%00"]) {
    const answer = await app.inject({ url, headers: { authorization } });
    expect([answer.statusCode, answer.json()]).toEqual([400, errorBody("invalid_request")]);
  }
});

test("an origin is ours by scheme, name and port, and is nothing but an origin", async () => {
  const { app } = await gatewayStage(anyMethod);
  const status = async (origin: string): Promise<number> =>
    (await app.inject({ method: "POST", url: "/thing", headers: { authorization, host: "claw.example:8080", origin } })).statusCode;

  for (const own of ["http://claw.example:8080", "https://claw.example:8080"]) expect([own, await status(own)]).toEqual([own, 200]);
  for (const foreign of [
    "ftp://claw.example:8080",
    "http://claw.example:8080/x",
    "http://u@claw.example:8080",
    "null",
    "http://claw.example",
  ]) {
    expect([foreign, await status(foreign)]).toEqual([foreign, 403]);
  }
});
