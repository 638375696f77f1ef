import { randomBytes } from "node:crypto";
import { spawnSync } from "node:child_process";
import { chmodSync, readFileSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, afterEach, beforeAll, describe, expect, inject, test } from "vitest";
import { parseTenantId } from "../../domain/tenant.ts";
import { openDatabase } from "../../storage/database.ts";
import { openDataKeys } from "../../storage/open-data-keys.ts";
import { readAnswer, settleAnswers, stageAnswer } from "../../storage/sealed-answers.ts";
import { freshNamespace } from "../fresh-namespace.ts";
import { leaksIn } from "../planted-secrets.ts";
import { type RunningProduct, configWithProvider, startProduct } from "../product.ts";
import { freshDatabase, quiet, runSql } from "../storage/fresh-database.ts";
import { type ModelServer, startModelServer } from "./model-server.ts";

type Answer = { readonly status: number; readonly body: Record<string, unknown> };

async function admin(product: RunningProduct, method: string, path: string, body?: unknown, key?: string): Promise<Answer> {
  const answer = await fetch(product.url + path, {
    method,
    headers: {
      authorization: `Bearer ${product.adminKey}`,
      ...(body === undefined ? {} : { "content-type": "application/json" }),
      ...(key === undefined ? {} : { "idempotency-key": key }),
    },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  return { status: answer.status, body: (await answer.json()) as Record<string, unknown> };
}
const someId = (name: string): string => `${name}-${randomBytes(4).toString("hex")}`;
const kekText = (home: string): string => readFileSync(join(home, "kek"), "utf8");

describe("two processes on one home", () => {
  const databases: { close(): Promise<void> }[] = [];
  const products: RunningProduct[] = [];
  afterEach(async () => {
    for (const product of products.splice(0).reverse()) await product.stop();
    for (const opened of databases.splice(0).reverse()) await opened.close();
  });

  test("kill -9 at any moment of a rotation loses no value: each is readable all the time, and the rotation ends", async () => {
    const env = {
      DATABASE_URL: await freshDatabase(),
      TEMPORAL_ADDRESS: inject("temporalAddress"),
      TEMPORAL_NAMESPACE: await freshNamespace(inject("temporalAddress")),
      OPENCLAW_KEK: "", // the home's file
    };
    const gateway = await startProduct({ env, role: "gateway" });
    products.push(gateway);
    const { home, adminKey } = gateway;
    const worker = await startProduct({ env, role: "worker", home, adminKey });
    products.push(worker);
    // A third process on the home: this one. It reads every value for as long as the rotations last.
    const database = await openDatabase({ ownerUrl: env.DATABASE_URL, log: quiet });
    const keys = await openDataKeys({ database, home, log: quiet });
    databases.push(database, keys);
    const deps = { database, dataKeys: keys.dataKeys };
    const values = await Promise.all(
      Array.from({ length: 150 }, async (_, index) => {
        const owner = parseTenantId(someId("sealed"));
        const key = { opId: `op-${index}`, commandHash: `hash-${index}` };
        const subject = `tenant:${owner}`;
        await stageAnswer(deps, owner, { ...key, subject, answer: { index }, memoryMs: 86_400_000 });
        await database.withControl(async (tx) => await settleAnswers(tx, subject, key));
        return { owner, key, index };
      }),
    );
    let reads = 0;
    let isRotating = true;
    const failures: unknown[] = [];
    const reading = (async () => {
      while (isRotating) {
        const { owner, key, index } = values[reads++ % values.length] ?? ({} as never);
        const value = await readAnswer(deps, owner, { ...key, memoryMs: 86_400_000 }).catch((error: unknown) => error);
        if ((value as { index?: number } | undefined)?.index !== index) failures.push({ index, value });
      }
    })();

    for (const delayMs of [0, 200, 800]) {
      const before = kekText(home);
      const started = await admin(gateway, "POST", "/v1/keys/rotate");
      expect([started.status, started.body]).toEqual([202, { workflow_id: expect.stringMatching(/^rekey:_system:[0-9a-f]{20}$/) }]);
      const id = String(started.body["workflow_id"]).split(":").at(-1) ?? "";
      await new Promise((resolve) => setTimeout(resolve, delayMs)); // the moment of the kill
      await worker.kill();
      await worker.restart();
      await expect
        .poll(async () => (await runSql(env.DATABASE_URL, `select state from control.key_rotation where id = '${id}'`)).rows[0]?.state, {
          timeout: 90_000,
        })
        .toBe("done");

      const { rows } = await runSql(
        env.DATABASE_URL,
        `select count(distinct kek_id)::int as keks, min(kek_id) as kek,
           (select kek_id from control.key_encryption) as current,
           (select count(*)::int from control.data_key where state = 'current' and rotation_id is distinct from '${id}') as missed,
           (select count(*)::int from control.sealed_answer answer join control.data_key key on key.owner = answer.owner and key.state = 'current'
            where get_byte(answer.answer, 4) <> key.version) as behind
         from control.data_key`,
      );
      expect(rows[0]).toMatchObject({ keks: 1, missed: 0, behind: 0 });
      expect(rows[0]?.kek).toBe(rows[0]?.current);
      expect(kekText(home)).not.toBe(before);
      expect(kekText(home).trim().split("\n")).toHaveLength(1);
      expect(statSync(join(home, "kek")).mode & 0o7777).toBe(0o400);
    }
    isRotating = false;
    await reading;

    expect(failures).toEqual([]);
    expect(reads).toBeGreaterThan(values.length);
    expect((await admin(gateway, "POST", "/v1/tenants", { id: someId("after") })).status).toBe(201);
    expect((await admin(gateway, "GET", "/v1/audit/verify")).body).toMatchObject({ ok: true });
    const { body } = await admin(gateway, "GET", "/v1/audit?action=keys.rotate");
    expect(body["data"]).toHaveLength(3);
  }, 240_000);
});

describe("a product with its own Temporal", () => {
  let model: ModelServer;
  let product: RunningProduct;
  let env: Record<string, string>;
  const providerKey = `sk-planted-${randomBytes(16).toString("hex")}`;
  const prompt = `planted-prompt-${randomBytes(16).toString("hex")}`;
  const secrets: Record<string, string> = { providerKey };

  beforeAll(async () => {
    model = await startModelServer();
    env = { DATABASE_URL: await freshDatabase(), OPENCLAW_KEK: "", PLANTED_KEY: providerKey };
    const config = configWithProvider(model.url).replace("kind: openai-compatible,", "kind: openai-compatible, api_key_env: PLANTED_KEY,");
    product = await startProduct({ config, env });
  });
  afterAll(async () => {
    await product?.stop();
    await model?.close();
  });

  const remember = (name: string, answer: Answer): Answer => {
    for (const field of ["token", "key"]) if (typeof answer.body[field] === "string") secrets[`${name} ${field}`] = answer.body[field];
    return answer;
  };
  const startExpectingFailure = (more: Record<string, string>) =>
    spawnSync(process.execPath, [fileURLToPath(new URL("../../app/main.ts", import.meta.url)), "start"], {
      env: { ...process.env, ...env, OPENCLAW_HOME: product.home, OPENCLAW_PORT: "0", ...more },
      encoding: "utf8",
    });

  test("a create and a rotation answer their repeat the same, also after a kill -9, until the next rotation", async () => {
    const id = someId("repeated");
    const [createKey, rotateKey, adminKeyKey] = [someId("k"), someId("k"), someId("k")];
    const create = async () => await admin(product, "POST", "/v1/tenants", { id }, createKey);
    const rotate = async (key?: string) =>
      remember(`rotated ${key}`, await admin(product, "POST", `/v1/tenants/${id}/token/rotate`, undefined, key));
    const makeKey = async () => await admin(product, "POST", "/v1/admin-keys", { id: "planted", scopes: ["read"] }, adminKeyKey);
    const created = remember("created", await create());
    const key = remember("admin", await makeKey());
    expect([created.status, key.status]).toEqual([201, 201]);

    expect([await create(), await makeKey()]).toEqual([created, key]);
    await product.kill();
    await product.restart();
    expect([await create(), await makeKey()]).toEqual([created, key]);
    const rotated = await rotate(rotateKey);
    expect(rotated.status).toBe(200);
    expect((await create()).status).toBe(409);
    expect(await rotate(rotateKey)).toEqual(rotated);
    await rotate();
    expect((await rotate(rotateKey)).status).toBe(409);
  }, 60_000);

  test("a repeated request for a rotation is the same rotation, and one at a time is under way", async () => {
    const key = someId("k");
    const first = await admin(product, "POST", "/v1/keys/rotate", undefined, key);
    const again = await admin(product, "POST", "/v1/keys/rotate", undefined, key);

    expect([first.status, again]).toEqual([202, first]);
    await expect
      .poll(async () => (await runSql(env["DATABASE_URL"] ?? "", "select state from control.key_rotation")).rows, { timeout: 60_000 })
      .toEqual([{ state: "done" }]);
  }, 90_000);

  test("no planted secret is in the database, Temporal's files, the logs or the home", async () => {
    const tenant = someId("chatty");
    const token = remember("chatty", await admin(product, "POST", "/v1/tenants", { id: tenant })).body["token"];
    const answer = await fetch(`${product.url}/v1/chat/completions`, {
      method: "POST",
      headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
      body: JSON.stringify({ model: "default", messages: [{ role: "user", content: prompt }] }),
    });
    expect(answer.status).toBe(200);
    expect(model.lastMessages().at(-1)?.content).toContain("planted-prompt");
    const kek = kekText(product.home).trim();
    Object.assign(secrets, { kek, "root key": product.adminKey });
    for (const [name, secret] of Object.entries(secrets))
      if (/_[0-9a-f]{32}$/.test(secret)) secrets[`random of ${name}`] = secret.slice(-32);
    const listed = await admin(product, "GET", "/v1/tenants");
    expect(listed.status).toBe(200);
    await product.kill(); // as a thief finds it: nothing is tidied up

    const dump = await dumpOf(env["DATABASE_URL"] ?? "");
    const temporal = filesBelow(join(product.home, "temporal"));
    const logs = Buffer.concat(["gateway.log", "audit.jsonl"].map((name) => readFileSync(join(product.home, name))));
    const places: Record<string, Buffer> = { dump, temporal, logs };

    expect(Object.keys(secrets).length).toBeGreaterThan(12);
    expect(dump.includes(tenant)).toBe(true);
    expect(temporal.includes(`tenant:${tenant}`)).toBe(true);
    expect(logs.includes(tenant)).toBe(true);
    for (const [place, bytes] of Object.entries(places))
      expect([place, leaksIn(bytes, { ...secrets, kekBytes: Buffer.from(kek, "base64") })]).toEqual([place, []]);
    expect(leaksIn(temporal, { prompt })).toEqual([]);
    expect(leaksIn(dump, { prompt })).toEqual(["prompt"]); // a turn's own row holds its text: the search finds what is there
    await product.restart();
  }, 60_000);

  test("another key, a key that others may read, and a missing one are refused at the start, and nothing is made up", async () => {
    await product.kill();
    const before = kekText(product.home);

    const wrong = startExpectingFailure({ OPENCLAW_KEK: randomBytes(32).toString("base64") });
    chmodSync(join(product.home, "kek"), 0o440);
    const loose = startExpectingFailure({});
    chmodSync(join(product.home, "kek"), 0o400);

    expect([wrong.status, wrong.stderr]).toEqual([1, expect.stringMatching(/^openclaw: .*key-encryption key [0-9a-f]{16}.*OPENCLAW_KEK/s)]);
    expect([loose.status, loose.stderr]).toEqual([1, expect.stringContaining("chmod 400")]);
    expect(kekText(product.home)).toBe(before);
    await product.restart();
    expect((await admin(product, "POST", "/v1/tenants", { id: someId("again") })).status).toBe(201);
  }, 90_000);
});

/** Every row of every table, as `pg_dump` would write it. */
async function dumpOf(url: string): Promise<Buffer> {
  const tables = await runSql(
    url,
    "select format('%I.%I', schemaname, tablename) as name from pg_tables where schemaname not in ('pg_catalog', 'information_schema')",
  );
  const texts: string[] = [];
  for (const { name } of tables.rows as { name: string }[]) {
    const { rows } = await runSql(url, `select string_agg(line::text, E'\\n') as text from ${name} line`);
    texts.push(`${name}\n${rows[0]?.text ?? ""}`);
  }
  expect(texts.length).toBeGreaterThan(15);
  return Buffer.from(texts.join("\n"));
}

const filesBelow = (directory: string): Buffer =>
  Buffer.concat(
    readdirSync(directory, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => readFileSync(join(entry.parentPath, entry.name))),
  );
