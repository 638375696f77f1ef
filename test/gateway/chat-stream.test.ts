import { once } from "node:events";
import { request as httpRequest } from "node:http";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { AppError } from "../../domain/app-error.ts";
import type { TurnEvent } from "../../streams/token-bus.ts";
import { errorBody, listening } from "./gateway-stage.ts";
import { type Script, chatBody, chatHeaders, chatStage, done, requestIdOf, scriptedTurns, textEvents } from "./scripted-turns.ts";

type Chunk = {
  readonly id: string;
  readonly choices: readonly {
    readonly delta: { role?: string; content?: string; refusal?: string; tool_calls?: ToolCallDelta[] };
    readonly finish_reason: string | null;
  }[];
  readonly usage?: unknown;
  readonly openclaw?: unknown;
  readonly error?: unknown;
};
type ToolCallDelta = { index: number; id?: string; type?: string; function: { name?: string; arguments?: string } };

/** The data of a whole event stream: its JSON values, and whether it came to its end. */
function read(body: string): { readonly chunks: readonly Chunk[]; readonly isComplete: boolean } {
  const lines = body.split("\n\n").filter((event) => event !== "");
  expect(lines.every((line) => line.startsWith("data: ") && !line.includes("\n"))).toBe(true);
  const data = lines.map((line) => line.slice("data: ".length));
  return { chunks: data.filter((text) => text !== "[DONE]").map((text) => JSON.parse(text)), isComplete: data.at(-1) === "[DONE]" };
}

const textOf = (chunks: readonly Chunk[]): string =>
  chunks.flatMap(({ choices = [] }) => choices.map(({ delta }) => delta.content ?? "")).join("");
const finishOf = (chunks: readonly Chunk[]) =>
  chunks.flatMap(({ choices = [] }) => choices.map(({ finish_reason }) => finish_reason)).filter((reason) => reason !== null);

/** Puts the tool calls together as an OpenAI client does: by index, arguments one behind the other. */
function toolCallsOf(chunks: readonly Chunk[]): { id: string | undefined; name: string | undefined; arguments: string }[] {
  const calls: { id: string | undefined; name: string | undefined; arguments: string }[] = [];
  for (const { index, id, function: piece } of chunks.flatMap(({ choices = [] }) =>
    choices.flatMap(({ delta }) => delta.tool_calls ?? []),
  )) {
    const known = calls[index] ?? { id: undefined, name: undefined, arguments: "" };
    calls[index] = { id: known.id ?? id, name: known.name ?? piece.name, arguments: known.arguments + (piece.arguments ?? "") };
  }
  return calls;
}

/** One streamed call of a turn that shows `events` and ends. */
async function streamed(events: readonly TurnEvent[], end: Script, more: object = {}) {
  const turns = scriptedTurns(async (emit, submission) => {
    for (const event of events) emit(event);
    return await end(emit, submission);
  });
  const { app } = await chatStage(turns);
  const answer = await app.inject({
    method: "POST",
    url: "/v1/chat/completions",
    headers: chatHeaders,
    payload: chatBody({ stream: true, ...more }),
  });
  return { answer, ...(answer.statusCode === 200 ? read(answer.body) : { chunks: [], isComplete: false }), turns };
}

