import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import OpenAI, { APIError } from "openai";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type RunningProduct, configWithProvider, startProduct } from "../product.ts";
import { type ModelServer, startModelServer } from "./model-server.ts";

let model: ModelServer;
let product: RunningProduct;
let acme: string;
let globex: string;

beforeAll(async () => {
  model = await startModelServer();
  product = await startProduct({ config: configWithProvider(model.url, "http: { provider_idle_seconds: 2 }\n") });
  acme = await product.createTenant("acme");
  globex = await product.createTenant("globex");
});
afterAll(async () => {
  await product.stop();
  await model.close();
});

const clientOf = (token: string): OpenAI => new OpenAI({ baseURL: `${product.url}/v1`, apiKey: token, maxRetries: 0 });
const inSession = (id: string) => ({ headers: { "X-OpenClaw-Session": id } });
const ask = (text: string) => ({ model: "default", messages: [{ role: "user" as const, content: text }] });

type Row = {
  id: string;
  input_tokens: string;
  cache_read_tokens: string;
  output_tokens: string;
  reasoning_tokens: string;
  tool_calls: string;
  cost_nano_usd: string;
};

/** The billing rows of a tenant, as the administrator's report tells them. */
async function billed(tenant: string): Promise<Row[]> {
  const answer = await fetch(`${product.url}/v1/billing/report?tenant=${tenant}&period=today&format=json&detail=true`, {
    headers: { authorization: `Bearer ${product.adminKey}` },
  });
  return ((await answer.json()) as { rows: Row[] }).rows;
}

const sum = (rows: readonly Row[], column: keyof Row): number => rows.reduce((total, row) => total + Number(row[column]), 0);

const twoToolCalls =
  'CALL exec {"command":"echo one > file.txt; echo written"}\nCALL exec {"command":"cat file.txt; id -u; ls /root"}\nUSAGE 100 20 30 5';

function activitiesOf(workflowId: string): string[] {
  const { temporal } = JSON.parse(readFileSync(join(product.home, "gateway.json"), "utf8")) as {
    temporal: { address: string; cli: string };
  };
  const shown = execFileSync(
    temporal.cli,
    ["workflow", "show", "--workflow-id", workflowId, "--output", "json", "--address", temporal.address],
    { encoding: "utf8" },
  );
  const { events } = JSON.parse(shown) as { events: { activityTaskScheduledEventAttributes?: { activityType: { name: string } } }[] };
  return events.flatMap(({ activityTaskScheduledEventAttributes: scheduled }) =>
    scheduled === undefined ? [] : [scheduled.activityType.name],
  );
}

