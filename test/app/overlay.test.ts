import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { lstatSync, mkdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { openDatabase } from "../../storage/database.ts";
import { openDataKeys } from "../../storage/open-data-keys.ts";
import { createPayloadDecoder } from "../../temporal/payload-codec.ts";
import { findTemporalBinary } from "../../temporal-dev/temporal-binary.mjs";
import { type MockCall, start as startMock } from "../fixtures/mock-openai-server.ts";
import { binPath, run } from "../control-plane/cli-stage.ts";
import { freshNamespace } from "../fresh-namespace.ts";
import { type RunningProduct, startProduct } from "../product.ts";
import { freshDatabase, runSql } from "../storage/fresh-database.ts";

const config = (url: string, models = ["small", "large"]): string => `
default_model: small
providers:
  local: { kind: openai-compatible, base_url: "${url}" }
models:
${models.map((id) => `  ${id}: { provider: local, context_window: 100000, max_output_tokens: ${id === "small" ? 4000 : 8000} }`).join("\n")}
  free: { provider: local, context_window: 100000, max_output_tokens: 4000 }
billing:
  rate_card:
${models.map((id) => `    ${id}: { input: 15, output: 75 }`).join("\n")}
`;

type Answer = { readonly status: number; readonly text: string; readonly json: Record<string, unknown>; readonly headers: Headers };
type Tenant = { readonly id: string; readonly token: string };

let mock: Awaited<ReturnType<typeof startMock>>;
let product: RunningProduct;
let env: Record<string, string>;

beforeAll(async () => {
  mock = await startMock();
  env = {
    DATABASE_URL: await freshDatabase(),
    TEMPORAL_ADDRESS: inject("temporalAddress"),
    TEMPORAL_NAMESPACE: await freshNamespace(inject("temporalAddress")),
    OPENCLAW_KEK: Buffer.alloc(32, 7).toString("base64"),
  };
  product = await startProduct({ config: config(mock.url), env });
});
afterAll(async () => {
  await product?.stop();
  await mock?.close();
});

async function call(
  url: string,
  bearer: string,
  method: string,
  path: string,
  body?: string,
  headers: Record<string, string> = {},
): Promise<Answer> {
  const answer = await fetch(url + path, {
    method,
    headers: { authorization: `Bearer ${bearer}`, ...headers },
    ...(body === undefined ? {} : { body }),
  });
  const text = await answer.text();
  const isJson = answer.headers.get("content-type")?.includes("json") === true;
  return { status: answer.status, text, json: isJson ? (JSON.parse(text) as Record<string, unknown>) : {}, headers: answer.headers };
}

const yaml = { "content-type": "application/yaml" };
const newTenant = async (name: string, at = product): Promise<Tenant> => {
  const id = `${name}-${randomBytes(4).toString("hex")}`;
  return { id, token: await at.createTenant(id) };
};
const put = async ({ id }: Tenant, text: string, at = product, headers: Record<string, string> = {}): Promise<Answer> =>
  await call(at.url, at.adminKey, "PUT", `/v1/tenants/${id}/overlay`, text, { ...yaml, ...headers });
const get = async ({ id }: Tenant, at = product): Promise<Answer> => await call(at.url, at.adminKey, "GET", `/v1/tenants/${id}/overlay`);
const chat = async (
  { token }: Tenant,
  content: string,
  more: object = {},
  headers: Record<string, string> = {},
  at = product,
): Promise<Answer> =>
  await call(
    at.url,
    token,
    "POST",
    "/v1/chat/completions",
    JSON.stringify({ model: "default", messages: [{ role: "user", content }], ...more }),
    {
      "content-type": "application/json",
      ...headers,
    },
  );
const errorOf = ({ status, json }: Answer) => ({ status, ...(json["error"] as { code: string; param: string | null; message: string }) });
const answerOf = ({ json }: Answer): string =>
  (json["choices"] as [{ message: { content: string } }] | undefined)?.[0].message.content ?? JSON.stringify(json);
const overlayFile = ({ id }: Tenant, at = product): string => join(at.home, "tenants", id, "config.yaml");
/** As an editor saves: a new file in the old one's place. */
function edit(tenant: Tenant, text: string, at = product): void {
  writeFileSync(`${overlayFile(tenant, at)}.new`, text);
  renameSync(`${overlayFile(tenant, at)}.new`, overlayFile(tenant, at));
}
const sql = async (statement: string, values: readonly unknown[] = [], url = env["DATABASE_URL"]) => {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    return (await client.query(statement, [...values])).rows as Record<string, unknown>[];
  } finally {
    await client.end();
  }
};
const entriesOf = async ({ id }: Tenant) =>
  await sql("select actor_type, actor_id, action, target, outcome from control.audit_entry where chain = $1 order by seq", [id]);