describe("a streamed answer", () => {
  test("reaches the client while the model still speaks", async () => {
    const { promise: firstWordsRead, resolve: sayTheRest } = Promise.withResolvers<void>();
    const [start, rest] = textEvents("Hello ", "world.");
    const turns = scriptedTurns(async (emit) => {
      emit(start as TurnEvent);
      await firstWordsRead; // were the words held back, the call would never end
      emit(rest as TurnEvent);
      return done({ content: "Hello world." });
    });
    const { app } = await chatStage(turns);
    const { url } = await listening(app);

    const answer = await fetch(`${url}/v1/chat/completions`, { method: "POST", headers: chatHeaders, body: chatBody({ stream: true }) });
    let body = "";
    for await (const bytes of (answer.body as ReadableStream<Uint8Array>).pipeThrough(new TextDecoderStream())) {
      body += bytes;
      if (body.includes("Hello ")) sayTheRest();
    }

    expect(answer.status).toBe(200);
    expect(answer.headers.get("content-type")).toBe("text/event-stream; charset=utf-8");
    expect(answer.headers.get("cache-control")).toContain("no-cache");
    const turnId = turns.submitted[0]?.submission.turnId;
    expect(answer.headers.get("x-request-id")).toBe(turnId);
    const { chunks, isComplete } = read(body);
    expect(chunks.map(({ choices }) => choices[0]?.delta)).toEqual([
      { role: "assistant", content: "" },
      { content: "Hello " },
      { content: "world." },
      {},
    ]);
    expect(new Set(chunks.map(({ id }) => id))).toEqual(new Set([requestIdOf(turnId as never)]));
    expect(finishOf(chunks)).toEqual(["stop"]);
    expect(isComplete).toBe(true);
  });

  test("ends with its usage for those who asked, and says nothing of it to others", async () => {
    const events = textEvents("Hi.");
    const end: Script = async () => done({ content: "Hi." });

    const asked = await streamed(events, end, { stream_options: { include_usage: true } });
    const unasked = await streamed(events, end);

    expect(asked.chunks.slice(0, -1).every(({ usage }) => usage === null)).toBe(true);
    expect(asked.chunks.at(-1)).toMatchObject({ choices: [], usage: { prompt_tokens: 10, completion_tokens: 5, total_tokens: 15 } });
    expect(unasked.chunks.some((chunk) => "usage" in chunk)).toBe(false);
    expect([asked.isComplete, unasked.isComplete]).toEqual([true, true]);
  });

  test("hands on tool calls as they are written, for the client to run", async () => {
    const events: TurnEvent[] = [
      { type: "tool_call", index: 0, id: "call_a", name: "open", arguments: "" },
      { type: "tool_call", index: 0, arguments: '{"box"' },
      { type: "tool_call", index: 0, arguments: ":1}" },
      { type: "tool_call", index: 1, id: "call_b", name: "close", arguments: "{}" },
    ];
    const toolCalls = [
      { id: "call_a", name: "open", arguments: '{"box":1}' },
      { id: "call_b", name: "close", arguments: "{}" },
    ];

    const { chunks, isComplete } = await streamed(events, async () => done({ toolCalls, finishReason: "tool_calls" }));

    expect(chunks[1]?.choices[0]?.delta.tool_calls).toEqual([
      { index: 0, id: "call_a", type: "function", function: { name: "open", arguments: "" } },
    ]);
    expect(chunks[2]?.choices[0]?.delta.tool_calls).toEqual([{ index: 0, function: { arguments: '{"box"' } }]);
    expect(toolCallsOf(chunks)).toEqual(toolCalls);
    expect(finishOf(chunks)).toEqual(["tool_calls"]);
    expect(isComplete).toBe(true);
  });

  test("shows that the tenant's own tools run, in a field that an OpenAI client skips", async () => {
    const run = { id: "call_a", name: "exec", summary: "ls" };

    const { chunks } = await streamed(
      [
        { type: "tool", ...run, state: "started" },
        { type: "tool", ...run, state: "done" },
      ],
      async () => done({ content: "Done." }),
    );

    expect(chunks.flatMap(({ openclaw }) => (openclaw === undefined ? [] : [openclaw]))).toEqual([
      { tool: { ...run, state: "started" } },
      { tool: { ...run, state: "done" } },
    ]);
    expect(textOf(chunks)).toBe("Done.");
  });

  test.each(["stop", "length", "content_filter"] as const)("says why it ended: %s", async (finishReason) => {
    const { chunks } = await streamed(textEvents("Hi."), async () => done({ content: "Hi.", finishReason }));

    expect(finishOf(chunks)).toEqual([finishReason]);
  });

  test("of nothing at all is still an answer", async () => {
    const { chunks, isComplete } = await streamed([], async () => done({ content: null }));

    expect(chunks[0]?.choices[0]?.delta).toEqual({ role: "assistant", content: "" });
    expect(finishOf(chunks)).toEqual(["stop"]);
    expect(isComplete).toBe(true);
  });

  test("carries a refusal", async () => {
    const { chunks } = await streamed([], async () => done({ content: null, refusal: "I would rather not." }));

    expect(chunks.flatMap(({ choices }) => choices.map(({ delta }) => delta.refusal ?? "")).join("")).toBe("I would rather not.");
  });

  test("refuses in the model's own pace", async () => {
    const refusing = textEvents("I would ", "rather not.").map((event): TurnEvent => ({ ...event, type: "refusal" }) as TurnEvent);

    const { chunks } = await streamed(refusing, async () => done({ content: null, refusal: "I would rather not." }));

    const said = chunks.flatMap(({ choices }) => choices.map(({ delta }) => delta.refusal)).filter((piece) => piece !== undefined);
    expect(said).toEqual(["I would ", "rather not."]);
  });

  const tokens = ["Hel", "lo", "!"].map((token) => ({ token, bytes: null, logprob: -1, top_logprobs: [] }));
  const spoken: TurnEvent[] = [
    { type: "text", offset: 0, text: "Hel", logprobs: { offset: 0, tokens: tokens.slice(0, 1) } },
    { type: "text", offset: 3, text: "lo!", logprobs: { offset: 1, tokens: tokens.slice(1) } },
  ];
  test.each<[string, readonly TurnEvent[]]>([
    ["as they come", spoken],
    ["at the end, where pieces were lost", spoken.slice(1)],
    ["once, where pieces came twice", [...spoken, ...spoken]],
  ])("tells how likely its tokens were: %s", async (_what, events) => {
    const { chunks } = await streamed(events, async () => done({ content: "Hello!", logprobs: tokens }), { logprobs: true });

    const told = chunks.flatMap(({ choices }) => choices as unknown as { logprobs: { content: object[] } | null }[]);
    expect(told.flatMap(({ logprobs }) => logprobs?.content ?? [])).toEqual(tokens);
  });

  test("calls a custom tool with text, and a function as the API did before it had tools", async () => {
    const call = { id: "call_a", name: "sql", arguments: "SELECT 1" };
    const events: TurnEvent[] = [
      { type: "tool_call", index: 0, id: "call_a", name: "sql", arguments: "SELECT", custom: true },
      { type: "tool_call", index: 0, arguments: " 1" },
    ];
    const asked = { functions: [{ name: "sql" }] };

    const custom = await streamed(events, async () => done({ toolCalls: [{ ...call, custom: true }], finishReason: "tool_calls" }));
    const legacy = await streamed(events, async () => done({ toolCalls: [call], finishReason: "tool_calls" }), asked);

    const deltas = ({ chunks }: typeof custom) => chunks.slice(1).map(({ choices }) => choices[0]?.delta);
    expect(deltas(custom)).toEqual([
      { tool_calls: [{ index: 0, id: "call_a", type: "custom", custom: { name: "sql", input: "SELECT" } }] },
      { tool_calls: [{ index: 0, custom: { input: " 1" } }] },
      {},
    ]);
    expect(deltas(legacy)).toEqual([{ function_call: { name: "sql", arguments: "SELECT" } }, { function_call: { arguments: " 1" } }, {}]);
    expect([finishOf(custom.chunks), finishOf(legacy.chunks)]).toEqual([["tool_calls"], ["function_call"]]);
  });

  test("hides the length of its pieces for those who asked", async () => {
    const { answer, chunks } = await streamed(textEvents("a", "bcdefghij"), async () => done({ content: "abcdefghij" }), {
      stream_options: { include_obfuscation: true },
    });

    const lengths = answer.body.split("\n\n").filter((event) => event.includes("obfuscation"));
    expect(lengths).toHaveLength(chunks.length);
    expect(new Set(lengths.map((event) => event.length % 128)).size).toBe(1);
    expect(textOf(chunks)).toBe("abcdefghij");
  });

  test("ends with the tier that served it and its sources", async () => {
    const annotations = [{ type: "url_citation", url_citation: { url: "https://example.org" } }];
    const { chunks } = await streamed(textEvents("Hi."), async () => done({ content: "Hi.", serviceTier: "flex", annotations }));

    expect(chunks.at(-2)?.choices[0]?.delta).toEqual({ annotations });
    expect(chunks.at(-1)).toMatchObject({ service_tier: "flex" });
  });

  test("stays one line per event, whatever the model writes", async () => {
    const text = 'a\nb\r\nc\n\ndata: [DONE]\n\n\u2028\u2029\0"\\🦞';

    const { chunks, isComplete } = await streamed(textEvents(...text.split(/(?<=\n)/)), async () => done({ content: text }));

    expect(textOf(chunks)).toBe(text);
    expect(isComplete).toBe(true);
  });
});

