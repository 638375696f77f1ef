import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { type IncomingMessage, request } from "node:http";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { createRpcMethods } from "../../gateway/rpc/rpc-methods.ts";
import { createProgram } from "../../control-plane/cli/program.ts";
import { openclaw } from "../control-plane/cli-stage.ts";
import { freshNamespace } from "../fresh-namespace.ts";
import { type RunningProduct, configWithProvider, startProduct } from "../product.ts";
import { freshDatabase, runSql } from "../storage/fresh-database.ts";
import { type ModelServer, startModelServer } from "./model-server.ts";

/** Every route of the real gateway, by its own description, with every credential that is not enough for it. */

type Operation = {
  readonly operationId: string;
  readonly summary?: string;
  readonly "x-access": string;
  readonly requestBody?: { readonly content: Record<string, unknown> };
};
type Document = { readonly openapi: string; readonly paths: Record<string, Record<string, Operation>> };

let model: ModelServer;
let product: RunningProduct;
let databaseUrl: string;
let document: Document;

/** Whose names may show up in nobody else's answer. */
let alpha: { id: string; token: string };
let bravo: { id: string; token: string; turnId: string; responseId: string; conversationId: string; itemId: string };
const secret = `bravo-said-${randomBytes(6).toString("hex")}`;
const keys: Record<string, string> = {};
const tokens: Record<string, string> = {};

const idOf = (name: string): string => `${name}-${randomBytes(4).toString("hex")}`;

let callers = 0;

/** Each call comes from an address of its own: the limiter of failed authentications counts by address. */
async function send(method: string, path: string, bearer: string | undefined, body?: string, type = "application/json", more: object = {}) {
  const { port } = new URL(product.url);
  const localAddress = `127.1.${(++callers >> 8) & 255}.${callers & 255}`;
  const asked = request({
    host: "127.0.0.1",
    port,
    path,
    method: method.toUpperCase(),
    localAddress,
    agent: false,
    headers: {
      ...(bearer === undefined ? {} : { authorization: `Bearer ${bearer}` }),
      ...(body === undefined ? {} : { "content-type": type, "content-length": Buffer.byteLength(body) }),
      ...more,
    },
  });
  asked.end(body);
  const [answer] = (await once(asked, "response")) as [IncomingMessage];
  let text = "";
  for await (const chunk of answer.setEncoding("utf8")) text += String(chunk);
  const headers = new Headers(Object.entries(answer.headers).map(([name, value]): [string, string] => [name, [value].flat().join(", ")]));
  return { status: answer.statusCode ?? 0, headers, text };
}
const asAdmin = async (method: string, path: string, body?: object) =>
  await send(method, path, product.adminKey, body === undefined ? undefined : JSON.stringify(body));

async function newKey(id: string, scope: string): Promise<string> {
  const { text } = await asAdmin("POST", "/v1/admin-keys", { id, scopes: [scope] });
  return (JSON.parse(text) as { key: string }).key;
}

beforeAll(async () => {
  model = await startModelServer();
  databaseUrl = await freshDatabase();
  product = await startProduct({
    config: configWithProvider(model.url),
    env: {
      DATABASE_URL: databaseUrl,
      TEMPORAL_ADDRESS: inject("temporalAddress"),
      TEMPORAL_NAMESPACE: await freshNamespace(inject("temporalAddress")),
    },
  });
  document = JSON.parse((await send("GET", "/openapi.json", undefined)).text) as Document;
  const tenant = async (name: string) => {
    const id = idOf(name);
    return { id, token: await product.createTenant(id) };
  };
  alpha = await tenant("alpha");
  const other = await tenant("bravo");
  const turn = await send(
    "POST",
    "/v1/chat/completions",
    other.token,
    JSON.stringify({ model: "default", messages: [{ role: "user", content: secret }] }),
  );
  const response = await send("POST", "/v1/responses", other.token, JSON.stringify({ model: "default", input: secret, background: true }));
  const items = { items: [{ role: "user", content: secret }] };
  const conversation = await send("POST", "/v1/conversations", other.token, JSON.stringify(items));
  const idIn = ({ text }: { readonly text: string }): string => (JSON.parse(text) as { id: string }).id;
  bravo = {
    ...other,
    turnId: turn.headers.get("x-request-id") ?? "",
    responseId: idIn(response),
    conversationId: idIn(conversation),
    itemId: `${idIn(conversation).replace("conv_", "msg_")}_i0`,
  };
  expect([turn.status, response.status, conversation.status]).toEqual([200, 200, 200]);
  const item = await send("GET", `/v1/conversations/${bravo.conversationId}/items/${bravo.itemId}`, other.token);
  expect(item.text).toContain(secret);

  for (const [name, end] of [
    ["rotated", "token/rotate"],
    ["revoked", "token/revoke"],
    ["suspended", "suspend"],
  ] as const) {
    const { id, token } = await tenant(name);
    tokens[name] = token;
    expect((await asAdmin("POST", `/v1/tenants/${id}/${end}`)).status).toBe(200);
  }
  for (const scope of ["read", "tenants", "billing", "all"]) keys[scope] = await newKey(scope, scope);
  keys["ended"] = await newKey("ended", "all");
  expect((await asAdmin("DELETE", "/v1/admin-keys/ended")).status).toBe(202);
}, 120_000);
afterAll(async () => {
  await product?.stop();
  await model?.close();
});