describe("the official client", () => {
  test("a turn with two tool calls: answer, transcript, billing rows and history agree to the token", async () => {
    const before = (await billed("acme")).length;

    const answer = await clientOf(acme).chat.completions.create(ask(twoToolCalls), inSession("api:tools:default"));

    expect(answer.choices[0]?.message.content).toContain("written");
    expect(answer.choices[0]?.message.content).toContain("one");
    const rows = (await billed("acme")).slice(before);
    expect(rows).toHaveLength(3);
    expect(sum(rows, "input_tokens") + sum(rows, "cache_read_tokens")).toBe(answer.usage?.prompt_tokens);
    expect(sum(rows, "cache_read_tokens")).toBe(answer.usage?.prompt_tokens_details?.cached_tokens);
    expect(sum(rows, "output_tokens") + sum(rows, "reasoning_tokens")).toBe(answer.usage?.completion_tokens);
    expect(sum(rows, "reasoning_tokens")).toBe(answer.usage?.completion_tokens_details?.reasoning_tokens);
    expect(answer.usage?.total_tokens).toBe(3 * 120);
    expect(sum(rows, "tool_calls")).toBe(2);
    // 70 fresh, 30 cached, 15 output, 5 reasoning at 15 / 1.50 / 75 / 75 USD per 1M tokens
    expect(rows.map(({ cost_nano_usd }) => cost_nano_usd.toString())).toEqual(["2595000", "2595000", "2595000"]);
    expect(activitiesOf("turn:acme:api:tools:default")).toEqual(["callModel", "runTool", "callModel", "runTool", "callModel"]);
  });

  test("the same turn streamed: the deltas are the answer, and the bill is the same", async () => {
    const before = (await billed("acme")).length;
    const stream = await clientOf(acme).chat.completions.create(
      { ...ask(twoToolCalls), stream: true, stream_options: { include_usage: true } },
      inSession("api:streamed:default"),
    );

    let text = "";
    let usage: OpenAI.CompletionUsage | null | undefined;
    let finish: string | null | undefined;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      finish = chunk.choices[0]?.finish_reason ?? finish;
      usage = chunk.usage ?? usage;
    }

    expect(text).toContain("written");
    expect(finish).toBe("stop");
    expect(usage).toMatchObject({ prompt_tokens: 300, completion_tokens: 60, total_tokens: 360 });
    expect((await billed("acme")).slice(before)).toHaveLength(3); // the row is there before the last chunk
  });

  test("a session remembers, a stateless call does not", async () => {
    const client = clientOf(acme);
    await client.chat.completions.create(ask("my name is Jane"), inSession("api:memory:default"));
    await client.chat.completions.create(ask("what is my name?"), inSession("api:memory:default"));
    const remembered = model.lastMessages().map(({ role, content }) => [role, content]);
    await client.chat.completions.create(ask("what is my name?"));
    const stateless = model.lastMessages().map(({ role, content }) => [role, content]);

    expect(remembered).toEqual([
      ["user", "my name is Jane"],
      ["assistant", expect.stringContaining("my name is Jane")],
      ["user", "what is my name?"],
    ]);
    expect(stateless).toEqual([["user", "what is my name?"]]);
  });

  test("a client's own tools run at the client", async () => {
    const client = clientOf(acme);
    const tools: OpenAI.ChatCompletionTool[] = [
      { type: "function", function: { name: "weather", parameters: { type: "object", properties: { city: { type: "string" } } } } },
    ];
    const messages: OpenAI.ChatCompletionMessageParam[] = [{ role: "user", content: 'CALL weather {"city":"Lisbon"}' }];

    const asked = await client.chat.completions.create({ model: "default", messages, tools });
    const call = asked.choices[0]?.message.tool_calls?.[0];
    const answered = await client.chat.completions.create({
      model: "default",
      tools,
      messages: [
        ...messages,
        ...(asked.choices[0] === undefined ? [] : [asked.choices[0].message]),
        { role: "tool", tool_call_id: call?.id ?? "", content: "sunny" },
      ],
    });

    expect(asked.choices[0]?.finish_reason).toBe("tool_calls");
    expect(call).toMatchObject({ type: "function", function: { name: "weather", arguments: '{"city":"Lisbon"}' } });
    expect(answered.choices[0]?.message.content).toContain("sunny");
  });

  test("tokens reach the client as the provider sends them", async () => {
    const held = model.hold("STREAM then wait", 2);
    const stream = await clientOf(acme).chat.completions.create({ ...ask("STREAM then wait"), stream: true });
    const chunks = stream[Symbol.asyncIterator]();
    let first = "";
    while (first === "") first = (await chunks.next()).value?.choices[0]?.delta.content ?? "";

    expect(held.isReleased()).toBe(false); // the provider still waits in the middle of its answer
    held.release();
    let rest = "";
    for (let next = await chunks.next(); next.done !== true; next = await chunks.next()) rest += next.value.choices[0]?.delta.content ?? "";
    expect(rest).not.toBe("");
  });

  test("models are listed by their ids", async () => {
    const models = await Array.fromAsync(await clientOf(acme).models.list());

    expect(models.map(({ id }) => id)).toEqual(["test-model"]);
  });

  test("a caller that hangs up changes nothing: the turn is finished, kept and billed", async () => {
    const before = (await billed("acme")).length;
    const held = model.hold("hang up on this");
    const leaving = new AbortController();
    const call = clientOf(acme).chat.completions.create(ask("hang up on this"), {
      ...inSession("api:leaver:default"),
      signal: leaving.signal,
    });
    await held.arrived;

    leaving.abort();
    await expect(call).rejects.toThrow();
    held.release();

    await expect.poll(async () => (await billed("acme")).length, { timeout: 10_000 }).toBe(before + 1);
    await clientOf(acme).chat.completions.create(ask("are you there?"), inSession("api:leaver:default"));
    expect(model.lastMessages()[0]).toMatchObject({ role: "user", content: "hang up on this" });
  });

  test("an Idempotency-Key makes a repeat the same answer, and another body a conflict", async () => {
    const before = (await billed("acme")).length;
    const headers = { "Idempotency-Key": "order-66" };

    const first = await clientOf(acme).chat.completions.create(ask("only once"), { headers });
    const again = await clientOf(acme).chat.completions.create(ask("only once"), { headers });
    const other = clientOf(acme).chat.completions.create(ask("something else"), { headers });

    expect(again).toEqual(first);
    await expect(other).rejects.toMatchObject({ status: 409, code: "idempotency_mismatch" });
    expect((await billed("acme")).length).toBe(before + 1);
  });
});

