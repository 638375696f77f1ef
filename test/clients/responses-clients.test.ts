import { createOpenAI } from "@ai-sdk/openai";
import { HumanMessage, ToolMessage } from "@langchain/core/messages";
import { ChatOpenAI } from "@langchain/openai";
import { Output, generateText, isStepCount, streamText, tool } from "ai";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { z } from "zod";
import { type ClientStage, startClientStage } from "./client-stage.ts";

let stage: ClientStage;
const headers = { "X-OpenClaw-Mode": "gateway" };
const question = "What is the weather in Rome?";

beforeAll(async () => void (stage = await startClientStage()), 300_000);
afterAll(async () => await stage.close());

describe("the AI SDK over Responses", () => {
  const model = () => createOpenAI({ apiKey: stage.token, baseURL: stage.baseUrl, headers }).responses("sample");
  const tools = {
    get_weather: tool({
      description: "The weather of a town",
      inputSchema: z.object({ town: z.string() }),
      execute: async () => "Sunny.",
    }),
  };

  test("makes text, whole and in pieces", async () => {
    const whole = await generateText({ model: model(), system: "Be brief.", prompt: "Tell of cats." });
    const streamed = streamText({ model: model(), prompt: "Tell of cats." });
    const pieces: string[] = [];
    for await (const piece of streamed.textStream) pieces.push(piece);

    expect([whole.text, pieces.join("")]).toEqual(Array(2).fill("You said: Tell of cats."));
    expect(pieces.length).toBeGreaterThan(1);
    expect([whole.finishReason, await streamed.finishReason]).toEqual(["stop", "stop"]);
    expect(whole.usage.outputTokens).toBeGreaterThan(0);
  });

  test("runs its tools and tells of their answers, whole and in pieces", async () => {
    const whole = await generateText({ model: model(), prompt: question, tools, stopWhen: isStepCount(3) });
    const streamed = streamText({ model: model(), prompt: question, tools, stopWhen: isStepCount(3) });

    expect([whole.text, await streamed.text]).toEqual(Array(2).fill("The tool said: Sunny."));
    expect(whole.steps).toHaveLength(2);
    expect(whole.steps[0]?.toolCalls).toMatchObject([{ toolName: "get_weather", input: { town: question } }]);
  });

  test("makes an object that keeps to its schema", async () => {
    const { output } = await generateText({
      model: model(),
      prompt: "7 cats",
      output: Output.object({ schema: z.object({ sum: z.number(), word: z.string() }) }),
    });

    expect(output).toEqual({ sum: 7, word: "7 cats" });
  });
});

describe("LangChain over Responses", () => {
  const model = (more: object = {}) =>
    new ChatOpenAI({
      model: "sample",
      apiKey: stage.token,
      useResponsesApi: true,
      maxRetries: 0,
      configuration: { baseURL: stage.baseUrl, defaultHeaders: headers },
      ...more,
    });

  test("makes text, whole and in pieces", async () => {
    const whole = await model().invoke("Tell of cats.");
    const pieces: string[] = [];
    for await (const piece of await model().stream("Tell of cats.")) pieces.push(piece.text);

    expect([whole.text, pieces.join("")]).toEqual(Array(2).fill("You said: Tell of cats."));
    expect(whole.usage_metadata).toMatchObject({ total_tokens: expect.any(Number) });
  });

  test("calls tools and goes on with their answers", async () => {
    const bound = model().bindTools([
      { type: "function", function: { name: "get_weather", parameters: { type: "object", properties: { town: { type: "string" } } } } },
    ]);
    const asked = await bound.invoke(question);
    const [call] = asked.tool_calls ?? [];
    const answered = await bound.invoke([
      new HumanMessage(question),
      asked,
      new ToolMessage({ content: "Sunny.", tool_call_id: call?.id ?? "" }),
    ]);

    expect(call).toMatchObject({ name: "get_weather", args: { town: question } });
    expect(answered.text).toBe("The tool said: Sunny.");
  });

  test("keeps to a schema", async () => {
    const shaped = model().withStructuredOutput(z.object({ sum: z.number(), word: z.string() }), { method: "jsonSchema" });

    expect(await shaped.invoke("7 cats")).toEqual({ sum: 7, word: "7 cats" });
  });
});