/** What stands in the braces of a path: always the other tenant's. A name that is not here fails the test. */
const placeholders: Record<string, () => string> = {
  tenant: () => bravo.id,
  workflowId: () => `erase:${bravo.id}`,
  path: () => "namespaces",
  itemId: () => bravo.itemId,
  run: () => "01a20de4-34bf-7629-a20d-a83d09840691",
};
/** `{id}` means something else on each route. */
const ids: Record<string, () => string> = {
  "/v1/models/{id}": () => "test-model",
  "/v1/responses/{id}": () => bravo.responseId,
  "/v1/responses/{id}/cancel": () => bravo.responseId,
  "/v1/responses/{id}/input_items": () => bravo.responseId,
  "/v1/conversations/{id}": () => bravo.conversationId,
  "/v1/conversations/{id}/items": () => bravo.conversationId,
  "/v1/conversations/{id}/items/{itemId}": () => bravo.conversationId,
  "/v1/billing/rows/{id}/explain": () => `${bravo.turnId}.0`,
  "/v1/files/{id}": () => "file-01JTEST0000000000000000000",
  "/v1/files/{id}/content": () => "file-01JTEST0000000000000000000",
  "/v1/admin-keys/{id}": () => "read",
};

/** A body that would be taken from somebody who may send it; a route with a body that is not here fails the test. */
const bodies: Record<string, () => string> = {
  "post /v1/chat/completions": () => JSON.stringify({ model: "default", messages: [{ role: "user", content: "hello" }] }),
  "post /v1/responses": () => JSON.stringify({ model: "default", input: "hello" }),
  "post /v1/conversations": () => JSON.stringify({ metadata: { a: "b" } }),
  "post /v1/conversations/{id}": () => JSON.stringify({ metadata: { a: "b" } }),
  "post /v1/conversations/{id}/items": () => JSON.stringify({ items: [{ role: "user", content: "hello" }] }),
  "post /v1/embeddings": () => JSON.stringify({ model: "test-embedding", input: "hello" }),
  "post /v1/moderations": () => JSON.stringify({ model: "test-moderation", input: "hello" }),
  "post /v1/audio/transcriptions": () => "no form",
  "post /v1/files": () => "no form",
  "post /v1/tenants": () => JSON.stringify({ id: idOf("never") }),
  "patch /v1/tenants/{tenant}": () => JSON.stringify({ display_name: "taken over" }),
  "put /v1/tenants/{tenant}/quota": () => JSON.stringify({ requests_per_minute: 1 }),
  "put /v1/tenants/{tenant}/overlay": () => "system_prompt: taken over\n",
  "put /v1/rate-card": () => JSON.stringify({ rate_card: { "test-model": { input: "0", output: "0" } } }),
  "post /v1/admin-keys": () => JSON.stringify({ id: "stolen", scopes: ["all"] }),
  "post /v1/billing/invoices": () => JSON.stringify({ tenant: bravo.id, period: "today" }),
  "post /v1/billing/invoices/resolve": () => JSON.stringify({ tenant: bravo.id, event: "usage.2026-11-22.1", as: "dropped" }),
  "post /v1/tenants/{tenant}/sandbox/exec": () => JSON.stringify({ command: ["touch", "taken-over"] }),
  "post /rpc": () => JSON.stringify({ jsonrpc: "2.0", id: 1, method: "sessions.list", params: {} }),
  "post /v1/tenants/{tenant}/rpc": () => JSON.stringify({ jsonrpc: "2.0", id: 1, method: "sessions.list", params: {} }),
  "post /admin/login": () => JSON.stringify({ key: "ak_none_00000000000000000000000000000000" }),
  "post /temporal-codec/decode": () => JSON.stringify({ payloads: [] }),
};
const withoutBody: ReadonlySet<string> = new Set([
  "post /admin/logout",
  "post /v1/responses/{id}/cancel",
  "delete /v1/responses/{id}",
  "delete /v1/conversations/{id}",
  "delete /v1/conversations/{id}/items/{itemId}",
  "delete /v1/tenants/{tenant}",
  "post /v1/tenants/{tenant}/suspend",
  "post /v1/tenants/{tenant}/resume",
  "post /v1/tenants/{tenant}/token/rotate",
  "post /v1/tenants/{tenant}/token/revoke",
  "delete /v1/files/{id}",
  "delete /v1/admin-keys",
  "delete /v1/admin-keys/{id}",
  "post /v1/keys/rotate",
]);