describe("a turn that fails", () => {
  const busy: Script = async () => ({
    state: "failed",
    error: { code: "provider_busy", message: "The model provider is busy.", retryAfterSeconds: 9 },
  });

  test("before its first word is an ordinary error, with status and Retry-After", async () => {
    const { answer } = await streamed([], busy);

    expect(answer.statusCode).toBe(503);
    expect(answer.headers["retry-after"]).toBe("9");
    expect(answer.headers["content-type"]).toMatch(/^application\/json/);
    expect(answer.json()).toEqual(errorBody("provider_busy", { type: "unavailable" }));
  });

  test("after its first word ends the stream with the error and without [DONE]", async () => {
    const { answer, chunks, isComplete } = await streamed(textEvents("Hel"), busy);

    expect(answer.statusCode).toBe(200);
    expect(textOf(chunks)).toBe("Hel");
    expect(chunks.at(-1)).toEqual({
      error: { message: "The model provider is busy.", type: "unavailable", param: null, code: "provider_busy" },
    });
    expect(finishOf(chunks)).toEqual([]);
    expect(isComplete).toBe(false);
  });

  test.each([
    ["because it could not be handed over", new AppError("unavailable", { client: { retryAfterSeconds: 5 } }), "unavailable"],
    ["for a reason of our own, which it does not tell", new Error("/srv/openclaw is full"), "internal"],
  ])("%s is told in the stream as well", async (_why, failure, code) => {
    const { answer, chunks, isComplete } = await streamed(textEvents("Hel"), async () => await Promise.reject(failure));

    expect(chunks.at(-1)).toEqual(errorBody(code));
    expect(answer.body).not.toContain("/srv");
    expect(isComplete).toBe(false);
  });

  test("in the middle of a tool's run ends the stream with the error", async () => {
    const { chunks, isComplete } = await streamed([{ type: "tool", id: "call_a", name: "exec", summary: "ls", state: "started" }], busy);

    expect(chunks.at(-1)).toEqual(errorBody("provider_busy"));
    expect(isComplete).toBe(false);
  });

  test("of a call that was repeated and answered otherwise is not passed off as the answer", async () => {
    const { chunks, isComplete } = await streamed(textEvents("The answer is 41"), async () => done({ content: "The answer is 42." }));

    expect(chunks.at(-1)).toEqual(errorBody("provider_error"));
    expect(isComplete).toBe(false);
  });
});

