import { readFileSync } from "node:fs";
import { join } from "node:path";
import OpenAI from "openai";
import type { ResponseStreamEvent } from "openai/resources/responses/responses";
import { afterEach, expect, test } from "vitest";
import { type RunningProduct, configWithProvider, ownerUrlOf, startProduct } from "../product.ts";
import { runSql } from "../storage/fresh-database.ts";
import { type ModelServer, startModelServer } from "./model-server.ts";

let product: RunningProduct | undefined;
let model: ModelServer | undefined;
afterEach(async () => {
  await product?.stop();
  await model?.close();
});

async function start() {
  model = await startModelServer();
  product = await startProduct({ config: configWithProvider(model.url) });
  const token = await product.createTenant("acme");
  return { model, product, client: new OpenAI({ baseURL: `${product.url}/v1`, apiKey: token, maxRetries: 0, timeout: 60_000 }) };
}

const session = { headers: { "X-OpenClaw-Session": "api:jane:default" } };
const ask = (text: string) => ({ model: "default", messages: [{ role: "user" as const, content: text }] });

/** The product's own database, as its owner: what a crash left behind is read from outside. */
async function rows(home: string, sql: string): Promise<Record<string, unknown>[]> {
  return (await runSql(ownerUrlOf(home), sql)).rows as Record<string, unknown>[];
}

const postgresPid = (home: string): number => Number(readFileSync(join(home, "postgres/data/postmaster.pid"), "utf8").split("\n")[0]);

const temporalPid = (home: string): number =>
  (JSON.parse(readFileSync(join(home, "temporal/temporal.pid.json"), "utf8")) as { server: { pid: number } }).server.pid;

test("kill -9 of the gateway in the middle of a model call: the turn finishes after the restart, with one billing row, and the session goes on", async () => {
  const { model, product, client } = await start();
  await client.chat.completions.create(ask("before the crash"), session);
  const held = model.hold("in the middle");
  const cut = client.chat.completions.create(ask("in the middle"), session).then(
    () => "answered",
    () => "cut off",
  );
  await held.arrived;

  await product.kill();
  expect(await cut).toBe("cut off");
  held.release();
  await product.restart();

  const next = await client.chat.completions.create(ask("after the crash"), session);
  expect(next.choices[0]?.message.content).toContain("after the crash");
  const turns = await rows(product.home, "select state, count(*)::int from tenant_acme.turn group by state");
  expect(turns).toEqual([{ state: "done", count: 3 }]);
  const ledger = await rows(product.home, "select count(*)::int as rows, count(distinct id)::int as calls from control.usage_ledger");
  expect(ledger).toEqual([{ rows: 3, calls: 3 }]);
  const transcript = await rows(
    product.home,
    "select content->>'content' as text from tenant_acme.message where role = 'user' order by seq",
  );
  expect(transcript.map(({ text }) => text)).toEqual(["before the crash", "in the middle", "after the crash"]);
  expect(model.callsOf("in the middle")).toBeLessThanOrEqual(2);
});

test("kill -9 of the gateway in the middle of a background response: it completes after the restart, billed once", async () => {
  const { model, product, client } = await start();
  const held = model.hold("in the background");
  const begun = await client.responses.create({ model: "default", input: "in the background", background: true });
  await held.arrived;

  await product.kill();
  held.release();
  await product.restart();

  const state = async () => (await client.responses.retrieve(begun.id)).status;
  await expect.poll(state, { timeout: 120_000, interval: 250 }).toBe("completed");
  expect((await client.responses.retrieve(begun.id)).output_text).toContain("in the background");
  const ledger = await rows(product.home, "select id, reason from control.usage_ledger");
  expect(ledger).toEqual([{ id: `${begun.id.replace("resp_", "trn_")}.0`, reason: "chat" }]);
});

