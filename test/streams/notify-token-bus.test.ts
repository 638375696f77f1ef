import { randomBytes } from "node:crypto";
import fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type TurnId, mintTurnId } from "../../domain/turn-id.ts";
import { type Database, openDatabase } from "../../storage/database.ts";
import { openNotifyTokenBus } from "../../streams/notify-token-bus.ts";
import type { TurnEvent } from "../../streams/token-bus.ts";
import { freshDatabase, quiet } from "../storage/fresh-database.ts";

type OpenBus = Awaited<ReturnType<typeof openNotifyTokenBus>>;

/** Two processes on one database: the worker's and the gateway's. */
let ownerUrl: string;
let databases: Database[];
let worker: OpenBus;
let gateway: OpenBus;
const failures: unknown[] = [];

async function openBus(): Promise<OpenBus> {
  const database = await openDatabase({ ownerUrl, log: quiet, poolSize: 2 });
  databases.push(database);
  return await openNotifyTokenBus(
    database,
    (...entry) => void failures.push(entry),
    () => true,
  );
}

beforeAll(async () => {
  ownerUrl = await freshDatabase();
  databases = [];
  worker = await openBus();
  gateway = await openBus();
});
afterAll(async () => {
  await Promise.all([worker.close(), gateway.close()]);
  await Promise.all(databases.map(async (database) => await database.close()));
});

const someTurnId = (): TurnId => mintTurnId(Date.now(), randomBytes(10));

/** What the gateway hears of a turn, up to its `finished`. */
function hear(turnId: TurnId): Promise<readonly TurnEvent[]> {
  const { promise, resolve } = Promise.withResolvers<readonly TurnEvent[]>();
  const events: TurnEvent[] = [];
  const leave = gateway.bus.subscribe(turnId, (event) => {
    events.push(event);
    if (event.type !== "finished") return;
    leave();
    resolve(events);
  });
  return promise;
}

/** The text that its pieces make, each where the last one ended. */
function textOf(events: readonly TurnEvent[]): string {
  let text = "";
  for (const event of events) {
    if (event.type !== "text") continue;
    expect(event.offset).toBe(text.length);
    text += event.text;
  }
  return text;
}

test("events reach the other process in their order; the answer itself is left to the row", async () => {
  const turnId = someTurnId();
  const heard = hear(turnId);
  const run = { id: "call_a", name: "exec", summary: "ls" } as const;

  worker.bus.publish(turnId, { type: "tool", ...run, state: "started" });
  worker.bus.publish(turnId, { type: "tool", ...run, state: "done" });
  worker.bus.publish(turnId, { type: "text", offset: 0, text: "Hello, " });
  worker.bus.publish(turnId, { type: "text", offset: 7, text: "world." });
  worker.bus.publish(turnId, { type: "tool_call", index: 0, id: "call_a", name: "open", arguments: '{"box":' });
  worker.bus.publish(turnId, { type: "tool_call", index: 0, arguments: "1}" });
  worker.bus.publish(turnId, {
    type: "finished",
    finished: { state: "failed", error: { code: "provider_error", message: "too large to be sent along" } },
  });

  expect(await heard).toEqual([
    { type: "tool", ...run, state: "started" },
    { type: "tool", ...run, state: "done" },
    { type: "text", offset: 0, text: "Hello, world." },
    { type: "tool_call", index: 0, id: "call_a", name: "open", arguments: '{"box":' },
    { type: "tool_call", index: 0, arguments: "1}" },
    { type: "finished" },
  ]);
});

test("a word is on its way before the next one comes", async () => {
  const turnId = someTurnId();
  const first = Promise.withResolvers<TurnEvent>();
  gateway.bus.subscribe(turnId, first.resolve);

  worker.bus.publish(turnId, { type: "text", offset: 0, text: "Hello" });

  expect(await first.promise).toEqual({ type: "text", offset: 0, text: "Hello" });
});

test("two turns at once stay apart", async () => {
  const turnIds = Array.from({ length: 10 }, someTurnId);
  const heard = turnIds.map(hear);

  for (let offset = 0; offset < 20; offset++)
    for (const turnId of turnIds) worker.bus.publish(turnId, { type: "text", offset, text: turnId.charAt(offset) });
  for (const turnId of turnIds) worker.bus.publish(turnId, { type: "finished" });

  expect((await Promise.all(heard)).map(textOf)).toEqual(turnIds.map((turnId) => turnId.slice(0, 20)));
});

test("a gap stays a gap: what was published with one is not closed up", async () => {
  const turnId = someTurnId();
  const heard = hear(turnId);

  worker.bus.publish(turnId, { type: "text", offset: 0, text: "Hello" });
  worker.bus.publish(turnId, { type: "text", offset: 9, text: "ld." });
  worker.bus.publish(turnId, { type: "finished" });

  expect(await heard).toMatchObject([{ offset: 0, text: "Hello" }, { offset: 9, text: "ld." }, { type: "finished" }]);
});

