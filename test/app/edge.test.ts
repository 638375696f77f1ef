import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { z } from "zod";
import { type RunningProduct, startProduct } from "../product.ts";
import { openApiFaults } from "./openapi-faults.ts";

/** The running product's HTTP edge, met by callers who mean no good. */
let product: RunningProduct;
let token: string;
beforeAll(async () => {
  product = await startProduct();
  token = await product.createTenant("acme");
}, 120_000);
afterAll(async () => await product.stop());

type Sent = { readonly method?: string; readonly as?: string; readonly body?: string | Uint8Array; readonly type?: string };
const send = async (path: string, { method, as = product.adminKey, body, type = "application/json" }: Sent = {}) => {
  const answer = await fetch(product.url + path, {
    method: method ?? (body === undefined ? "GET" : "POST"),
    headers: { authorization: `Bearer ${as}`, ...(body === undefined ? {} : { "content-type": type }) },
    ...(body === undefined ? {} : { body }),
  });
  return { status: answer.status, text: await answer.text() };
};

const cursor = (...place: unknown[]): string => Buffer.from(JSON.stringify(place)).toString("base64url");
const lone = String.raw`\ud800`;

describe("what no honest caller sends is the caller's fault", () => {
  test.each([
    ["/v1/audit?tenant=%00"],
    ["/v1/audit?action=a%00b"],
    ["/v1/audit?chain=%00"],
    [`/v1/audit?after=${cursor("2026-01-01T00:00:00Z", "\u0000", 1)}`],
    [`/v1/audit/anchors?after=${cursor("k", "\ud800", 1, "2026-01-01T00:00:00Z")}`],
    ["/v1/billing/rows/%00/explain"],
    ["/v1/operations/%00"],
    ["/v1/audit?tenant=a&tenant=b"],
    ["/v1/audit?__proto__=a"],
  ])("GET %s", async (path) => {
    const { status, text } = await send(path);

    expect([status, JSON.parse(text)]).toEqual([400, { error: expect.objectContaining({ type: "invalid_request_error" }) }]);
  });

  test.each([
    ["POST", "/v1/tenants", `{"id":"surrogate","display_name":"x${lone}y"}`],
    ["POST", "/v1/tenants", `{"id":"surrogate","markup":"${lone}"}`],
    ["POST", "/v1/tenants", JSON.stringify({ id: "large", display_name: "x".repeat(3_000_000) })],
    ["POST", "/v1/tenants", JSON.stringify({ id: "x".repeat(3_000_000) })],
    ["POST", "/v1/tenants", JSON.stringify({ id: "large", markup: "1".repeat(3_000_000) })],
    ["POST", "/v1/tenants", '{"id":"polluted","__proto__":{"quota":{}}}'],
    ["POST", "/v1/tenants", "[]"],
    ["PATCH", "/v1/tenants/acme", JSON.stringify({ display_name: "x".repeat(3_000_000) })],
    ["PUT", "/v1/tenants/acme/quota", JSON.stringify({ cost_per_day_usd: "1".repeat(3_000_000) })],
    ["POST", "/v1/admin-keys", JSON.stringify({ id: "many", scopes: Array.from({ length: 9_999 }, () => "read") })],
    ["POST", "/v1/chat/completions", `{"model":"default","messages":[{"role":"user","content":[${"[],".repeat(9_000)}[]]}]}`],
  ])("%s %s (%#)", async (method, path, body) => {
    const before = await send("/v1/audit");
    const { status, text } = await send(path, { method, body, as: path.includes("chat") ? token : product.adminKey });

    expect([status, JSON.parse(text)]).toEqual([400, { error: expect.objectContaining({ type: "invalid_request_error" }) }]);
    expect(await send("/v1/audit")).toEqual(before);
  });

  test.each(["/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/moderations"])(
    "POST %s: a body that is too large, of another type, too deep, cut off or not there starts no turn",
    async (path) => {
      const before = await send("/v1/usage?period=today", { as: token });
      const question = '"model":"default","input":"hi","messages":[{"role":"user","content":"hi"}]';
      const answers = await Promise.all([
        send(path, { as: token, body: `{${question},"user":"${"x".repeat(17 * 1_048_576)}"}` }),
        send(path, { as: token, body: `{${question}}`, type: "text/plain" }),
        send(path, { as: token, body: `{${question}}`, type: "application/xml" }),
        send(path, { as: token, body: `{${question},"metadata":${"[".repeat(200)}${"]".repeat(200)}}` }),
        send(path, { as: token, body: `{${question}` }),
        send(path, { as: token, body: "" }),
        send(path, { as: token, body: `[{${question}}]` }),
        send(path, { as: token, body: `{${question},"no_such_field":1}` }),
      ]);

      expect(answers.map(({ status, text }) => [status, JSON.parse(text).error.code])).toEqual([
        [413, "request_too_large"],
        [415, "unsupported_media_type"],
        [415, "unsupported_media_type"],
        [400, "invalid_json"],
        [400, "invalid_json"],
        [400, "invalid_json"],
        [400, expect.stringMatching(/^invalid_(?:json|request)$/)],
        [400, expect.stringMatching(/^(?:unsupported_parameter|invalid_request)$/)],
      ]);
      expect(await send("/v1/usage?period=today", { as: token })).toEqual(before);
    },
  );

  test("millions of entries are refused before they are built, over /rpc too", async () => {
    const millions = `[${Array.from({ length: 9_000 }, () => `[${"[],".repeat(500)}[]]`).join(",")}]`;

    const chat = await send("/v1/chat/completions", { as: token, body: `{"model":"default","messages":[],"metadata":${millions}}` });
    const rpc = await send("/rpc", { as: token, body: `{"jsonrpc":"2.0","id":1,"method":"health","params":{"a":${millions}}}` });

    expect([chat.status, JSON.parse(chat.text)]).toMatchObject([
      400,
      { error: { code: "invalid_json", message: expect.stringMatching(/entries/) } },
    ]);
    expect(JSON.parse(rpc.text)).toMatchObject({ id: null, error: { code: -32_600, message: expect.stringMatching(/entries/) } });
  });

  test("an admin key's scopes are a set", async () => {
    const { text } = await send("/v1/admin-keys", { body: '{"id":"twice","scopes":["read","billing","read"]}' });

    expect(JSON.parse(text)).toMatchObject({ scopes: ["read", "billing"] });
  });

  test("and none of it is an error in the log, which is one line each and the owner's alone", async () => {
    await send("/v1/audit?token=" + token);
    const path = join(product.home, "gateway.log");
    const lines = readFileSync(path, "utf8").trimEnd().split("\n");

    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(lines.map((line) => (JSON.parse(line) as { level: unknown }).level)).not.toContain(50);
    for (const secret of [token, product.adminKey]) expect(lines.filter((line) => line.includes(secret))).toEqual([]);
  });
});

