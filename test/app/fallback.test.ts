import OpenAI from "openai";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type RunningProduct, startProduct } from "../product.ts";
import { namedEvents, startWireServer, type WireServer } from "../providers/wire-server.ts";

let server: WireServer;
let product: RunningProduct;
let acme: string;

/** A model whose server is not there, one that speaks Responses, and one that no tenant may fall back on: it has no price. */
const config = (url: string): string => `
default_model: away
providers:
  nobody: { kind: openai-compatible, base_url: "http://127.0.0.1:9/v1" }
  new: { kind: openai-compatible, api: responses, base_url: "${url}/v1" }
models:
  away: { provider: nobody, context_window: 100000, max_output_tokens: 4000, fallbacks: [unpriced, there] }
  there: { provider: new, context_window: 100000, max_output_tokens: 1000 }
  unpriced: { provider: new, context_window: 100000, max_output_tokens: 1000 }
billing:
  rate_card:
    away: { input: 1, output: 2 }
    there: { input: 15, output: 75, cache_read: 1.50, reasoning: 60 }
`;

beforeAll(async () => {
  server = await startWireServer();
  product = await startProduct({ config: config(server.url) });
  acme = await product.createTenant("acme");
});
afterAll(async () => {
  await product.stop();
  await server.close();
});

const usage = {
  input_tokens: 328,
  input_tokens_details: { cached_tokens: 256 },
  output_tokens: 52,
  output_tokens_details: { reasoning_tokens: 24 },
  total_tokens: 380,
};
const answer = namedEvents(
  { type: "response.created", response: { id: "resp_1", status: "in_progress", usage: null } },
  { type: "response.output_text.delta", output_index: 0, delta: "Hello" },
  { type: "response.output_text.delta", output_index: 0, delta: " you" },
  { type: "response.completed", response: { id: "resp_1", status: "completed", output: [], usage } },
);

test("a call whose provider is not there is answered and billed by the fallback, streamed through another API", async () => {
  server.answer({ steps: [answer] }, { steps: [answer] });
  const client = new OpenAI({ baseURL: `${product.url}/v1`, apiKey: acme, maxRetries: 0 });
  const messages = [{ role: "user" as const, content: "Hello there" }];

  const whole = await client.chat.completions.create({ model: "default", messages });
  const chunks = [];
  for await (const chunk of await client.chat.completions.create({
    model: "away",
    messages,
    stream: true,
    stream_options: { include_usage: true },
  }))
    chunks.push(chunk);
  const report = await fetch(`${product.url}/v1/billing/report?tenant=acme&period=today&format=json&detail=true`, {
    headers: { authorization: `Bearer ${product.adminKey}` },
  });
  const { rows } = (await report.json()) as { rows: unknown[] };

  expect(whole).toMatchObject({
    model: "there",
    choices: [{ message: { content: "Hello you" }, finish_reason: "stop" }],
    usage: { prompt_tokens: 328, completion_tokens: 52, total_tokens: 380 },
  });
  expect(chunks.map(({ choices }) => choices[0]?.delta.content ?? "").join("")).toBe("Hello you");
  expect(chunks.at(-1)?.usage).toMatchObject({ prompt_tokens: 328, completion_tokens: 52 });
  expect(server.requests.map(({ url, body }) => [url, body["model"], body["max_output_tokens"], body["store"]])).toEqual([
    ["/v1/responses", "there", 1_000, false],
    ["/v1/responses", "there", 1_000, false],
  ]);
  // 72 × 15 + 256 × 1.50 + 28 × 75 + 24 × 60 µUSD
  const row = {
    model: "there",
    input_tokens: 72,
    cache_read_tokens: 256,
    output_tokens: 28,
    reasoning_tokens: 24,
    cost_nano_usd: "5004000",
    estimated: false,
  };
  expect(rows).toMatchObject([row, row]);
});
