import { randomBytes } from "node:crypto";
import { request as httpRequest } from "node:http";
import OpenAI, { APIError, toFile } from "openai";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { freshNamespace } from "../fresh-namespace.ts";
import { type RunningProduct, startProduct } from "../product.ts";
import { freshDatabase, runSql } from "../storage/fresh-database.ts";
import { type ServiceServer, segments, startServiceServer, vectorOf } from "../providers/service-server.ts";

let provider: ServiceServer;
let product: RunningProduct;
let databaseUrl: string;
let acme: string;
let globex: string;

beforeAll(async () => {
  provider = await startServiceServer();
  databaseUrl = await freshDatabase();
  const model = (kind: string) => `{ provider: local, kind: ${kind}, context_window: 8192, max_output_tokens: 2000 }`;
  product = await startProduct({
    config: `
default_model: test-model
providers:
  local: { kind: openai-compatible, base_url: "${provider.url}" }
  demo: { kind: demo }
models:
  test-model: { provider: local, context_window: 100000, max_output_tokens: 4000 }
  test-embedding: ${model("embedding")}
  demo-embedding: { provider: demo, kind: embedding, context_window: 8192, max_output_tokens: 1 }
  whisper-1: ${model("transcription")}
  gpt-4o-transcribe: ${model("transcription")}
  omni-moderation-latest: ${model("moderation")}
billing:
  rate_card:
    test-model: { input: 15, output: 75 }
    test-embedding: { input: 2, output: 0 }
    demo-embedding: { input: 1, output: 0 }
    whisper-1: { input: 100, output: 0 }
    gpt-4o-transcribe: { input: 6, output: 10 }
    omni-moderation-latest: { input: 0, output: 0 }
http: { provider_idle_seconds: 20, files_per_tenant: 3, file_megabytes_per_tenant: 26 }
`,
    env: {
      DATABASE_URL: databaseUrl,
      TEMPORAL_ADDRESS: inject("temporalAddress"),
      TEMPORAL_NAMESPACE: await freshNamespace(inject("temporalAddress")),
    },
  });
  acme = await product.createTenant("acme");
  globex = await product.createTenant("globex");
}, 120_000);
afterAll(async () => {
  await product?.stop();
  await provider?.close();
});

const clientOf = (token: string): OpenAI => new OpenAI({ baseURL: `${product.url}/v1`, apiKey: token, maxRetries: 0 });
const withKey = (key: string) => ({ headers: { "Idempotency-Key": key } });
const newKey = (): string => randomBytes(8).toString("hex");

type Row = { id: string; model: string; reason: string; input: number; output: number; cost: string; estimated: boolean; provider: string };

async function rowsOf(tenant: string): Promise<Row[]> {
  const { rows } = await runSql(
    databaseUrl,
    `select id, model, reason, input_tokens::int as input, output_tokens::int as output, cost_nano_usd::text as cost, estimated,
       provider_request_id as provider from control.usage_ledger where tenant_id = '${tenant}' order by "timestamp", id`,
  );
  return rows as Row[];
}
const rowOf = async (tenant: string, turnId: string): Promise<Row | undefined> =>
  (await rowsOf(tenant)).find(({ id }) => id === `${turnId}.0`);

const filesLeft = async (tenant: string): Promise<readonly { role: string; state: string }[]> =>
  (await runSql(databaseUrl, `select role, state from tenant_${tenant}.file order by id`)).rows as { role: string; state: string }[];

const openTurns = async (): Promise<number> =>
  Number((await runSql(databaseUrl, "select count(*) as open from control.open_turn")).rows[0]?.["open"]);

async function post(path: string, token: string, body: unknown, headers: Record<string, string> = {}) {
  const answer = await fetch(`${product.url}${path}`, {
    method: "POST",
    headers: { authorization: `Bearer ${token}`, ...(body instanceof FormData ? {} : { "content-type": "application/json" }), ...headers },
    body: body instanceof FormData ? body : typeof body === "string" ? body : JSON.stringify(body),
  });
  const text = await answer.text();
  const json = text.startsWith("{") ? (JSON.parse(text) as Record<string, unknown>) : {};
  const error = (json["error"] ?? {}) as { code?: string; param?: string; message?: string };
  return { status: answer.status, headers: answer.headers, text, json, error, turnId: answer.headers.get("x-request-id") ?? "" };
}

const refusalOf = async (call: Promise<unknown>): Promise<{ status: number | undefined; code: unknown; param: unknown }> => {
  const error: unknown = await call.then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  if (!(error instanceof APIError)) throw new Error("the call was not refused");
  return { status: error.status, code: error.code, param: error.param };
};

