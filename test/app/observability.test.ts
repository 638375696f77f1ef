import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import dashboard from "../../deploy/grafana-dashboard.json" with { type: "json" };
import { type RunningProduct, configWithProvider, startProduct } from "../product.ts";
import { type ModelServer, startModelServer } from "./model-server.ts";

let model: ModelServer;
let product: RunningProduct;
let token: string;
beforeAll(async () => {
  model = await startModelServer();
  product = await startProduct({
    config: configWithProvider(
      model.url,
      'telemetry: { slow_turn_seconds: 1, temporal_metrics: true, otlp_endpoint: "http://127.0.0.1:9" }',
    ),
  });
  token = await product.createTenant("acme");
});
afterAll(async () => {
  await product.stop();
  await model.close();
});

const ask = async (content: string, more: object = {}): Promise<string> => {
  const answer = await fetch(`${product.url}/v1/chat/completions`, {
    method: "POST",
    headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
    body: JSON.stringify({ model: "default", messages: [{ role: "user", content }], ...more }),
  });
  expect(answer.status).toBe(200);
  return await answer.text();
};
const scrape = async (): Promise<string> => await (await fetch(`${product.url}/metrics`)).text();
const valueOf = (text: string, series: string): number =>
  Number(
    text
      .split("\n")
      .find((line) => line.startsWith(`${series} `))
      ?.slice(series.length + 1),
  );

test("turns and model calls are timed, by what they are and how they ended, and no label holds a tenant", async () => {
  await ask("plain");
  await ask("streamed", { stream: true });
  const text = await scrape();

  expect(valueOf(text, 'openclaw_turn_seconds_count{kind="chat",state="done"}')).toBe(2);
  expect(valueOf(text, "openclaw_turn_first_text_seconds_count")).toBeGreaterThanOrEqual(1);
  expect(valueOf(text, 'openclaw_model_call_seconds_count{provider="local",model="test-model",outcome="done"}')).toBe(2);
  expect(valueOf(text, 'openclaw_model_first_token_seconds_count{provider="local",model="test-model"}')).toBe(2);
  const timed = text.split("\n").filter((line) => /^(?:openclaw_(?:turn|model)_\w*seconds|temporal_)/.test(line));
  expect(timed.filter((line) => line.includes("acme"))).toEqual([]);
});

test("Temporal's own metrics are there when they are asked for, summed over the tenants", async () => {
  await ask("one more");
  await expect
    .poll(scrape, { timeout: 20_000 })
    .toMatch(/^temporal_activity_succeed_endtoend_latency_count\{.*activity_type="callModel".*\} [1-9]/m);
  expect(await scrape()).not.toContain("task_queue=");
});

test("a turn that takes too long is told with its steps and the slowest of them, and with nothing that was said", async () => {
  const question = "SLOW 400\nSAY three planted words\nplanted question";
  await ask(question);
  const lines = async (): Promise<Record<string, unknown>[]> =>
    readFileSync(join(product.home, "gateway.log"), "utf8")
      .split("\n")
      .filter((line) => line.includes("a turn was slow"))
      .map((line) => JSON.parse(line) as Record<string, unknown>);
  await expect.poll(async () => (await lines()).length, { timeout: 10_000 }).toBe(1);
  const [line] = await lines();

  expect(line).toMatchObject({ tenantId: "acme", turnId: expect.stringMatching(/^trn_/), slowest: "model test-model" });
  expect(line?.["seconds"]).toBeGreaterThan(1);
  const steps = line?.["steps"] as { name: string; ms: number }[];
  expect(steps.map(({ name }) => name)).toEqual(["wait", "model test-model"]);
  expect(steps[1]?.ms).toBeGreaterThan(1_000);
  expect(JSON.stringify(line)).not.toContain("planted");
});

test("a collector that is away costs no turn anything, and what it did not take is counted", async () => {
  await ask("untold");
  await expect
    .poll(async () => valueOf(await scrape(), 'openclaw_trace_spans_total{outcome="failed"}'), { timeout: 30_000 })
    .toBeGreaterThan(0);
  expect(valueOf(await scrape(), 'openclaw_trace_spans_total{outcome="exported"}')).toBeNaN();
});

test("the page about metrics names none that is not there", async () => {
  const page = readFileSync(fileURLToPath(new URL("../../docs/observability.md", import.meta.url)), "utf8");
  const named = [...page.matchAll(/`(openclaw_[a-z_]+)/g)].map(([, name]) => name ?? "");
  const text = await scrape();

  expect(named.length).toBeGreaterThan(15);
  expect(named.filter((name) => !text.includes(`# TYPE ${name.replace(/_$/, "")}`))).toEqual([]);
});

test("the dashboard asks for nothing that is not there", async () => {
  const text = await scrape();
  const there = new Set(
    [...text.matchAll(/^# TYPE (\S+) (\S+)$/gm)].flatMap(([, name, type]) =>
      type === "histogram" ? [`${name}_bucket`, `${name}_count`] : [name],
    ),
  );
  const asked = dashboard.panels.flatMap(({ targets }) =>
    targets.flatMap(({ expr }) => expr.match(/\b(?:openclaw|process|nodejs)_\w+/g) ?? []),
  );

  expect(asked.length).toBeGreaterThan(20);
  expect(asked.filter((name) => !there.has(name))).toEqual([]);
  expect(new Set(dashboard.panels.map(({ id }) => id)).size).toBe(dashboard.panels.length);
});
