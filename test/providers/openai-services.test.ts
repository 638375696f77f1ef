import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { FileId } from "../../domain/file-id.ts";
import { toFloats, unpackVectors } from "../../domain/vectors.ts";
import { ModelCallError } from "../../providers/model-provider.ts";
import type { ServiceCall, ServiceResult } from "../../providers/model-services.ts";
import { type OpenAiProviderOptions, createOpenAiProvider } from "../../providers/openai-provider.ts";
import { failureOf } from "./one-call.ts";
import { type ServiceServer, startServiceServer, vectorOf } from "./service-server.ts";
import { cut, hang, startWireServer } from "./wire-server.ts";

const apiKey = "sk-proj-verysecret0123456789";
const callId = "trn_01JTEST0000000000000000000.0";
let server: ServiceServer;

beforeEach(async () => {
  server = await startServiceServer();
});
afterEach(async () => {
  await server.close();
});

const servicesOf = (over: Partial<OpenAiProviderOptions> = {}) => {
  const options = { name: "main", kind: "openai", baseUrl: server.url, apiKey, ...over } as const;
  const { services } = createOpenAiProvider({ ...options, limitsOf: () => ({ contextWindow: 100, maxOutputTokens: 10 }) });
  if (services === undefined) throw new Error("an OpenAI provider has services");
  return services;
};
const serve = async (call: ServiceCall, signal = new AbortController().signal): Promise<ServiceResult> =>
  await servicesOf().serve(call, signal);

const embedding = (input: readonly string[] | readonly (readonly number[])[], dimensions?: number): ServiceCall => ({
  service: "embedding",
  model: "e",
  input,
  dimensions,
  user: undefined,
  callId,
});
const moderation: ServiceCall = { service: "moderation", model: "m", input: "hello there", callId };
const transcription = (over: object = {}): ServiceCall => ({
  service: "transcription",
  model: "gpt-4o-transcribe",
  file: "file-01JTEST0000000000000000000" as FileId,
  filename: "a.wav",
  sizeBytes: 8_000,
  language: undefined,
  prompt: undefined,
  temperature: undefined,
  verbose: false,
  granularities: [],
  audio: new Blob(["some sound"]),
  callId,
  ...over,
});
const counted = (inputTokens: number, outputTokens = 0) => ({
  inputTokens,
  cacheReadTokens: 0,
  cacheWriteTokens: 0,
  outputTokens,
  reasoningTokens: 0,
  estimated: false,
});

async function vectorsOf({ answer }: ServiceResult, pieceBytes = answer.length): Promise<number[][]> {
  async function* pieces() {
    for (let at = 0; at < answer.length; at += pieceBytes) yield await Promise.resolve(Buffer.from(answer.subarray(at, at + pieceBytes)));
  }
  const vectors: number[][] = [];
  for await (const vector of unpackVectors(pieces())) vectors.push(toFloats(vector));
  return vectors;
}

describe("embeddings", () => {
  test("go out as base64 and come back in the order of the inputs, however the answer is cut into pieces", async () => {
    const result = await serve(embedding(["alpha", "be"]));

    expect(server.calls[0]).toMatchObject({
      path: "/embeddings",
      authorization: `Bearer ${apiKey}`,
      idempotencyKey: callId,
      body: { model: "e", input: ["alpha", "be"], encoding_format: "base64" },
    });
    expect(Object.keys(server.calls[0]?.body ?? {})).not.toContain("dimensions");
    for (const pieceBytes of [1, 3, 7, 1_000])
      expect(await vectorsOf(result, pieceBytes)).toEqual([[...vectorOf("alpha")], [...vectorOf("be")]]);
    expect(result).toMatchObject({ usage: counted(7), providerRequestId: "req-1" });
  });

  test.each([
    ["the total only", { total_tokens: 5 }, counted(5)],
    ["nothing", undefined, { inputTokens: 2, estimated: true, doubt: "missing" }],
    ["a negative number", { prompt_tokens: -1 }, { estimated: true, doubt: "unbelievable" }],
    ["a fraction", { prompt_tokens: 1.5 }, { estimated: true, doubt: "unbelievable" }],
    ["a text", { prompt_tokens: "7" }, { estimated: true, doubt: "unbelievable" }],
    ["more than a hundred windows", { prompt_tokens: 10_001 }, { estimated: true, doubt: "unbelievable" }],
    ["exactly a hundred windows", { prompt_tokens: 10_000 }, counted(10_000)],
  ])("a provider that counts %s", async (_name, usage, expected) => {
    server.answer({ json: { data: [{ index: 0, embedding: [1, 2] }], usage } });

    expect((await serve(embedding(["two words"]))).usage).toMatchObject(expected);
  });

  test.each([
    ["no JSON", { text: "<html>" }],
    ["a list", { text: "[]" }],
    ["nothing", { text: "" }],
    ["no vectors", { json: { data: [] } }],
    ["a vector too few", { json: { data: [{ embedding: [1] }] } }],
    [
      "one index twice",
      {
        json: {
          data: [
            { index: 0, embedding: [1] },
            { index: 0, embedding: [1] },
          ],
        },
      },
    ],
    ["vectors of two lengths", { json: { data: [{ embedding: [1] }, { embedding: [1, 2] }] } }],
    ["half a float", { json: { data: [{ embedding: "AAA=" }, { embedding: "AAA=" }] } }],
    ["a float that is infinite", { json: { data: [{ embedding: "AACAfw==" }, { embedding: "AACAfw==" }] } }],
    ["texts for numbers", { json: { data: [{ embedding: ["1"] }, { embedding: ["1"] }] } }],
  ])("an answer of %s is garbage", async (_name, reply) => {
    server.answer(reply);

    expect(await failureOf(serve(embedding(["a", "b"])))).toMatchObject({ kind: "garbage" });
  });
});