test("a refusal and logprobs arrive as they were; those that are too large stay away and their text comes", async () => {
  const turnId = someTurnId();
  const heard = hear(turnId);
  const token = { token: "Hi", bytes: null, logprob: -1, top_logprobs: [] };
  const logprobs = (count: number) => ({ offset: 0, tokens: Array.from({ length: count }, () => token) });

  worker.bus.publish(turnId, { type: "refusal", offset: 0, text: "No" });
  worker.bus.publish(turnId, { type: "refusal", offset: 2, text: "." });
  worker.bus.publish(turnId, { type: "text", offset: 0, text: "Hi", logprobs: logprobs(1) });
  worker.bus.publish(turnId, { type: "text", offset: 2, text: "Hi" });
  worker.bus.publish(turnId, { type: "text", offset: 4, text: "Hi", logprobs: logprobs(1_000) });
  worker.bus.publish(turnId, { type: "finished" });

  expect(await heard).toEqual([
    { type: "refusal", offset: 0, text: "No." },
    { type: "text", offset: 0, text: "Hi", logprobs: logprobs(1) },
    { type: "text", offset: 2, text: "Hi" },
    { type: "text", offset: 4, text: "Hi" },
    { type: "finished" },
  ]);
  expect(failures).toEqual([]);
});

/** Texts whose JSON is as large as it gets: 6 bytes for each character in the worst case. */
const bigTexts: Readonly<Record<string, string>> = {
  letters: "a".repeat(100_000),
  "control characters": "\u0001\u0000".repeat(10_000),
  "quotes and backslashes": '"\\\n'.repeat(10_000),
  "three bytes each": "漢".repeat(20_000),
  "surrogate pairs": "🦞".repeat(20_000),
  "surrogate pairs that no even cut meets": `x${"🦞".repeat(20_000)}`,
  "lone surrogates": "\uD83D".repeat(10_000),
};

test.each(Object.entries(bigTexts))("a big text of %s arrives whole, in one piece or in many", async (_what, text) => {
  const [atOnce, inWords] = [someTurnId(), someTurnId()];
  const heard = [hear(atOnce), hear(inWords)];

  worker.bus.publish(atOnce, { type: "text", offset: 0, text });
  for (let offset = 0; offset < text.length; offset += 997)
    worker.bus.publish(inWords, { type: "text", offset, text: text.slice(offset, offset + 997) });
  for (const turnId of [atOnce, inWords]) worker.bus.publish(turnId, { type: "finished" });

  expect((await Promise.all(heard)).map(textOf)).toEqual([text, text]);
  expect(failures).toEqual([]);
});

test.each(["surrogate pairs", "surrogate pairs that no even cut meets"])(
  "no piece of %s ends inside a character: a client that is no JavaScript could not put it together",
  async (what) => {
    const turnId = someTurnId();
    const heard = hear(turnId);

    worker.bus.publish(turnId, { type: "text", offset: 0, text: bigTexts[what] ?? "" });
    worker.bus.publish(turnId, { type: "finished" });

    const pieces = (await heard).flatMap((event) => (event.type === "text" ? [event.text] : []));
    expect(pieces.length).toBeGreaterThan(1);
    expect(pieces.filter((piece) => !piece.isWellFormed()).length).toBe(0);
  },
);

test("big arguments of a tool call are cut and put together as well, the name once", async () => {
  const turnId = someTurnId();
  const heard = hear(turnId);
  const json = JSON.stringify({ text: '"🦞'.repeat(5_000) });

  worker.bus.publish(turnId, { type: "tool_call", index: 2, id: "call_a", name: "write", arguments: json });
  worker.bus.publish(turnId, { type: "tool_call", index: 3, id: "call_b", name: "list", arguments: "" });
  worker.bus.publish(turnId, { type: "finished" });

  const calls = (await heard).flatMap((event) => (event.type === "tool_call" ? [event] : []));
  const ofWrite = calls.filter(({ index }) => index === 2);
  expect(ofWrite.map((piece) => piece.arguments).join("")).toBe(json);
  expect(ofWrite.flatMap(({ name, id }) => (name === undefined ? [] : [[id, name]]))).toEqual([["call_a", "write"]]);
  expect(calls.filter(({ index }) => index === 3)).toEqual([{ type: "tool_call", index: 3, id: "call_b", name: "list", arguments: "" }]);
});

test("any text in any pieces arrives as it was", async () => {
  const anyText = fc.array(fc.string({ unit: fc.nat(0xff_ff).map((unit) => String.fromCharCode(unit)), minLength: 1, maxLength: 3_000 }), {
    maxLength: 5,
  });
  await fc.assert(
    fc.asyncProperty(anyText, async (texts) => {
      const turnId = someTurnId();
      const heard = hear(turnId);
      let offset = 0;
      for (const text of texts) {
        worker.bus.publish(turnId, { type: "text", offset, text });
        offset += text.length;
      }
      worker.bus.publish(turnId, { type: "finished" });

      expect(textOf(await heard)).toBe(texts.join(""));
    }),
    { numRuns: 25 },
  );
});

test("a bus that is closed has sent what it was given", async () => {
  const leaving = await openBus();
  const turnId = someTurnId();
  const heard = hear(turnId);

  leaving.bus.publish(turnId, { type: "text", offset: 0, text: "last words" });
  leaving.bus.publish(turnId, { type: "finished" });
  await leaving.close();

  expect(await heard).toEqual([{ type: "text", offset: 0, text: "last words" }, { type: "finished" }]);
});
