import OpenAI from "openai";
import { zodTextFormat } from "openai/helpers/zod";
import type { ResponseCreateParamsNonStreaming, ResponseStreamEvent } from "openai/resources/responses/responses";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { z } from "zod";
import { type ClientStage, startClientStage } from "./client-stage.ts";

let stage: ClientStage;
let client: OpenAI;
let other: OpenAI;

const clientOf = (apiKey: string): OpenAI =>
  new OpenAI({ apiKey, baseURL: stage.baseUrl, maxRetries: 0, defaultHeaders: { "X-OpenClaw-Mode": "gateway" } });

beforeAll(async () => {
  stage = await startClientStage();
  client = clientOf(stage.token);
  other = clientOf(await stage.product.createTenant("bravo"));
}, 300_000);
afterAll(async () => await stage.close());

const ask = (more: Partial<ResponseCreateParamsNonStreaming>): ResponseCreateParamsNonStreaming => ({
  model: "sample",
  input: "Tell of cats.",
  ...more,
});
const weather = {
  type: "function",
  name: "get_weather",
  description: "The weather of a town",
  strict: true,
  parameters: { type: "object", properties: { town: { type: "string" } }, required: ["town"], additionalProperties: false },
} as const;

async function eventsOf(more: Partial<ResponseCreateParamsNonStreaming>): Promise<readonly ResponseStreamEvent[]> {
  const events: ResponseStreamEvent[] = [];
  for await (const event of await client.responses.create({ ...ask(more), stream: true })) events.push(event);
  return events;
}

/** Types in a row, each once. */
const sequenceOf = (events: readonly ResponseStreamEvent[]): readonly string[] =>
  events.map(({ type }) => type).filter((type, place, all) => type !== all[place - 1]);

