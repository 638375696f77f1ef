import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type RunningProduct, startProduct } from "../product.ts";
import { type WireReply, type WireServer, type WireStep, cut, hang, namedEvents, startWireServer } from "../providers/wire-server.ts";

let server: WireServer;
let product: RunningProduct;
let acme: string;

const silenceSeconds = 1;
const totalSeconds = 3;

const config = (url: string): string => `
default_model: chat
providers:
  keyed: { kind: openai-compatible, base_url: "${url}/v1", api_key_env: [FIRST_KEY, SECOND_KEY, UNSET_KEY], idle_seconds: ${silenceSeconds}, total_seconds: ${totalSeconds} }
  new: { kind: openai-compatible, api: responses, base_url: "${url}/v1", idle_seconds: ${silenceSeconds}, total_seconds: ${totalSeconds} }
  claude: { kind: anthropic, base_url: "${url}", api_key_env: FIRST_KEY, idle_seconds: ${silenceSeconds}, total_seconds: ${totalSeconds} }
models:
  chat: { provider: keyed, context_window: 100000, max_output_tokens: 4000 }
  responses: { provider: new, context_window: 100000, max_output_tokens: 4000 }
  messages: { provider: claude, context_window: 100000, max_output_tokens: 4000 }
billing:
  rate_card:
    chat: { input: 1, output: 2 }
    responses: { input: 1, output: 2 }
    messages: { input: 1, output: 2 }
`;

beforeAll(async () => {
  server = await startWireServer();
  product = await startProduct({ config: config(server.url), env: { FIRST_KEY: "sk-first", SECOND_KEY: "sk-second" } });
  acme = await product.createTenant("acme");
});
afterAll(async () => {
  await product.stop();
  await server.close();
});

/** How each API begins an answer, says a word of it, and says something that no reader of it knows. */
const apis = {
  chat: {
    begin: [] as string[],
    word: (word: string) =>
      `data: ${JSON.stringify({ id: "c", choices: [{ index: 0, delta: { content: word }, finish_reason: null }] })}\n\n`,
    malformed: 'data: {"id":"c","choices":[{"ind\n\n',
  },
  responses: {
    begin: [namedEvents({ type: "response.created", response: { id: "r", status: "in_progress", usage: null } })],
    word: (word: string) => namedEvents({ type: "response.output_text.delta", output_index: 0, delta: word }),
    malformed: 'event: response.output_text.delta\ndata: {"type":"response.out\n\n',
  },
  messages: {
    begin: [
      namedEvents(
        { type: "message_start", message: { id: "m", usage: { input_tokens: 9, output_tokens: 1 } } },
        { type: "content_block_start", index: 0, content_block: { type: "text", text: "" } },
      ),
    ],
    word: (word: string) => namedEvents({ type: "content_block_delta", index: 0, delta: { type: "text_delta", text: word } }),
    malformed: 'event: content_block_delta\ndata: {"type":"content_bl\n\n',
  },
} as const;
type Api = keyof typeof apis;

type Event = { readonly error?: unknown; readonly choices?: readonly { readonly delta?: { readonly content?: string } }[] };

async function stream(model: string): Promise<{ readonly status: number; readonly text: string; readonly events: readonly Event[] }> {
  const answer = await fetch(`${product.url}/v1/chat/completions`, {
    method: "POST",
    headers: { authorization: `Bearer ${acme}`, "content-type": "application/json" },
    body: JSON.stringify({ model, messages: [{ role: "user", content: "Hello there" }], stream: true }),
  });
  const text = await answer.text();
  return { status: answer.status, text, events: [...text.matchAll(/^data: (\{.*\})$/gm)].map(([, json]) => JSON.parse(json ?? "")) };
}

async function rows(): Promise<readonly Record<string, unknown>[]> {
  const { body } = await product.admin("GET", "/v1/billing/report?tenant=acme&period=today&format=json&detail=true");
  return body["rows"] as Record<string, unknown>[];
}

const steadily = (word: string): readonly WireStep[] =>
  Array.from({ length: 40 }, (_, n) => [delay(250 * n), word] as const).flatMap((steps) => [...steps]);

describe.each(Object.keys(apis) as Api[])("an answer over the API %s", (api) => {
  const { begin, word, malformed } = apis[api];
  const endings: Readonly<Record<string, () => WireReply>> = {
    "is cut off": () => ({ steps: [...begin, word("Hello "), word("you"), cut] }),
    "falls silent": () => ({ steps: [...begin, word("Hello "), word("you"), hang] }),
    "drips on for ever": () => ({ steps: [...begin, word("Hello "), word("you"), ...steadily(word("!"))] }),
    "becomes no JSON": () => ({ steps: [...begin, word("Hello "), word("you"), malformed, malformed] }),
  };

  test.each(Object.keys(endings))("that %s in the middle ends in an error event and is billed for what was said", async (ending) => {
    const [before, calls] = [await rows(), server.requests.length];
    server.answer(endings[ending]?.() ?? { steps: [] });
    const { status, text, events } = await stream(api);

    expect(status).toBe(200);
    expect(events.map(({ choices }) => choices?.[0]?.delta?.content ?? "").join("")).toMatch(/^Hello you!*$/);
    expect(events.at(-1)).toEqual({ error: { message: expect.any(String), type: "provider_error", param: null, code: "provider_error" } });
    expect(text).not.toContain("[DONE]");
    expect(server.requests.length - calls).toBe(1); // nothing is begun anew once a word was said
    const billed = (await rows()).filter(({ id }) => !before.some((row) => row["id"] === id));
    expect(billed).toEqual([expect.objectContaining({ model: api, estimated: true })]);
    expect(Number(billed[0]?.["output_tokens"])).toBeGreaterThan(0);
  });
});

test("a key that is told to wait gives way to the next, for every tenant, and the metrics name its variable", async () => {
  const globex = await product.createTenant("globex");
  const { begin, word } = apis.chat;
  const end = `data: ${JSON.stringify({ id: "c", choices: [{ index: 0, delta: {}, finish_reason: "stop" }], usage: { prompt_tokens: 4, completion_tokens: 1 } })}\n\ndata: [DONE]\n\n`;
  const answer: WireReply = { steps: [...begin, word("Hello"), end] };
  const before = server.requests.length;
  const ask = async (token: string) =>
    await fetch(`${product.url}/v1/chat/completions`, {
      method: "POST",
      headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
      body: JSON.stringify({ model: "chat", messages: [{ role: "user", content: "hi" }] }),
    });
  server.answer({ status: 429, headers: { "retry-after": "300" }, steps: ["{}"] }, answer, answer, answer);
  expect((await ask(acme)).status).toBe(200);
  expect((await ask(globex)).status).toBe(200);
  expect((await ask(acme)).status).toBe(200);

  const keys = server.requests.slice(before).map(({ headers }) => headers.authorization);
  expect(keys[0]).not.toBe(keys[1]);
  expect(keys.slice(1)).toEqual([keys[1], keys[1], keys[1]]);
  const resting = keys[0] === "Bearer sk-first" ? "FIRST_KEY" : "SECOND_KEY";
  const metrics = await (await fetch(`${product.url}/metrics`)).text();
  expect(metrics).toContain(`openclaw_provider_key_rests_total{provider="keyed",key="${resting}",why="rate_limited"} 1`);
  expect(metrics + product.output()).not.toContain("sk-");
});