describe("events on their way", () => {
  const hello = textEvents("Hel", "lo, ", "wor", "ld.");
  const [a, b, c, d] = hello as [TurnEvent, TurnEvent, TurnEvent, TurnEvent];

  test.each<[string, readonly TurnEvent[]]>([
    ["all of them", hello],
    ["none of them", []],
    ["the first one lost", [b, c, d]],
    ["one in the middle lost", [a, c, d]],
    ["the last one lost", [a, b, c]],
    ["each one twice", [a, a, b, b, c, c, d, d]],
    ["a second attempt from the start", [a, b, a, b, c, d]],
    ["out of their order", [d, b, a, c]],
  ])("%s: the client reads the whole answer, once", async (_what, events) => {
    const { chunks, isComplete } = await streamed(events, async () => done({ content: "Hello, world." }));

    expect(textOf(chunks)).toBe("Hello, world.");
    expect(isComplete).toBe(true);
  });

  test("lost, repeated and shuffled at random, of any text", async () => {
    const pieces = fc.array(fc.string({ minLength: 1, maxLength: 6 }), { minLength: 1, maxLength: 8 });
    await fc.assert(
      fc.asyncProperty(pieces, fc.array(fc.nat(7), { maxLength: 16 }), async (texts, order) => {
        const events = textEvents(...texts);
        const arrived = order.flatMap((place) => events[place] ?? []);

        const { chunks, isComplete } = await streamed(arrived, async () => done({ content: texts.join("") }));

        expect(textOf(chunks)).toBe(texts.join(""));
        expect(isComplete).toBe(true);
      }),
      { numRuns: 25 },
    );
  });

  const toolCalls = [
    { id: "call_a", name: "open", arguments: '{"box":1}' },
    { id: "call_b", name: "close", arguments: "{}" },
  ];
  const open: TurnEvent[] = [
    { type: "tool_call", index: 0, id: "call_a", name: "open", arguments: '{"box"' },
    { type: "tool_call", index: 0, arguments: ":1}" },
  ];
  const close: TurnEvent[] = [{ type: "tool_call", index: 1, id: "call_b", name: "close", arguments: "{}" }];

  test.each<[string, readonly TurnEvent[]]>([
    ["none came", []],
    ["the last one was lost", open],
    ["all came", [...open, ...close]],
  ])("a tool call that was lost whole is sent at the end: %s", async (_what, events) => {
    const { chunks } = await streamed(events, async () => done({ toolCalls, finishReason: "tool_calls" }));

    expect(toolCallsOf(chunks)).toEqual(toolCalls);
  });

  test.each<[string, readonly TurnEvent[]]>([
    ["the end of the first call was lost", [...open.slice(0, 1), ...close]],
    ["the first call was lost, the second came", close],
    ["a second attempt wrote the calls again", [...open, ...open, ...close]],
  ])("a client never puts together other arguments than the model's: %s", async (_what, events) => {
    const { chunks, isComplete } = await streamed(events, async () => done({ toolCalls, finishReason: "tool_calls" }));

    // Mended, or refused: but never ended as if the arguments were right.
    expect(isComplete ? toolCallsOf(chunks) : "refused").toEqual(isComplete ? toolCalls : "refused");
  });
});

