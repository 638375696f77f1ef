import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type RunningProduct, configWithProvider, startProduct } from "../product.ts";
import { type ModelServer, startModelServer } from "./model-server.ts";
import { type CollectedSpan, type TraceCollector, startTraceCollector } from "./trace-collector.ts";

let model: ModelServer;
let collector: TraceCollector;
let product: RunningProduct;
let acme: string;
let globex: string;
beforeAll(async () => {
  model = await startModelServer();
  collector = await startTraceCollector();
  product = await startProduct({ config: configWithProvider(model.url, `telemetry: { otlp_endpoint: "${collector.url}" }`) });
  [acme, globex] = [await product.createTenant("acme"), await product.createTenant("globex")];
});
afterAll(async () => {
  await product.stop();
  await model.close();
  await collector.close();
});

const someCaller = (flags = "01") => {
  const [traceId, spanId] = [randomBytes(16).toString("hex"), randomBytes(8).toString("hex")];
  return { traceId, spanId, header: `00-${traceId}-${spanId}-${flags}` };
};
const ask = async (token: string, content: string, headers: Record<string, string> = {}): Promise<Response> =>
  await fetch(`${product.url}/v1/chat/completions`, {
    method: "POST",
    headers: { authorization: `Bearer ${token}`, "content-type": "application/json", ...headers },
    body: JSON.stringify({ model: "default", messages: [{ role: "user", content }] }),
  });

const named = (spans: readonly CollectedSpan[], name: string): CollectedSpan[] => spans.filter((span) => span.name === name);
const one = (spans: readonly CollectedSpan[], name: string): CollectedSpan => {
  const found = named(spans, name);
  if (found.length !== 1) throw new Error(`${found.length} spans are named ${name}, of ${spans.map((span) => span.name).join(", ")}`);
  return found[0]!;
};
const server = "POST /v1/chat/completions";
const isWhole = (spans: readonly CollectedSpan[]): boolean => [server, "turn chat"].every((name) => named(spans, name).length > 0);

test("a turn with a tool is one trace, from its caller's span through the gateway, the lane, each step and each call", async () => {
  const caller = someCaller();
  const answer = await ask(acme, 'CALL exec {"command":"echo planted-argument"}\nSAY planted-answer', { traceparent: caller.header });
  expect(answer.status).toBe(200);
  const { id: answerId } = (await answer.json()) as { id: string };
  const spans = await collector.trace(caller.traceId, isWhole);

  const request = one(spans, server);
  const submit = one(spans, "submit chat");
  const turn = one(spans, "turn chat");
  const steps = named(spans, "callModel");
  const tool = one(spans, "runTool");
  expect(request.parentSpanId).toBe(caller.spanId);
  expect(submit.parentSpanId).toBe(request.spanId);
  expect(turn.parentSpanId).toBe(submit.spanId);
  expect(one(spans, "wait for the lane").parentSpanId).toBe(turn.spanId);
  expect([...steps, tool].map(({ parentSpanId }) => parentSpanId)).toEqual(Array.from({ length: 3 }, () => turn.spanId));
  expect(new Set(named(spans, "chat test-model").map(({ parentSpanId }) => parentSpanId))).toEqual(
    new Set(steps.map(({ spanId }) => spanId)),
  );
  expect(one(spans, "execute_tool exec").parentSpanId).toBe(tool.spanId);

  expect(request.attributes).toMatchObject({ "http.response.status_code": 200, "openclaw.tenant.id": "acme" });
  const turnId = answer.headers.get("x-request-id");
  expect(answerId).toContain(String(turnId).slice("trn_".length));
  expect(turn.attributes).toMatchObject({ "openclaw.turn.id": turnId, "openclaw.turn.state": "done", "openclaw.turn.model_calls": 2 });
  for (const call of named(spans, "chat test-model")) {
    expect(call.attributes).toMatchObject({ "gen_ai.provider.name": "local", "gen_ai.operation.name": "chat" });
    expect(Number(call.attributes["gen_ai.usage.input_tokens"])).toBeGreaterThan(0);
    expect(Number(call.attributes["gen_ai.usage.output_tokens"])).toBeGreaterThan(0);
  }
  const within = (inner: CollectedSpan, outer: CollectedSpan): boolean =>
    BigInt(inner.startTimeUnixNano) >= BigInt(outer.startTimeUnixNano) && BigInt(inner.endTimeUnixNano) <= BigInt(outer.endTimeUnixNano);
  expect(within(submit, request)).toBe(true);
});