type Route = {
  readonly name: string;
  readonly method: string;
  readonly template: string;
  readonly access: string;
  readonly operation: Operation;
};

const routes = (): readonly Route[] =>
  Object.entries(document.paths).flatMap(([template, operations]) =>
    Object.entries(operations).map(([method, operation]) => ({
      name: `${method} ${template}`,
      method,
      template,
      access: operation["x-access"],
      operation,
    })),
  );

function requestOf({ name, method, template, operation }: Route): { path: string; body: string | undefined; type: string } {
  const path = template.replaceAll(/\{(\w+)\}/g, (_all, placeholder: string) => {
    const value = placeholder === "id" ? ids[template]?.() : placeholders[placeholder]?.();
    if (value === undefined) throw new Error(`the matrix has no value for ${placeholder} of ${name}`);
    return encodeURIComponent(value);
  });
  const isProxied = template.startsWith("/temporal/") || template === "/temporal";
  if (method !== "get" && !isProxied && bodies[name] === undefined && !withoutBody.has(name))
    throw new Error(`the matrix has no body for ${name}`);
  const [type = "application/json"] = Object.keys(operation.requestBody?.content ?? {});
  return { path: name === "delete /v1/tenants/{tenant}" ? `${path}?confirm=${bravo.id}` : path, body: bodies[name]?.(), type };
}

/** Rows of every table, without what a refused call may touch: when a credential was last seen, and what is written all the time. */
async function contents(): Promise<string> {
  const { rows: tables } = await runSql(
    databaseUrl,
    `select table_schema || '.' || table_name as name from information_schema.tables
     where table_type = 'BASE TABLE' and (table_schema = 'control' or table_schema like 'tenant\\_%')
       and table_name not in ('audit_file', 'audit_anchor', 'process') order by 1`,
  );
  const digests: string[] = [];
  for (const { name } of tables as { name: string }[]) {
    const { rows } = await runSql(
      databaseUrl,
      `select count(*) || ' ' || coalesce(md5(string_agg(text, '|' order by text)), '') as digest
       from (select (to_jsonb(t) - 'last_used_at' - 'seen_at')::text as text from ${name} t) rows`,
    );
    digests.push(`${name} ${(rows[0] as { digest: string }).digest}`);
  }
  return digests.join("\n");
}

const errorOf = (text: string): Record<string, unknown> => (JSON.parse(text) as { error: Record<string, unknown> }).error;

function expectRefusal({ status, headers, text }: { status: number; headers: Headers; text: string }, wanted: number, code: string): void {
  expect([status, errorOf(text)["code"]]).toEqual([wanted, code]);
  expect(Object.keys(errorOf(text)).sort()).toEqual(["code", "message", "param", "type"]);
  expect(headers.get("www-authenticate")).toBe(wanted === 401 ? "Bearer" : null);
  expect(text).not.toContain(secret);
}

