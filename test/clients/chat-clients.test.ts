import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { AIMessageChunk, HumanMessage, ToolMessage } from "@langchain/core/messages";
import { tool as langchainTool } from "@langchain/core/tools";
import { ChatOpenAI } from "@langchain/openai";
import { type LanguageModel, Output, generateText, stepCountIs, streamText, tool } from "ai";
import OpenAI, { BadRequestError } from "openai";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { z } from "zod";
import { type ClientStage, startClientStage } from "./client-stage.ts";

let stage: ClientStage;

beforeAll(async () => {
  stage = await startClientStage();
});
afterAll(async () => await stage.close());

const lastRequest = () => stage.model.requests.at(-1);
const weatherOf = ({ city }: { city: string }): string => `Sunny in ${city}`;
const cityInput = z.object({ city: z.string() });
const citySchema = { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false };

describe("the official client", () => {
  const client = (): OpenAI => new OpenAI({ baseURL: stage.baseUrl, apiKey: stage.token, maxRetries: 0 });
  const ask = (text: string) => ({ model: "default", messages: [{ role: "user" as const, content: text }] });
  const weather = { type: "function" as const, function: { name: "get_weather", parameters: citySchema } };

  test("lists the models as OpenAI does", async () => {
    const models = await Array.fromAsync(client().models.list());

    expect(models.map(({ id }) => id)).toEqual(expect.arrayContaining(["sample", "other-sample"]));
    expect(models[0]).toEqual({ id: expect.any(String), object: "model", created: expect.any(Number), owned_by: "local" });
    expect(await client().models.retrieve("sample")).toMatchObject({ id: "sample", object: "model" });
    await expect(client().models.retrieve("nothing")).rejects.toMatchObject({ status: 404, code: "model_not_found" });
  });

  test("shows the model an uploaded file by its id, of this tenant alone", async () => {
    const file = await client().files.create({
      file: new File(["%PDF-1.1"], "a.pdf", { type: "application/pdf" }),
      purpose: "user_data",
    });
    const about = (file_id: string) => ({
      model: "default",
      messages: [{ role: "user" as const, content: [{ type: "file" as const, file: { file_id } }] }],
    });

    const answer = await client().chat.completions.create(about(file.id));

    expect(answer.choices[0]?.message.content).toContain("I was shown: file.");
    const bytes = Buffer.from("%PDF-1.1").toString("base64");
    expect(lastRequest()?.messages[0]?.content).toEqual([
      { type: "file", file: { filename: "a.pdf", file_data: `data:application/pdf;base64,${bytes}` } },
    ]);
    const other = new OpenAI({ baseURL: stage.baseUrl, apiKey: await stage.product.createTenant("globex"), maxRetries: 0 });
    await expect(other.chat.completions.create(about(file.id))).rejects.toMatchObject({ status: 404, param: "file_id" });
    await expect(client().chat.completions.create(about("../file"))).rejects.toMatchObject({ status: 404 });
  });

  test("parses a structured answer and runs tools by itself", async () => {
    const response_format = { type: "json_schema" as const, json_schema: { name: "place", strict: true, schema: citySchema } };
    const parse = (json: string): { city: string } => cityInput.parse(JSON.parse(json));

    const parsed = await client().chat.completions.parse({ ...ask("Rome"), response_format });
    const runner = client().chat.completions.runTools({
      ...ask("What is the weather in Rome?"),
      tools: [{ type: "function", function: { ...weather.function, description: "Weather.", function: weatherOf, parse } }],
    });

    expect(JSON.parse(parsed.choices[0]?.message.content ?? "")).toEqual({ city: "Rome" });
    expect(await runner.finalContent()).toBe("The tool said: Sunny in What is the weather in Rome?");
  });

  test("streams with its own helper: tool calls, usage and the end as in one piece", async () => {
    const body = { ...ask("What is the weather?"), tools: [weather], stream_options: { include_usage: true } };

    const streamed = await client().chat.completions.stream(body).finalChatCompletion();

    const whole = await client().chat.completions.create({ ...ask("What is the weather?"), tools: [weather] });
    const [message, sameMessage] = [streamed, whole].map(({ choices }) => choices[0]?.message.tool_calls?.[0]);
    expect(message).toMatchObject({ type: "function", function: { name: "get_weather", arguments: '{"city":"What is the weather?"}' } });
    expect(sameMessage).toMatchObject({
      type: "function",
      function: { name: "get_weather", arguments: '{"city":"What is the weather?"}' },
    });
    expect(streamed.usage).toEqual(whole.usage);
    expect(streamed.choices[0]?.finish_reason).toBe("tool_calls");
  });

  test("is told how likely the tokens are, streamed and not", async () => {
    const body = { ...ask("Hi there"), logprobs: true, top_logprobs: 2 };

    const whole = await client().chat.completions.create(body);
    const tokens: OpenAI.ChatCompletionTokenLogprob[] = [];
    for await (const { choices } of await client().chat.completions.create({ ...body, stream: true }))
      tokens.push(...(choices[0]?.logprobs?.content ?? []));

    expect(whole.choices[0]?.logprobs?.content?.map(({ token }) => token).join("")).toBe("You said: Hi there");
    expect(whole.choices[0]?.logprobs?.content?.[0]?.top_logprobs).toHaveLength(2);
    expect(tokens).toEqual(whole.choices[0]?.logprobs?.content);
  });

  test("is refused, streamed as the words come", async () => {
    const pieces: string[] = [];

    for await (const { choices } of await client().chat.completions.create({ ...ask("REFUSE this"), stream: true }))
      if (choices[0]?.delta.refusal) pieces.push(choices[0].delta.refusal);

    expect(pieces.length).toBeGreaterThan(1);
    expect(pieces.join("")).toBe("I would rather not.");
  });

  test("still speaks of functions as before there were tools", async () => {
    const body = { ...ask("What is the weather?"), functions: [weather.function] };

    const called = await client().chat.completions.create(body);
    const message = called.choices[0]?.message as OpenAI.ChatCompletionMessage;
    const messages = [...body.messages, message, { role: "function" as const, name: "get_weather", content: "Sunny" }];
    const answered = await client().chat.completions.create({ ...body, messages });

    expect(called.choices[0]).toMatchObject({ finish_reason: "function_call", message: { function_call: { name: "get_weather" } } });
    expect(answered.choices[0]?.message.content).toBe("The tool said: Sunny");
  });

  test("sends audio, files, a tier and a key, calls a custom tool, and is given its metadata back", async () => {
    const content = [
      { type: "text" as const, text: "What is this?" },
      { type: "input_audio" as const, input_audio: { data: "UklGRg==", format: "wav" as const } },
      { type: "file" as const, file: { filename: "a.pdf", file_data: "data:application/pdf;base64,JVBERi0=" } },
    ];

    const shown = await client().chat.completions.create({
      model: "default",
      messages: [{ role: "user", content }],
      service_tier: "flex",
      prompt_cache_key: "k",
      metadata: { a: "b" },
    });
    const custom = await client().chat.completions.create({
      ...ask("SELECT 1"),
      tools: [{ type: "custom", custom: { name: "sql" } }],
      tool_choice: { type: "custom", custom: { name: "sql" } },
    });

    expect(shown.choices[0]?.message.content).toBe("You said: What is this? I was shown: input_audio, file.");
    expect(shown).toMatchObject({ service_tier: "flex", metadata: { a: "b" }, usage: { prompt_tokens_details: { cached_tokens: 2 } } });
    expect(custom.choices[0]?.message.tool_calls).toMatchObject([{ type: "custom", custom: { name: "sql", input: "SELECT 1" } }]);
  });

  test.each<[string, object]>([
    ["seed", { model: "claude", seed: 1 }],
    ["logprobs", { model: "claude", logprobs: true }],
    ["store", { store: true }],
    ["audio", { audio: { format: "mp3", voice: "alloy" } }],
    ["modalities", { modalities: ["text", "audio"] }],
    ["moderation", { moderation: { model: "omni-moderation-latest" } }],
    ["n", { n: 2 }],
  ])("is refused %s by its name, and no model is called", async (param, more) => {
    const before = stage.model.requests.length;

    const refused = await client()
      .chat.completions.create({ ...ask("Hi"), ...more })
      .catch((error: unknown) => error);

    expect(refused).toBeInstanceOf(BadRequestError);
    expect(refused).toMatchObject({ param, status: 400, message: expect.stringContaining(`'${param}'`) });
    expect(stage.model.requests).toHaveLength(before);
  });
});