type SentMessage = { readonly role: string; readonly content: unknown };
/** What reached the provider for a question. */
const sentFor = (question: string): MockCall["body"][] =>
  mock
    .calls()
    .map(({ body }) => body)
    .filter((body) => JSON.stringify(body["messages"]).includes(question));
const messagesOf = (body: MockCall["body"] | undefined) => (body?.["messages"] ?? []) as readonly SentMessage[];
const toolsOf = (body: MockCall["body"] | undefined) =>
  ((body?.["tools"] ?? []) as { function: { name: string } }[]).map(({ function: { name } }) => name).sort();

describe("an overlay", () => {
  test("is written, read back, audited without its text, and stands in the file", async () => {
    const tenant = await newTenant("written");
    const text = "# ours\nmodel: large\nsystem_prompt: Speak like CANARY-7f3a.\n";

    expect((await get(tenant)).text).toBe("");
    const written = await put(tenant, text);

    expect({ status: written.status, text: written.text }).toEqual({ status: 200, text });
    expect((await get(tenant)).text).toBe(text);
    expect((await get(tenant)).headers.get("content-type")).toBe("application/yaml; charset=utf-8");
    expect(readFileSync(overlayFile(tenant), "utf8")).toBe(text);
    expect(lstatSync(overlayFile(tenant)).mode & 0o777).toBe(0o600);
    expect(await entriesOf(tenant)).toEqual([
      {
        actor_type: "admin",
        actor_id: expect.any(String),
        action: "overlay.write",
        target: expect.stringMatching(/^overlay:[0-9a-f]{64}$/),
        outcome: "applied",
      },
    ]);
    const kept = await sql("select * from control.overlay_text where tenant_id = $1", [tenant.id]);
    expect(kept.length).toBe(1);
    for (const row of [...kept, ...(await sql("select * from control.overlay")), ...(await sql("select * from control.audit_entry"))])
      expect(
        Object.values(row)
          .map((value) => (Buffer.isBuffer(value) ? value.toString("latin1") : JSON.stringify(value)))
          .join(),
      ).not.toContain("CANARY");
    expect((await run(process.execPath, [binPath, "audit", "verify"], variables())).code).toBe(0);
  });

  test("that is refused names key path and line, and changes nothing", async () => {
    const tenant = await newTenant("refused");
    await put(tenant, "model: large\n");
    const entries = await entriesOf(tenant);

    const refusals = [
      await put(tenant, "model: large\nquotas:\n  tokens_per_day: 9\n"),
      await put(tenant, "api:\n  mode: agent\n  key: x\n"),
      await put(tenant, "model: free\n"),
      await put(tenant, Buffer.from([0x6d, 0xff]).toString("latin1")),
    ];

    expect(refusals.map(errorOf)).toMatchObject([
      { status: 422, code: "overlay_refused", param: "quotas", message: "overlay line 2: quotas: is not a known key" },
      { status: 422, code: "overlay_refused", param: "api.key", message: "overlay line 3: api.key: is not a known key" },
      { status: 422, code: "overlay_refused", param: "model" },
      { status: 422, code: "overlay_refused" },
    ]);
    expect((await get(tenant)).text).toBe("model: large\n");
    expect(readFileSync(overlayFile(tenant), "utf8")).toBe("model: large\n");
    expect(await entriesOf(tenant)).toEqual(entries);
    expect(answerOf(await chat(tenant, "still here"))).toBe("echo: still here");
  });

  test("is sent as YAML of 64 KB at most, by an admin who may", async () => {
    const tenant = await newTenant("sent");
    const path = `/v1/tenants/${tenant.id}/overlay`;
    const as = async (bearer: string, method: string, body: string | undefined, headers: Record<string, string>) =>
      errorOf(await call(product.url, bearer, method, path, body, headers));

    expect((await put(tenant, `#${"x".repeat(65_535)}`)).status).toBe(200);
    expect(await as(product.adminKey, "PUT", `#${"x".repeat(65_536)}`, yaml)).toMatchObject({
      status: 413,
      code: "request_too_large",
      message: "An overlay has at most 64 KB.",
    });
    expect(await as(product.adminKey, "PUT", "x".repeat(3_000_000), yaml)).toMatchObject({ status: 413, code: "request_too_large" });
    expect(await as(product.adminKey, "PUT", '{"model":"large"}', { "content-type": "application/json" })).toMatchObject({ status: 415 });
    expect(await as(product.adminKey, "PUT", "model: large", { "content-type": "text/plain" })).toMatchObject({ status: 415 });
    expect(await as(product.adminKey, "PUT", undefined, {})).toMatchObject({ status: 415 });
    expect(await as(tenant.token, "PUT", "model: large", yaml)).toMatchObject({ status: 403, code: "forbidden" });
    expect(await as(tenant.token, "GET", undefined, {})).toMatchObject({ status: 403, code: "forbidden" });
    expect(errorOf(await put({ id: "nobody", token: "" }, "model: large"))).toMatchObject({ status: 404, code: "not_found" });
    expect(errorOf(await get({ id: "nobody", token: "" }))).toMatchObject({ status: 404, code: "not_found" });
    expect((await get(tenant)).text).toHaveLength(65_536);
    expect((await put(tenant, "")).status).toBe(200);
    expect((await get(tenant)).text).toBe("");
  });

  test("is written once under one Idempotency-Key", async () => {
    const tenant = await newTenant("repeated");
    const key = { "idempotency-key": `k-${tenant.id}` };

    const first = await put(tenant, "model: large\n", product, key);
    await put(tenant, "model: small\n");
    const again = await put(tenant, "model: large\n", product, key);
    const other = await put(tenant, "max_tokens: 7\n", product, key);

    expect([first.status, again.status]).toEqual([200, 200]);
    expect(errorOf(other)).toMatchObject({ status: 409, code: "idempotency_mismatch" });
    expect((await get(tenant)).text).toBe("model: small\n");
    expect(await entriesOf(tenant)).toHaveLength(2);
  });

  test("is got and set by the command line", async () => {
    const tenant = await newTenant("cli");
    const path = join(product.home, "cli-overlay.yaml");
    writeFileSync(path, "model: large\n");
    const cli = async (...words: string[]) => await run(process.execPath, [binPath, "tenants", "overlay", ...words], variables());

    expect(await cli("set", tenant.id, path)).toMatchObject({ code: 0, stderr: expect.stringContaining("is set") });
    expect(await cli("get", tenant.id)).toMatchObject({ code: 0, stdout: "model: large\n" });
    expect(JSON.parse((await cli("get", tenant.id, "--json")).stdout)).toEqual({
      tenant: tenant.id,
      overlay: "model: large\n",
      fault: null,
    });
    writeFileSync(path, "modell: large\n");
    expect(await cli("set", tenant.id, path)).toMatchObject({ code: 1, stderr: expect.stringContaining("overlay line 1: modell") });
    expect(await cli("set", tenant.id, "/nowhere.yaml")).toMatchObject({ code: 2 });
    expect(await cli("set", tenant.id, "/dev/null")).toMatchObject({ code: 0 });
    expect(await cli("get", tenant.id)).toMatchObject({ code: 0, stdout: "" });
    const piped = `(sleep 0.2; printf 'max_tokens: 9\\n') | "$0" "$1" tenants overlay set "$2"`;
    expect(await run("sh", ["-c", piped, process.execPath, binPath, tenant.id], variables())).toMatchObject({ code: 0 });
    expect((await get(tenant)).text).toBe("max_tokens: 9\n");
    expect((await cli("set", "--help")).stdout).toContain("system_prompt");
  });
});