describe("a response", () => {
  test("is made, kept as it was answered, and gone once deleted", async () => {
    const made = await client.responses.create(ask({ instructions: "Be brief.", metadata: { a: "b" } }));

    const kept = await client.responses.retrieve(made.id);
    await client.responses.delete(made.id);

    expect(made.output_text).toBe("You said: Tell of cats.");
    expect(made).toMatchObject({ status: "completed", instructions: "Be brief.", metadata: { a: "b" }, store: true, model: "sample" });
    expect(made.usage?.input_tokens).toBeGreaterThan(0);
    expect({ ...kept, _request_id: "" }).toEqual({ ...made, _request_id: "" });
    await expect(client.responses.retrieve(made.id)).rejects.toMatchObject({ status: 404, code: "not_found" });
    await expect(client.responses.delete(made.id)).rejects.toMatchObject({ status: 404 });
  });

  test("goes on from the one before it, whose instructions do not hold any more", async () => {
    const first = await client.responses.create(ask({ input: "My name is Jane.", instructions: "Shout." }));
    const second = await client.responses.create(ask({ input: "Who am I?", previous_response_id: first.id }));

    expect(stage.model.requests.at(-1)?.messages).toEqual([
      { role: "user", content: "My name is Jane." },
      { role: "assistant", content: "You said: My name is Jane." },
      { role: "user", content: "Who am I?" },
    ]);
    expect(second.previous_response_id).toBe(first.id);
  });

  test("that is not to be stored is nobody's afterwards, and nothing goes on from it", async () => {
    const made = await client.responses.create(ask({ store: false }));

    expect(made).toMatchObject({ status: "completed", store: false });
    await expect(client.responses.retrieve(made.id)).rejects.toMatchObject({ status: 404 });
    await expect(client.responses.create(ask({ previous_response_id: made.id }))).rejects.toMatchObject({
      status: 404,
      param: "previous_response_id",
    });
  });

  test("asks for the client's tools and goes on with their answers, by its id or by its items", async () => {
    const question = "What is the weather in Rome?";
    const asked = await client.responses.create(ask({ input: question, tools: [weather] }));
    const [call] = asked.output;
    if (call?.type !== "function_call") throw new Error(JSON.stringify(asked.output));
    const answer = { type: "function_call_output", call_id: call.call_id, output: "Sunny." } as const;

    const byId = await client.responses.create(ask({ input: [answer], tools: [weather], previous_response_id: asked.id }));
    const byItems = await client.responses.create(ask({ input: [{ role: "user", content: question }, call, answer], tools: [weather] }));
    const byReference = await client.responses.create(
      ask({ input: [{ role: "user", content: question }, { type: "item_reference", id: call.id ?? "" }, answer], tools: [weather] }),
    );

    expect(JSON.parse(call.arguments)).toEqual({ town: question });
    expect([byId, byItems, byReference].map((one) => one.output_text)).toEqual(Array(3).fill("The tool said: Sunny."));
  });

  test("keeps to a schema, whose value the client reads", async () => {
    const format = zodTextFormat(z.object({ sum: z.number(), word: z.string() }), "answer");

    const { output_parsed: parsed } = await client.responses.parse({ model: "sample", input: "7 cats", text: { format } });

    expect(parsed).toEqual({ sum: 7, word: "7 cats" });
  });

  test("that is cut is incomplete", async () => {
    const cut = await client.responses.create(ask({ max_output_tokens: 2 }));

    expect(cut).toMatchObject({ status: "incomplete", incomplete_details: { reason: "max_output_tokens" }, completed_at: null });
    expect(cut.output).toMatchObject([{ type: "message", status: "incomplete" }]);
  });

  test("tells logprobs where they are asked for", async () => {
    const { output } = await client.responses.create(ask({ include: ["message.output_text.logprobs"], top_logprobs: 2 }));

    expect(output).toMatchObject([{ content: [{ logprobs: [{ token: "You", top_logprobs: [{}, {}] }, {}, {}, {}, {}] }] }]);
  });

  test("shows its input by pages", async () => {
    const said = ["one", "two", "three"].map((content) => ({ role: "user" as const, content }));
    const made = await client.responses.create(ask({ input: said }));

    const page = await client.responses.inputItems.list(made.id, { limit: 2, order: "asc" });
    const rest = await client.responses.inputItems.list(made.id, { limit: 2, order: "asc", after: page.data[1]?.id ?? "" });
    const newest = await client.responses.inputItems.list(made.id, { limit: 1 });

    const textsOf = (items: readonly unknown[]) => (items as { content: { text: string }[] }[]).map(({ content }) => content[0]?.text);
    expect([page, rest, newest].map(({ data, has_more }) => [...textsOf(data), has_more])).toEqual([
      ["one", "two", true],
      ["three", false],
      ["three", true],
    ]);
  });

  test("with images and files shows them to the model", async () => {
    const image_url = "data:image/png;base64,iVBORw0KGgo=";
    const { output_text: said } = await client.responses.create(
      ask({
        input: [
          {
            role: "user",
            content: [
              { type: "input_text", text: "Look." },
              { type: "input_image", image_url, detail: "auto" },
              { type: "input_file", filename: "a.pdf", file_data: "data:application/pdf;base64,JVBERi0=" },
            ],
          },
        ],
      }),
    );

    expect(said).toBe("You said: Look. I was shown: image_url, file.");
  });
});

test("an uploaded file is shown to the model, and another tenant's is not found", async () => {
  const file = await client.files.create({ file: new File(["%PDF-1.1"], "a.pdf"), purpose: "user_data" });
  const input = [{ role: "user" as const, content: [{ type: "input_file" as const, file_id: file.id }] }];

  const { output_text: said } = await client.responses.create(ask({ input }));

  expect(said).toContain("I was shown: file.");
  await expect(other.responses.create(ask({ input }))).rejects.toMatchObject({ status: 404 });
});

