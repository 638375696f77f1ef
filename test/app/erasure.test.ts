import { randomBytes } from "node:crypto";
import { existsSync, readFileSync, readdirSync, realpathSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { embeddedOwnerUrl } from "../../storage/embedded-postgres.ts";
import { openclaw } from "../control-plane/cli-stage.ts";
import { freshNamespace } from "../fresh-namespace.ts";
import { openSocket } from "../gateway/rpc-stage.ts";
import { leaksIn } from "../planted-secrets.ts";
import { type RunningProduct, configWithProvider, startProduct } from "../product.ts";
import { freshDatabase, runSql } from "../storage/fresh-database.ts";
import { type ModelServer, startModelServer } from "./model-server.ts";

type Answer = { readonly status: number; readonly body: Record<string, unknown> };

/** A product with its own Postgres and its own Temporal: every file of theirs can be searched. */
let model: ModelServer;
let product: RunningProduct;
const planted = (name: string): string => `planted-${name}-${randomBytes(16).toString("hex")}`;
const providerKey = planted("provider-key");

beforeAll(async () => {
  model = await startModelServer();
  const config = configWithProvider(model.url).replace("kind: openai-compatible,", "kind: openai-compatible, api_key_env: PLANTED_KEY,");
  product = await startProduct({ config, env: { PLANTED_KEY: providerKey } });
});
afterAll(async () => {
  await product?.stop();
  await model?.close();
});

async function call(
  bearer: string,
  method: string,
  path: string,
  body?: unknown,
  headers: Record<string, string> = {},
  at = product,
): Promise<Answer> {
  const isText = typeof body === "string";
  const answer = await fetch(at.url + path, {
    method,
    headers: {
      authorization: `Bearer ${bearer}`,
      ...(body === undefined ? {} : { "content-type": isText ? "application/yaml" : "application/json" }),
      ...headers,
    },
    ...(body === undefined ? {} : { body: isText ? body : JSON.stringify(body) }),
  });
  const text = await answer.text();
  return { status: answer.status, body: text.startsWith("{") ? (JSON.parse(text) as Record<string, unknown>) : { text } };
}
const admin = async (method: string, path: string, body?: unknown, key?: string, at = product): Promise<Answer> =>
  await call(at.adminKey, method, path, body, key === undefined ? {} : { "idempotency-key": key }, at);
const someId = (name: string): string => `${name}-${randomBytes(4).toString("hex")}`;
const stateOf = async (workflowId: string, at = product): Promise<unknown> =>
  (await admin("GET", `/v1/operations/${workflowId}`, undefined, undefined, at)).body["state"];
const untilDone = async (workflowId: string, at = product): Promise<void> =>
  await expect.poll(async () => await stateOf(workflowId, at), { timeout: 120_000 }).toBe("done");
/** As a caller does who is told to come again: with the same Idempotency-Key. */
async function untilMade(method: string, path: string, body?: unknown, key = someId("k")): Promise<Answer> {
  for (;;) {
    const answer = await admin(method, path, body, key);
    if (answer.status !== 503) return answer;
  }
}
const chatBody = (content: string, more: object = {}) => ({ model: "default", messages: [{ role: "user", content }], ...more });
const filesBelow = (directory: string): Buffer =>
  Buffer.concat(
    readdirSync(directory, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => {
        try {
          return readFileSync(join(entry.parentPath, entry.name));
        } catch {
          return Buffer.alloc(0); // the servers run: what they remove meanwhile is gone
        }
      }),
  );
const databaseUrl = (): string => embeddedOwnerUrl(join(product.home, "postgres"));
/** Every byte that the servers and the logs have on the disk, once Postgres has written what it holds. */
async function onDisk(): Promise<Record<string, Buffer>> {
  await runSql(databaseUrl(), "checkpoint");
  return {
    postgres: filesBelow(join(realpathSync(join(product.home, "postgres")), "data")),
    temporal: filesBelow(join(product.home, "temporal")),
    logs: Buffer.concat(["gateway.log", "audit.jsonl"].map((name) => readFileSync(join(product.home, name)))),
  };
}
const leaks = async (secrets: Record<string, string>): Promise<Record<string, readonly string[]>> =>
  Object.fromEntries(Object.entries(await onDisk()).map(([place, bytes]) => [place, leaksIn(bytes, secrets)]));
const nowhere = { postgres: [], temporal: [], logs: [] };

test("a tenant that is deleted while it streams, keeps a socket, and keys are rotated leaves none of its text on any disk", async () => {
  const id = someId("gone");
  const [createKey, rotateKey] = [someId("k"), someId("k")];
  const created = await untilMade("POST", "/v1/tenants", { id }, createKey);
  const rotated = await untilMade("POST", `/v1/tenants/${id}/token/rotate`, undefined, rotateKey);
  const token = String(rotated.body["token"]);
  const overlaySecret = planted("overlay");
  const overlay = `system_prompt: "${planted("prompt-of-overlay")}"\nskills: { mail: { enabled: true, env: { MAIL_KEY: "${overlaySecret}" } } }\n`;
  expect(await untilMade("PUT", `/v1/tenants/${id}/overlay`, overlay)).toMatchObject({ status: 200 });
  const question = planted("question");
  const answered = await call(token, "POST", "/v1/chat/completions", chatBody(`SAY ${question}`), {
    "x-openclaw-session": "api:jane:default",
  });
  expect(answered.status).toBe(200);
  const secrets = {
    "first token": String(created.body["token"]).slice(-32),
    token: token.slice(-32),
    "overlay's secret": overlaySecret,
    "overlay's prompt": /planted-prompt-of-overlay-\w+/.exec(overlay)?.[0] ?? "",
    "provider key": providerKey,
    kek: readFileSync(join(product.home, "kek"), "utf8").trim(),
  };

  expect(await leaks(secrets)).toEqual(nowhere); // while it lives
  expect(await leaks({ question })).toEqual({ ...nowhere, postgres: ["question"] }); // its own row holds it: the search finds what is there

  const held = model.hold("STREAM then wait", 2);
  const streaming = fetch(`${product.url}/v1/chat/completions`, {
    method: "POST",
    headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
    body: JSON.stringify(chatBody("STREAM then wait", { stream: true })),
  }).then(async (answer) => await answer.text());
  await held.arrived;
  const socket = await openSocket(product.url, { token });
  const statuses = new Set<number>();
  const knocking = Array.from({ length: 12 }, async (_, index) => {
    const rpc = { jsonrpc: "2.0", id: 1, method: "sessions.list", params: {} };
    const knocks = [
      async () => await call(token, "POST", "/v1/chat/completions", chatBody(`knock ${index}`)),
      async () => await call(token, "GET", `/v1/tenants/${id}/usage?period=today`),
      async () => await call(token, "POST", "/rpc", rpc),
      async () => await call(token, "GET", "/v1/models"),
    ];
    for (let turn = index; ; turn++) {
      const { status, body } = (await knocks[turn % knocks.length]?.()) ?? { status: 0, body: {} };
      statuses.add(status);
      if (status === 401 || status === 429) return; // it is known, and the address limiter acts after twenty of these
      expect((body["error"] as { code?: unknown } | undefined)?.code).not.toBe(-32_603);
    }
  });
  const [rotation, removed] = await Promise.all([
    untilMade("POST", "/v1/keys/rotate"),
    untilMade("DELETE", `/v1/tenants/${id}?confirm=${id}`),
  ]);

  expect([rotation.status, removed]).toEqual([202, { status: 202, body: { workflow_id: `erase:${id}` } }]);
  expect(await socket.ended).toMatchObject({ code: 4401 });
  expect(await streaming).not.toContain("[DONE]");
  await Promise.all([untilDone(`erase:${id}`), untilDone(String(rotation.body["workflow_id"]))]);
  await Promise.all(knocking);

  expect([...statuses].filter((status) => ![200, 401, 404, 409, 429].includes(status))).toEqual([]);
  expect(existsSync(join(product.home, "tenants", id))).toBe(false);
  expect(await leaks({ ...secrets, question })).toEqual(nowhere);
  const { rows } = await runSql(
    databaseUrl(),
    `select (select count(*)::int from control.data_key where owner = '${id}' and wrapped is not null) as keys,
       (select count(*)::int from control.overlay_text where tenant_id = '${id}') + (select count(*)::int from control.overlay_file where tenant_id = '${id}') as texts,
       (select count(*)::int from control.sealed_answer where owner = '${id}' or subject = 'tenant:${id}') as answers`,
  );
  expect(rows).toEqual([{ keys: 0, texts: 0, answers: 0 }]);
  expect((await admin("POST", "/v1/tenants", { id }, createKey)).status).toBe(409);
  expect((await admin("POST", `/v1/tenants/${id}/token/rotate`, undefined, rotateKey)).status).toBe(404);
  expect((await admin("GET", "/v1/audit/verify")).body).toMatchObject({ ok: true, findings: [] });
}, 240_000);

test("keys rotate by the command line tells its steps, refuses a second one, and leaves no earlier key in the home", async () => {
  const id = someId("kept");
  await product.createTenant(id);
  expect((await admin("PUT", `/v1/tenants/${id}/overlay`, "temperature: 0.5\n")).status).toBe(200);
  const before = readFileSync(join(product.home, "kek"), "utf8").trim();
  writeFileSync(join(product.home, "kek.4711.0badcafe.tmp"), `${before}\n`, { mode: 0o400 }); // as a killed rotation leaves it
  const { PATH = "", HOME = "" } = process.env;
  const rotate = async () => await openclaw(["keys", "rotate", "--json"], { PATH, HOME, OPENCLAW_HOME: product.home });

  const both = await Promise.all([rotate(), rotate()]);

  const [won, lost] = both.toSorted((a, b) => a.code - b.code);
  expect([won?.code, lost?.code]).toEqual([0, 4]);
  expect(lost?.stderr).toMatch(/rekey:_system:[0-9a-f]{20} is under way/);
  const operation = JSON.parse(won?.stdout ?? "") as { workflow_id: string; progress: { done: number; total: number } };
  expect(operation).toMatchObject({ state: "done", kind: "rekey", tenant: null, progress: { done: 6, total: 6 } });
  expect(won?.stderr).toContain("earlier key forgotten");
  const names = readdirSync(product.home).filter((name) => name.startsWith("kek"));
  expect(names).toEqual(["kek"]);
  expect(readFileSync(join(product.home, "kek"), "utf8").trim()).not.toBe(before);
  expect((await admin("GET", `/v1/tenants/${id}/overlay`)).body).toEqual({ text: "temperature: 0.5\n" });
  await product.kill();
  await product.restart();
  expect((await admin("GET", `/v1/tenants/${id}/overlay`)).body).toEqual({ text: "temperature: 0.5\n" });
}, 180_000);

test("another gateway's home loses the files of an erased tenant too, also one that was down", async () => {
  const env = {
    DATABASE_URL: await freshDatabase(),
    TEMPORAL_ADDRESS: inject("temporalAddress"),
    TEMPORAL_NAMESPACE: await freshNamespace(inject("temporalAddress")),
  };
  const config = configWithProvider(model.url);
  const first = await startProduct({ config, env: { ...env, PLANTED_KEY: providerKey } });
  const second = await startProduct({ config, env, role: "gateway", adminKey: first.adminKey });
  const secret = planted("elsewhere");
  const withOverlay = async (): Promise<string> => {
    const id = someId("twohomes");
    await first.createTenant(id);
    const put = await admin("PUT", `/v1/tenants/${id}/overlay`, `skills: { mail: { env: { KEY: "${secret}" } } }\n`, undefined, first);
    expect(put.status).toBe(200);
    await expect.poll(() => fileIn(second, id), { timeout: 30_000 }).toContain(secret);
    return id;
  };
  const fileIn = (at: RunningProduct, id: string): string => {
    const path = join(at.home, "tenants", id, "config.yaml");
    return existsSync(path) ? readFileSync(path, "utf8") : "";
  };
  const remove = async (id: string): Promise<void> => {
    expect((await admin("DELETE", `/v1/tenants/${id}?confirm=${id}`, undefined, undefined, first)).status).toBe(202);
    await untilDone(`erase:${id}`, first);
  };
  const [told, missed] = [await withOverlay(), await withOverlay()];

  await remove(told);
  await expect.poll(() => existsSync(join(second.home, "tenants", told)), { timeout: 30_000 }).toBe(false);
  await second.kill();
  await remove(missed);
  expect(fileIn(second, missed)).toContain(secret);
  await second.restart();
  await expect.poll(() => existsSync(join(second.home, "tenants", missed)), { timeout: 30_000 }).toBe(false);
  expect(existsSync(join(first.home, "tenants", missed))).toBe(false);

  await second.stop();
  await first.stop();
}, 240_000);