const variables = () => ({
  OPENCLAW_HOME: product.home,
  OPENCLAW_URL: product.url,
  OPENCLAW_TOKEN: product.adminKey,
  HOME: product.home,
  ...env,
});

describe("a turn", () => {
  test("of each of two tenants has its own prompt, model, tools and settings", async () => {
    const [acme, globex] = [await newTenant("acme"), await newTenant("globex")];
    await put(acme, "model: large\nmax_tokens: 77\ntemperature: 0.3\nsystem_prompt: You are Acme's.\nallowed_tools: [read, list]\n");
    await put(globex, "system_prompt: You are Globex's.\ndenied_tools: [exec, write]\n");

    const [a, b] = await Promise.all([chat(acme, "who are you, acme"), chat(globex, "who are you, globex")]);

    expect([a.json["model"], b.json["model"]]).toEqual(["large", "small"]);
    const [sentA, sentB] = [sentFor("who are you, acme")[0], sentFor("who are you, globex")[0]];
    expect(messagesOf(sentA)[0]).toEqual({ role: "system", content: "You are Acme's." });
    expect(messagesOf(sentB)[0]).toEqual({ role: "system", content: "You are Globex's." });
    expect(sentA).toMatchObject({ model: "large", temperature: 0.3 });
    expect(sentA?.["max_tokens"] ?? sentA?.["max_completion_tokens"]).toBe(77);
    expect(sentB?.["max_tokens"] ?? sentB?.["max_completion_tokens"]).toBe(4000);
    expect(sentB?.["temperature"]).toBeUndefined();
    expect(toolsOf(sentA)).toEqual(["list", "read"]);
    expect(toolsOf(sentB)).toEqual(["edit", "list", "read"]);
  });

  test("that asks for what it was not offered is not given it", async () => {
    const tenant = await newTenant("denied");
    await put(tenant, "denied_tools: [exec]\n");

    const answer = await chat(tenant, `CALL exec {"command":"echo pwned > /work/proof"}\nSAY done`);

    expect(answerOf(answer)).toContain('The tool "exec" is not allowed here.');
    expect(answerOf(answer)).not.toContain("exit code");
  });

  test("in gateway mode is sent as it came, whatever the overlay and the memory say", async () => {
    const tenant = await newTenant("plain");
    await put(tenant, "api: { mode: gateway }\nsystem_prompt: Never to be seen.\ntemperature: 1\n");
    writeMemory(tenant, "SOUL.md", "Never to be seen either.");

    await chat(tenant, "as it came");

    expect(messagesOf(sentFor("as it came")[0])).toEqual([{ role: "user", content: "as it came" }]);
    expect(toolsOf(sentFor("as it came")[0])).toEqual([]);
    expect(sentFor("as it came")[0]?.["temperature"]).toBeUndefined();
    await chat(tenant, "asked as agent", {}, { "x-openclaw-mode": "agent" });
    expect(messagesOf(sentFor("asked as agent")[0])[0]).toEqual({
      role: "system",
      content: "Never to be seen.\n\n# SOUL.md\n\nNever to be seen either.",
    });
  });

  test("reads the files of its own tenant's memory, and no link", async () => {
    const [tenant, other] = [await newTenant("memory"), await newTenant("other")];
    writeMemory(other, "SOUL.md", "The other's soul.");
    writeMemory(tenant, "AGENTS.md", "Rules of the house.");
    writeMemory(tenant, "MEMORY.md", `Long. ${"x".repeat(30_000)}`);
    symlinkSync(
      join(product.home, "tenants", other.id, "memory", "SOUL.md"),
      join(product.home, "tenants", tenant.id, "memory", "SOUL.md"),
    );

    await chat(tenant, "what do you know");

    const prompt = String(messagesOf(sentFor("what do you know")[0])[0]?.content);
    expect(prompt.startsWith("# AGENTS.md\n\nRules of the house.\n\n# MEMORY.md\n\nLong. xxx")).toBe(true);
    expect(prompt).toContain("[The file is longer; the rest is not shown here.]");
    expect(prompt.length).toBeLessThan(21_000);
    expect(prompt).not.toContain("soul");
  });

  test("may only use the models that the overlay leaves it, by their names and its aliases", async () => {
    const tenant = await newTenant("models");
    await put(tenant, "model: large\naliases: { gpt-4: large }\napi: { models: [large] }\n");
    const listed = await call(product.url, tenant.token, "GET", "/v1/models");

    expect((listed.json["data"] as { id: string }[]).map(({ id }) => id)).toEqual(["large", "gpt-4"]);
    expect((await chat(tenant, "by alias", { model: "gpt-4" })).json["model"]).toBe("large");
    expect(errorOf(await chat(tenant, "outside", { model: "small" }))).toMatchObject({
      status: 404,
      code: "model_not_found",
      param: "model",
    });
    expect((await call(product.url, tenant.token, "GET", "/v1/models/small")).status).toBe(404);
    expect((await call(product.url, tenant.token, "GET", "/v1/models/gpt-4")).json).toMatchObject({ id: "gpt-4" });
  });

  test("continues the session of its user where the overlay says so, and only there", async () => {
    const [byUser, stateless] = [await newTenant("by-user"), await newTenant("stateless")];
    await put(byUser, "api: { sessions: by-user }\n");

    for (const tenant of [byUser, stateless]) {
      await chat(tenant, `first of ${tenant.id}`, { user: "jane doe" });
      await chat(tenant, `second of ${tenant.id}`, { user: "jane doe" });
      await chat(tenant, `third of ${tenant.id}`, { user: "john" });
    }

    expect(messagesOf(sentFor(`second of ${byUser.id}`)[0]).map(({ content }) => content)).toContain(`first of ${byUser.id}`);
    expect(messagesOf(sentFor(`third of ${byUser.id}`)[0])).toHaveLength(1);
    expect(messagesOf(sentFor(`second of ${stateless.id}`)[0])).toHaveLength(1);
    expect(errorOf(await chat(byUser, "too long", { user: "ä".repeat(100) }))).toMatchObject({ status: 400, param: "user" });
  });

  test("keeps the overlay that it began with", async () => {
    const tenant = await newTenant("steady");
    await put(tenant, "system_prompt: The first.\nallowed_tools: [list]\n");
    const held = mock.control.hold({ when: ({ body }) => JSON.stringify(body["messages"]).includes("steady as she goes") });
    const answer = chat(tenant, `CALL list {"path":"."}\nSAY steady as she goes`);
    await held.arrived;

    await put(tenant, "model: large\nsystem_prompt: The second.\ndenied_tools: [list]\n");
    held.release();

    expect((await answer).json["model"]).toBe("small");
    const steps = sentFor("steady as she goes");
    expect(steps.map((body) => messagesOf(body)[0]?.content)).toEqual(["The first.", "The first."]);
    expect(answerOf(await answer)).not.toContain("is not allowed");
    await chat(tenant, "and now");
    expect(messagesOf(sentFor("and now")[0])[0]?.content).toBe("The second.");
  });
});

