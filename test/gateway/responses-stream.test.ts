import { expect, test } from "vitest";
import { AppError, toStoredError } from "../../domain/app-error.ts";
import { createResponsesRoutes } from "../../gateway/responses-routes.ts";
import type { ResponseService } from "../../gateway/responses-service.ts";
import { overlaysOf, someOverlay } from "../control-plane/some-overlay.ts";
import { errorBody, gatewayStage, steadyTokens } from "./gateway-stage.ts";
import { type Script, chatHeaders, done, scriptedTurns, textEvents } from "./scripted-turns.ts";

type Event = { readonly type: string; readonly sequence_number: number } & Record<string, unknown>;

/** Nothing is kept here: responses that are kept are tried through the whole product. */
const nothingKept: Pick<ResponseService, "resolve"> = { resolve: async (_context, input) => input as never };

async function respond(script: Script, { headers = {}, body = {} }: { headers?: Record<string, string>; body?: object } = {}) {
  const turns = scriptedTurns(script, ["tg:1:default"]);
  const { app } = await gatewayStage(
    createResponsesRoutes({
      turns,
      responses: nothingKept as ResponseService,
      conversations: {
        tailOf: async () => {
          throw new AppError("not_found");
        },
      },
      tokens: steadyTokens,
      overlays: overlaysOf(someOverlay("")),
      resolveModel: (_overlay, name) => name,
      inputFiles: async () => {
        throw new AppError("not_found");
      },
      inputTokensOf: () => 100,
    }),
  );
  const answer = await app.inject({
    method: "POST",
    url: "/v1/responses",
    headers: { ...chatHeaders, ...headers },
    payload: JSON.stringify({ model: "m", input: "hi", store: false, stream: true, ...body }),
  });
  const events = answer.payload
    .split("\n\n")
    .filter((block) => block.startsWith("event: "))
    .map((block) => {
      const [name = "", data = ""] = block.split("\n");
      const event = JSON.parse(data.slice("data: ".length)) as Event;
      expect(name).toBe(`event: ${event.type}`);
      return event;
    });
  expect(events.map(({ sequence_number: number }) => number)).toEqual(events.map((_event, place) => place));
  return { answer, events, submitted: turns.submitted };
}

const busy = { state: "failed", error: toStoredError(new AppError("provider_busy")) } as const;

test("a turn that fails before its first event is an ordinary error, one that fails later ends in response.failed", async () => {
  const early = await respond(async () => busy);
  const late = await respond(async (emit) => {
    for (const event of textEvents("Hel", "lo")) emit(event);
    return busy;
  });

  expect(early.answer.statusCode).toBe(503);
  expect(early.answer.json()).toEqual(errorBody("provider_busy"));
  expect(late.answer.statusCode).toBe(200);
  expect(late.events.at(-1)).toMatchObject({
    type: "response.failed",
    response: { status: "failed", error: { code: "rate_limit_exceeded", message: expect.any(String) }, output: [] },
  });
  expect(late.answer.payload).not.toContain("[DONE]");
});

test("pieces that were lost or came twice come once, with the end", async () => {
  const { events } = await respond(async (emit) => {
    const [one, two, three] = textEvents("One, ", "two, ", "three.");
    for (const event of [one, one, three]) if (event !== undefined) emit(event);
    expect(two).toBeDefined();
    return done({ content: "One, two, three." });
  });

  const deltas = events.filter(({ type }) => type === "response.output_text.delta").map(({ delta }) => delta);
  expect(deltas).toEqual(["One, ", "two, three."]);
});

test("an answer of text and two calls gives each its place, as in the whole response", async () => {
  const call = (name: string, given: string) => ({ id: `call_${name}`, name, arguments: given });
  const { events } = await respond(async (emit) => {
    for (const event of textEvents("Let me see.")) emit(event);
    emit({ type: "tool_call", index: 0, id: "call_a", name: "a", arguments: '{"x"' });
    emit({ type: "tool_call", index: 0, arguments: ":1}" });
    return done({ content: "Let me see.", toolCalls: [call("a", '{"x":1}'), call("b", "{}")], finishReason: "tool_calls" });
  });

  const last = events.at(-1) as Event & { response: { output: { id: string }[] } };
  const ends = events.filter(({ type }) => type === "response.output_item.done");
  expect(last.type).toBe("response.completed");
  expect(ends.map(({ item }) => item)).toEqual(last.response.output);
  expect(ends.map(({ output_index: index }) => index)).toEqual([0, 1, 2]);
  expect(new Set(last.response.output.map(({ id }) => id)).size).toBe(3);
});

test("the tenant's own tools show to whoever asks for them, and to nobody else", async () => {
  const script: Script = async (emit) => {
    emit({ type: "tool", id: "t1", name: "shell", summary: "ls", state: "started" });
    return done({ content: "Done." });
  };

  const asked = await respond(script, { headers: { "x-openclaw-events": "tools" } });
  const silent = await respond(script);
  const wrong = await respond(script, { headers: { "x-openclaw-events": "all" } });

  expect(asked.events[2]).toMatchObject({ type: "openclaw.tool", tool: { id: "t1", name: "shell", summary: "ls", state: "started" } });
  expect(silent.events.map(({ type }) => type)).not.toContain("openclaw.tool");
  expect(wrong.answer.json()).toEqual(errorBody("invalid_request", { param: "X-OpenClaw-Events" }));
});

test("a session goes on by its header, which previous_response_id has no place beside", async () => {
  const script: Script = async () => done({ content: "Yes." });
  const headers = { "x-openclaw-session": "tg:1:default" };

  const { submitted } = await respond(script, { headers, body: { instructions: "Be brief." } });
  const { answer } = await respond(script, { headers, body: { previous_response_id: "resp_1" } });

  expect(submitted).toMatchObject([
    {
      submission: {
        sessionId: "tg:1:default",
        stateless: false,
        request: {
          messages: [
            { role: "system", content: "Be brief." },
            { role: "user", content: "hi" },
          ],
        },
      },
    },
  ]);
  expect(answer.json()).toEqual(errorBody("invalid_request", { param: "previous_response_id" }));
});

test("truncation drops the oldest messages, never the instructions", async () => {
  const long = "word ".repeat(30);
  const input = [
    { role: "developer", content: "Rules." },
    { role: "user", content: `first ${long}` },
    { role: "assistant", content: `answer ${long}` },
    { role: "user", content: "last" },
  ];

  const { submitted } = await respond(async () => done({ content: "Yes." }), { body: { input, truncation: "auto" } });

  expect(submitted[0]?.submission.request.messages).toEqual([
    { role: "developer", content: "Rules." },
    { role: "user", content: "last" },
  ]);
});