describe("an uploaded image", () => {
  const png = Buffer.from("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGD4DwABBAEAX+XDSwAAAABJRU5ErkJggg==", "base64");
  const showing = (file_id: string) => [
    { role: "user" as const, content: [{ type: "input_image" as const, detail: "high" as const, file_id }] },
  ];
  const upload = async (bytes: string | Buffer<ArrayBuffer>, name: string) =>
    await client.files.create({ file: new File([bytes], name), purpose: "vision" });

  test("is shown to the model, also by what goes on from it, whatever its name says; its item keeps its id", async () => {
    const file = await upload(png, "a.txt");

    const first = await client.responses.create(ask({ input: showing(file.id) }));
    const second = await client.responses.create(ask({ previous_response_id: first.id }));

    expect([first.output_text, second.output_text].every((text) => text.includes("I was shown: image_url."))).toBe(true);
    expect(stage.model.requests.at(-1)?.messages[0]?.content).toEqual([
      { type: "image_url", image_url: { url: `data:image/png;base64,${png.toString("base64")}`, detail: "high" } },
    ]);
    const { data } = await client.responses.inputItems.list(first.id);
    expect(data).toMatchObject([{ content: [{ type: "input_image", file_id: file.id, detail: "high" }] }]);
  });

  test("of another tenant is not found, and what is no image is refused", async () => {
    const file = await upload(png, "a.png");
    const text = await upload("no image", "b.png");

    await expect(other.responses.create(ask({ input: showing(file.id) }))).rejects.toMatchObject({ status: 404 });
    await expect(client.responses.create(ask({ input: showing(text.id) }))).rejects.toMatchObject({ status: 400, param: "file_id" });
  });
});

describe("the stream", () => {
  test("of a text tells of the response, its item and its part, from their beginning to their end, as it is kept", async () => {
    const events = await eventsOf({});

    expect(sequenceOf(events)).toEqual([
      "response.created",
      "response.in_progress",
      "response.output_item.added",
      "response.content_part.added",
      "response.output_text.delta",
      "response.output_text.done",
      "response.content_part.done",
      "response.output_item.done",
      "response.completed",
    ]);
    expect(events.map(({ sequence_number: number }) => number)).toEqual(events.map((_event, place) => place));
    const last = events.at(-1);
    if (last?.type !== "response.completed") throw new Error("not completed");
    const deltas = events.flatMap((event) => (event.type === "response.output_text.delta" ? [event.delta] : []));
    expect(deltas.join("")).toBe("You said: Tell of cats.");
    expect(deltas.length).toBeGreaterThan(1);
    expect(events.flatMap((event) => (event.type === "response.output_item.done" ? [event.item] : []))).toEqual(last.response.output);
    const { output_text: _text, _request_id, ...kept } = await client.responses.retrieve(last.response.id);
    expect(last.response).toEqual(kept);
  });

  test("of a tool call tells of its arguments", async () => {
    const events = await eventsOf({ input: "What is the weather in Rome?", tools: [weather] });

    expect(sequenceOf(events).slice(2)).toEqual([
      "response.output_item.added",
      "response.function_call_arguments.delta",
      "response.function_call_arguments.done",
      "response.output_item.done",
      "response.completed",
    ]);
    const deltas = events.flatMap((event) => (event.type === "response.function_call_arguments.delta" ? [event.delta] : []));
    expect(events).toContainEqual(expect.objectContaining({ type: "response.function_call_arguments.done", arguments: deltas.join("") }));
  });

  test("of a refusal, and of a cut answer", async () => {
    const refused = await eventsOf({ input: "REFUSE this" });
    const cut = await eventsOf({ max_output_tokens: 2 });

    expect(sequenceOf(refused).slice(3, -2)).toEqual([
      "response.content_part.added",
      "response.refusal.delta",
      "response.refusal.done",
      "response.content_part.done",
    ]);
    expect(cut.at(-1)).toMatchObject({ type: "response.incomplete", response: { status: "incomplete" } });
  });
});

describe("a background response", () => {
  test("is answered at once and polled until it is done", async () => {
    const begun = await client.responses.create(ask({ background: true }));

    expect(["queued", "in_progress", "completed"]).toContain(begun.status);
    await expect.poll(async () => (await client.responses.retrieve(begun.id)).status, { timeout: 60_000, interval: 100 }).toBe("completed");
    expect((await client.responses.cancel(begun.id)).status).toBe("completed");
  });

  test("only such a one can be cancelled", async () => {
    const made = await client.responses.create(ask({}));

    await expect(client.responses.cancel(made.id)).rejects.toMatchObject({ status: 400, param: "response_id" });
    await expect(client.responses.create(ask({ background: true, store: false }))).rejects.toMatchObject({
      status: 400,
      param: "background",
    });
  });
});