const audio = async (text = "RIFF some sound", name = "speech.wav") => await toFile(Buffer.from(text), name);
const formOf = (fields: Record<string, string>, ...files: readonly (readonly [string, Blob, string])[]): FormData => {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  for (const [name, blob, filename] of files) form.append(name, blob, filename);
  return form;
};

describe("embeddings", () => {
  test("the official client gets every vector in its place, and the call is one row at the card's price", async () => {
    const { data, response } = await clientOf(acme)
      .embeddings.create({ model: "test-embedding", input: ["alpha", "be", "gamma!"], user: "jane" })
      .withResponse();

    expect(data.data.map(({ index }) => index)).toEqual([0, 1, 2]);
    expect(data.data.map(({ embedding }) => embedding)).toEqual(["alpha", "be", "gamma!"].map((text) => [...vectorOf(text)]));
    expect(data).toMatchObject({ object: "list", model: "test-embedding", usage: { prompt_tokens: 13, total_tokens: 13 } });
    const turnId = response.headers.get("x-request-id") ?? "";
    expect(await rowOf("acme", turnId)).toEqual({
      id: `${turnId}.0`,
      model: "test-embedding",
      reason: "embedding",
      input: 13,
      output: 0,
      cost: "26000",
      estimated: false,
      provider: `req-${provider.calls.length}`,
    });
    expect(provider.calls.at(-1)).toMatchObject({ idempotencyKey: `${turnId}.0`, body: { user: "jane" } });
    expect(await filesLeft("acme")).toEqual([]); // nothing is kept without an Idempotency-Key
  });

  test("decimals, base64, one text, tokens, token arrays and fewer dimensions", async () => {
    const { embeddings } = clientOf(acme);
    const ask = async (input: string | number[] | number[][], more: object = {}) =>
      (await embeddings.create({ model: "test-embedding", input, encoding_format: "float", ...more })).data.map(
        ({ embedding }) => embedding,
      );

    expect(await ask("one")).toEqual([[...vectorOf("one")]]);
    expect(await ask([7, 8, 9])).toEqual([[...vectorOf([7, 8, 9])]]);
    expect(await ask([[7], [8, 9]], { dimensions: 3 })).toEqual([[...vectorOf([7], 3)], [...vectorOf([8, 9], 3)]]);
    const base64 = await embeddings.create({ model: "test-embedding", input: "one", encoding_format: "base64" });
    expect(base64.data[0]?.embedding).toBe(Buffer.from(vectorOf("one").buffer).toString("base64"));
  });

  test("a large answer is streamed whole", async () => {
    const input = Array.from({ length: 512 }, (_, place) => `text ${place}`);

    const { data } = await clientOf(acme).embeddings.create({ model: "test-embedding", input, dimensions: 1_536 });

    expect(data).toHaveLength(512);
    expect(data.at(-1)?.embedding).toEqual([...vectorOf("text 511", 1_536)]);
  });

  test("servers that answer decimals only, or count nothing, are taken as they are", async () => {
    provider.answer({ json: { data: [{ embedding: [0.5, -1] }] } });

    const { data, response } = await clientOf(acme).embeddings.create({ model: "test-embedding", input: "hello" }).withResponse();

    expect(data.data[0]?.embedding).toEqual([0.5, -1]);
    expect(await rowOf("acme", response.headers.get("x-request-id") ?? "")).toMatchObject({ estimated: true, input: 1 });
  });

  test.each([
    ["an empty text", { input: "" }, "input.0"],
    ["no inputs", { input: [] }, "input"],
    ["2,049 inputs", { input: Array.from({ length: 2_049 }, () => "x") }, "input"],
    ["a token that is no number", { input: [[1, null]] }, "input.0"],
    ["a negative token", { input: [-1] }, "input.0"],
    ["too many tokens", { input: Array.from({ length: 40 }, () => Array.from({ length: 8_000 }, () => 1)) }, "input"],
    ["texts and tokens at once", { input: ["a", [1]] }, "input.1"],
    ["an unknown field", { input: "a", n: 2 }, "n"],
    ["half a dimension", { input: "a", dimensions: 0.5 }, "dimensions"],
    ["an unknown encoding", { input: "a", encoding_format: "hex" }, "encoding_format"],
    ["no model", { input: "a", model: "" }, "model"],
    ["a chat model", { input: "a", model: "test-model" }, "model"],
  ])("%s is refused by name, and no provider hears of it", async (_name, body, param) => {
    const before = provider.calls.length;

    const refused = await post("/v1/embeddings", acme, { model: "test-embedding", ...body });

    expect([refused.status, refused.error.param]).toEqual([400, param]);
    expect(provider.calls).toHaveLength(before);
  });

  test("a number that JSON cannot hold, and an embedding model asked to chat, are refused", async () => {
    expect((await post("/v1/embeddings", acme, '{"model":"test-embedding","input":[NaN]}')).error.code).toBe("invalid_json");
    const chat = await post("/v1/chat/completions", acme, { model: "test-embedding", messages: [{ role: "user", content: "hi" }] });
    expect([chat.status, chat.error.param]).toEqual([400, "model"]);
    expect(chat.error.message).toContain("an embedding model");
  });

  test("the provider's refusal is the caller's, its garbage is a 502, and neither costs anything", async () => {
    const before = (await rowsOf("acme")).length;
    provider.answer({ status: 400, json: { error: { message: "This model's maximum context length is 8192 tokens." } } });
    expect(await refusalOf(clientOf(acme).embeddings.create({ model: "test-embedding", input: "x" }))).toMatchObject({ status: 400 });
    for (const text of ["<html>", "[]", '{"data":[]}', '{"data":[{"embedding":"AAA="}]}', '{"data":[{"embedding":"AADAfw=="}]}']) {
      provider.answer({ text });
      expect(await refusalOf(clientOf(acme).embeddings.create({ model: "test-embedding", input: "x" }))).toMatchObject({ status: 502 });
    }
    expect(await rowsOf("acme")).toHaveLength(before);
  });

  test("an answer that cannot be read but was counted is a 502, and on the bill once", async () => {
    const before = (await rowsOf("acme")).length;
    provider.answer({ json: { data: [], usage: { prompt_tokens: 9 } } });

    const failed = await post("/v1/embeddings", acme, { model: "test-embedding", input: "x" });

    expect([failed.status, failed.error.code]).toEqual([502, "provider_error"]);
    expect(await rowsOf("acme")).toHaveLength(before + 1);
    expect(await rowOf("acme", failed.turnId)).toMatchObject({ input: 9, cost: "18000" });
  });

  test("a busy provider is asked again, and the call is billed once", async () => {
    const before = (await rowsOf("acme")).length;
    provider.answer({ status: 429, headers: { "retry-after-ms": "1" }, json: {} }, { status: 503, json: {} });

    const { data } = await clientOf(acme).embeddings.create({ model: "test-embedding", input: "again" });

    expect(data).toHaveLength(1);
    expect(await rowsOf("acme")).toHaveLength(before + 1);
  });

  test("the demo provider's embeddings are the same each time, and near where words are shared", async () => {
    const embed = async () =>
      (await clientOf(acme).embeddings.create({ model: "demo-embedding", input: ["the red car", "a red car", "quantum soup"] })).data.map(
        ({ embedding }) => embedding,
      );
    const [red = [], car = [], soup = []] = await embed();
    const dot = (a: readonly number[], b: readonly number[]): number => a.reduce((sum, value, at) => sum + value * (b[at] ?? 0), 0);

    expect(await embed()).toEqual([red, car, soup]);
    expect(dot(red, red)).toBeCloseTo(1, 4);
    expect(dot(red, car)).toBeGreaterThan(dot(red, soup) + 0.2);
  });
});