describe.each<[string, () => LanguageModel]>([
  [
    "@ai-sdk/openai-compatible",
    () =>
      createOpenAICompatible({ name: "openclaw", baseURL: stage.baseUrl, apiKey: stage.token, supportsStructuredOutputs: true })("sample"),
  ],
  ["@ai-sdk/openai", () => createOpenAI({ baseURL: stage.baseUrl, apiKey: stage.token }).chat("sample")],
])("the AI SDK with %s", (_provider, model) => {
  test("generates and streams text with its usage", async () => {
    const generated = await generateText({ model: model(), prompt: "Hi there", maxRetries: 0 });
    const streamed = streamText({ model: model(), prompt: "Hi there", maxRetries: 0 });

    expect(generated).toMatchObject({ text: "You said: Hi there", finishReason: "stop" });
    expect(await streamed.text).toBe(generated.text);
    expect(await streamed.finishReason).toBe("stop");
    expect(generated.usage).toMatchObject({ inputTokens: 3, outputTokens: 4, totalTokens: 7 });
  });

  test("takes a tool's way there and back, streamed too", async () => {
    const tools = { get_weather: tool({ inputSchema: cityInput, execute: weatherOf }) };
    const turn = { model: model(), tools, prompt: "What is the weather in Rome?", stopWhen: stepCountIs(3), maxRetries: 0 };

    const generated = await generateText(turn);
    const streamed = streamText({ ...turn, model: model() });

    expect(generated.text).toContain("Sunny in What is the weather in Rome?");
    expect(generated.steps).toHaveLength(2);
    expect(generated.steps[0]?.toolCalls).toMatchObject([{ toolName: "get_weather", input: { city: "What is the weather in Rome?" } }]);
    expect(await streamed.text).toBe(generated.text);
  });

  test("is given an object of its schema", async () => {
    const schema = z.object({ name: z.string(), age: z.number(), tags: z.array(z.string()) });

    const { output } = await generateText({ model: model(), output: Output.object({ schema }), prompt: "Jane is 42", maxRetries: 0 });

    expect(output).toEqual({ name: "Jane is 42", age: 42, tags: ["Jane is 42"] });
    expect(lastRequest()?.["response_format"]).toMatchObject({ type: "json_schema" });
  });

  test("shows images", async () => {
    const image = new Uint8Array([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
    const content = [
      { type: "text" as const, text: "Look" },
      { type: "file" as const, data: image, mediaType: "image/png" },
    ];

    const { text } = await generateText({ model: model(), messages: [{ role: "user", content }], maxRetries: 0 });

    expect(text).toBe("You said: Look I was shown: image_url.");
  });
});

describe("LangChain's client", () => {
  const chat = (more: object = {}): ChatOpenAI =>
    new ChatOpenAI({ model: "sample", apiKey: stage.token, configuration: { baseURL: stage.baseUrl }, maxRetries: 0, ...more });

  test("invokes and streams, and is told the usage", async () => {
    const invoked = await chat().invoke("Hi there");
    let streamed: AIMessageChunk | undefined;
    for await (const chunk of await chat().stream("Hi there")) streamed = streamed === undefined ? chunk : streamed.concat(chunk);

    expect(invoked.text).toBe("You said: Hi there");
    expect(streamed?.text).toBe(invoked.text);
    expect(invoked.usage_metadata).toMatchObject({ input_tokens: 3, output_tokens: 4, total_tokens: 7 });
    expect(streamed?.usage_metadata).toMatchObject({ input_tokens: 3, output_tokens: 4, total_tokens: 7 });
  });

  test("binds tools, runs them and answers with what they said", async () => {
    const weather = langchainTool(weatherOf, { name: "get_weather", description: "Tells the weather.", schema: cityInput });
    const withTools = chat().bindTools([weather]);
    const question = new HumanMessage("What is the weather in Rome?");

    const asked = await withTools.invoke([question]);
    const [call] = asked.tool_calls ?? [];
    const told = new ToolMessage({ content: weatherOf({ city: "Rome" }), tool_call_id: call?.id ?? "" });
    const answered = await withTools.invoke([question, asked, told]);

    expect(call).toMatchObject({ name: "get_weather", args: { city: "What is the weather in Rome?" } });
    expect(answered.text).toBe("The tool said: Sunny in Rome");
  });

  test.each(["jsonSchema", "functionCalling"] as const)("is given an object of its schema by %s", async (method) => {
    const schema = z.object({ name: z.string(), age: z.number() });

    const parsed = await chat().withStructuredOutput(schema, { name: "person", method }).invoke("Jane is 42");

    expect(parsed).toEqual({ name: "Jane is 42", age: 42 });
  });
});