describe("the stream of a background response", () => {
  const eventsAgain = async (id: string, starting_after?: number): Promise<readonly ResponseStreamEvent[]> => {
    const events: ResponseStreamEvent[] = [];
    const query = { stream: true as const, ...(starting_after === undefined ? {} : { starting_after }) };
    for await (const event of await client.responses.retrieve(id, query)) events.push(event);
    return events;
  };
  const idOf = (events: readonly ResponseStreamEvent[]): string => {
    const [first] = events;
    if (first?.type !== "response.created") throw new Error(`the first event is ${first?.type}`);
    return first.response.id;
  };

  test.each<[string, Partial<ResponseCreateParamsNonStreaming>]>([
    ["a text", { input: "Tell of cats, at some length, so that it takes more than a few pieces." }],
    ["a text of pairs", { input: "x🐈🐈‍⬛🐈🐈🐈🐈🐈🐈🐈🐈🐈🐈🐈🐈🐈🐈🐈🐈🐈🐈🐈🐈" }],
    ["a tool call", { input: "What is the weather in Rome?", tools: [weather] }],
    ["a custom tool's call", { input: "Write a poem.", tools: [{ type: "custom", name: "poem" }] }],
    ["a refusal", { input: "REFUSE this" }],
    ["a cut text", { max_output_tokens: 2 }],
    ["logprobs", { include: ["message.output_text.logprobs"], top_logprobs: 1 }],
  ])("of %s is the same again, from any event on", async (_what, more) => {
    const events = await eventsOf({ ...more, background: true });
    const id = idOf(events);

    expect(events.map(({ sequence_number: number }) => number)).toEqual(events.map((_event, place) => place));
    const deltas = events.flatMap((event) => (event.type === "response.output_text.delta" ? [event.delta] : []));
    const done = events.find(({ type }) => type === "response.output_text.done");
    expect(deltas.join("")).toBe(done?.type === "response.output_text.done" ? done.text : "");
    expect(deltas.every((delta) => delta.isWellFormed())).toBe(true);
    const { output_text: _text, _request_id, ...kept } = await client.responses.retrieve(id);
    expect(events.at(-1)).toMatchObject({ type: `response.${kept.status}`, response: kept });
    expect(await eventsAgain(id)).toEqual(events);
    for (const { sequence_number: number } of events) expect(await eventsAgain(id, number)).toEqual(events.slice(number + 1));
  });

  test("is there for one that was not created with it, and follows it to its end", async () => {
    const begun = await client.responses.create(ask({ background: true }));

    const events = await eventsAgain(begun.id);

    expect(idOf(events)).toBe(begun.id);
    expect(events.at(-1)).toMatchObject({ type: "response.completed", response: { output: [{ type: "message" }] } });
  });

  test("is what the client's own helper goes on with", async () => {
    const events = await eventsOf({ input: "Tell of cats, at some length, so that it breaks off.", background: true });

    const resumed = client.responses.stream({ response_id: idOf(events) });

    expect((await resumed.finalResponse()).output_text).toBe("You said: Tell of cats, at some length, so that it breaks off.");
  });

  test("is for background responses, their tenant, and known events only", async () => {
    const plain = await client.responses.create(ask({}));
    const begun = await client.responses.create(ask({ background: true }));
    const refused = (param: string) => ({ status: 400, param });

    await expect(client.responses.retrieve(plain.id, { stream: true })).rejects.toMatchObject(refused("stream"));
    await expect(client.responses.retrieve(begun.id, { starting_after: 1 })).rejects.toMatchObject(refused("starting_after"));
    await expect(client.responses.retrieve(begun.id, { stream: true, starting_after: -1 })).rejects.toMatchObject(
      refused("starting_after"),
    );
    await expect(other.responses.retrieve(begun.id, { stream: true })).rejects.toMatchObject({ status: 404 });
  });
});