function writeMemory({ id }: Tenant, name: string, text: string): void {
  const directory = join(product.home, "tenants", id, "memory");
  mkdirSync(directory, { recursive: true });
  writeFileSync(join(directory, name), text);
}

describe("an edit of the file", () => {
  test("is taken over like any other change, and audited as the file's", async () => {
    const tenant = await newTenant("edited");
    writeFileSync(overlayFile(tenant), "system_prompt: From the file.\n");

    await expect.poll(async () => (await get(tenant)).text, { timeout: 20_000 }).toBe("system_prompt: From the file.\n");

    await chat(tenant, `edited ${tenant.id}`);
    expect(messagesOf(sentFor(`edited ${tenant.id}`)[0])[0]?.content).toBe("From the file.");
    expect(await entriesOf(tenant)).toMatchObject([
      { actor_type: "system", actor_id: "file", action: "overlay.write", outcome: "applied" },
    ]);
  });

  test("that is bad stops that tenant's turns in every process until it is mended, and nobody else's", async () => {
    const second = await startProduct({ config: config(mock.url), env, role: "gateway", adminKey: product.adminKey });
    try {
      const [tenant, other] = [await newTenant("bad"), await newTenant("good")];
      await put(tenant, "model: large\n");

      edit(tenant, "model: large\nrate_card:\n  large: { input: 0, output: 0 }\n");
      await expect.poll(async () => (await chat(tenant, "am I stopped")).status, { timeout: 20_000 }).toBe(422);

      const refused = {
        status: 422,
        code: "overlay_refused",
        param: "rate_card",
        message: expect.stringContaining("overlay line 2: rate_card"),
      };
      await expect.poll(async () => errorOf(await chat(tenant, "here too", {}, {}, second)), { timeout: 20_000 }).toMatchObject(refused);
      expect(errorOf(await chat(tenant, "stopped"))).toMatchObject(refused);
      expect(sentFor("here too")).toHaveLength(0);
      expect((await get(tenant)).text).toBe("model: large\n");
      expect((await get(tenant)).headers.get("x-openclaw-overlay-fault")).toContain("rate_card");
      expect((await chat(other, "not me")).status).toBe(200);
      expect(errorOf(await put(tenant, "quotas: {}\n"))).toMatchObject({ status: 422, param: "quotas" });
      expect(errorOf(await chat(tenant, "still stopped"))).toMatchObject(refused);

      edit(tenant, "model: small\nsystem_prompt: Mended.\n");
      for (const at of [product, second])
        await expect.poll(async () => (await chat(tenant, `mended ${at.url}`, {}, {}, at)).status, { timeout: 20_000 }).toBe(200);
      expect(await entriesOf(tenant)).toHaveLength(2);
    } finally {
      await second.stop();
    }
  });

  test("that is bad is overwritten by an accepted one, and undone by the former text", async () => {
    const tenant = await newTenant("undone");
    await put(tenant, "model: large\n");
    const stopped = async () => (await chat(tenant, "?")).status;

    edit(tenant, "nonsense: [\n");
    await expect.poll(stopped, { timeout: 20_000 }).toBe(422);
    await put(tenant, "model: small\n");
    expect(await stopped()).toBe(200);
    await expect.poll(() => readFileSync(overlayFile(tenant), "utf8"), { timeout: 20_000 }).toBe("model: small\n");

    edit(tenant, "nonsense: 1\n");
    await expect.poll(stopped, { timeout: 20_000 }).toBe(422);
    edit(tenant, "model: small\n");
    await expect.poll(stopped, { timeout: 20_000 }).toBe(200);
    expect(await entriesOf(tenant)).toHaveLength(2);
  });

  test.each(["a link", "a directory", "a deletion"])("into %s reads nothing that is not the tenant's", async (kind) => {
    const tenant = await newTenant("odd");
    await put(tenant, "model: large\n");
    const secret = join(product.home, "admin-key");

    rmSync(overlayFile(tenant));
    if (kind === "a link") symlinkSync(secret, overlayFile(tenant));
    if (kind === "a directory") mkdirSync(overlayFile(tenant));

    if (kind === "a deletion") {
      await expect.poll(() => readOrUndefined(overlayFile(tenant)), { timeout: 20_000 }).toBe("model: large\n");
      return expect((await chat(tenant, "as before")).json["model"]).toBe("large");
    }
    await expect
      .poll(async () => errorOf(await chat(tenant, "?")), { timeout: 20_000 })
      .toMatchObject({
        status: 422,
        message: expect.stringContaining("is not a plain file"),
      });
    rmSync(overlayFile(tenant), { recursive: true });
    await expect.poll(async () => (await chat(tenant, "?")).status, { timeout: 20_000 }).toBe(200);
    expect(readFileSync(overlayFile(tenant), "utf8")).toBe("model: large\n");
    expect(readFileSync(secret, "utf8").trim()).toBe(product.adminKey);
  });
});