test("an answer that cannot be read is paid for where its provider counted it", async () => {
  server.answer({ json: { data: [], usage: { prompt_tokens: 9 } } }, { json: { data: [] } });

  expect((await failureOf(serve(embedding(["a"])))).usage).toEqual(counted(9));
  expect((await failureOf(serve(embedding(["a"])))).usage).toBeUndefined();
});

describe("transcriptions", () => {
  test("send the audio with its name and only the fields that were given", async () => {
    await serve(transcription({ language: "de", temperature: 0, granularities: ["word"], verbose: true }));

    const { body, audio } = server.calls[0] ?? {};
    expect(audio?.toString()).toBe("some sound");
    expect(body).toEqual({
      filename: "a.wav",
      model: "gpt-4o-transcribe",
      response_format: "verbose_json",
      language: "de",
      temperature: "0",
      "timestamp_granularities[]": "word",
    });
  });

  test.each([
    ["tokens", { usage: { type: "tokens", input_tokens: 14, output_tokens: 3 } }, counted(14, 3)],
    ["seconds", { usage: { type: "duration", seconds: 7 } }, counted(7)],
    ["a part of a second", { usage: { type: "duration", seconds: 0.2 } }, counted(1)],
    ["its length only", { duration: 8.47 }, counted(9)],
    [
      "half of it",
      { usage: { type: "tokens", input_tokens: 14 } },
      { inputTokens: 20, outputTokens: 2, estimated: true, doubt: "missing" },
    ],
    ["nothing", {}, { inputTokens: 20, outputTokens: 2, estimated: true, doubt: "missing" }],
    ["a negative time", { usage: { type: "duration", seconds: -3 } }, { estimated: true, doubt: "unbelievable" }],
    ["a time that is none", { usage: { type: "duration", seconds: "soon" } }, { estimated: true, doubt: "unbelievable" }],
  ])("a provider that counts %s", async (_name, count, expected) => {
    server.answer({ json: { text: "two words", ...count } });

    expect((await serve(transcription())).usage).toMatchObject(expected);
  });

  test("an answer without a text is garbage", async () => {
    server.answer({ json: { usage: { type: "duration", seconds: 7 } } });

    expect(await failureOf(serve(transcription()))).toMatchObject({ kind: "garbage" });
  });
});

describe("moderations", () => {
  test("pass through as they are, counted here without a doubt", async () => {
    const { answer, usage, providerRequestId } = await serve(moderation);

    expect(JSON.parse(Buffer.from(answer).toString())).toMatchObject({ id: "modr-1", results: [{ flagged: false }] });
    expect(usage).toMatchObject({ inputTokens: 2, estimated: true });
    expect(usage.doubt).toBeUndefined();
    expect(providerRequestId).toBe("modr-1");
  });

  test("an answer without results is garbage", async () => {
    server.answer({ json: { id: "modr-2" } });

    expect(await failureOf(serve(moderation))).toMatchObject({ kind: "garbage" });
  });
});

describe("errors", () => {
  test.each([
    [400, "refused"],
    [401, "rejected"],
    [404, "refused"],
    [413, "refused"],
    [429, "busy"],
    [500, "unreachable"],
    [529, "busy"],
    [302, "garbage"],
  ])("status %i is %s, and the key stays here", async (status, kind) => {
    const headers = { "retry-after": "7", ...(status === 302 ? { location: "http://127.0.0.1:1/" } : {}) };
    server.answer({ status, headers, json: { error: { message: `no good: ${apiKey}` } } });

    const error = await failureOf(serve(moderation));

    expect(error).toMatchObject({ kind, status });
    expect(error.message).not.toContain(apiKey);
    if (kind === "busy") expect(error.retryAfterMs).toBe(7_000);
    expect(server.calls).toHaveLength(1);
  });

  test("a compatible server without a key gets no Authorization", async () => {
    const services = servicesOf({ kind: "openai-compatible", apiKey: undefined });

    await services.serve(moderation, new AbortController().signal);

    expect(server.calls[0]?.authorization).toBeUndefined();
  });

  test("a provider that falls silent, or cuts its answer, is unreachable; an abort is an abort", async () => {
    const wire = await startWireServer();
    try {
      const { services } = createOpenAiProvider({
        name: "main",
        kind: "openai",
        baseUrl: `${wire.url}/v1`,
        apiKey,
        timeouts: { headersMs: 30_000, idleMs: 200 },
      });
      wire.answer({ steps: ['{"id":', hang] }, { steps: ['{"id":', cut] }, { steps: ['{"id":', hang] });
      const stop = new AbortController();

      const silent = await failureOf(services?.serve(moderation, stop.signal) ?? Promise.resolve());
      const broken = await failureOf(services?.serve(moderation, stop.signal) ?? Promise.resolve());
      const left = failureOf(services?.serve(moderation, stop.signal) ?? Promise.resolve());
      stop.abort();

      expect([silent.kind, broken.kind, (await left).kind]).toEqual(["unreachable", "unreachable", "aborted"]);
      expect(silent).toBeInstanceOf(ModelCallError);
      await wire.requests[0]?.clientLeft;
    } finally {
      await wire.close();
    }
  });
});