describe("the API's own description", () => {
  type Operation = { readonly requestBody?: { readonly content: Record<string, { readonly schema: Record<string, unknown> }> } };
  const read = async () =>
    JSON.parse((await send("/openapi.json")).text) as Record<string, unknown> & { paths: Record<string, Record<string, Operation>> };

  test("is OpenAPI 3.1", async () => {
    expect(openApiFaults(await read())).toEqual([]);
  });

  test("is checked by something that finds faults", () => {
    expect(
      openApiFaults({
        openapi: "3.0.0",
        paths: {
          "/a/{b}": { get: { operationId: "x", security: [{ nobody: [] }], responses: {} } },
          "/a/:c": { fetch: {}, post: { operationId: "x", responses: { "2XX": { $ref: "#/nowhere" } }, requestBody: {} } },
        },
      }),
    ).toEqual(
      expect.arrayContaining([
        expect.stringMatching(/leads nowhere/),
        "openapi: 3.0.0",
        "info: has no title or version",
        "get /a/{b}: does not declare the path's parameters",
        "get /a/{b}: has no responses",
        "get /a/{b}: does not know the credential nobody",
        "fetch /a/:c: is no operation",
        "post /a/:c: has another's operationId",
        "post /a/:c body: has no content",
      ]),
    );
  });

  test("of bodies says what handlers accept and what they refuse", async () => {
    const { paths } = await read();
    const schemaOf = (method: string, path: string) =>
      z.fromJSONSchema(Object.values(paths[path]?.[method]?.requestBody?.content ?? {})[0]?.schema ?? {});
    const cases: readonly (readonly [string, string, string, unknown, boolean])[] = [
      ["post", "/v1/chat/completions", token, { model: "default", messages: [{ role: "user", content: "hi" }] }, true],
      ["post", "/v1/chat/completions", token, { model: "default", messages: [{ role: "nobody", content: "hi" }] }, false],
      ["post", "/v1/chat/completions", token, { model: "default", messages: [] }, false],
      ["post", "/v1/tenants", product.adminKey, { id: "described", markup: 0.1, quota: { cost_per_day_usd: "1.5" } }, true],
      ["post", "/v1/tenants", product.adminKey, { id: "described", tenant: "acme" }, false],
      ["post", "/v1/admin-keys", product.adminKey, { id: "described", scopes: ["all"] }, true],
      ["post", "/v1/admin-keys", product.adminKey, { id: "described", scopes: ["none"] }, false],
      ["post", "/rpc", token, { jsonrpc: "2.0", id: 1, method: "health" }, true],
    ];
    for (const [method, path, as, body, isAccepted] of cases) {
      const { status } = await send(path, { method: method.toUpperCase(), as, body: JSON.stringify(body) });
      const name = `${method} ${path} ${JSON.stringify(body)}`;
      expect([name, schemaOf(method, path).safeParse(body).success, status < 300]).toEqual([name, isAccepted, isAccepted]);
    }
    const withoutMethod = { jsonrpc: "2.0", id: 1, method: "no.such" };
    expect(schemaOf("post", "/rpc").safeParse(withoutMethod).success).toBe(false);
  });
});