describe("a client that leaves", () => {
  /** A streamed call over a socket that the client cuts at a moment of the script's choice. */
  async function cutCall(
    script: (emit: (event: TurnEvent) => void, cut: () => Promise<void>) => ReturnType<Script>,
    more: object = { stream: true },
  ) {
    const { promise: ended, resolve: end } = Promise.withResolvers<string>();
    const turns = scriptedTurns(async (emit) => {
      const finished = await script(emit, async () => {
        const gone = once(serverSide, "close");
        call.destroy();
        await gone;
      });
      setImmediate(() => end("the turn ended"));
      return finished;
    });
    const { app, logged } = await chatStage(turns);
    const { port, url } = await listening(app);
    const connected = once(app.server, "connection");
    const call = httpRequest({ port, host: "127.0.0.1", method: "POST", path: "/v1/chat/completions", headers: chatHeaders });
    call.on("error", () => undefined);
    call.end(chatBody(more));
    const [serverSide] = await connected;
    return { ended: await ended, logged, url };
  }

  test.each<[string, Parameters<typeof cutCall>[0], object]>([
    [
      "in the middle of the stream",
      async (emit, cut) => {
        emit({ type: "text", offset: 0, text: "Hel" });
        await cut();
        emit({ type: "text", offset: 3, text: "lo" });
        return done({ content: "Hello, world." });
      },
      { stream: true },
    ],
    [
      "before the first word",
      async (emit, cut) => {
        await cut();
        emit({ type: "text", offset: 0, text: "Hello" });
        return done({ content: "Hello" });
      },
      { stream: true },
    ],
    [
      "before a turn that fails",
      async (_emit, cut) => {
        await cut();
        return { state: "failed", error: { code: "provider_error", message: "no" } };
      },
      { stream: true },
    ],
    [
      "of a plain call",
      async (_emit, cut) => {
        await cut();
        return done({ content: "Hello" });
      },
      {},
    ],
  ])("%s harms nobody: the turn ends and the next client is served", async (_when, script, more) => {
    const thrown: unknown[] = [];
    const note = (error: unknown): void => void thrown.push(error);
    process.on("uncaughtException", note).on("unhandledRejection", note);

    const { ended, url } = await cutCall(script, more);
    const missing = await fetch(`${url}/v1/nothing`);
    process.off("uncaughtException", note).off("unhandledRejection", note);

    expect(ended).toBe("the turn ended");
    expect(missing.status).toBe(404);
    expect(thrown).toEqual([]);
  });
});