describe("two tenants", () => {
  test("the same session id is another conversation, and the bills are apart", async () => {
    const before = (await billed("globex")).length;
    await clientOf(acme).chat.completions.create(ask("a secret of acme"), inSession("api:shared:default"));

    await clientOf(globex).chat.completions.create(ask("what do you know?"), inSession("api:shared:default"));

    expect(JSON.stringify(model.lastMessages())).not.toContain("secret of acme");
    expect(await billed("globex")).toHaveLength(before + 1);
  });

  test("a tool of one tenant cannot read the other's files", async () => {
    await clientOf(acme).chat.completions.create(
      ask('CALL write {"path":"secret.txt","content":"acme-only"}'),
      inSession("api:files:default"),
    );

    const peek = await clientOf(globex).chat.completions.create(
      ask(
        `CALL exec {"command":"cat secret.txt ${product.home}/tenants/acme/sandbox/secret.txt; ls ${product.home}/tenants; echo looked"}`,
      ),
      inSession("api:files:default"),
    );

    expect(peek.choices[0]?.message.content).toContain("looked");
    expect(peek.choices[0]?.message.content).not.toContain("acme-only");
  });

  test("one tenant's usage is not there for the other", async () => {
    const usage = async (tenant: string, token: string) =>
      (await fetch(`${product.url}/v1/tenants/${tenant}/usage?period=today`, { headers: { authorization: `Bearer ${token}` } })).status;

    expect(await usage("globex", globex)).toBe(200);
    expect(await usage("acme", globex)).toBe(404);
  });

  test("a tenant that waits for a slow model does not hold up the other", async () => {
    const held = model.hold("slow for acme");
    const slow = clientOf(acme).chat.completions.create(ask("slow for acme"));
    await held.arrived;

    await clientOf(globex).chat.completions.create(ask("quick for globex"));

    held.release();
    await slow;
  });
});