test("kill -9 of the gateway in the middle of a background response's stream: it is gone on with after the restart, event by event", async () => {
  const { model, product, client } = await start();
  const question = `STREAM on ${"and on ".repeat(30)}`.trim();
  const held = model.hold(question, 20);
  const events: ResponseStreamEvent[] = [];
  const begun = await client.responses.create({ model: "default", input: question, background: true, stream: true });
  const reading = (async () => {
    for await (const event of begun) {
      events.push(event);
      if (event.sequence_number === 5) await product.kill();
    }
  })();
  await expect(reading).rejects.toThrow();
  const [first] = events;
  if (first?.type !== "response.created") throw new Error("no response was begun");
  held.release();
  await product.restart();

  const query = { stream: true as const, starting_after: events.at(-1)?.sequence_number ?? 0 };
  for await (const event of await client.responses.retrieve(first.response.id, query)) events.push(event);

  expect(events.map(({ sequence_number: number }) => number)).toEqual(events.map((_event, place) => place));
  const deltas = events.flatMap((event) => (event.type === "response.output_text.delta" ? [event.delta] : []));
  expect(deltas.join("")).toBe((await client.responses.retrieve(first.response.id)).output_text);
  expect(events.at(-1)?.type).toBe("response.completed");
});

test("kill -9 of the gateway in the middle of a conversation's response: it holds the response's items once, and goes on", async () => {
  const { model, product, client } = await start();
  const { id } = await client.conversations.create();
  await client.responses.create({ model: "default", input: "before the crash", conversation: id });
  const held = model.hold("in the middle");
  const cut = client.responses.create({ model: "default", input: "in the middle", conversation: id, store: false }).then(
    () => "answered",
    () => "cut off",
  );
  await held.arrived;

  await product.kill();
  expect(await cut).toBe("cut off");
  await product.restart();

  const next = async () => await client.responses.create({ model: "default", input: "after the crash", conversation: id });
  await expect(next()).rejects.toMatchObject({ status: 400, code: "conversation_locked" });
  held.release();
  await expect
    .poll(async () => await next().catch(({ code }: { code?: unknown }) => code), { timeout: 120_000, interval: 250 })
    .toMatchObject({
      status: "completed",
    });
  const texts: string[] = [];
  for await (const item of client.conversations.items.list(id, { order: "asc" }))
    if (item.type === "message") texts.push(item.content.map((part) => ("text" in part ? part.text : "")).join(""));
  expect(texts.filter((_text, place) => place % 2 === 0)).toEqual(["before the crash", "in the middle", "after the crash"]);
  expect(texts[3]).toContain("in the middle");
  expect(texts).toHaveLength(6);
  const ledger = await rows(product.home, "select count(*)::int as rows, count(distinct id)::int as calls from control.usage_ledger");
  expect(ledger).toEqual([{ rows: 3, calls: 3 }]);
});

test("cancel in the middle of a background response ends it; it is shown as cancelled and can be deleted", async () => {
  const { model, client } = await start();
  const held = model.hold("to be cancelled");
  const begun = await client.responses.create({ model: "default", input: "to be cancelled", background: true });
  await held.arrived;
  expect((await client.responses.retrieve(begun.id)).status).toBe("in_progress");

  const cancelled = await client.responses.cancel(begun.id);
  held.release();

  expect(cancelled).toMatchObject({ id: begun.id, status: "cancelled", output: [], error: null });
  await client.responses.delete(begun.id);
  await expect(client.responses.retrieve(begun.id)).rejects.toMatchObject({ status: 404 });
});

test("kill -9 of the Temporal server in the middle of a model call: the caller still gets its one answer", async () => {
  const { model, product, client } = await start();
  const held = model.hold("in the middle");
  const answer = client.chat.completions.create(ask("in the middle"), session);
  await held.arrived;

  process.kill(temporalPid(product.home), "SIGKILL");
  held.release();

  expect((await answer).choices[0]?.message.content).toContain("in the middle");
  const next = await client.chat.completions.create(ask("and on"), session);
  expect(next.choices[0]?.message.content).toContain("and on");
  expect(await rows(product.home, "select count(*)::int as rows from control.usage_ledger")).toEqual([{ rows: 2 }]);
  expect(model.callsOf("in the middle")).toBeLessThanOrEqual(2);
});

test("kill -9 of Postgres in the middle of a model call: the caller still gets its one answer", async () => {
  const { model, product, client } = await start();
  const held = model.hold("in the middle");
  const answer = client.chat.completions.create(ask("in the middle"), session);
  await held.arrived;

  process.kill(postgresPid(product.home), "SIGKILL");
  held.release();

  expect((await answer).choices[0]?.message.content).toContain("in the middle");
  expect(await rows(product.home, "select count(*)::int as rows from control.usage_ledger")).toEqual([{ rows: 1 }]);
  expect(model.callsOf("in the middle")).toBeLessThanOrEqual(2);
});