describe("quotas", () => {
  test("service calls count as requests and tokens, and a call that has no room left is a 429 that no provider hears of", async () => {
    const token = await product.createTenant("small");
    expect((await product.admin("PUT", "/v1/tenants/small/quota", { tokens_per_day: 20, requests_per_minute: 3 })).status).toBe(200);
    const calls = provider.calls.length;

    expect((await post("/v1/embeddings", token, { model: "test-embedding", input: "0123456789" })).status).toBe(200);
    const over = await post("/v1/embeddings", token, { model: "test-embedding", input: "many words ".repeat(40) });

    expect([over.status, over.error.code]).toEqual([429, "tokens_per_day"]);
    expect(over.headers.get("retry-after")).toMatch(/^\d+$/);
    expect(provider.calls).toHaveLength(calls + 1);
    expect((await post("/v1/moderations", token, { input: "fine" })).status).toBe(200);
    expect((await post("/v1/moderations", token, { input: "fine" })).status).toBe(200);
    const fourth = await post("/v1/moderations", token, { input: "fine" });
    expect([fourth.status, fourth.error.code]).toEqual([429, "requests_per_minute"]);
  });
});

describe("moderations", () => {
  test("texts and images pass through to the provider, and a row is written although it is free", async () => {
    const input = [
      { type: "text" as const, text: "hello" },
      { type: "image_url" as const, image_url: { url: "https://example.com/a.png" } },
    ];

    const { data, response } = await clientOf(acme).moderations.create({ input }).withResponse();

    expect(data).toMatchObject({ id: "modr-1", model: "omni-moderation-latest", results: [{ flagged: false }] });
    expect(provider.calls.at(-1)?.body).toEqual({ model: "omni-moderation-latest", input });
    expect(await rowOf("acme", response.headers.get("x-request-id") ?? "")).toMatchObject({
      reason: "moderation",
      cost: "0",
      estimated: true,
      provider: "modr-1",
    });
  });

  test("an empty list, an unknown part and a model of another kind are refused", async () => {
    expect((await post("/v1/moderations", acme, { input: [] })).error.param).toBe("input");
    expect((await post("/v1/moderations", acme, { input: [{ type: "audio" }] })).error.param).toBe("input");
    expect((await post("/v1/moderations", acme, { input: "x", model: "test-embedding" })).error.param).toBe("model");
    expect((await post("/v1/moderations", acme, { input: "x", model: "nobody" })).status).toBe(404);
  });
});