test("another tenant finds none of it", async () => {
  const made = await client.responses.create(ask({ background: true }));
  const refused = { status: 404, code: "not_found" };

  await expect(other.responses.retrieve(made.id)).rejects.toMatchObject(refused);
  await expect(other.responses.cancel(made.id)).rejects.toMatchObject(refused);
  await expect(other.responses.delete(made.id)).rejects.toMatchObject(refused);
  await expect(other.responses.inputItems.list(made.id)).rejects.toMatchObject(refused);
  await expect(other.responses.create(ask({ previous_response_id: made.id }))).rejects.toMatchObject(refused);
  const reference = { type: "item_reference", id: made.id.replace("resp_", "msg_") } as const;
  await expect(other.responses.create(ask({ input: [reference] }))).rejects.toMatchObject(refused);
  expect((await client.responses.retrieve(made.id)).id).toBe(made.id);
});

test("a chain of which a part was deleted is not gone on from, and says so", async () => {
  const first = await client.responses.create(ask({}));
  const second = await client.responses.create(ask({ previous_response_id: first.id }));
  await client.responses.delete(first.id);

  await expect(client.responses.create(ask({ previous_response_id: second.id }))).rejects.toMatchObject({
    status: 404,
    param: "previous_response_id",
  });
  expect((await client.responses.retrieve(second.id)).status).toBe("completed");
});

test.each<[string, number]>([
  ["resp_none", 404],
  ["..%2F..%2Fetc", 404],
  ["trn_01JTEST0000000000000000000", 404],
  ["'%3B%20drop%20table%20response", 404],
  ["%00", 400], // by the edge, as on every route
  ["resp_".padEnd(2_000, "0"), 400],
])("an id that is none, such as %.40s, is not found", async (id, status) => {
  const headers = { authorization: `Bearer ${stage.token}` };
  const send = async (method: string, path = ""): Promise<number> =>
    (await fetch(`${stage.baseUrl}/responses/${id}${path}`, { method, headers })).status;
  const named = decodeURIComponent(id).slice(0, 128);
  const calls = [ask({ previous_response_id: named }), ask({ input: [{ type: "item_reference", id: named }] })];

  expect([await send("GET"), await send("DELETE"), await send("POST", "/cancel"), await send("GET", "/input_items")]).toEqual(
    Array(4).fill(status),
  );
  for (const call of calls) await expect(client.responses.create(call)).rejects.toMatchObject({ status: 404, code: "not_found" });
});

test("deleted twice at once it is deleted once", async () => {
  const made = await client.responses.create(ask({}));

  const ends = await Promise.allSettled([client.responses.delete(made.id), client.responses.delete(made.id)]);

  expect(ends.map(({ status }) => status).toSorted()).toEqual(["fulfilled", "rejected"]);
  expect(ends.find(({ status }) => status === "rejected")).toMatchObject({ reason: { status: 404 } });
});

test("two may go on from one response at once, and a repeated key is one response", async () => {
  const first = await client.responses.create(ask({}));
  const branch = async () => await client.responses.create(ask({ previous_response_id: first.id }));
  const repeated = async () => await client.responses.create(ask({}), { headers: { "Idempotency-Key": "same-key" } });
  const before = stage.model.requests.length;

  const [left, right, one, same] = await Promise.all([branch(), branch(), repeated(), repeated()]);

  expect(left.id).not.toBe(right.id);
  expect(one).toMatchObject({ id: same.id, output: same.output });
  expect(stage.model.requests.length - before).toBe(3);
});

test.each<[string, object]>([
  ["conversation", { conversation: 1 }],
  ["prompt", { prompt: { id: "pmpt_1" } }],
  ["max_tool_calls", { max_tool_calls: 1 }],
  ["tools.0.type", { tools: [{ type: "web_search" }] }],
  ["tool_choice.type", { tool_choice: { type: "file_search" } }],
  ["include.0", { include: ["file_search_call.results"] }],
  ["reasoning.summary", { reasoning: { summary: "auto" } }],
  ["nonsense", { nonsense: 1 }],
  ["input", { input: [{ type: "function_call_output", call_id: "none", output: "x" }] }],
  ["input.0.role", { input: [{ role: "boss", content: "x" }] }],
  ["input.0.content.0", { input: [{ role: "user", content: [{ type: "input_image", detail: "auto" }] }] }],
  ["input", { input: [] }],
  ["temperature", { temperature: 3 }],
])("%s is refused by its name", async (param, body) => {
  await expect(client.responses.create(ask(body))).rejects.toMatchObject({ status: 400, param });
});
