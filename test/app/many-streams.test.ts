import { once } from "node:events";
import { Agent, type IncomingMessage, request } from "node:http";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type MockOpenAi, start } from "../fixtures/mock-openai-server.ts";
import { type RunningProduct, configWithProvider, startProduct } from "../product.ts";

/**
 * 500 callers of 20 tenants at once: of each tenant's 25 some read only when all others are done, and some hang up in the middle. The
 * product has a heap in which what is left unread has to stay small.
 */
const tenants = Array.from({ length: 20 }, (_, n) => `tenant-${n}`);
const callersPerTenant = 25;
const kindOf = (caller: number): Kind => (caller % 10 === 3 ? "slow" : caller % 10 === 7 ? "leaves" : "reads");
type Kind = "reads" | "slow" | "leaves";
const words = { reads: 100, slow: 1_500, leaves: 300 } satisfies Record<Kind, number>;
const heapMb = 256;

let model: MockOpenAi;
let product: RunningProduct;
const tokens = new Map<string, string>();

beforeAll(async () => {
  model = await start();
  product = await startProduct({
    config: configWithProvider(model.url),
    env: { NODE_OPTIONS: `--max-old-space-size=${heapMb}` },
  });
  for (const tenant of tenants) tokens.set(tenant, await product.createTenant(tenant));
});
afterAll(async () => {
  await product.stop();
  await model.close();
});

const agent = new Agent({ keepAlive: false });

async function ask(tenant: string, kind: Kind): Promise<IncomingMessage> {
  const call = request(`${product.url}/v1/chat/completions`, {
    method: "POST",
    agent,
    headers: { authorization: `Bearer ${tokens.get(tenant)}`, "content-type": "application/json" },
  });
  call.end(
    JSON.stringify({
      model: "test-model",
      messages: [{ role: "user", content: `KEY ${tenant}\nWORDS ${words[kind]}` }],
      max_tokens: 4_000,
      stream: true,
      stream_options: { include_usage: true },
    }),
  );
  const [answer] = (await once(call, "response")) as [IncomingMessage];
  expect(answer.statusCode).toBe(200);
  return answer;
}

/** The words of a whole stream, and what it says was used. */
async function read(answer: IncomingMessage): Promise<{ readonly words: number; readonly used: number; readonly isComplete: boolean }> {
  let body = "";
  for await (const piece of answer.setEncoding("utf8")) body += String(piece);
  const chunks = [...body.matchAll(/^data: (\{.*\})$/gm)].map(([, json]) => JSON.parse(json ?? ""));
  const text = chunks.map(({ choices }) => choices[0]?.delta.content ?? "").join("");
  return {
    words: text.split(" ").length,
    used: chunks.at(-1)?.usage?.completion_tokens,
    isComplete: body.endsWith("data: [DONE]\n\n"),
  };
}

type Row = { readonly output_tokens: number; readonly input_tokens: number };

async function rowsOf(tenant: string): Promise<readonly Row[]> {
  const { status, body } = await product.admin("GET", `/v1/billing/report?tenant=${tenant}&period=today&format=json&detail=true`);
  expect(status).toBe(200);
  return body["rows"] as readonly Row[];
}

test("500 callers of 20 tenants at once, slow ones and some that hang up: every word, every bill, a small heap", async () => {
  const { promise: othersAreDone, resolve: readNow } = Promise.withResolvers<void>();
  const callers = tenants.flatMap((tenant) => Array.from({ length: callersPerTenant }, (_, caller) => ({ tenant, kind: kindOf(caller) })));
  const answers = callers.map(async ({ tenant, kind }) => {
    const answer = await ask(tenant, kind);
    if (kind === "leaves") {
      await once(answer, "data");
      answer.destroy();
      return undefined;
    }
    if (kind === "slow") await othersAreDone;
    return await read(answer);
  });
  await Promise.all(answers.filter((_, place) => callers[place]?.kind !== "slow"));
  readNow();
  const told = await Promise.all(answers);
  await model.control.idle();

  for (const [place, answer] of told.entries()) {
    const kind = callers[place]?.kind ?? "reads";
    if (kind !== "leaves") expect(answer).toEqual({ words: words[kind], used: words[kind], isComplete: true });
  }
  // Who hung up did not keep the provider from being read to the end.
  const { calls, billed, byConversation } = model.counters();
  expect({ calls, billed }).toEqual({ calls: callers.length, billed: callers.length });
  for (const tenant of tenants) {
    await expect.poll(async () => (await rowsOf(tenant)).length, { timeout: 20_000 }).toBe(callersPerTenant);
    const rows = await rowsOf(tenant);
    const sum = (of: keyof Row): number => rows.reduce((total, row) => total + row[of], 0);
    expect({ prompt: sum("input_tokens"), completion: sum("output_tokens") }).toEqual({
      prompt: byConversation[tenant]?.prompt,
      completion: byConversation[tenant]?.completion,
    });
  }
});