describe("transcriptions", () => {
  test("a model that counts tokens is billed by them", async () => {
    const { data, response } = await clientOf(acme)
      .audio.transcriptions.create({ model: "gpt-4o-transcribe", file: await audio(), language: "en", prompt: "names", temperature: 0.2 })
      .withResponse();

    expect(data).toMatchObject({ text: "Heard 15 bytes.", usage: { type: "tokens", input_tokens: 30 } });
    expect(provider.calls.at(-1)?.body).toMatchObject({
      model: "gpt-4o-transcribe",
      language: "en",
      prompt: "names",
      temperature: "0.2",
      response_format: "json",
      filename: "speech.wav",
    });
    expect(provider.calls.at(-1)?.audio.toString()).toBe("RIFF some sound");
    expect(await rowOf("acme", response.headers.get("x-request-id") ?? "")).toMatchObject({
      reason: "transcription",
      input: 30,
      output: 5,
      cost: "230000",
      estimated: false,
    });
    expect(await filesLeft("acme")).toEqual([]); // neither the audio nor the answer
  });

  test("a model that counts seconds is billed a token for each", async () => {
    const answer = await post("/v1/audio/transcriptions", acme, formOf({ model: "whisper-1" }, ["file", new Blob(["sound"]), "a.mp3"]));

    expect(answer.status).toBe(200);
    expect(await rowOf("acme", answer.turnId)).toMatchObject({ input: 12, output: 0, cost: "1200000", estimated: false });
  });

  test("text, subtitles and times, in OpenAI's forms", async () => {
    const ask = async (format: "text" | "srt" | "vtt" | "verbose_json", more: object = {}): Promise<unknown> =>
      await clientOf(acme).audio.transcriptions.create({ model: "whisper-1", file: await audio(), response_format: format, ...more });

    expect(await ask("text")).toBe("Heard 15 bytes.\n");
    expect(await ask("srt")).toBe("1\n00:00:00,000 --> 00:00:01,500\nHello there.\n\n2\n00:00:01,500 --> 01:01:01,250\nBye -> now.\n\n");
    expect(await ask("vtt")).toMatch(/^WEBVTT\n\n00:00:00\.000 --> 00:00:01\.500\nHello there\.\n/);
    expect(await ask("verbose_json", { timestamp_granularities: ["word", "segment"] })).toMatchObject({ duration: 11.2, segments });
    expect(provider.calls.at(-1)?.body["timestamp_granularities[]"]).toEqual(["word", "segment"]);
  });

  test("an aborted call ends as one, costs nothing, and its audio goes", async () => {
    const rows = (await rowsOf("acme")).length;
    const hold = provider.hold();
    const heard = post("/v1/audio/transcriptions", acme, formOf({ model: "whisper-1" }, ["file", new Blob(["sound"]), "a.mp3"]));
    await hold.arrived;
    const [open] = (await runSql(databaseUrl, "select turn_id from control.open_turn where tenant_id = 'acme'")).rows as {
      turn_id: string;
    }[];

    const abort = { jsonrpc: "2.0", id: 1, method: "chat.abort", params: { turn_id: open?.turn_id } };
    expect((await post("/rpc", acme, abort)).json["result"]).toMatchObject({ aborted: true });

    const ended = await heard;
    hold.release();
    expect([ended.status, ended.error.code]).toEqual([409, "turn_aborted"]);
    expect(await rowsOf("acme")).toHaveLength(rows);
    expect(await filesLeft("acme")).toEqual([]);
  });

  test.each([
    ["no file", formOf({ model: "whisper-1" }), 400, "file"],
    ["an empty file", formOf({ model: "whisper-1" }, ["file", new Blob([]), "a.wav"]), 400, "file"],
    ["two files", formOf({ model: "whisper-1" }, ["file", new Blob(["a"]), "a.wav"], ["file", new Blob(["b"]), "b.wav"]), 400, "file"],
    ["a file of another name", formOf({ model: "whisper-1" }, ["audio", new Blob(["a"]), "a.wav"]), 400, "audio"],
    ["a field with the name of a prototype's", formOf({ model: "whisper-1", constructor: "x" }, ["file", new Blob(["a"]), "a"]), 400, null],
    ["no model", formOf({}, ["file", new Blob(["a"]), "a.wav"]), 400, "model"],
    ["a chat model", formOf({ model: "test-model" }, ["file", new Blob(["a"]), "a.wav"]), 400, "model"],
    ["a stream", formOf({ model: "whisper-1", stream: "true" }, ["file", new Blob(["a"]), "a.wav"]), 400, "stream"],
    ["a field that nobody knows", formOf({ model: "whisper-1", n: "2" }, ["file", new Blob(["a"]), "a.wav"]), 400, "n"],
    [
      "a field that is not supported",
      formOf({ model: "whisper-1", chunking_strategy: "auto" }, ["file", new Blob(["a"]), "a"]),
      400,
      "chunking_strategy",
    ],
    [
      "a format that nobody knows",
      formOf({ model: "whisper-1", response_format: "xml" }, ["file", new Blob(["a"]), "a"]),
      400,
      "response_format",
    ],
    [
      "times without verbose_json",
      formOf({ model: "whisper-1", "timestamp_granularities[]": "word" }, ["file", new Blob(["a"]), "a"]),
      400,
      "timestamp_granularities",
    ],
    ["more than 25 MiB", formOf({ model: "whisper-1" }, ["file", new Blob([Buffer.alloc(25 * 1024 * 1024 + 1)]), "a.wav"]), 413, "file"],
  ])("%s is refused, and nothing is left behind", async (_name, form, status, param) => {
    const before = provider.calls.length;

    const refused = await post("/v1/audio/transcriptions", acme, form);

    expect([refused.status, refused.error.param]).toEqual([status, param]);
    expect(provider.calls).toHaveLength(before);
    expect(await filesLeft("acme")).toEqual([]);
  });

  test("ten thousand parts, another content type and a form without an end are refused", async () => {
    const many = new FormData();
    for (let part = 0; part < 10_000; part++) many.append(`f${part}`, "x");
    expect((await post("/v1/audio/transcriptions", acme, many)).status).toBe(413);
    expect((await post("/v1/audio/transcriptions", acme, { model: "whisper-1" })).status).toBe(415);
    expect((await post("/v1/files", acme, "x", { "content-type": "text/plain" })).status).toBe(415);
    const cut = '--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nhalf';
    expect((await post("/v1/files", acme, cut, { "content-type": "multipart/form-data; boundary=b" })).status).toBe(400);
    expect((await post("/v1/files", acme, cut, { "content-type": "multipart/form-data" })).status).toBe(400);
    expect(await filesLeft("acme")).toEqual([]);
  });
});

