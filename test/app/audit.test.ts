import { execFileSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { type AddressInfo, type Socket, connect, createServer } from "node:net";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { findTemporalBinary } from "../../temporal-dev/temporal-binary.mjs";
import { binPath, run } from "../control-plane/cli-stage.ts";
import { freshNamespace } from "../fresh-namespace.ts";
import { type RunningProduct, configWithProvider, startProduct } from "../product.ts";
import { freshDatabase, runSql } from "../storage/fresh-database.ts";
import { type ModelServer, startModelServer } from "./model-server.ts";

type Answer = { readonly status: number; readonly body: Record<string, unknown>; readonly headers: Headers };

/** One call with a bearer; `body` undefined sends none. */
async function call(
  product: RunningProduct,
  bearer: string | undefined,
  method: string,
  path: string,
  body?: unknown,
  headers: Record<string, string> = {},
): Promise<Answer> {
  const answer = await fetch(product.url + path, {
    method,
    headers: {
      ...(bearer === undefined ? {} : { authorization: `Bearer ${bearer}` }),
      ...(body === undefined ? {} : { "content-type": "application/json" }),
      ...headers,
    },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  return { status: answer.status, body: (await answer.json()) as Record<string, unknown>, headers: answer.headers };
}

const chat = async (product: RunningProduct, token: string, content = "hello"): Promise<Answer> =>
  await call(product, token, "POST", "/v1/chat/completions", { model: "default", messages: [{ role: "user", content }] });
const models = async (product: RunningProduct, token: string): Promise<number> => (await call(product, token, "GET", "/v1/models")).status;
const codeOf = ({ body }: Answer): unknown => (body["error"] as { code?: unknown } | undefined)?.code;
const someId = (name: string): string => `${name}-${randomBytes(4).toString("hex")}`;

/** Reads a stream to its end. @returns its text and when it ended */
async function readStream(product: RunningProduct, token: string, content: string) {
  const answer = await fetch(`${product.url}/v1/chat/completions`, {
    method: "POST",
    headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
    body: JSON.stringify({ model: "default", stream: true, messages: [{ role: "user", content }] }),
  });
  const decoder = new TextDecoder();
  let text = "";
  const { promise: begun, resolve } = Promise.withResolvers<void>();
  const ended = (async () => {
    for await (const chunk of answer.body ?? []) {
      text += decoder.decode(chunk as Uint8Array, { stream: true });
      if (/"content":"[^"]/.test(text)) resolve();
    }
    return { text, atMs: performance.now() };
  })();
  return { begun, ended };
}

describe("a product on servers of others", () => {
  let model: ModelServer;
  let product: RunningProduct;
  let second: RunningProduct;
  let env: Record<string, string>;
  let proxy: Awaited<ReturnType<typeof startProxy>>;
  const secrets: string[] = [];

  beforeAll(async () => {
    model = await startModelServer();
    proxy = await startProxy(inject("temporalAddress"));
    env = {
      DATABASE_URL: await freshDatabase(),
      TEMPORAL_ADDRESS: proxy.address,
      TEMPORAL_NAMESPACE: await freshNamespace(inject("temporalAddress")),
    };
    product = await startProduct({ config: configWithProvider(model.url), env });
    second = await startProduct({
      config: configWithProvider(model.url),
      env: { ...env, TEMPORAL_ADDRESS: inject("temporalAddress") },
      role: "gateway",
      adminKey: product.adminKey,
    });
  });
  afterAll(async () => {
    await second?.stop();
    await product?.stop();
    await model?.close();
    await proxy?.close();
  });

  const admin = async (method: string, path: string, body?: unknown, headers?: Record<string, string>) => {
    const answer = await call(product, product.adminKey, method, path, body, headers);
    for (const name of ["token", "key"]) if (typeof answer.body[name] === "string") secrets.push(answer.body[name]);
    return answer;
  };
  const newTenant = async (name: string): Promise<{ readonly id: string; readonly token: string }> => {
    const { status, body } = await admin("POST", "/v1/tenants", { id: someId(name) });
    expect(status).toBe(201);
    return { id: body["tenant"] as string, token: body["token"] as string };
  };
  const variables = () => ({
    OPENCLAW_HOME: product.home,
    OPENCLAW_URL: product.url,
    OPENCLAW_TOKEN: product.adminKey,
    HOME: product.home,
    ...env,
  });
  const cli = async (...words: string[]) => await run(process.execPath, [binPath, ...words], variables());

  test("a rotation bites at once in both gateways, and accepts no body in every form", async () => {
    const { id, token } = await newTenant("rotated");
    expect([await models(product, token), await models(second, token)]).toEqual([200, 200]);

    const rotated = await admin("POST", `/v1/tenants/${id}/token/rotate`);
    const newToken = rotated.body["token"] as string;

    expect(rotated.body).toEqual({ tenant: id, token: expect.stringMatching(new RegExp(`^tk_${id}_[0-9a-f]{32}$`)) });
    expect([await models(product, token), await models(second, token)]).toEqual([401, 401]);
    expect([await models(product, newToken), await models(second, newToken)]).toEqual([200, 200]);
    expect((await admin("POST", `/v1/tenants/${id}/token/rotate`, {})).status).toBe(200);
    for (const contentType of ["application/json", "application/x-www-form-urlencoded"]) {
      expect((await admin("POST", `/v1/tenants/${id}/suspend`, undefined, { "content-type": contentType })).status).toBe(200);
    }
    expect((await admin("POST", `/v1/tenants/${id}/suspend`, { now: true })).status).toBe(400);
    expect((await admin("POST", `/v1/tenants/${someId("nobody")}/suspend`)).status).toBe(404);
  });

  test("a rotation in one gateway ends a stream of the other within a second; the turn completes and is billed", async () => {
    const { id, token } = await newTenant("streaming");
    const held = model.hold("STREAM then wait", 2);
    const stream = await readStream(product, token, "STREAM then wait");
    await stream.begun;

    const rotated = await call(second, second.adminKey, "POST", `/v1/tenants/${id}/token/rotate`);
    secrets.push(rotated.body["token"] as string);
    const rotatedAtMs = performance.now();
    const { text, atMs } = await stream.ended;
    held.release();

    expect(atMs - rotatedAtMs).toBeLessThan(1_000);
    expect(text).toContain('"code":"invalid_api_key"');
    expect(text).not.toContain("[DONE]");
    await expect
      .poll(
        async () => (await runSql(env["DATABASE_URL"] ?? "", `select 1 from control.usage_ledger where tenant_id = '${id}'`)).rowCount,
        { timeout: 15_000 },
      )
      .toBe(1);
  });

  test("every call of a suspended tenant is 403 until it is resumed", async () => {
    const { id, token } = await newTenant("suspended");

    expect((await admin("POST", `/v1/tenants/${id}/suspend`)).body).toMatchObject({ id, state: "suspended" });
    const refused = await chat(second, token);
    expect([refused.status, codeOf(refused)]).toEqual([403, "tenant_suspended"]);
    expect(await models(product, token)).toBe(403);

    expect((await admin("POST", `/v1/tenants/${id}/resume`)).body).toMatchObject({ id, state: "active" });
    expect((await chat(product, token)).status).toBe(200);
  });

  test("an Idempotency-Key repeats the change's answer, also one with a token, and takes no other request", async () => {
    const { id } = await newTenant("repeated");
    const key = { "idempotency-key": someId("key") };
    const rotateKey = { "idempotency-key": someId("key") };

    const [first, again] = [
      await admin("POST", `/v1/tenants/${id}/suspend`, undefined, key),
      await admin("POST", `/v1/tenants/${id}/suspend`, undefined, key),
    ];
    expect([first.status, again.status, again.body]).toEqual([200, 200, first.body]);
    const other = await admin("POST", `/v1/tenants/${id}/resume`, undefined, key);
    expect([other.status, codeOf(other)]).toEqual([409, "idempotency_mismatch"]);
    const rotated = await admin("POST", `/v1/tenants/${id}/token/rotate`, undefined, rotateKey);
    const repeated = await admin("POST", `/v1/tenants/${id}/token/rotate`, undefined, rotateKey);
    expect([rotated.status, repeated.status, repeated.body]).toEqual([200, 200, rotated.body]);
    const { body } = await admin("GET", `/v1/audit?tenant=${id}`);
    expect((body["data"] as { action: string }[]).map(({ action }) => action)).toEqual(["tenant.create", "tenant.suspend", "token.rotate"]);
  });

  test("each new route answers each kind of credential as the contract says, and nobody writes who may not", async () => {
    const { id, token } = await newTenant("matrix");
    const keyWith = async (scope: string) =>
      (await admin("POST", "/v1/admin-keys", { id: `k${randomBytes(4).toString("hex")}`, scopes: [scope] })).body["key"] as string;
    const keys = { read: await keyWith("read"), billing: await keyWith("billing"), tenants: await keyWith("tenants") };
    const wrong = `${token.slice(0, -1)}${token.endsWith("0") ? "1" : "0"}`;
    const routes: readonly (readonly [string, string, keyof typeof keys | "all"])[] = [
      ["POST", `/v1/tenants/${id}/suspend`, "tenants"],
      ["POST", `/v1/tenants/${id}/resume`, "tenants"],
      ["POST", `/v1/tenants/${id}/token/rotate`, "tenants"],
      ["POST", `/v1/tenants/${id}/token/revoke`, "tenants"],
      ["POST", "/v1/tenants", "tenants"],
      ["GET", `/v1/tenants/${id}/token`, "read"],
      ["GET", "/v1/admin-keys", "read"],
      ["POST", "/v1/admin-keys", "all"],
      ["DELETE", "/v1/admin-keys/root", "all"],
      ["DELETE", "/v1/admin-keys?id=root", "all"],
      ["GET", "/v1/audit", "read"],
      ["GET", "/v1/audit/verify", "read"],
    ];
    const written = async () => (await runSql(env["DATABASE_URL"] ?? "", "select count(*) from control.audit_entry")).rows;
    const before = await written();

    for (const [method, path, scope] of routes) {
      // Each address may fail 20 times a minute at a gateway, so two of them share the refusals.
      const answers = [
        await call(product, undefined, method, path),
        await call(second, wrong, method, path),
        await call(product, token, method, path),
        await call(product, keys.billing, method, path),
      ];
      expect([path, answers.map(({ status }) => status)]).toEqual([path, [401, 401, 403, 403]]);
      expect(answers.map(codeOf)).toEqual(["invalid_api_key", "invalid_api_key", "forbidden", "forbidden"]);
      if (scope !== "read") expect((await call(product, keys.read, method, path)).status).toBe(403);
      if (scope === "all") expect((await call(product, keys.tenants, method, path)).status).toBe(403);
    }

    expect(await written()).toEqual(before);
    expect((await call(product, keys.read, "GET", `/v1/tenants/${id}/token`)).body).toEqual({
      tenant: id,
      prefix: `tk_${id}_`,
      hash_prefix: createHash("sha256").update(token).digest("hex").slice(0, 8),
      created_at: expect.any(String),
      last_used_at: expect.toSatisfy((value) => value === null || typeof value === "string"),
    });
  });

  test("the command line makes, shows, rotates, revokes, lists and verifies", async () => {
    const created = await cli("tenants", "create", someId("cli"), "--json");
    const { tenant, token } = JSON.parse(created.stdout) as { tenant: string; token: string };
    const rotated = await cli("tenants", "token", "rotate", tenant);
    const shown = await cli("tenants", "token", "show", tenant, "--json");
    const suspended = await cli("tenants", "suspend", tenant, "--json");
    const key = await cli("admin-keys", "create", "cliops", "--scopes", "read,billing");
    const revokedKey = await cli("admin-keys", "revoke", "cliops");
    const again = await cli("admin-keys", "create", "cliops", "--scopes", "read");
    const revoked = await cli("tenants", "token", "revoke", tenant);
    const list = await cli("audit", "list", "--tenant", tenant, "--json");
    const verified = await cli("audit", "verify");
    secrets.push(token, rotated.stdout.trim(), key.stdout.trim());

    expect(rotated).toMatchObject({ code: 0, stdout: expect.stringMatching(/^tk_.*\n$/) });
    expect(JSON.parse(shown.stdout)).toMatchObject({
      tenant,
      hash_prefix: createHash("sha256").update(rotated.stdout.trim()).digest("hex").slice(0, 8),
    });
    expect(shown.stdout).not.toContain(rotated.stdout.trim().slice(-32));
    expect(JSON.parse(suspended.stdout)).toMatchObject({ state: "suspended" });
    expect([key.code, revokedKey.code, again.code, revoked.code]).toEqual([0, 0, 4, 0]);
    expect((JSON.parse(list.stdout) as { data: { action: string }[] }).data.map(({ action }) => action)).toEqual([
      "tenant.create",
      "token.rotate",
      "tenant.suspend",
      "token.revoke",
    ]);
    expect([verified.stdout, verified.code]).toEqual(["", 0]);
    expect(await models(second, rotated.stdout.trim())).toBe(401);
    expect((await cli("tenants", "token", "show", tenant)).code).toBe(1);
  });

  test("with Temporal down nothing is changed, but the break-glass revokes, and it is audited", async () => {
    const { id, token } = await newTenant("glass");
    expect((await admin("POST", `/v1/tenants/${id}/resume`)).status).toBe(200);
    proxy.cut();

    const refused = await admin("POST", `/v1/tenants/${id}/token/rotate`);
    expect([refused.status, codeOf(refused), refused.headers.get("retry-after")]).toEqual([503, "unavailable", "5"]);
    expect(await models(second, token)).toBe(200);
    const offline = await cli("tenants", "token", "revoke", id, "--offline");
    expect([offline.code, offline.stderr]).toEqual([0, expect.stringContaining("revoked")]);
    expect(await models(second, token)).toBe(401);
    proxy.mend();

    await expect.poll(async () => (await admin("POST", `/v1/tenants/${id}/token/rotate`)).status, { timeout: 30_000 }).toBe(200);
    const { body } = await admin("GET", `/v1/audit?tenant=${id}`);
    const actions = (body["data"] as { action: string; workflow_id: string }[]).map(
      ({ action, workflow_id }) => `${action} ${workflow_id.split(":")[0]}`,
    );
    expect(actions.slice(0, 3)).toEqual(["tenant.create tenant", "tenant.resume tenant", "token.revoke offline"]);
    expect(actions.at(-1)).toBe("token.rotate tenant");
    expect((await admin("GET", "/v1/audit/verify")).body).toMatchObject({ ok: true });
  });

  test("kill -9 in the middle of a rotation leaves one live token and the entry that says which", async () => {
    for (const delayMs of [0, 25, 50]) {
      const { id, token } = await newTenant("killed");
      await admin("POST", `/v1/tenants/${id}/resume`); // the chain's worker is warm: the kill hits the rotation itself
      const rotating = admin("POST", `/v1/tenants/${id}/token/rotate`).catch(() => undefined);
      await new Promise((resolve) => setTimeout(resolve, delayMs));

      await product.kill();
      await rotating;
      await product.restart();

      const hash = createHash("sha256").update(token).digest("hex");
      const { rows } = await runSql(
        env["DATABASE_URL"] ?? "",
        `select (select count(*)::int from control.tenant_token where tenant_id = '${id}' and revoked_at is null) as live,
                (select count(*)::int from control.tenant_token where tenant_id = '${id}' and revoked_at is null and hash = '\\x${hash}') as old,
                (select count(*)::int from control.audit_entry where chain = '${id}' and action = 'token.rotate') as entries,
                (select token_epoch from control.tenant where id = '${id}') as epoch`,
      );
      expect([
        { live: 1, old: 1, entries: 0, epoch: 1 },
        { live: 1, old: 0, entries: 1, epoch: 2 },
      ]).toContainEqual(rows[0]);
      await expect.poll(async () => (await admin("POST", `/v1/tenants/${id}/token/rotate`)).status, { timeout: 30_000 }).toBe(200);
    }
    expect((await admin("GET", "/v1/audit/verify")).body).toMatchObject({ ok: true, findings: [] });
  }, 120_000);

  test("no credential that was ever made is in a log, the audit, the database or a history", async () => {
    expect(secrets.length).toBeGreaterThan(10);
    const database = new URL(env["DATABASE_URL"] ?? "");
    const rows = await runSql(
      database.href,
      "select table_to_xml('control.audit_entry', true, false, '')::text || table_to_xml('control.tenant_token', true, false, '')::text || table_to_xml('control.admin_idempotency', true, false, '')::text as dump",
    );
    const binary = findTemporalBinary({ env: process.env })?.path ?? "temporal";
    const temporal = (...words: string[]) =>
      execFileSync(
        binary,
        [...words, "--address", inject("temporalAddress"), "--namespace", env["TEMPORAL_NAMESPACE"] ?? "", "--output", "json"],
        { encoding: "utf8", maxBuffer: 64 * 1024 * 1024 },
      );
    const ids = [
      ...new Set(
        [...temporal("workflow", "list", "--query", "WorkflowType = 'tenant'").matchAll(/"workflowId":\s*"([^"]+)"/g)].map(
          ([, id]) => id ?? "",
        ),
      ),
    ];
    const histories = ids.map((id) => temporal("workflow", "show", "--workflow-id", id));
    const places = {
      log: [product, second].map(({ home }) => readFileSync(join(home, "gateway.log"), "utf8")).join(""),
      file: [product, second].map(({ home }) => readFileSync(join(home, "audit.jsonl"), "utf8")).join(""),
      database: String(rows.rows[0]?.dump),
      histories: histories.join(""),
    };

    expect(ids.length).toBeGreaterThan(4);
    for (const [place, text] of Object.entries(places)) {
      expect(text.length).toBeGreaterThan(100);
      for (const secret of secrets) {
        const random = secret.slice(-32);
        const forms = [
          random,
          Buffer.from(secret).toString("base64"),
          Buffer.from(random).toString("base64"),
          Buffer.from(random).toString("hex"),
        ];
        expect([place, forms.some((form) => text.includes(form))]).toEqual([place, false]);
      }
    }
  });
});

/** A TCP door to the Temporal server that can be shut. */
async function startProxy(target: string) {
  const [host = "", port] = target.split(":");
  const sockets = new Set<Socket>();
  let isCut = false;
  const server = createServer((client) => {
    if (isCut) return void client.destroy();
    const upstream = connect({ host, port: Number(port) });
    for (const socket of [client, upstream]) {
      sockets.add(socket);
      socket.on("error", () => {});
      socket.on("close", () => {
        sockets.delete(socket);
        client.destroy();
        upstream.destroy();
      });
    }
    client.pipe(upstream).pipe(client);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const cut = (): void => {
    isCut = true;
    for (const socket of sockets) socket.destroy();
  };
  return {
    address: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    cut,
    mend: () => void (isCut = false),
    async close() {
      cut();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