describe("every route", () => {
  test("is described, and only what is described is there", async () => {
    expect(document.openapi).toBe("3.1.0");
    const all = routes();
    expect(all.length).toBeGreaterThan(40);
    expect(all.filter(({ operation }) => operation.summary === undefined).map(({ name }) => name)).toEqual([]);
    expect(new Set(all.map(({ operation }) => operation.operationId)).size).toBe(all.length);
    expect((await send("GET", "/v1/not-described", keys["all"])).status).toBe(404);
  });

  test("that needs a credential refuses none, malformed, wrong, rotated, revoked and ended ones alike, and writes nothing", async () => {
    const before = await contents();
    for (const route of routes()) {
      if (route.access === "public") continue;
      const { path, body, type } = requestOf(route);
      const bad = [
        undefined,
        "",
        "tk_",
        "ak_none_0123",
        `tk_${bravo.id}_${"0".repeat(32)}`,
        tokens["rotated"],
        tokens["revoked"],
        keys["ended"],
      ];
      for (const bearer of bad) {
        if (bearer === undefined && (route.access.startsWith("local-or-") || route.access.startsWith("admin-page"))) continue;
        expectRefusal(await send(route.method, path, bearer, body, type, { origin: product.url }), 401, "invalid_api_key");
      }
    }
    expect(await contents()).toBe(before);
  });

  test("of administrators refuses a tenant whatever its path names, and a key without the scope, and writes nothing", async () => {
    const before = await contents();
    for (const route of routes()) {
      const [who = "", scope] = route.access.split(":");
      if (who !== "admin" && who !== "local-or-admin" && who !== "admin-page") continue;
      const { path, body, type } = requestOf(route);
      expectRefusal(await send(route.method, path, alpha.token, body, type, { origin: product.url }), 403, "forbidden");
      if (scope === undefined) continue;
      for (const wrong of ["read", "tenants", "billing"].filter((other) => other !== scope)) {
        const isEnough = scope === "read"; // every scope reads
        const answer = await send(route.method, path, keys[wrong], body, type, { origin: product.url });
        if (!isEnough) expectRefusal(answer, 403, "forbidden");
      }
    }
    expect(await contents()).toBe(before);
  });

  test("of tenants refuses an admin key, and a suspended tenant", async () => {
    const before = await contents();
    for (const route of routes()) {
      if (route.access !== "tenant") continue;
      const { path, body, type } = requestOf(route);
      expectRefusal(await send(route.method, path, keys["all"], body, type), 401, "invalid_api_key");
      expectRefusal(await send(route.method, path, tokens["suspended"], body, type), 403, "tenant_suspended");
    }
    expect(await contents()).toBe(before);
  });

  test("that tenants share with administrators shows a tenant nothing of another's", async () => {
    for (const route of routes()) {
      if (!route.access.startsWith("tenant-or-admin")) continue;
      const { path, body, type } = requestOf(route);
      expectRefusal(await send(route.method, path, alpha.token, body, type), 404, "not_found");
    }
  });

  test("keeps the operators' cookie to pages: the API does not take it", async () => {
    const login = await send("POST", "/admin/login", undefined, JSON.stringify({ key: keys["all"] }), "application/json", {
      origin: product.url,
    });
    expect(login.status).toBe(200);
    const cookie = (login.headers.get("set-cookie") ?? "").split(";", 1)[0] ?? "";
    const before = await contents();
    for (const route of routes()) {
      if (!route.access.startsWith("admin:")) continue;
      const { path, body, type } = requestOf(route);
      expectRefusal(await send(route.method, path, undefined, body, type, { cookie, origin: product.url }), 401, "invalid_api_key");
    }
    expect(await contents()).toBe(before);
  });
});

/** Params of each method with the other tenant's objects; a method that is not here fails the test. */
const rpcParams: Record<string, () => object> = {
  health: () => ({}),
  "usage.get": () => ({}),
  "quota.get": () => ({}),
  "config.get": () => ({}),
  "config.set": () => ({ text: "system_prompt: mine\n" }),
  "chat.send": () => ({ session_id: "wa:+15551234567:default", text: "hello" }),
  "chat.history": () => ({ session_id: `api:${bravo.turnId}:default` }),
  "chat.abort": () => ({ turn_id: bravo.turnId }),
  "sessions.list": () => ({}),
  "sessions.get": () => ({ session_id: `api:${bravo.turnId}:default` }),
  "sessions.reset": () => ({ session_id: `api:${bravo.turnId}:default` }),
  "sessions.delete": () => ({ session_id: `api:${bravo.turnId}:default` }),
};

