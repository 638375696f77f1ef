import { generateKeyPairSync } from "node:crypto";
import { cpSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { type IncomingMessage, get } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { embeddedOwnerUrl } from "../../storage/embedded-postgres.ts";
import { binPath, run } from "../control-plane/cli-stage.ts";
import { type RunningProduct, startProduct } from "../product.ts";
import { runSql } from "../storage/fresh-database.ts";

/** The product with the real Web UI behind it, and a second gateway on the same servers. */
let product: RunningProduct;
let second: RunningProduct;

type Record = { readonly temporal: { readonly address: string; readonly ui: string } };

beforeAll(async () => {
  product = await startProduct();
  const { temporal } = JSON.parse(readFileSync(join(product.home, "gateway.json"), "utf8")) as Record;
  second = await startProduct({
    role: "gateway",
    adminKey: product.adminKey,
    env: {
      DATABASE_URL: embeddedOwnerUrl(join(product.home, "postgres")),
      TEMPORAL_ADDRESS: temporal.address,
      TEMPORAL_UI_URL: temporal.ui,
    },
  });
}, 120_000);
afterAll(async () => {
  await second?.stop();
  await product?.stop();
});

const call = async (
  { url }: RunningProduct,
  path: string,
  { method = "GET", headers = {}, body }: { method?: string; headers?: { [name: string]: string }; body?: unknown } = {},
) =>
  await fetch(url + path, {
    method,
    redirect: "manual",
    headers: { ...(body === undefined ? {} : { "content-type": "application/json" }), ...headers },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });

const admin = async (path: string, method = "GET", body?: unknown) =>
  await call(product, path, { method, body, headers: { authorization: `Bearer ${product.adminKey}` } });

async function newKey(id: string, scope: string): Promise<string> {
  const answer = await admin("/v1/admin-keys", "POST", { id, scopes: [scope] });
  expect(answer.status).toBe(201);
  return ((await answer.json()) as { key: string }).key;
}

async function signIn(gateway: RunningProduct, key: string): Promise<string> {
  const answer = await call(gateway, "/admin/login", { method: "POST", body: { key } });
  expect(answer.status).toBe(200);
  return answer.headers.getSetCookie()[0]?.split(";")[0] ?? "";
}

test("the start names the Web UI behind the login, and status the one behind that", () => {
  const { temporal } = JSON.parse(readFileSync(join(product.home, "gateway.json"), "utf8")) as Record;

  expect(product.output()).toContain(`${product.url}/temporal`);
  expect(temporal.ui).toMatch(/^http:\/\/127\.0\.0\.1:\d+\/temporal$/);
});

test("who is signed in gets the page, all that it loads, and workflows by its API; both gateways serve it", async () => {
  const cookie = await signIn(product, product.adminKey);
  for (const gateway of [product, second]) {
    const page = await call(gateway, "/temporal", { headers: { cookie, accept: "text/html" } });
    const html = await page.text();
    const assets = [...html.matchAll(/(?:href|src)="(\/temporal\/[^"]+)"/g)].map(([, path]) => path ?? "");

    expect([page.status, assets.length > 3]).toEqual([200, true]);
    for (const path of assets) expect([path, (await call(gateway, path, { headers: { cookie } })).status]).toEqual([path, 200]);
    const settings = await call(gateway, "/temporal/api/v1/settings", { headers: { cookie } });
    expect(await settings.json()).toMatchObject({ Codec: { Endpoint: "/temporal-codec" } });
    const list = await call(gateway, "/temporal/api/v1/namespaces/default/workflows", { headers: { cookie } });
    expect(list.status).toBe(200);
    expect(
      (
        await call(gateway, "/temporal-codec/decode", {
          method: "POST",
          body: { payloads: [] },
          headers: { cookie, origin: gateway.url, "x-namespace": "default" },
        })
      ).status,
    ).toBe(200);
  }
});

test("who is not is shown the login; a tenant is refused", async () => {
  const path = "/temporal/namespaces/default/workflows?x=1";
  const shown = await new Promise<IncomingMessage>((resolve) => get(product.url + path, { headers: { accept: "text/html" } }, resolve)); // fetch says that it is no navigation
  shown.resume();

  expect([shown.statusCode, shown.headers.location]).toEqual([303, `/admin?next=${encodeURIComponent(path)}`]);
  expect((await call(product, "/temporal/api/v1/namespaces")).status).toBe(401);
  expect((await call(product, "/temporal-codec/decode", { method: "POST", body: { payloads: [] } })).status).toBe(401);
  for (const where of ["/temporal", "/temporal/api/v1/namespaces"]) {
    expect((await call(product, where, { headers: { authorization: `Bearer ${product.token}`, accept: "text/html" } })).status).toBe(403);
  }
  expect((await call(product, "/admin/login", { method: "POST", body: { key: product.token } })).status).toBe(403);
});

test("a revoked key's cookie ends at once, in the other gateway too", async () => {
  const cookie = await signIn(second, await newKey("leaving", "read"));
  const look = async (gateway: RunningProduct) => (await call(gateway, "/temporal/api/v1/settings", { headers: { cookie } })).status;
  expect([await look(product), await look(second)]).toEqual([200, 200]);

  expect((await admin("/v1/admin-keys/leaving", "DELETE")).status).toBe(202);

  expect([await look(second), await look(product)]).toEqual([401, 401]);
});

test("ending a workflow in the Web UI takes the scope all, a page of ours, and leaves an entry", async () => {
  const turn = await call(product, "/v1/chat/completions", {
    method: "POST",
    headers: { authorization: `Bearer ${product.token}`, "x-openclaw-session": "web:ended:default" },
    body: { model: "default", messages: [{ role: "user", content: "hello" }] },
  });
  expect(turn.status).toBe(200);
  const workflow = encodeURIComponent("turn:demo:web:ended:default");
  const path = `/temporal/api/v1/namespaces/default/workflows/${workflow}/terminate`;
  const end = async (key: string, origin: string) => {
    const cookie = await signIn(product, key);
    const page = await call(product, "/temporal", { headers: { cookie } });
    const csrf =
      page.headers
        .getSetCookie()
        .find((text) => text.startsWith("_csrf="))
        ?.split(";")[0] ?? "";
    const headers = { cookie: `${cookie}; ${csrf}`, origin, "x-csrf-token": csrf.split("=")[1] ?? "" };
    return (await call(product, path, { method: "POST", headers, body: { reason: "a test" } })).status;
  };

  expect(await end(await newKey("looker", "read"), product.url)).toBe(403);
  expect(await end(product.adminKey, "https://evil.example")).toBe(403);
  expect(await end(product.adminKey, product.url)).toBe(200);
  const { data } = (await (await admin("/v1/audit?action=temporal.operate")).json()) as {
    data: { target: string; actor: { id: string } }[];
  };
  expect(data).toEqual([
    expect.objectContaining({
      actor: { type: "admin", id: "root" },
      target: `POST /api/v1/namespaces/default/workflows/${workflow}/terminate`,
    }),
  ]);
  expect(await (await admin("/v1/audit/verify")).json()).toMatchObject({ ok: true, findings: [] });
});

test("the audit is whole by two gateways' keys, and each home has its own anchors", async () => {
  for (const gateway of [product, second]) {
    const verified = await call(gateway, "/v1/audit/verify", { headers: { authorization: `Bearer ${product.adminKey}` } });
    expect(await verified.json()).toMatchObject({ ok: true, findings: [], anchors: expect.any(Number) });
    expect(readFileSync(join(gateway.home, "gateway.log"), "utf8")).toContain('"msg":"audit anchor"');
  }
});

test("the command finds an edit by itself, with a key that was given out, and says so when a key signed nothing", async () => {
  const env = { OPENCLAW_HOME: product.home, OPENCLAW_URL: product.url, OPENCLAW_TOKEN: product.adminKey };
  const verify = async (...words: string[]) => await run(process.execPath, [binPath, "audit", "verify", ...words], env);
  const copy = mkdtempSync(join(tmpdir(), "openclaw-anchors-"));
  cpSync(join(product.home, "audit-anchors"), copy, { recursive: true });
  const pem = join(copy, readdirSync(copy).find((name) => name.endsWith(".pem")) ?? "");
  const strange = join(copy, "strange");
  writeFileSync(strange, generateKeyPairSync("ed25519").publicKey.export({ format: "pem", type: "spki" }));

  const whole = await verify("--public-key", pem, "--anchors", copy);
  expect([whole.code, whole.stdout]).toEqual([0, ""]);
  expect(whole.stderr).toMatch(/By the given key: \d+ anchors of \d+ chains fit/);
  expect((await verify("--anchors", copy)).code).toBe(0);
  expect((await verify("--public-key", pem)).code).toBe(0);
  expect(await verify("--public-key", strange)).toMatchObject({ code: 1, stderr: expect.stringContaining("no anchor by the given key") });
  expect((await verify("--public-key", join(copy, "absent"))).code).toBe(2);

  await runSql(
    embeddedOwnerUrl(join(product.home, "postgres")),
    "alter table control.audit_entry disable trigger user",
    "update control.audit_entry set actor_id = 'nobody' where chain = 'system' and seq = 2",
  );
  for (const words of [[], ["--public-key", pem, "--anchors", copy]]) {
    expect(await verify(...words)).toMatchObject({ code: 1, stderr: expect.stringContaining("system from entry 2 on") });
  }
  rmSync(copy, { recursive: true });
});
