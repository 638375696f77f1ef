import OpenAI from "openai";
import type { ConversationItem } from "openai/resources/conversations/items";
import type { ResponseCreateParamsNonStreaming, ResponseInputItem } from "openai/resources/responses/responses";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
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

const said = (content: string, role: "user" | "assistant" | "system" = "user"): ResponseInputItem => ({ type: "message", role, content });
const ask = (
  conversation: string,
  input: string | ResponseInputItem[],
  more: Omit<Partial<ResponseCreateParamsNonStreaming>, "input"> = {},
) => client.responses.create({ model: "sample", input, conversation, ...more });

/** What an item says, however it is made. */
function textOf(item: ConversationItem): string {
  if (item.type !== "message") return item.type;
  return item.content.map((part) => ("text" in part ? part.text : "refusal" in part ? part.refusal : part.type)).join("");
}
const textsOf = async (id: string): Promise<readonly string[]> => {
  const texts: string[] = [];
  for await (const item of client.conversations.items.list(id, { order: "asc", limit: 2 })) texts.push(textOf(item));
  return texts;
};
/** What the model was asked last. */
const asked = () => stage.model.requests.at(-1)?.messages;

describe("a conversation", () => {
  test("is made, shown, given other metadata, and gone once deleted", async () => {
    const made = await client.conversations.create({ metadata: { topic: "cats" }, items: [said("Hello.")] });
    const bare = await client.conversations.create();

    expect(made).toMatchObject({ object: "conversation", metadata: { topic: "cats" } });
    expect(made.id).toMatch(/^conv_/);
    expect(Math.abs(made.created_at - Date.now() / 1_000)).toBeLessThan(60);
    expect(bare).toMatchObject({ object: "conversation", metadata: {} });
    expect({ ...(await client.conversations.retrieve(made.id)) }).toEqual({ ...made });
    expect(await client.conversations.update(made.id, { metadata: { a: "b" } })).toMatchObject({ id: made.id, metadata: { a: "b" } });
    expect(await client.conversations.retrieve(made.id)).toMatchObject({ created_at: made.created_at, metadata: { a: "b" } });
    expect(await client.conversations.delete(made.id)).toMatchObject({ id: made.id, object: "conversation.deleted", deleted: true });
    const gone = { status: 404, code: "not_found" };
    await expect(client.conversations.retrieve(made.id)).rejects.toMatchObject(gone);
    await expect(client.conversations.delete(made.id)).rejects.toMatchObject(gone);
    await expect(client.conversations.update(made.id, { metadata: {} })).rejects.toMatchObject(gone);
    await expect(client.conversations.items.list(made.id)).rejects.toMatchObject(gone);
    await expect(ask(made.id, "Still there?")).rejects.toMatchObject({ ...gone, param: "conversation" });
  });

  test("holds items in their order, by pages, one by one, and without those that were taken out", async () => {
    const { id } = await client.conversations.create({ items: [said("one"), said("two", "assistant")] });
    const added = await client.conversations.items.create(id, {
      items: [said("three", "system"), { type: "function_call", call_id: "c1", name: "f", arguments: "{}" }, said("five")],
    });

    expect(added).toMatchObject({ object: "list", has_more: false, first_id: added.data[0]?.id, last_id: added.data[2]?.id });
    expect(added.data.map((item) => item.id?.split("_", 1)[0])).toEqual(["msg", "fc", "msg"]);
    expect(await textsOf(id)).toEqual(["one", "two", "three", "function_call", "five"]);
    const newest = await client.conversations.items.list(id, { limit: 2 });
    expect([newest.data.map(textOf), newest.has_more]).toEqual([["five", "function_call"], true]);
    const before = await client.conversations.items.list(id, { limit: 3, after: newest.last_id });
    expect([before.data.map(textOf), before.has_more]).toEqual([["three", "two", "one"], false]);
    const third = added.data[0];
    if (third?.id == null) throw new Error("the item has no id");
    expect(await client.conversations.items.retrieve(third.id, { conversation_id: id })).toEqual(third);
    expect(await client.conversations.items.delete(third.id, { conversation_id: id })).toMatchObject({ id, object: "conversation" });
    expect(await textsOf(id)).toEqual(["one", "two", "function_call", "five"]);
    const none = { status: 404, code: "not_found" };
    await expect(client.conversations.items.retrieve(third.id, { conversation_id: id })).rejects.toMatchObject(none);
    await expect(client.conversations.items.delete(third.id, { conversation_id: id })).rejects.toMatchObject(none);
    await expect(client.conversations.items.list(id, { after: third.id })).rejects.toMatchObject({ ...none, param: "after" });
  });

  test("of many items and responses is paged through without a gap", async () => {
    const { id } = await client.conversations.create();
    for (const round of [0, 1, 2]) {
      await client.conversations.items.create(id, { items: Array.from({ length: 20 }, (_, n) => said(`${round}.${n}`)) });
      await ask(id, `question ${round}`);
    }

    const forth = await textsOf(id);
    const back: string[] = [];
    for await (const item of client.conversations.items.list(id, { limit: 7 })) back.push(textOf(item));

    expect(forth).toHaveLength(66);
    expect(forth.slice(20, 23)).toEqual(["question 0", "You said: question 0", "1.0"]);
    expect(back.toReversed()).toEqual(forth);
  });
});