test("every method of /rpc meets only its own tenant's objects, and takes no tenant", async () => {
  const names = createRpcMethods({} as never).map(({ name }) => name);
  expect(names.filter((name) => rpcParams[name] === undefined)).toEqual([]);
  const bravoRows = async () =>
    (await contents())
      .split("\n")
      .filter((line) => line.startsWith(`tenant_${bravo.id.replaceAll("-", "_")}.`))
      .join("\n");
  const before = await bravoRows();
  for (const method of names) {
    const call = async (params: object) =>
      (await send("POST", "/rpc", alpha.token, JSON.stringify({ jsonrpc: "2.0", id: 1, method, params }))).text;
    const text = await call(rpcParams[method]?.() ?? {});
    expect(text, method).not.toContain(bravo.id);
    expect(text, method).not.toContain(secret);
    expect(JSON.parse(await call({ ...rpcParams[method]?.(), tenant: bravo.id })), method).toMatchObject({ error: { code: -32_602 } });
  }
  expect(await bravoRows()).toBe(before);
});

/** Words behind each command of the CLI; undefined: it asks no gateway. A command that is not here fails the test. */
const commandWords: Record<string, (() => readonly string[]) | undefined> = {
  start: undefined,
  stop: undefined,
  status: undefined,
  doctor: undefined,
  completion: undefined,
  "tenants create": () => [idOf("never")],
  "tenants list": () => [],
  "tenants show": () => [bravo.id],
  "tenants suspend": () => [bravo.id],
  "tenants resume": () => [bravo.id],
  "tenants delete": () => [bravo.id, "--confirm", bravo.id],
  "tenants quota show": () => [bravo.id],
  "tenants quota update": () => [bravo.id, "--requests-per-minute", "1"],
  "tenants token rotate": () => [bravo.id],
  "tenants token show": () => [bravo.id],
  "tenants token revoke": () => [bravo.id],
  "tenants overlay get": () => [bravo.id],
  "tenants overlay set": () => [bravo.id, "/dev/null"],
  "admin-keys create": () => ["stolen", "--scopes", "all"],
  "admin-keys list": () => [],
  "admin-keys revoke": () => ["read"],
  "keys rotate": () => [],
  "audit list": () => [],
  "audit verify": () => [],
  "billing report": () => [bravo.id, "--period", "today"],
  "billing explain": () => [`${bravo.turnId}.0`],
  "billing verify": () => [],
  "billing rates get": () => [],
  "billing rates set": () => ["/dev/null"],
  "billing rates check": () => [],
  "billing invoice run": () => ["--tenant", bravo.id, "--period", "today"],
  "billing invoice status": () => ["--tenant", bravo.id],
  "billing invoice resolve": () => ["usage.2026-11-22.1", "--tenant", bravo.id, "--as", "dropped"],
  "sandbox exec": () => ["--tenant", bravo.id, "--", "touch", "taken-over"],
  "sandbox copy": () => ["--tenant", bravo.id, "file"],
  "sandbox explain": () => ["--tenant", bravo.id, "--tool", "exec"],
  "history list": () => ["--tenant", bravo.id],
  "history export": () => ["01a20de4-34bf-7629-a20d-a83d09840691", "--tenant", bravo.id],
  agent: () => ["--tenant", bravo.id, "--message", "hello"],
};

test("every command of the CLI is refused without a credential that is enough, with exit code 4, and writes nothing", async () => {
  type Tree = { readonly commands: readonly Tree[]; name(): string };
  const leaves = (tree: Tree, path: readonly string[]): readonly string[] =>
    tree.commands.length === 0 ? [path.join(" ")] : tree.commands.flatMap((command) => leaves(command, [...path, command.name()]));
  const commands = leaves(createProgram({ variables: {} } as never, "0"), []);
  expect(commands.filter((command) => !(command in commandWords))).toEqual([]);

  const before = await contents();
  for (const command of commands) {
    const words = commandWords[command]?.();
    if (words === undefined) continue;
    for (const token of [`ak_none_${"0".repeat(32)}`, alpha.token, keys["ended"] ?? ""]) {
      const { code, stdout, stderr } = await openclaw([...command.split(" "), ...words], {
        OPENCLAW_URL: product.url,
        OPENCLAW_TOKEN: token,
      });
      expect([command, code], stderr).toEqual([command, 4]);
      expect(stdout).toBe("");
      expect(stderr).not.toMatch(/\n\s+at /);
      expect(stderr).not.toContain(secret);
    }
  }
  expect(await contents()).toBe(before);
});
