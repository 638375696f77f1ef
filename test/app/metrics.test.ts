import { afterAll, beforeAll, expect, test } from "vitest";
import { configWithProvider, type RunningProduct, startProduct } from "../product.ts";
import { missing } from "../sandbox/sandbox-stage.ts";
import { type ModelServer, startModelServer } from "./model-server.ts";

let model: ModelServer;
let product: RunningProduct;
let token: string;
beforeAll(async () => {
  model = await startModelServer();
  product = await startProduct({ config: configWithProvider(model.url) });
  token = await product.createTenant("globex");
});
afterAll(async () => {
  await product.stop();
  await model.close();
});

const scrape = async (
  headers: Record<string, string> = {},
): Promise<{ readonly status: number; readonly type: string; readonly text: string }> => {
  const answer = await fetch(`${product.url}/metrics`, { headers });
  return { status: answer.status, type: answer.headers.get("content-type") ?? "", text: await answer.text() };
};

const valueOf = (text: string, series: string): number =>
  Number(
    text
      .split("\n")
      .find((line) => line.startsWith(`${series} `))
      ?.slice(series.length + 1) ?? Number.NaN,
  );

/** Scrapes until the figures of the database, which are read every few seconds, say so. */
async function until(isThere: (text: string) => boolean): Promise<string> {
  for (;;) {
    const { text } = await scrape();
    if (isThere(text)) return text;
    await new Promise((resolve) => setTimeout(resolve, 250));
  }
}

const chat = async (token: string, more: object = {}): Promise<Response> =>
  await fetch(`${product.url}/v1/chat/completions`, {
    method: "POST",
    headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
    body: JSON.stringify({ model: "default", messages: [{ role: "user", content: "hello" }], ...more }),
  });

test("turns, tokens, money, requests and failed authentications are counted", async () => {
  const acme = await product.createTenant("acme");
  const before = await until((text) => valueOf(text, "openclaw_turns_open") === 0);

  const answer = (await (await chat(acme)).json()) as { usage: { prompt_tokens: number; completion_tokens: number } };
  await (await chat(acme, { stream: true })).text();
  await fetch(`${product.url}/v1/models`, { headers: { authorization: `Bearer tk_acme_${"0".repeat(32)}` } });
  const after = await until((text) => valueOf(text, "openclaw_model_calls_total") >= valueOf(before, "openclaw_model_calls_total") + 2);

  expect(valueOf(after, 'openclaw_turns_total{state="done"}')).toBe(2);
  expect(answer.usage.prompt_tokens).toBeGreaterThan(0);
  expect(valueOf(after, 'openclaw_tokens_total{class="in"}') - valueOf(before, 'openclaw_tokens_total{class="in"}')).toBe(
    2 * answer.usage.prompt_tokens,
  );
  expect(valueOf(after, "openclaw_cost_usd_total")).toBeGreaterThan(0);
  expect(valueOf(after, 'openclaw_tenant_tokens_today{tenant="acme"}')).toBeGreaterThan(0);
  expect(valueOf(after, 'openclaw_tenant_cost_usd_today{tenant="acme"}')).toBeGreaterThan(0);
  expect(valueOf(after, 'openclaw_tenant_model_calls_today{tenant="acme"}')).toBe(2);
  expect(valueOf(after, "openclaw_failed_authentications_total")).toBe(1);
  expect(valueOf(after, 'openclaw_http_request_seconds_count{method="POST",route="/v1/chat/completions",status="2xx"}')).toBe(2);
  for (const gauge of ["openclaw_turn_slots_running", "openclaw_turn_slots_waiting", "openclaw_streams_active"])
    expect(valueOf(after, gauge), gauge).toBe(0);
  expect(valueOf(after, "openclaw_metrics_database_failures_total")).toBe(0);
  expect(valueOf(after, "process_cpu_seconds_total")).toBeGreaterThan(0);
});

test("a stream, its slot and its turn are open while they are", async () => {
  const held = model.hold("wait for it", 2);
  const stream = await chat(token, { stream: true, messages: [{ role: "user", content: "wait for it" }] });
  await held.arrived;

  const during = await until((text) => valueOf(text, "openclaw_turns_open") === 1);
  held.release();
  await stream.text();
  const after = await until((text) => valueOf(text, "openclaw_turns_open") === 0);

  expect(valueOf(during, 'openclaw_tenant_turns_open{tenant="globex"}')).toBe(1);
  for (const gauge of ["openclaw_turn_slots_running", "openclaw_streams_active"])
    expect([gauge, valueOf(during, gauge), valueOf(after, gauge)]).toEqual([gauge, 1, 0]);
});

test.skipIf(missing !== undefined)("a sandboxed run is counted by what ended it", async () => {
  const script = 'CALL exec {"command":"true"}\nCALL exec {"command":"sleep 60","timeout_seconds":0.3}';

  await (await chat(token, { messages: [{ role: "user", content: script }] })).text();
  const { text } = await scrape();

  expect(valueOf(text, 'openclaw_sandbox_runs_total{reason="ok"}')).toBe(1);
  expect(valueOf(text, 'openclaw_sandbox_runs_total{reason="wall"}')).toBe(1);
});

test("every line is a comment or a sample of a family that was named before it", async () => {
  const { text } = await scrape();
  const families = new Map<string, string>();
  const series = new Set<string>();

  expect(text.endsWith("\n")).toBe(true);
  for (const line of text.split("\n").filter((line) => line !== "")) {
    const [, family, kind] = /^# TYPE ([a-zA-Z_:][\w:]*) (counter|gauge|histogram|summary)$/.exec(line) ?? [];
    if (family !== undefined && kind !== undefined) {
      expect(families.has(family), line).toBe(false);
      families.set(family, kind);
    }
    if (line.startsWith("#")) continue;
    const [, name = "", labels = ""] =
      /^([a-zA-Z_:][\w:]*)(\{(?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\["\\n])*",?)*\})? (?:-?[\d.]+(?:e[+-]?\d+)?|[+-]Inf|NaN)$/i.exec(line) ?? [];
    expect(families.has(name) || families.get(name.replace(/_(?:bucket|sum|count)$/, "")) === "histogram", line).toBe(true);
    expect(series.has(name + labels), line).toBe(false);
    series.add(name + labels);
  }
  expect(families.size).toBeGreaterThan(10);
});

test("no path and no number of tenants makes labels without end", async () => {
  for (let index = 0; index < 30; index++) await (await fetch(`${product.url}/nothing/${index}`)).text();

  const { text, type } = await scrape();

  expect(type).toBe("text/plain; version=0.0.4; charset=utf-8");
  expect(text).not.toContain("/nothing/");
  expect(valueOf(text, 'openclaw_http_request_seconds_count{method="GET",route="none",status="4xx"}')).toBe(30);
});

test("it is open to this machine, and to an admin key that may read", async () => {
  const proxied = { "x-forwarded-for": "198.51.100.1" };

  expect((await scrape()).status).toBe(200);
  expect((await scrape(proxied)).status).toBe(401);
  expect((await scrape({ ...proxied, authorization: `Bearer ${product.adminKey}` })).status).toBe(200);
  expect((await scrape({ authorization: `Bearer ${token}` })).status).toBe(403);
  expect((await scrape({ authorization: "Bearer ak_x_0" })).status).toBe(401);
});
