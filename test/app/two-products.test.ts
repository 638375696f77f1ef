import { randomBytes } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { freshNamespace } from "../fresh-namespace.ts";
import { type RunningProduct, configWithProvider, startProduct } from "../product.ts";
import { missing } from "../sandbox/sandbox-stage.ts";
import { freshDatabase, runSql } from "../storage/fresh-database.ts";
import { type ModelServer, startModelServer } from "./model-server.ts";
import { type StageTenant, answerTo, ask, clientOf } from "./scaling-stage.ts";

/** Two processes that are gateway and worker at once, each with a home of its own, on one database: a tenant's directory is in one of them. */
let model: ModelServer;
let products: readonly [RunningProduct, RunningProduct];
let databaseUrl: string;

beforeAll(async () => {
  model = await startModelServer();
  databaseUrl = await freshDatabase();
  const env = {
    DATABASE_URL: databaseUrl,
    TEMPORAL_ADDRESS: inject("temporalAddress"),
    TEMPORAL_NAMESPACE: await freshNamespace(inject("temporalAddress")),
  };
  const config = configWithProvider(model.url);
  const first = await startProduct({ config, env });
  products = [first, await startProduct({ config, env, adminKey: first.adminKey })];
});
afterAll(async () => {
  for (const product of products) await product.stop();
  await model.close();
});

const rows = async (sql: string) => (await runSql(databaseUrl, sql)).rows as Record<string, unknown>[];
const createTenant = async (): Promise<StageTenant> => {
  const id = `pair-${randomBytes(4).toString("hex")}`;
  return { id, token: await products[0].createTenant(id) };
};
/** The product whose home has the tenant's directory, and the other one. */
const homesOf = ({ id }: StageTenant): readonly [RunningProduct, RunningProduct] => {
  const owner = products.find(({ home }) => existsSync(join(home, "tenants", id)));
  const other = products.find((product) => product !== owner);
  if (owner === undefined || other === undefined) throw new Error("no home has the tenant's directory");
  return [owner, other];
};

test("tokens stream to the caller of either process while the model still speaks, each once", async () => {
  const tenant = await createTenant();
  for (const [n, product] of products.entries()) {
    const question = `STREAM through process ${n}`;
    const held = model.hold(question, 3);
    const stream = await clientOf(product, tenant).chat.completions.create({ ...ask(question), stream: true });
    const chunks = stream[Symbol.asyncIterator]();
    let text = "";
    while (text.length < 10) text += (await chunks.next()).value?.choices[0]?.delta.content ?? "";

    expect(held.isReleased()).toBe(false);
    held.release();
    for (let next = await chunks.next(); next.done !== true; next = await chunks.next()) text += next.value.choices[0]?.delta.content ?? "";
    expect(text).toBe(`echo: ${question}`);
  }
});

test.skipIf(missing !== undefined)("a tenant is served where its directory is, through both processes", async () => {
  const tenant = await createTenant();
  const [owner, other] = homesOf(tenant);

  for (const product of products) await answerTo(product, tenant, 'CALL exec {"command":"echo here >> file"}');

  expect(existsSync(join(owner.home, "tenants", tenant.id, "sandbox/file"))).toBe(true);
  expect(existsSync(join(other.home, "tenants", tenant.id))).toBe(false);
  expect(await rows(`select pid from control.placement join control.process on process.id = holder where owner = '${tenant.id}'`)).toEqual([
    { pid: owner.pid },
  ]);
});

test("a process does not begin with an empty directory where a tenant's own is away: the caller is told to come again, and the log says why", async () => {
  const tenant = await createTenant();
  const [owner, other] = homesOf(tenant);
  await answerTo(other, tenant, "before");
  await owner.kill();

  await expect(answerTo(other, tenant, "meanwhile")).rejects.toMatchObject({ status: 503 });

  expect(existsSync(join(other.home, "tenants", tenant.id))).toBe(false);
  const refusals = readFileSync(join(other.home, "gateway.log"), "utf8")
    .split("\n")
    .filter((line) => line.includes("a tenant is not served here") && line.includes(tenant.id));
  expect(refusals.join()).toMatch(/its directory is not in this home|no live worker has the tenant's home/);
  const metrics = await (await fetch(`${other.url}/metrics`)).text();
  expect(metrics).toMatch(/^openclaw_stranded_tenants [1-9]/m);
  expect(metrics).toMatch(/^openclaw_processes\{role="all",state="live"\} 1$/m);
  await owner.restart();
  expect(await answerTo(other, tenant, "after")).toBe("echo: after");
  expect(model.callsOf("meanwhile")).toBe(0);
});