const readOrUndefined = (path: string): string | undefined => {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return undefined;
  }
};

describe("a crash", () => {
  test("of the gateway between commit and file is healed at its next start; what was edited meanwhile is taken over or stops its tenant", async () => {
    const own = { ...env, DATABASE_URL: await freshDatabase(), TEMPORAL_NAMESPACE: await freshNamespace(inject("temporalAddress")) };
    const gateway = await startProduct({ config: config(mock.url), env: own, role: "gateway" });
    const worker = await startProduct({ env: own, role: "worker", home: gateway.home });
    const lock = new pg.Client({ connectionString: own.DATABASE_URL });
    await lock.connect();
    try {
      const tenants = [await newTenant("crash", gateway), await newTenant("edited", gateway), await newTenant("broken", gateway)] as const;
      const [crash, edited, broken] = tenants;
      for (const tenant of tenants) await put(tenant, "model: large\n", gateway);

      await lock.query("begin");
      await lock.query("select from control.chain_head where chain = $1 for update", [crash.id]);
      const lost = put(crash, "model: small\n", gateway).catch(() => undefined);
      await expect
        .poll(async () => (await sql("select 1 from pg_locks where not granted", [], own.DATABASE_URL)).length, { timeout: 20_000 })
        .toBeGreaterThan(0);
      await gateway.kill();
      await lock.query("rollback");
      await lost;
      const versionOf = async () =>
        (await sql("select version from control.overlay where tenant_id = $1", [crash.id], own.DATABASE_URL))[0];
      await expect.poll(versionOf, { timeout: 30_000 }).toEqual({ version: "2" });
      expect(readFileSync(overlayFile(crash, gateway), "utf8")).toBe("model: large\n");
      edit(edited, "system_prompt: Meanwhile.\n", gateway);
      edit(broken, "providers: {}\n", gateway);
      await gateway.restart();

      await expect.poll(() => readFileSync(overlayFile(crash, gateway), "utf8"), { timeout: 30_000 }).toBe("model: small\n");
      expect((await get(crash, gateway)).text).toBe("model: small\n");
      await expect.poll(async () => (await get(edited, gateway)).text, { timeout: 30_000 }).toBe("system_prompt: Meanwhile.\n");
      await expect
        .poll(async () => errorOf(await chat(broken, "?", {}, {}, gateway)), { timeout: 30_000 })
        .toMatchObject({ status: 422, param: "providers" });
      expect((await chat(edited, "and we go on", {}, {}, gateway)).status).toBe(200);
    } finally {
      await lock.end();
      await worker.stop();
      await gateway.stop();
    }
  }, 180_000);

  test("or not, a model that the administrator took away stops the tenants that named it, at start", async () => {
    const [tenant, other] = [await newTenant("gone"), await newTenant("stays")];
    await put(tenant, "# note\nmodel: large\n");
    const open = await chat(tenant, "before");
    expect(open.json["model"]).toBe("large");

    await product.kill();
    writeFileSync(join(product.home, "config.yaml"), config(mock.url, ["small"]));
    await product.restart();

    expect(errorOf(await chat(tenant, "after"))).toMatchObject({
      status: 422,
      param: "model",
      message: expect.stringContaining("overlay line 2: model"),
    });
    expect((await chat(other, "unhurt")).json["model"]).toBe("small");
    expect((await get(tenant)).text).toBe("# note\nmodel: large\n");
    await put(tenant, "model: small\n");
    expect((await chat(tenant, "again")).json["model"]).toBe("small");
    writeFileSync(join(product.home, "config.yaml"), config(mock.url));
  });
});