test("without a caller's trace each turn has its own, of one tenant, and nothing that was said is in any", async () => {
  const ids = new Set<unknown>();
  for (const token of [acme, globex, acme]) {
    const answer = await ask(token, "planted-question");
    ids.add(answer.headers.get("x-request-id"));
  }
  const turnsOf = (): readonly CollectedSpan[] =>
    named(collector.spans(), "turn chat").filter(({ attributes }) => ids.has(attributes["openclaw.turn.id"]));
  await collector.trace("", () => turnsOf().length === 3);

  expect(new Set(turnsOf().map(({ traceId }) => traceId)).size).toBe(3);
  for (const { traceId, attributes } of turnsOf()) {
    const tenants = collector.spans().filter((span) => span.traceId === traceId && "openclaw.tenant.id" in span.attributes);
    expect(new Set(tenants.map((span) => span.attributes["openclaw.tenant.id"]))).toEqual(new Set([attributes["openclaw.tenant.id"]]));
  }
  for (const secret of ["planted", acme, globex, product.adminKey]) expect(collector.text()).not.toContain(secret);
});

test("a caller who does not sample is not traced; what is no traceparent is taken for none", async () => {
  const unsampled = someCaller("00");
  expect((await ask(acme, "unsampled", { traceparent: unsampled.header })).status).toBe(200);
  expect((await ask(acme, "malformed", { traceparent: `00-${"0".repeat(32)}-zz-01` })).status).toBe(200);
  const later = someCaller();
  await ask(acme, "later", { traceparent: later.header });
  await collector.trace(later.traceId, isWhole);

  expect(collector.spans().filter(({ traceId }) => traceId === unsampled.traceId)).toEqual([]);
});

test("a refused request and a failed turn are in the trace, with their codes", async () => {
  const [refused, failed] = [someCaller(), someCaller()];
  expect((await ask("tk_acme_nothing", "x", { traceparent: refused.header })).status).toBe(401);
  expect((await ask(acme, "FAIL 400", { traceparent: failed.header })).status).toBe(400);
  const [request] = await collector.trace(refused.traceId, (spans) => spans.length > 0);
  const spans = await collector.trace(failed.traceId, isWhole);

  expect(request).toMatchObject({ name: server, attributes: { "http.response.status_code": 401 } });
  expect(one(spans, "turn chat")).toMatchObject({ failed: true, attributes: { "openclaw.turn.state": "failed" } });
  expect(one(spans, "chat test-model")).toMatchObject({ failed: true, attributes: { "http.response.status_code": 400 } });
});

test("kill -9 in the middle of a call: the turn goes on in the same trace", async () => {
  const caller = someCaller();
  const held = model.hold("killed in the middle");
  const cut = ask(acme, "killed in the middle", { traceparent: caller.header }).catch(() => "cut off");
  await held.arrived;
  await product.kill();
  expect(await cut).toBe("cut off");
  held.release();
  await product.restart();
  const spans = await collector.trace(caller.traceId, (found) => named(found, "turn chat").length > 0);

  const turn = one(spans, "turn chat");
  expect(turn.attributes["openclaw.turn.state"]).toBe("done");
  const again = one(spans, "callModel");
  expect(again).toMatchObject({ parentSpanId: turn.spanId, attributes: { "temporal.activity.attempt": 2 } });
});

test("without an endpoint nothing of OpenTelemetry's SDK is loaded", () => {
  const root = fileURLToPath(new URL("../..", import.meta.url));
  const program = `
    import { registerHooks } from "node:module";
    const loaded = [];
    registerHooks({ load: (url, context, next) => (loaded.push(url), next(url, context)) });
    const { openTracing } = await import("./app/tracing/tracing.ts");
    await import("./app/product.ts");
    const opened = await openTracing({ endpoint: undefined, serviceName: undefined, sampleRatio: 1, role: "all", log() {} });
    const sdk = /@opentelemetry\\/(?!api\\/)/;
    const before = loaded.filter((url) => sdk.test(url)).length;
    const tracing = await openTracing({ endpoint: "http://127.0.0.1:9", serviceName: undefined, sampleRatio: 1, role: "all", log() {} });
    await tracing.close();
    console.log(JSON.stringify({ opened: opened === undefined, before, after: loaded.filter((url) => sdk.test(url)).length > 0 }));
    process.exit(0);
  `;
  const told = execFileSync(process.execPath, ["--input-type=module", "--eval", program], { cwd: root, encoding: "utf8" });

  expect(JSON.parse(told)).toEqual({ opened: true, before: 0, after: true });
});