describe("a response of a conversation", () => {
  test("is asked after what the conversation holds, and adds its input and output to it", async () => {
    const conversation = await client.conversations.create({ items: [said("Answer in rhymes.", "system")] });

    const first = await ask(conversation.id, "My name is Jane.");
    const second = await client.responses.create({ model: "sample", input: "Who am I?", conversation: { id: conversation.id } });

    expect(first.conversation).toEqual({ id: conversation.id });
    expect(second).toMatchObject({ conversation: { id: conversation.id }, previous_response_id: null });
    expect((await client.responses.retrieve(second.id)).conversation).toEqual({ id: conversation.id });
    expect(asked()).toEqual([
      { role: "system", content: "Answer in rhymes." },
      { role: "user", content: "My name is Jane." },
      { role: "assistant", content: "You said: My name is Jane." },
      { role: "user", content: "Who am I?" },
    ]);
    const texts = ["Answer in rhymes.", "My name is Jane.", "You said: My name is Jane.", "Who am I?", "You said: Who am I?"];
    expect(await textsOf(conversation.id)).toEqual(texts);
    const [answer] = second.output;
    const held = await client.conversations.items.retrieve(answer?.id ?? "", { conversation_id: conversation.id });
    expect({ ...held, _request_id: "" }).toEqual({ ...answer, _request_id: "" });
  });

  test("needs no input where the conversation has some, and streams as any other", async () => {
    const { id } = await client.conversations.create({ items: [said("Tell of cats.")] });

    const stream = await client.responses.create({ model: "sample", conversation: id, stream: true });
    const events = [];
    for await (const event of stream) events.push(event);

    expect(events.at(-1)).toMatchObject({ type: "response.completed", response: { conversation: { id } } });
    expect(await textsOf(id)).toEqual(["Tell of cats.", "You said: Tell of cats."]);
    const empty = await client.conversations.create();
    await expect(client.responses.create({ model: "sample", conversation: empty.id })).rejects.toMatchObject({
      status: 400,
      param: "input",
    });
  });

  test("that asks for the client's tool goes on with its answer", async () => {
    const { id } = await client.conversations.create();
    const tools = [{ type: "function" as const, name: "get_weather", strict: false, parameters: { type: "object", properties: {} } }];
    const { output } = await ask(id, "What is the weather in Rome?", { tools });
    const [call] = output;
    if (call?.type !== "function_call") throw new Error(JSON.stringify(output));

    const { output_text: told } = await ask(id, [{ type: "function_call_output", call_id: call.call_id, output: "Sunny." }], { tools });

    expect(told).toBe("The tool said: Sunny.");
    expect(await textsOf(id)).toEqual(["What is the weather in Rome?", "function_call", "function_call_output", "The tool said: Sunny."]);
  });

  test("is not asked with what was taken out, of the items that were put in as of those of responses", async () => {
    const { id } = await client.conversations.create({ items: [said("forget me")] });
    const { output } = await ask(id, "and this answer");
    const first = (await client.conversations.items.list(id, { order: "asc", limit: 1 })).data[0];
    for (const item of [first?.id, output[0]?.id]) await client.conversations.items.delete(item ?? "", { conversation_id: id });

    await ask(id, "go on");

    expect(asked()?.map(({ content }) => content)).toEqual(["and this answer", "go on"]);
    expect(await textsOf(id)).toEqual(["and this answer", "go on", "You said: go on"]);
  });

  test("that is not to be stored adds its items, and is nobody's afterwards", async () => {
    const { id } = await client.conversations.create();

    const made = await ask(id, "off the record", { store: false });

    expect(made).toMatchObject({ status: "completed", store: false, conversation: { id } });
    await expect(client.responses.retrieve(made.id)).rejects.toMatchObject({ status: 404 });
    await expect(client.responses.delete(made.id)).rejects.toMatchObject({ status: 404 });
    await expect(client.responses.create({ model: "sample", input: "x", previous_response_id: made.id })).rejects.toMatchObject({
      status: 404,
    });
    expect(await textsOf(id)).toEqual(["off the record", "You said: off the record"]);
  });

  test("leaves its items when it is deleted, and stays when the conversation is", async () => {
    const { id } = await client.conversations.create();
    const deleted = await ask(id, "to be deleted");
    const kept = await ask(id, "to be kept");

    await client.responses.delete(deleted.id);
    await expect(client.responses.retrieve(deleted.id)).rejects.toMatchObject({ status: 404 });
    await expect(client.responses.delete(deleted.id)).rejects.toMatchObject({ status: 404 });
    expect(await textsOf(id)).toHaveLength(4);
    await client.conversations.delete(id);

    expect((await client.responses.retrieve(kept.id)).output_text).toBe("You said: to be kept");
    expect(await client.responses.delete(kept.id)).toMatchObject({ deleted: true });
  });

  test("that is refused adds nothing", async () => {
    const { id } = await client.conversations.create({ items: [said("before")] });

    const answerOfNobody = { type: "function_call_output" as const, call_id: "none", output: "x" };
    await expect(ask(id, [answerOfNobody])).rejects.toMatchObject({ status: 400, param: "input" });
    await expect(ask(id, "x", { model: "unknown" })).rejects.toMatchObject({ status: 404 });

    expect(await textsOf(id)).toEqual(["before"]);
  });

  test("refers to an item that was put into any conversation", async () => {
    const { id } = await client.conversations.create();
    const { data } = await client.conversations.items.create(id, { items: [said("the item")] });

    const made = await client.responses.create({ model: "sample", input: [{ type: "item_reference", id: data[0]?.id ?? "" }] });

    expect(made.output_text).toBe("You said: the item");
  });

  test("knows no previous response and no session beside its conversation", async () => {
    const { id } = await client.conversations.create();
    const { id: previous } = await ask(id, "hi");
    const refused = { status: 400, param: "conversation" };

    await expect(ask(id, "hi", { previous_response_id: previous })).rejects.toMatchObject(refused);
    const headers = { "X-OpenClaw-Session": "api:jane:default" };
    await expect(client.responses.create({ model: "sample", input: "hi", conversation: id }, { headers })).rejects.toMatchObject(refused);
    expect(await textsOf(id)).toHaveLength(2);
  });

  test("is one for a repeated key, also while it is made", async () => {
    const { id } = await client.conversations.create();
    const repeated = async () =>
      await client.responses.create(
        { model: "sample", input: "once", conversation: id },
        { headers: { "Idempotency-Key": "conversation-key" } },
      );

    const [one, same] = await Promise.all([repeated(), repeated()]);

    expect(same.id).toBe(one.id);
    expect((await repeated()).id).toBe(one.id);
    expect(await textsOf(id)).toEqual(["once", "You said: once"]);
  });
});