/** Every payload of a history, as an administrator would see it. */
async function decoded(history: string): Promise<string> {
  const database = await openDatabase({ ownerUrl: env["DATABASE_URL"] ?? "", log: () => undefined });
  const keys = await openDataKeys({
    database,
    home: product.home,
    keyEncryptionKey: env["OPENCLAW_KEK"],
    log: () => undefined,
  });
  const payloads = [...history.matchAll(/"metadata":\s*(\{[^}]*\}),\s*"data":\s*"([^"]+)"/g)].map(([, metadata = "{}", data = ""]) => ({
    metadata: Object.fromEntries(
      Object.entries(JSON.parse(metadata) as Record<string, string>).map(([name, value]) => [name, Buffer.from(value, "base64")]),
    ),
    data: Buffer.from(data, "base64"),
  }));
  const clear = await createPayloadDecoder(keys).decode(env["TEMPORAL_NAMESPACE"] ?? "", payloads);
  await keys.close();
  await database.close();
  return clear.map(({ data }) => Buffer.from(data ?? []).toString()).join();
}

test("the text of no overlay is anywhere in Temporal or the logs", async () => {
  const tenant = await newTenant("canary");
  await put(tenant, "system_prompt: CANARY-91c2e5\nskills: { x: { env: { SECRET: CANARY-91c2e5 } } }\n");
  await chat(tenant, "say nothing");

  const history = execFileSync(
    findTemporalBinary({ env: process.env })?.path ?? "temporal",
    [
      ...["workflow", "show", "--workflow-id", `tenant:${tenant.id}`, "--output", "json"],
      ...["--address", env["TEMPORAL_ADDRESS"] ?? "", "--namespace", env["TEMPORAL_NAMESPACE"] ?? ""],
    ],
    { encoding: "utf8" },
  );
  const payloads = await decoded(history);
  expect(payloads).toContain("overlay.write");
  expect(payloads).not.toContain("CANARY-91c2e5");
  expect(readFileSync(join(product.home, "gateway.log"), "utf8")).not.toContain("CANARY-91c2e5");
  expect(readFileSync(join(product.home, "audit.jsonl"), "utf8")).not.toContain("CANARY-91c2e5");
  const [{ count } = { count: 0 }] = (
    await runSql(
      env["DATABASE_URL"] ?? "",
      `select count(*)::int as count from "tenant_${tenant.id.replaceAll("-", "_")}".turn where request::text like '%CANARY-91c2e5%'`,
    )
  ).rows as { count: number }[];
  expect(count).toBe(0);
});
