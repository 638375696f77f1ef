import { randomBytes } from "node:crypto";
import OpenAI from "openai";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { freshNamespace } from "../fresh-namespace.ts";
import { type RunningProduct, configWithProvider, freePort, startProduct } from "../product.ts";
import { freshDatabase } from "../storage/fresh-database.ts";
import { type ModelServer, startModelServer } from "./model-server.ts";

/** Gateway and worker as processes of their own, on a Postgres and a Temporal that are somebody else's: what docker-compose.yml runs. */
let model: ModelServer;
let gateway: RunningProduct;
let worker: RunningProduct;
let client: OpenAI;
let metricsPort: number;

beforeAll(async () => {
  model = await startModelServer();
  const env = {
    DATABASE_URL: await freshDatabase(),
    TEMPORAL_ADDRESS: inject("temporalAddress"),
    TEMPORAL_NAMESPACE: await freshNamespace(inject("temporalAddress")),
  };
  gateway = await startProduct({ config: configWithProvider(model.url), env, role: "gateway" });
  metricsPort = await freePort();
  worker = await startProduct({ env: { ...env, OPENCLAW_METRICS_PORT: String(metricsPort) }, role: "worker", home: gateway.home });
  client = new OpenAI({
    baseURL: `${gateway.url}/v1`,
    apiKey: await gateway.createTenant(`split-${randomBytes(4).toString("hex")}`),
    maxRetries: 0,
  });
});
afterAll(async () => {
  await worker.stop();
  await gateway.stop();
  await model.close();
});

const ask = (text: string) => ({ model: "default", messages: [{ role: "user" as const, content: text }] });

test("a turn that comes in at the gateway is run by the worker", async () => {
  const answer = await client.chat.completions.create(ask("across processes"));

  expect(answer.choices[0]?.message.content).toContain("across processes");
});

test("a worker tells its own figures where it is asked to, to this machine only", async () => {
  const url = `http://127.0.0.1:${metricsPort}`;
  const script = 'CALL exec {"command":"true"}';
  await client.chat.completions.create(ask(script));

  const text = await (await fetch(`${url}/metrics`)).text();
  expect(text).toContain("# TYPE openclaw_sandbox_runs_total counter");
  expect(text).toContain("process_cpu_seconds_total");
  expect((await fetch(`${url}/metrics`, { headers: { "x-forwarded-for": "198.51.100.1" } })).status).toBe(401);
  expect(await (await fetch(`${url}/readyz`)).json()).toEqual({ status: "ok", checks: { database: "ok", temporal: "ok" } });
  expect((await fetch(`${url}/v1/tenants`, { headers: { authorization: `Bearer ${gateway.adminKey}` } })).status).toBe(404);
});

test("tokens stream from the worker to the caller of the gateway", async () => {
  const held = model.hold("STREAM then wait", 2);
  const stream = await client.chat.completions.create({ ...ask("STREAM then wait"), stream: true });
  const chunks = stream[Symbol.asyncIterator]();
  let text = "";
  while (text === "") text = (await chunks.next()).value?.choices[0]?.delta.content ?? "";

  expect(held.isReleased()).toBe(false);
  held.release();
  for (let next = await chunks.next(); next.done !== true; next = await chunks.next()) text += next.value.choices[0]?.delta.content ?? "";
  expect(text).toContain("STREAM then wait");
});

test("a worker that is killed and started again finishes what it was in the middle of", async () => {
  const held = model.hold("the worker dies here");
  const answer = client.chat.completions.create(ask("the worker dies here"));
  await held.arrived;

  await worker.kill();
  held.release();
  await worker.restart();

  expect((await answer).choices[0]?.message.content).toContain("the worker dies here");
  expect(model.callsOf("the worker dies here")).toBeLessThanOrEqual(2);
});