test("two responses of one conversation at once: one is made, the other is told to come again", async () => {
  const { id } = await client.conversations.create();
  const before = stage.model.requests.length;

  const ends = await Promise.allSettled(Array.from({ length: 8 }, async (_, n) => await ask(id, `at once ${n}`)));

  const made = ends.filter(({ status }) => status === "fulfilled").length;
  const refused = ends.flatMap((end) => (end.status === "rejected" ? [end.reason as unknown] : []));
  expect(made).toBeGreaterThan(0);
  expect(made + refused.length).toBe(8);
  for (const reason of refused)
    expect(reason).toMatchObject({ status: 400, type: "invalid_request_error", code: "conversation_locked", param: "conversation" });
  expect(stage.model.requests.length - before).toBe(made);
  expect(await textsOf(id)).toHaveLength(2 * made);
  await ask(id, "afterwards");
});

test("items that are put in at once stand in their calls' order, none of them lost", async () => {
  const { id } = await client.conversations.create();
  const calls = Array.from({ length: 10 }, (_, n) => ["a", "b", "c"].map((letter) => `${n}${letter}`));

  await Promise.all(calls.map(async (texts) => await client.conversations.items.create(id, { items: texts.map((text) => said(text)) })));

  const texts = (await textsOf(id)).join(" ");
  expect(texts.split(" ")).toHaveLength(30);
  for (const call of calls) expect(texts).toContain(call.join(" "));
});

