import { describe, expect, test } from "vitest";
import { AppError, toStoredError } from "../../domain/app-error.ts";
import { parseTurnId } from "../../domain/turn-id.ts";
import type { FinishedTurn } from "../../domain/turn.ts";
import { followResponse } from "../../gateway/followed-response.ts";
import type { ResponseView } from "../../gateway/responses-object.ts";
import type { TurnEvent } from "../../streams/token-bus.ts";
import { gatewayStage } from "./gateway-stage.ts";
import { chatHeaders, done, textEvents } from "./scripted-turns.ts";

type Event = { readonly type: string; readonly sequence_number: number; readonly delta?: string };

const turnId = parseTurnId("trn_01JTEST0000000000000000000");
const view: ResponseView = { turnId, head: { model: "m" }, state: "running", reply: null, error: null, finishedAtMs: null };

/** Follows a turn that shows these events and then ends so. */
async function follow(heard: readonly TurnEvent[], finished: FinishedTurn, startingAfter = -1) {
  const { app } = await gatewayStage(async (routes) => {
    routes.get("/followed", { config: { access: "tenant", describes: { summary: "x" } } }, async (_request, reply) => {
      const { promise, resolve } = Promise.withResolvers<FinishedTurn>();
      const turn = {
        turnId,
        finished: promise,
        onEvent(listener: (event: TurnEvent) => void): void {
          for (const event of heard) listener(event);
          resolve(finished);
        },
      };
      const ended = async (): Promise<ResponseView> =>
        finished.state === "done"
          ? { ...view, state: "done", reply: finished.reply, finishedAtMs: 1_000 }
          : { ...view, state: finished.state, error: finished.error };
      await followResponse(reply, turn, { view, ended, startingAfter, obfuscate: false, withTools: true });
      return reply;
    });
  });
  const answer = await app.inject({ url: "/followed", headers: chatHeaders });
  const events = [...answer.payload.matchAll(/^data: (.*)$/gm)].map(([, json]) => JSON.parse(json ?? "") as Event);
  return {
    answer,
    events,
    deltas: events.flatMap(({ delta }) => delta ?? []),
    numbers: events.map(({ sequence_number: number }) => number),
  };
}

const busy: FinishedTurn = { state: "failed", error: toStoredError(new AppError("provider_busy")) };
const words = Array.from({ length: 20 }, (_, n) => `word ${n}, `);
const whole = words.join("");
const heard = textEvents(...words);
/** What is told where nothing was heard of it. */
const unheard = async () => await follow([], done({ content: whole }));

describe("a followed response tells the same events", () => {
  test("whether all of it was heard, nothing, or pieces that were lost or came twice", async () => {
    const { events: all, numbers, deltas } = await unheard();
    const lossy = heard.flatMap((event, place) => (place === 3 ? [] : place % 2 === 0 ? [event, event] : [event]));

    expect(numbers).toEqual(all.map((_event, place) => place));
    expect(deltas.join("")).toBe(whole);
    for (const events of [heard, lossy, heard.slice(4)]) expect((await follow(events, done({ content: whole }))).events).toEqual(all);
  });

  test("from any of them on, whatever was heard", async () => {
    const { events: all, numbers } = await unheard();

    for (const number of numbers)
      for (const events of [heard, heard.slice(4), []])
        expect((await follow(events, done({ content: whole }), number)).events).toEqual(all.slice(number + 1));
  });

  test("to a caller who has them all: none, and a stream that ends", async () => {
    const { events: all } = await unheard();

    const { answer, events } = await follow([], done({ content: whole }), all.length - 1);

    expect([answer.statusCode, answer.headers["content-type"], events]).toEqual([200, "text/event-stream; charset=utf-8", []]);
  });

  test("with halves of a pair never apart, wherever the text is cut", async () => {
    for (const shift of [0, 1, 2]) {
      const text = "x".repeat(14 + shift) + "🐈".repeat(40);
      const [live, kept] = [
        await follow(textEvents(...Array.from(text)), done({ content: text })),
        await follow([], done({ content: text })),
      ];

      expect(live.events).toEqual(kept.events);
      expect(kept.deltas.join("")).toBe(text);
      expect(kept.deltas.every((delta) => delta.isWellFormed())).toBe(true);
    }
  });
});

describe("a followed response ends in response.failed", () => {
  test("when its turn fails, also for a caller who has more of it than was kept", async () => {
    const [all, late] = [await follow(heard, busy), await follow([], busy, 9)];

    expect(all.events.at(-1)).toMatchObject({ type: "response.failed", response: { error: { code: "rate_limit_exceeded" } } });
    expect(all.numbers).toEqual(all.events.map((_event, place) => place));
    expect(late.events).toMatchObject([{ type: "response.failed", sequence_number: 10 }]);
  });

  test("when a call that was repeated answered otherwise than what was told", async () => {
    const { events } = await follow(heard, done({ content: `Another ${whole}` }));

    expect(events.at(-1)).toMatchObject({ type: "response.failed", response: { status: "failed", error: { code: "server_error" } } });
  });
});

test("the tenant's own tools show as events that do not count", async () => {
  const tool: TurnEvent = { type: "tool", id: "c", name: "exec", summary: "ls", state: "started" };

  const { events } = await follow([tool, ...heard], done({ content: whole }));

  expect(events[2]).toMatchObject({ type: "openclaw.tool", sequence_number: 1, tool: { name: "exec" } });
  expect(events.filter(({ type }) => type !== "openclaw.tool")).toEqual((await unheard()).events);
});