describe("files", () => {
  const upload = async (token: string, text: string, name = "notes.txt") =>
    await clientOf(token).files.create({ file: await toFile(Buffer.from(text), name), purpose: "user_data" });

  test("upload, list page by page, look, read and delete, with the official client", async () => {
    const { files } = clientOf(acme);
    const first = await upload(acme, "first", "../../etc/passwd.txt");
    const second = await files.create({
      file: await toFile(Buffer.alloc(20 * 1024 * 1024, "x"), "large.bin"),
      purpose: "vision",
      expires_after: { anchor: "created_at", seconds: 3_600 },
    });

    expect(first).toMatchObject({ object: "file", bytes: 5, filename: "passwd.txt", purpose: "user_data", status: "processed" });
    expect(second.expires_at).toBe(second.created_at + 3_600);
    const page = await files.list({ limit: 1, order: "asc" });
    expect(page.data.map(({ id }) => id)).toEqual([first.id]);
    expect(page.has_more).toBe(true);
    expect((await page.getNextPage()).data.map(({ id }) => id)).toEqual([second.id]);
    expect((await files.list({ purpose: "vision" })).data.map(({ id }) => id)).toEqual([second.id]);
    expect(await files.retrieve(first.id)).toEqual(first);
    const content = await files.content(second.id);
    expect(content.headers.get("content-disposition")).toContain("attachment");
    expect(Buffer.from(await content.arrayBuffer()).equals(Buffer.alloc(20 * 1024 * 1024, "x"))).toBe(true);
    for (const { id } of [first, second]) expect(await files.delete(id)).toEqual({ id, object: "file", deleted: true });
    expect((await files.list()).data).toEqual([]);
    expect(await refusalOf(files.retrieve(first.id))).toMatchObject({ status: 404 });
    expect(await refusalOf(files.delete(first.id))).toMatchObject({ status: 404 });
  });

  test("another tenant's file, and what is no id, is not there; at rest no byte of it can be read", async () => {
    const file = await upload(acme, "the secret plan", "plan.txt");
    const { files } = clientOf(globex);

    for (const id of [file.id, "file-../../x", "file-01JTEST0000000000000000000"]) {
      expect(await refusalOf(files.retrieve(encodeURIComponent(id)))).toMatchObject({ status: 404 });
      expect(await refusalOf(files.content(encodeURIComponent(id)))).toMatchObject({ status: 404 });
      expect(await refusalOf(files.delete(encodeURIComponent(id)))).toMatchObject({ status: 404 });
    }
    expect((await files.list()).data).toEqual([]);
    const { rows } = await runSql(databaseUrl, "select sealed from tenant_acme.file_piece");
    expect((rows as { sealed: Buffer }[]).some(({ sealed }) => sealed.includes("secret"))).toBe(false);
    await clientOf(acme).files.delete(file.id);
  });

  test("a tenant keeps so many files and so many bytes, however many come at once", async () => {
    const uploads = await Promise.allSettled(["a", "b", "c", "d", "e"].map(async (text) => await upload(globex, text)));
    expect(uploads.filter(({ status }) => status === "fulfilled")).toHaveLength(3);

    const [kept] = (await clientOf(globex).files.list()).data;
    await clientOf(globex).files.delete(kept?.id ?? "");
    const large = Buffer.alloc(14 * 1024 * 1024);
    const create = async () => await clientOf(globex).files.create({ file: await toFile(large, "large"), purpose: "batch" });
    await create();
    const { data } = await clientOf(globex).files.list({ purpose: "user_data" });
    await clientOf(globex).files.delete(data[0]?.id ?? "");
    expect(await refusalOf(create())).toMatchObject({ status: 413, code: "request_too_large" });
    for (const { id } of (await clientOf(globex).files.list()).data) await clientOf(globex).files.delete(id);
    const { rows } = await runSql(databaseUrl, "select count(*)::int as pieces from tenant_globex.file_piece");
    expect(rows).toEqual([{ pieces: 0 }]);
  });

  test("a client that hangs up in the middle leaves nothing behind", async () => {
    const { port } = new URL(product.url);
    const asked = httpRequest({
      host: "127.0.0.1",
      port,
      method: "POST",
      path: "/v1/files",
      headers: { authorization: `Bearer ${acme}`, "content-type": "multipart/form-data; boundary=b", "content-length": 9_000_000 },
    });
    asked.on("error", () => undefined);
    const head = '--b\r\ncontent-disposition: form-data; name="file"; filename="half.bin"\r\n\r\n';
    await new Promise<void>((resolve) => void asked.write(head + "y".repeat(3_000_000), () => resolve()));
    await expect
      .poll(async () => (await filesLeft("acme")).filter(({ state }) => state === "writing").length, { timeout: 100_000 })
      .toBe(1);

    asked.destroy();

    await expect
      .poll(async () => (await filesLeft("acme")).filter(({ state }) => state === "writing").length, { timeout: 100_000 })
      .toBe(0);
  }, 240_000);

  test.each([
    ["no purpose", {}, "purpose"],
    ["an unknown purpose", { purpose: "fun" }, "purpose"],
    [
      "a lifetime of a minute",
      { purpose: "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "60" },
      "expires_after",
    ],
    ["an unknown field", { purpose: "batch", path: "/etc/passwd" }, "path"],
  ])("%s is refused", async (_name, fields, param) => {
    const refused = await post("/v1/files", acme, formOf(fields, ["file", new Blob(["a"]), "a"]));

    expect([refused.status, refused.error.param]).toEqual([400, param]);
  });
});

describe("an Idempotency-Key", () => {
  const form = (text: string) => formOf({ model: "whisper-1" }, ["file", new Blob([text]), "a.wav"]);
  const fileForm = (text: string) => formOf({ purpose: "user_data" }, ["file", new Blob([text]), "a.txt"]);
  const routes = [
    ["/v1/chat/completions", (text: string) => ({ model: "test-model", messages: [{ role: "user", content: text }] })],
    ["/v1/embeddings", (text: string) => ({ model: "test-embedding", input: text })],
    ["/v1/moderations", (text: string) => ({ input: text })],
    ["/v1/audio/transcriptions", form],
    ["/v1/files", fileForm],
    ["/rpc", (text: string) => ({ jsonrpc: "2.0", id: 1, method: "chat.send", params: { session_id: "api:idem:default", text } })],
    ["/v1/responses", (text: string) => ({ model: "test-model", input: text })],
  ] as const;
  const conversations = "/v1/conversations";
  /** What changes the conversation at the end of the path, without a model. */
  const changes = [
    [conversations, (text: string) => ({ items: [{ role: "user", content: text }] })],
    [`${conversations}/{id}`, (text: string) => ({ metadata: { text } })],
    [`${conversations}/{id}/items`, (text: string) => ({ items: [{ role: "user", content: text }] })],
  ] as const;
  /** To cancel twice is to cancel once. */
  const cancel = "/v1/responses/{id}/cancel";

  test("every tenant-side POST is in this table", async () => {
    const document = (await (await fetch(`${product.url}/openapi.json`)).json()) as {
      paths: Record<string, Record<string, { "x-access": string }>>;
    };
    const posts = Object.entries(document.paths).flatMap(([path, operations]) =>
      operations["post"]?.["x-access"] === "tenant" ? [path] : [],
    );
    expect(posts.toSorted()).toEqual([...[...routes, ...changes].map(([path]) => path), cancel].toSorted());
  });

  test.each([...routes.slice(1, 5), routes[6]])(
    "%s: the same call twice, at once, with another body, and of another tenant",
    async (path, bodyOf) => {
      const key = newKey();
      const rows = (await rowsOf("acme")).length;

      const [first, second] = await Promise.all([1, 2].map(async () => await post(path, acme, bodyOf("same"), { "idempotency-key": key })));
      const third = await post(path, acme, bodyOf("same"), { "idempotency-key": key });

      expect([first?.status, second?.status, third.status]).toEqual([200, 200, 200]);
      expect(second?.text).toBe(first?.text);
      expect(third.text).toBe(first?.text);
      expect(await rowsOf("acme")).toHaveLength(path === "/v1/files" ? rows : rows + 1);
      const other = await post(path, acme, bodyOf("other"), { "idempotency-key": key });
      expect([other.status, other.error.code]).toEqual([409, "idempotency_mismatch"]);
      const globexRows = (await rowsOf("globex")).length;
      const foreign = await post(path, globex, bodyOf("other"), { "idempotency-key": key });
      expect(foreign.status).toBe(200);
      expect(foreign.text).not.toBe(path === "/v1/files" ? first?.text : "");
      expect((await rowsOf("globex")).length).toBe(path === "/v1/files" ? globexRows : globexRows + 1);
      if (path === "/v1/files") {
        for (const token of [acme, globex])
          for (const { id } of (await clientOf(token).files.list()).data) await clientOf(token).files.delete(id);
        expect((await post(path, acme, bodyOf("same"), { "idempotency-key": key })).text).toBe(first?.text); // the stored answer, though deleted
      }
      expect((await post(path, acme, bodyOf("x"), { "idempotency-key": "é".repeat(3) })).status).toBe(400);
    },
  );

  test.each(changes)("%s: the same change twice, at once, with another body, and of another tenant", async (template, bodyOf) => {
    const key = newKey();
    const { id } = await clientOf(acme).conversations.create();
    const path = template.replace("{id}", id);
    const change = async (text: string, token = acme) => await post(path, token, bodyOf(text), { "idempotency-key": key });

    const [first, second] = await Promise.all([change("same"), change("same")]);
    if (template !== conversations) await post(path, acme, bodyOf("meanwhile"));
    const third = await change("same");

    expect([first.status, second.status, third.status]).toEqual([200, 200, 200]);
    expect([second.text, third.text]).toEqual([first.text, first.text]);
    expect((await change("other")).error.code).toBe("idempotency_mismatch");
    expect((await change("same", globex)).status).toBe(template === conversations ? 200 : 404);
    const made = template === conversations ? (first.json as { id: string }).id : id;
    const { data } = await clientOf(acme).conversations.items.list(made);
    const { metadata } = await clientOf(acme).conversations.retrieve(made);
    const left = {
      [conversations]: [1, {}],
      [`${conversations}/{id}`]: [0, { text: "meanwhile" }],
      [`${conversations}/{id}/items`]: [2, {}],
    };
    expect([data.length, metadata]).toEqual(left[template]);
  });

  test("/rpc: chat.send twice is one turn, and with another text a conflict", async () => {
    const send = async (text: string, token = acme) =>
      (
        await post(
          "/rpc",
          token,
          { jsonrpc: "2.0", id: 1, method: "chat.send", params: { session_id: "api:idem:default", text } },
          { "idempotency-key": "rpc-key" },
        )
      ).json as { result?: { turn_id: string }; error?: { data: { code: string } } };

    const [first, second] = await Promise.all([send("hello"), send("hello")]);

    expect(first.result?.turn_id).toMatch(/^trn_/);
    expect(second.result).toEqual(first.result);
    expect((await send("other")).error?.data.code).toBe("idempotency_mismatch");
    expect((await send("other", globex)).result?.turn_id).not.toBe(first.result?.turn_id);
  });

  test("a key of one route means nothing else on another", async () => {
    const key = newKey();
    expect((await post("/v1/embeddings", acme, { model: "test-embedding", input: "a" }, { "idempotency-key": key })).status).toBe(200);
    expect((await post("/v1/moderations", acme, { input: "a" }, { "idempotency-key": key })).error.code).toBe("idempotency_mismatch");
    expect((await post("/v1/files", acme, fileForm("a"), { "idempotency-key": key })).error.code).toBe("idempotency_mismatch");
  });
});

describe("models", () => {
  test("are listed with every kind, and one by one", async () => {
    const listed: string[] = [];
    for await (const { id } of clientOf(acme).models.list()) listed.push(id);

    expect(listed).toEqual(expect.arrayContaining(["test-model", "test-embedding", "whisper-1", "omni-moderation-latest"]));
    expect(await clientOf(acme).models.retrieve("test-embedding")).toMatchObject({ object: "model", owned_by: "local" });
    expect(await refusalOf(clientOf(acme).models.retrieve("nobody"))).toMatchObject({ status: 404, code: "model_not_found" });
  });

  test("an overlay's list and aliases hold for services too", async () => {
    const token = await product.createTenant("listed");
    const overlay = "model: test-model\naliases: { embedder: test-embedding }\napi: { models: [test-model, test-embedding] }\n";
    const written = await fetch(`${product.url}/v1/tenants/listed/overlay`, {
      method: "PUT",
      headers: { authorization: `Bearer ${product.adminKey}`, "content-type": "application/yaml" },
      body: overlay,
    });
    expect(written.status).toBe(200);

    expect((await post("/v1/embeddings", token, { model: "embedder", input: "a" })).status).toBe(200);
    expect((await post("/v1/moderations", token, { input: "a" })).status).toBe(404);
  });
});

describe("kill -9", () => {
  test("between the provider's answer and the commit: the repeat gets the answer, and the call is billed once", async () => {
    const key = newKey();
    const form = () => formOf({ model: "whisper-1" }, ["file", new Blob(["long speech"]), "a.wav"]);
    const rpc = { jsonrpc: "2.0", id: 1, method: "chat.send", params: { session_id: "api:killed:default", text: "hi" } };
    const judged = await post("/v1/moderations", acme, { input: "kept" }, { "idempotency-key": `${key}-judged` });
    const sent = await post("/rpc", acme, rpc, { "idempotency-key": `${key}-rpc` });
    // The turn of /rpc is another test's concern: it has failed before the calls below are counted.
    await expect.poll(async () => await openTurns(), { timeout: 100_000 }).toBe(0);
    const hold = provider.hold();
    const calls = provider.calls.length;
    const kept = await post(
      "/v1/files",
      acme,
      formOf({ purpose: "batch" }, ["file", new Blob(["kept"]), "kept.txt"]),
      withKey(key).headers,
    );
    const cut = post("/v1/audio/transcriptions", acme, form(), { "idempotency-key": `${key}-audio` }).catch(() => undefined);
    const cutToo = post("/v1/embeddings", acme, { model: "test-embedding", input: "twice" }, { "idempotency-key": `${key}-text` }).catch(
      () => undefined,
    );
    await expect.poll(() => provider.calls.length, { timeout: 100_000 }).toBe(calls + 2);
    const rows = (await rowsOf("acme")).length;

    await product.kill();
    hold.release();
    await Promise.all([cut, cutToo]);
    await product.restart();

    const heard = await post("/v1/audio/transcriptions", acme, form(), { "idempotency-key": `${key}-audio` });
    const embedded = await post("/v1/embeddings", acme, { model: "test-embedding", input: "twice" }, { "idempotency-key": `${key}-text` });
    expect([heard.status, embedded.status]).toEqual([200, 200]);
    expect(heard.json["text"]).toBe("Heard 11 bytes.");
    expect(await rowsOf("acme")).toHaveLength(rows + 2);
    expect((await post("/v1/moderations", acme, { input: "kept" }, { "idempotency-key": `${key}-judged` })).text).toBe(judged.text);
    expect((await post("/rpc", acme, rpc, { "idempotency-key": `${key}-rpc` })).text).toBe(sent.text);
    const again = await post(
      "/v1/files",
      acme,
      formOf({ purpose: "batch" }, ["file", new Blob(["kept"]), "kept.txt"]),
      withKey(key).headers,
    );
    expect(again.text).toBe(kept.text);
    expect(await (await clientOf(acme).files.content(String(kept.json["id"]))).text()).toBe("kept");
  }, 240_000);
});

test("a deleted tenant's files are gone with it", async () => {
  const token = await product.createTenant("leaving");
  await post("/v1/files", token, formOf({ purpose: "batch" }, ["file", new Blob(["mine"]), "mine.txt"]));

  expect((await product.admin("DELETE", "/v1/tenants/leaving?confirm=leaving")).status).toBe(202);

  await expect
    .poll(async () => (await runSql(databaseUrl, "select to_regclass('tenant_leaving.file_piece') as left")).rows, { timeout: 100_000 })
    .toEqual([{ left: null }]);
}, 240_000);