test("a conversation takes 16 MiB, and says so before it takes more", async () => {
  const { id } = await client.conversations.create({ items: [said("x".repeat(9 * 1024 * 1024))] });
  const more = { items: [said("y".repeat(9 * 1024 * 1024))] };

  await expect(client.conversations.items.create(id, more)).rejects.toMatchObject({ status: 400, param: "conversation" });

  const [item] = (await client.conversations.items.list(id)).data;
  await client.conversations.items.delete(item?.id ?? "", { conversation_id: id });
  expect((await client.conversations.items.create(id, more)).data).toHaveLength(1);
});

test("another tenant finds none of it, and puts nothing in", async () => {
  const { id } = await client.conversations.create({ items: [said("mine")] });
  const item = (await client.conversations.items.list(id)).data[0]?.id ?? "";
  const refused = { status: 404, code: "not_found" };

  await expect(other.conversations.retrieve(id)).rejects.toMatchObject(refused);
  await expect(other.conversations.update(id, { metadata: { a: "b" } })).rejects.toMatchObject(refused);
  await expect(other.conversations.delete(id)).rejects.toMatchObject(refused);
  await expect(other.conversations.items.list(id)).rejects.toMatchObject(refused);
  await expect(other.conversations.items.create(id, { items: [said("theirs")] })).rejects.toMatchObject(refused);
  await expect(other.conversations.items.retrieve(item, { conversation_id: id })).rejects.toMatchObject(refused);
  await expect(other.conversations.items.delete(item, { conversation_id: id })).rejects.toMatchObject(refused);
  await expect(other.responses.create({ model: "sample", input: "hi", conversation: id })).rejects.toMatchObject(refused);
  const own = await other.conversations.create();
  const reference = { type: "item_reference" as const, id: item };
  await expect(other.conversations.items.create(own.id, { items: [reference] })).rejects.toMatchObject(refused);
  await expect(other.conversations.items.retrieve(item, { conversation_id: own.id })).rejects.toMatchObject(refused);
  expect(await textsOf(id)).toEqual(["mine"]);
});

test.each<[string, string, object, string]>([
  ["21 items", "/items", { items: Array.from({ length: 21 }, () => said("x")) }, "items"],
  ["no items", "/items", { items: [] }, "items"],
  ["nothing", "/items", {}, "items"],
  ["an item of no known kind", "/items", { items: [{ type: "web_search_call", id: "ws_1" }] }, "items.0.type"],
  ["a message of no known role", "/items", { items: [{ role: "boss", content: "x" }] }, "items.0.role"],
  ["an unknown field", "", { metadata: {}, title: "x" }, "title"],
  ["metadata of 17 pairs", "", { metadata: Object.fromEntries(Array.from({ length: 17 }, (_, n) => [`k${n}`, "v"])) }, "metadata"],
  ["metadata that is no text", "", { metadata: { a: 1 } }, "metadata.a"],
  ["no metadata", "", {}, "metadata"],
])("%s is refused by its name", async (_what, path, body, param) => {
  const { id } = await client.conversations.create();

  await expect(client.post(`/conversations/${id}${path}`, { body })).rejects.toMatchObject({ status: 400, param });
  expect(await textsOf(id)).toEqual([]);
});

test.each(["conv_none", "..%2F..%2Fetc", "resp_01JTEST0000000000000000000", "'%3B%20drop%20table%20conversation"])(
  "an id that is none, such as %s, is not found",
  async (id) => {
    const headers = { authorization: `Bearer ${stage.token}`, "content-type": "application/json" };
    const send = async (method: string, path = "", body?: object): Promise<number> =>
      (
        await fetch(`${stage.baseUrl}/conversations/${id}${path}`, {
          method,
          headers: body === undefined ? { authorization: headers.authorization } : headers,
          ...(body === undefined ? {} : { body: JSON.stringify(body) }),
        })
      ).status;

    const answers = [
      await send("GET"),
      await send("POST", "", { metadata: {} }),
      await send("DELETE"),
      await send("GET", "/items"),
      await send("POST", "/items", { items: [said("x")] }),
      await send("GET", `/items/${id}`),
      await send("DELETE", `/items/${id}`),
    ];

    expect(answers).toEqual(Array(7).fill(404));
  },
);