describe("bad input", () => {
  const post = async (body: string, headers: Record<string, string> = {}) => {
    const answer = await fetch(`${product.url}/v1/chat/completions`, {
      method: "POST",
      headers: { authorization: `Bearer ${acme}`, "content-type": "application/json", ...headers },
      body,
    });
    return { status: answer.status, headers: answer.headers, error: ((await answer.json()) as { error: Record<string, unknown> }).error };
  };
  const asking = (text: string, more: object = {}) => JSON.stringify({ ...ask(text), ...more });

  const cases: Record<string, { send: () => ReturnType<typeof post>; status: number; code: string; type?: string }> = {
    "no token": { send: async () => await post(asking("hi"), { authorization: "" }), status: 401, code: "invalid_api_key" },
    "a token that was never given": {
      send: async () => await post(asking("hi"), { authorization: `Bearer tk_acme_${"0".repeat(32)}` }),
      status: 401,
      code: "invalid_api_key",
    },
    "an admin key": {
      send: async () => await post(asking("hi"), { authorization: `Bearer ${product.adminKey}` }),
      status: 401,
      code: "invalid_api_key",
    },
    "a malformed session id": {
      send: async () => await post(asking("hi"), { "X-OpenClaw-Session": "nobody" }),
      status: 400,
      code: "invalid_session_id",
    },
    "a session of a channel that does not exist": {
      send: async () => await post(asking("hi"), { "X-OpenClaw-Session": "wa:+15551234567:default" }),
      status: 404,
      code: "not_found",
    },
    "malformed JSON": { send: async () => await post('{"model":'), status: 400, code: "invalid_json" },
    "an empty body": { send: async () => await post(""), status: 400, code: "invalid_json" },
    "a body of 20 MB": { send: async () => await post(asking("x".repeat(20_000_000))), status: 413, code: "request_too_large" },
    "another content type": {
      send: async () => await post(asking("hi"), { "content-type": "text/plain" }),
      status: 415,
      code: "unsupported_media_type",
    },
    "an unknown model": { send: async () => await post(asking("hi", { model: "gpt-99" })), status: 404, code: "model_not_found" },
    "a model without a price": {
      send: async () => await post(asking("hi", { model: "unpriced-model" })),
      status: 400,
      code: "model_not_priced",
    },
    "a parameter that is not supported": {
      send: async () => await post(asking("hi", { store: true })),
      status: 400,
      code: "unsupported_parameter",
    },
    "a provider that answers 500": {
      send: async () => await post(asking("FAIL 500")),
      status: 502,
      code: "provider_error",
      type: "provider_error",
    },
    "a provider that is busy": {
      send: async () => await post(asking("FAIL 429 30")),
      status: 503,
      code: "provider_busy",
      type: "unavailable",
    },
    "a provider that hangs": { send: async () => await post(asking("HANG")), status: 502, code: "provider_error", type: "provider_error" },
    "a provider that answers garbage": {
      send: async () => await post(asking("GARBAGE")),
      status: 502,
      code: "provider_error",
      type: "provider_error",
    },
    "a request that the provider refuses": { send: async () => await post(asking("FAIL 422")), status: 400, code: "provider_refused" },
  };

  for (const [name, { send, status, code, type = "invalid_request_error" }] of Object.entries(cases)) {
    test(`${name} is answered with ${status} ${code}, and nothing is billed`, async () => {
      const before = (await billed("acme")).length;

      const answer = await send();

      expect(answer.status).toBe(status);
      expect(answer.error).toEqual({ message: expect.any(String), type, param: answer.error["param"] ?? null, code });
      expect(JSON.stringify(answer.error)).not.toContain(product.home);
      expect(await billed("acme")).toHaveLength(before);
      if (status === 401) expect(answer.headers.get("www-authenticate")).toBe("Bearer");
      if (status === 503) expect(answer.headers.get("retry-after")).toMatch(/^\d+$/);
    });
  }

  test("a stream that breaks off ends with an error and without [DONE]; what was generated is billed; the session goes on", async () => {
    const before = (await billed("acme")).length;
    const answer = await fetch(`${product.url}/v1/chat/completions`, {
      method: "POST",
      headers: { authorization: `Bearer ${acme}`, "content-type": "application/json", "X-OpenClaw-Session": "api:broken:default" },
      body: asking("WORDS 10\nCUT 3", { stream: true }),
    });
    const text = await answer.text();

    expect(answer.status).toBe(200);
    expect(text).toMatch(/data: \{"error":\{"message":"[^"]+","type":"provider_error","param":null,"code":"provider_error"\}\}\n\n$/);
    expect(text).not.toContain("[DONE]");
    expect(await billed("acme")).toHaveLength(before + 1);
    const next = await clientOf(acme).chat.completions.create(ask("still there?"), inSession("api:broken:default"));
    expect(next.choices[0]?.message.content).toContain("still there?");
  });

  test("the client's error is the official client's own class", async () => {
    const refused = clientOf("tk_acme_wrong").chat.completions.create(ask("hi"));

    await expect(refused).rejects.toBeInstanceOf(APIError);
    await expect(refused).rejects.toMatchObject({ status: 401, code: "invalid_api_key" });
  });
});
