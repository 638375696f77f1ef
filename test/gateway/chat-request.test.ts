import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { AppError } from "../../domain/app-error.ts";
import type { ChatMessage, SamplingSettings } from "../../domain/conversation.ts";
import { newMessagesOf } from "../../gateway/chat-messages.ts";
import { parseChatRequest } from "../../gateway/chat-request.ts";

const hello = { model: "m", messages: [{ role: "user", content: "hi" }] };

/** How a body with these fields is refused; fails when it is not. */
function refusalOf(more: object): { readonly code: string; readonly param: string | undefined; readonly message: string } {
  try {
    parseChatRequest({ ...hello, ...more });
  } catch (error) {
    if (error instanceof AppError) return { code: error.code, param: error.client.param, message: error.message };
    throw error;
  }
  throw new Error(`was not refused: ${JSON.stringify(more).slice(0, 200)}`);
}
const settingsOf = (more: object): SamplingSettings => parseChatRequest({ ...hello, ...more }).settings;
const given = (settings: SamplingSettings): object =>
  Object.fromEntries(Object.entries(settings).filter(([, value]) => value !== undefined));

test("the smallest request asks for nothing more than it says", () => {
  const request = parseChatRequest(hello);

  expect(request).toMatchObject({ model: "m", messages: [{ role: "user", content: "hi" }], tools: [], stream: false });
  expect(request.shape).toEqual({ includeUsage: false, obfuscate: false, withFunctions: false, metadata: undefined });
  expect(given(request.settings)).toEqual({});
});

const weather = { name: "weather", parameters: { type: "object" } };
const functions = { functions: [weather] };
const tools = { tools: [{ type: "function", function: weather }] };

/** Every field that OpenAI documents for `POST /v1/chat/completions` (openai 7.57), in its order; `with` is what it needs beside it. */
const documented: Readonly<
  Record<string, { readonly sent: unknown; readonly with?: object; readonly becomes?: object; readonly refused?: true }>
> = {
  audio: { sent: { format: "mp3", voice: "alloy" }, refused: true },
  frequency_penalty: { sent: -0.5, becomes: { frequencyPenalty: -0.5 } },
  function_call: { sent: { name: "weather" }, with: functions, becomes: { toolChoice: { name: "weather" }, parallelToolCalls: false } },
  functions: { sent: functions.functions, becomes: { parallelToolCalls: false } },
  logit_bias: { sent: { "50256": -100 }, becomes: { logitBias: { "50256": -100 } } },
  logprobs: { sent: true, becomes: { logprobs: true } },
  max_completion_tokens: { sent: 7, becomes: { maxTokens: 7 } },
  max_tokens: { sent: 9, becomes: { maxTokens: 9 } },
  metadata: { sent: { a: "b" }, becomes: {} },
  modalities: { sent: ["text"], becomes: {} },
  moderation: { sent: { model: "omni-moderation-latest" }, refused: true },
  n: { sent: 1, becomes: {} },
  parallel_tool_calls: { sent: false, becomes: { parallelToolCalls: false } },
  prediction: { sent: { type: "content", content: [{ type: "text", text: "x" }] }, becomes: { prediction: "x" } },
  presence_penalty: { sent: 2, becomes: { presencePenalty: 2 } },
  prompt_cache_key: { sent: "k", becomes: { promptCacheKey: "k" } },
  prompt_cache_options: { sent: { mode: "implicit", ttl: "30m" }, becomes: { promptCacheOptions: { mode: "implicit", ttl: "30m" } } },
  prompt_cache_retention: { sent: "24h", becomes: { promptCacheRetention: "24h" } },
  reasoning_effort: { sent: "low", becomes: { reasoningEffort: "low" } },
  response_format: { sent: { type: "json_object" }, becomes: { responseFormat: { type: "json_object" } } },
  safety_identifier: { sent: "s", becomes: { safetyIdentifier: "s" } },
  seed: { sent: -3, becomes: { seed: -3 } },
  service_tier: { sent: "flex", becomes: { serviceTier: "flex" } },
  stop: { sent: "END", becomes: { stop: ["END"] } },
  store: { sent: true, refused: true },
  stream: { sent: false, becomes: {} },
  temperature: { sent: 0, becomes: { temperature: 0 } },
  tool_choice: { sent: "none", with: tools, becomes: { toolChoice: "none" } },
  tools: { sent: [], becomes: {} },
  top_logprobs: { sent: 3, with: { logprobs: true }, becomes: { logprobs: true, topLogprobs: 3 } },
  top_p: { sent: 0.1, becomes: { topP: 0.1 } },
  user: { sent: "jane", becomes: {} },
  verbosity: { sent: "low", becomes: { verbosity: "low" } },
  web_search_options: { sent: { search_context_size: "low" }, becomes: { webSearch: { search_context_size: "low" } } },
};
const refused = Object.entries(documented).filter(([, field]) => field.refused === true);
const honoured = Object.entries(documented).filter(([, field]) => field.refused !== true);

test.each(refused)("%s is refused by its name", (name, { sent }) => {
  expect(refusalOf({ [name]: sent })).toEqual({
    code: "unsupported_parameter",
    param: name,
    message: expect.stringContaining(`'${name}'`),
  });
});

test.each(honoured)("%s is honoured", (name, { sent, with: more = {}, becomes }) => {
  expect(given(settingsOf({ ...more, [name]: sent }))).toEqual(becomes);
});

test("null is as good as absent for every optional field", () => {
  const nulls = Object.fromEntries(Object.keys(documented).map((name) => [name, null]));

  expect(parseChatRequest({ ...hello, ...nulls, stream_options: null })).toEqual(parseChatRequest(hello));
});

test("no answer is spoken", () => {
  expect(refusalOf({ modalities: ["text", "audio"] })).toMatchObject({ code: "unsupported_parameter", param: "modalities" });
});

test("store: false asks for what is done anyway", () => {
  expect(parseChatRequest({ ...hello, store: false })).toEqual(parseChatRequest(hello));
});

test("of two token limits the newer name counts", () => {
  expect(settingsOf({ max_tokens: 5, max_completion_tokens: 6 })).toMatchObject({ maxTokens: 6 });
});

test.each(["temprature", "max_token", "Model", "messages ", "", "x".repeat(300)])(
  "the unknown field %j is refused by its name, not at length",
  (name) => {
    const refusal = refusalOf({ [name]: 1 });

    expect(refusal).toMatchObject({ code: "invalid_request", param: name.slice(0, 64) });
    expect(refusal.message.length).toBeLessThan(150);
  },
);

test.each(["toString", "valueOf", "hasOwnProperty", "constructor"])(
  "the unknown field %s is refused, though every object has one",
  (name) => {
    expect(refusalOf({ [name]: 1 })).toMatchObject({ code: "invalid_request", param: name });
  },
);

const tool = { type: "function", function: { name: "f" } };
const call = { id: "c", type: "function", function: { name: "f", arguments: "{}" } };

describe("what is wrong is named as deep as it stands", () => {
  test.each<[object, string]>([
    [{ model: undefined }, "model"],
    [{ model: "" }, "model"],
    [{ model: 4 }, "model"],
    [{ messages: undefined }, "messages"],
    [{ messages: [] }, "messages"],
    [{ messages: "hi" }, "messages"],
    [{ messages: ["hi"] }, "messages.0"],
    [{ messages: [{ content: "hi" }] }, "messages.0.role"],
    [{ messages: [{ role: "robot", content: "hi" }] }, "messages.0.role"],
    [{ messages: [{ role: "function", name: "f", content: "hi" }] }, "messages.0.name"],
    [{ messages: [{ role: "assistant", content: "hi", audio: { id: "audio_1" } }] }, "messages.0.audio"],
    [
      { messages: [{ role: "user", content: [{ type: "text", text: "hi", prompt_cache_breakpoint: { mode: "explicit" } }] }] },
      "messages.0.content.0.prompt_cache_breakpoint",
    ],
    [{ messages: [{ role: "user" }] }, "messages.0.content"],
    [{ messages: [{ role: "user", content: null }] }, "messages.0.content"],
    [{ messages: [{ role: "user", content: [] }] }, "messages.0.content"],
    [{ messages: [...hello.messages, { role: "user", content: [{ type: "text" }] }] }, "messages.1.content.0.text"],
    [
      { messages: [{ role: "user", content: [{ type: "input_audio", input_audio: { data: "" } }] }] },
      "messages.0.content.0.input_audio.data",
    ],
    [{ messages: [{ role: "user", content: [{ type: "video", video: {} }] }] }, "messages.0.content.0.type"],
    [{ messages: [{ role: "user", content: [{ type: "file", file: {} }] }] }, "messages.0.content.0.file"],
    [
      { messages: [{ role: "user", content: [{ type: "file", file: { file_id: "file-1", file_data: "AA==" } }] }] },
      "messages.0.content.0.file",
    ],
    [{ messages: [{ role: "user", content: [{ type: "image_url", image_url: "https://x" }] }] }, "messages.0.content.0.image_url"],
    [{ messages: [{ role: "user", content: [{ type: "image_url", image_url: { url: 1 } }] }] }, "messages.0.content.0.image_url.url"],
    [
      { messages: [{ role: "user", content: [{ type: "image_url", image_url: { url: "u", detail: "huge" } }] }] },
      "messages.0.content.0.image_url.detail",
    ],
    [{ messages: [{ role: "system", content: [{ type: "image_url", image_url: { url: "u" } }] }] }, "messages.0.content.0.type"],
    [
      { messages: [{ role: "assistant", tool_calls: [{ ...call, function: { name: "f" } }] }] },
      "messages.0.tool_calls.0.function.arguments",
    ],
    [{ messages: [{ role: "assistant", tool_calls: [{ ...call, id: "" }] }] }, "messages.0.tool_calls.0.id"],
    [{ messages: [{ role: "tool", content: "42" }] }, "messages.0.tool_call_id"],
    [{ temperature: 2.1 }, "temperature"],
    [{ temperature: "0" }, "temperature"],
    [{ top_p: -0.1 }, "top_p"],
    [{ presence_penalty: 3 }, "presence_penalty"],
    [{ frequency_penalty: "x" }, "frequency_penalty"],
    [{ max_tokens: 0 }, "max_tokens"],
    [{ max_tokens: 1.5 }, "max_tokens"],
    [{ max_completion_tokens: 1e300 }, "max_completion_tokens"],
    [{ n: 2 }, "n"],
    [{ n: 0 }, "n"],
    [{ seed: 0.5 }, "seed"],
    [{ stop: ["a", "b", "c", "d", "e"] }, "stop"],
    [{ stop: [1] }, "stop.0"],
    [{ stream: "true" }, "stream"],
    [{ stream: true, stream_options: { include_usage: "yes" } }, "stream_options.include_usage"],
    [{ stream: true, stream_options: { include_obfuscation: 1 } }, "stream_options.include_obfuscation"],
    [{ tools: [{ type: "mcp", mcp: { name: "f" } }] }, "tools.0.type"],
    [
      { tools: [{ type: "custom", custom: { name: "f", format: { type: "grammar", grammar: { syntax: "peg" } } } }] },
      "tools.0.custom.format.grammar.syntax",
    ],
    [{ tools: [tool, { type: "function", function: { name: "bad name" } }] }, "tools.1.function.name"],
    [{ tools: [{ type: "function", function: { name: "f", parameters: [] } }] }, "tools.0.function.parameters"],
    [{ tools: Array.from({ length: 129 }, () => tool) }, "tools"],
    [{ tool_choice: "always" }, "tool_choice"],
    [{ tool_choice: { type: "function", function: {} } }, "tool_choice.function.name"],
    [{ tool_choice: { type: "mcp" } }, "tool_choice.type"],
    [{ tool_choice: { type: "allowed_tools", allowed_tools: { mode: "auto", tools: [] } } }, "tool_choice.allowed_tools.tools"],
    [{ tool_choice: "required" }, "tool_choice"],
    [{ ...tools, tool_choice: { type: "function", function: { name: "other" } } }, "tool_choice"],
    [{ ...tools, tool_choice: { type: "custom", custom: { name: "other" } } }, "tool_choice"],
    [{ ...tools, ...functions }, "functions"],
    [{ function_call: "auto" }, "function_call"],
    [{ ...functions, function_call: { name: "other" } }, "function_call"],
    [{ logit_bias: { token: 1 } }, "logit_bias.token"],
    [{ logit_bias: { "1": 101 } }, "logit_bias.1"],
    [{ top_logprobs: 2 }, "top_logprobs"],
    [{ logprobs: true, top_logprobs: 21 }, "top_logprobs"],
    [{ verbosity: "chatty" }, "verbosity"],
    [{ service_tier: "gold" }, "service_tier"],
    [{ modalities: ["video"] }, "modalities.0"],
    [{ prediction: { type: "guess", content: "x" } }, "prediction.type"],
    [{ prompt_cache_retention: "7d" }, "prompt_cache_retention"],
    [{ prompt_cache_options: { ttl: "1y" } }, "prompt_cache_options.ttl"],
    [{ web_search_options: { search_context_size: "all" } }, "web_search_options.search_context_size"],
    [{ metadata: Object.fromEntries(Array.from({ length: 17 }, (_, n) => [`k${n}`, "v"])) }, "metadata"],
    [{ response_format: { type: "json_schema" } }, "response_format.json_schema"],
    [{ response_format: { type: "json_schema", json_schema: { name: "a b" } } }, "response_format.json_schema.name"],
    [{ response_format: "json" }, "response_format"],
    [{ response_format: { type: "xml" } }, "response_format.type"],
    [{ user: 7 }, "user"],
    [{ metadata: { a: 1 } }, "metadata.a"],
  ])("%j", (more, param) => {
    expect(refusalOf(more)).toMatchObject({ code: "invalid_request", param });
  });

  test("n = 2 says what is possible", () => {
    expect(refusalOf({ n: 2 }).message).toContain("Only n = 1 is supported.");
  });

  test("stream_options without stream is refused", () => {
    expect(refusalOf({ stream_options: { include_usage: true } })).toMatchObject({ code: "invalid_request", param: "stream_options" });
    expect(refusalOf({ stream: false, stream_options: {} })).toMatchObject({ param: "stream_options" });
    expect(parseChatRequest({ ...hello, stream: true, stream_options: { include_usage: true } })).toMatchObject({
      stream: true,
      shape: { includeUsage: true, obfuscate: false },
    });
    const stream_options = { include_obfuscation: true };
    expect(parseChatRequest({ ...hello, stream: true, stream_options }).shape).toMatchObject({ includeUsage: false, obfuscate: true });
  });

  test.each([[null], [undefined], [[]], [[hello]], ["text"], [7], [true]])("a body of %j is no object", (body) => {
    expect(() => parseChatRequest(body)).toThrow(
      expect.objectContaining({ code: "invalid_request", message: "The body must be a JSON object." }),
    );
  });

  test("where no parameter is at fault, none is named", () => {
    expect(() => parseChatRequest([])).toThrow(expect.objectContaining({ client: expect.not.objectContaining({ param: "" }) }));
  });
});

describe("messages", () => {
  test("come through whole, whatever their role and however their text is split", () => {
    const { messages } = parseChatRequest({
      ...hello,
      messages: [
        { role: "system", content: "Be brief." },
        {
          role: "developer",
          content: [
            { type: "text", text: "Be" },
            { type: "text", text: "kind." },
          ],
        },
        { role: "user", content: "What is in the box?", name: "jane" },
        { role: "assistant", content: null, tool_calls: [{ ...call, function: { name: "open", arguments: '{"box":' } }] },
        { role: "tool", tool_call_id: "c", content: [{ type: "text", text: "a cat" }] },
        { role: "assistant", content: [{ type: "text", text: "A cat." }] },
        { role: "assistant", tool_calls: [] },
      ],
    });

    expect(messages).toEqual([
      { role: "system", content: "Be brief." },
      { role: "developer", content: "Be\nkind." },
      { role: "user", content: "What is in the box?", name: "jane" },
      { role: "assistant", content: null, toolCalls: [{ id: "c", name: "open", arguments: '{"box":' }] },
      { role: "tool", toolCallId: "c", content: "a cat" },
      { role: "assistant", content: "A cat." },
      { role: "assistant", content: null },
    ]);
  });

  test("may hold images, by address or inline, in their order", () => {
    const inline = `data:image/png;base64,${"A".repeat(1_000_000)}`;
    const content = [
      { type: "text", text: "Compare:" },
      { type: "image_url", image_url: { url: "https://example.org/a.png", detail: "low" } },
      { type: "image_url", image_url: { url: inline } },
    ];

    expect(parseChatRequest({ ...hello, messages: [{ role: "user", content }] }).messages).toEqual([
      {
        role: "user",
        content: [
          { type: "text", text: "Compare:" },
          { type: "image", url: "https://example.org/a.png", detail: "low" },
          { type: "image", url: inline, detail: undefined },
        ],
      },
    ]);
  });

  test("may hold audio and files, and tools may answer with them", () => {
    const sent = [
      { type: "input_audio", input_audio: { data: "AAAA", format: "mp3" } },
      { type: "file", file: { file_data: "data:application/pdf;base64,JVBERi0=", filename: "a.pdf" } },
      { type: "file", file: { file_id: "file-1" } },
    ];
    const content = [
      { type: "audio", data: "AAAA", format: "mp3" },
      { type: "file", name: "a.pdf", file: { data: "data:application/pdf;base64,JVBERi0=" } },
      { type: "file", file: { id: "file-1" } },
    ];
    const messages = [
      { role: "user", content: sent },
      { role: "tool", tool_call_id: "c", content: sent },
    ];

    expect(parseChatRequest({ ...hello, messages }).messages).toEqual([
      { role: "user", content },
      { role: "tool", toolCallId: "c", content },
    ]);
  });

  test("may be refusals, and calls of custom tools", () => {
    const refusing = {
      role: "assistant",
      content: [
        { type: "text", text: "Hm." },
        { type: "refusal", refusal: "No." },
      ],
    };
    const custom = {
      role: "assistant",
      refusal: null,
      tool_calls: [{ id: "c", type: "custom", custom: { name: "sql", input: "SELECT 1" } }],
    };

    expect(parseChatRequest({ ...hello, messages: [refusing, { role: "assistant", refusal: "Never." }, custom] }).messages).toEqual([
      { role: "assistant", content: "Hm.", refusal: "No." },
      { role: "assistant", content: null, refusal: "Never." },
      { role: "assistant", content: null, toolCalls: [{ id: "c", name: "sql", arguments: "SELECT 1", custom: true }] },
    ]);
  });

  test("of the time of functions become those of tools, each answer with its call", () => {
    const asked = (name: string, place: number) => ({
      role: "assistant",
      content: null,
      function_call: { name, arguments: `{"n":${place}}` },
    });
    const answered = (name: string, content: string) => ({ role: "function", name, content });
    const { messages, shape } = parseChatRequest({
      ...hello,
      messages: [asked("f", 0), answered("f", "one"), asked("g", 2), answered("g", "two"), asked("f", 4), answered("f", "three")],
    });

    expect(shape.withFunctions).toBe(true);
    expect(
      messages.map((message) =>
        message.role === "assistant" ? message.toolCalls?.map(({ name, arguments: json }) => [name, json]) : message.content,
      ),
    ).toEqual([[["f", '{"n":0}']], "one", [["g", '{"n":2}']], "two", [["f", '{"n":4}']], "three"]);
    const ids = messages.map((message) =>
      message.role === "assistant" ? message.toolCalls?.[0]?.id : message.role === "tool" ? message.toolCallId : "",
    );
    expect([ids[0], ids[2], ids[4]]).toEqual([ids[1], ids[3], ids[5]]);
    expect(new Set(ids).size).toBe(3);
  });

  test("keep every character of their text", () => {
    fc.assert(
      fc.property(fc.string({ unit: fc.nat(0xff_ff).map((unit) => String.fromCharCode(unit)) }), (content) => {
        expect(parseChatRequest({ ...hello, messages: [{ role: "user", content }] }).messages).toEqual([{ role: "user", content }]);
      }),
    );
  });
});

describe("tools", () => {
  const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false };

  test("come with their schema as it was sent", () => {
    const { tools } = parseChatRequest({
      ...hello,
      tools: [
        tool,
        { type: "function", function: { name: "get-weather_2", description: "Weather.", parameters, strict: true } },
        { type: "function", function: { name: "g", strict: null } },
      ],
    });

    expect(tools).toEqual([
      { name: "f", description: undefined, parameters: undefined, strict: undefined },
      { name: "get-weather_2", description: "Weather.", parameters, strict: true },
      { name: "g", description: undefined, parameters: undefined, strict: undefined },
    ]);
  });

  test.each([
    ["auto", "auto"],
    ["none", "none"],
    ["required", "required"],
    [{ type: "function", function: { name: "f" } }, { name: "f" }],
    [{ type: "custom", custom: { name: "sql" } }, { name: "sql" }],
    [
      {
        type: "allowed_tools",
        allowed_tools: {
          mode: "required",
          tools: [
            { type: "function", function: { name: "f" } },
            { type: "custom", custom: { name: "sql" } },
          ],
        },
      },
      { allowed: ["f", "sql"], mode: "required" },
    ],
  ])("are chosen by %j", (sent, choice) => {
    expect(settingsOf({ tools: [tool, { type: "custom", custom: { name: "sql" } }], tool_choice: sent }).toolChoice).toEqual(choice);
  });

  test("may take free text, of any form or of a grammar's", () => {
    const grammar = { type: "grammar", grammar: { syntax: "lark", definition: 'start: "a"' } };
    const custom = (more: object) => ({ type: "custom", custom: { name: "t", description: "Text.", ...more } });

    expect(parseChatRequest({ ...hello, tools: [custom({}), custom({ format: grammar })] }).tools).toEqual([
      { name: "t", description: "Text.", custom: { type: "text" } },
      { name: "t", description: "Text.", custom: { type: "grammar", syntax: "lark", definition: 'start: "a"' } },
    ]);
  });

  const object = (more: object) => ({ type: "object", properties: {}, required: [], additionalProperties: false, ...more });
  test.each<[string, object]>([
    ["$", { type: "string" }],
    ["$", { type: "object", properties: {} }],
    ["$", object({ properties: { a: { type: "string" } } })],
    ["$.properties.a", object({ properties: { a: { type: ["object", "null"] } }, required: ["a"] })],
    ["$.properties.a.items", object({ properties: { a: { type: "array", items: { type: "object" } } }, required: ["a"] })],
    ["$.$defs.box", object({ $defs: { box: { type: "object", additionalProperties: true } } })],
    ["$.properties.a.anyOf.1", object({ properties: { a: { anyOf: [{ type: "null" }, { type: "object" }] } }, required: ["a"] })],
  ])("whose schema is not strict at %s are refused if they claim it, as are response schemas", (path, schema) => {
    const strictTool = { type: "function", function: { name: "f", strict: true, parameters: schema } };
    const format = { type: "json_schema", json_schema: { name: "box", strict: true, schema } };

    const refusals = [refusalOf({ tools: [tool, strictTool] }), refusalOf({ response_format: format })];

    expect(refusals.map(({ param }) => param)).toEqual(["tools.1.function.parameters", "response_format.json_schema.schema"]);
    expect(refusals.map(({ message }) => message)).toEqual([expect.stringContaining(`'${path}'`), expect.stringContaining(`'${path}'`)]);
    const loose = [{ type: "function", function: { name: "f", parameters: schema } }];
    expect(parseChatRequest({ ...hello, tools: loose }).tools).toMatchObject([{ parameters: schema }]);
  });

  test("a response schema comes through whole", () => {
    const format = { type: "json_schema", json_schema: { name: "box", strict: true, schema: parameters } };

    expect(settingsOf({ response_format: format }).responseFormat).toEqual(format);
  });

  test("up to four stop texts", () => {
    expect(settingsOf({ stop: ["a", "b", "c", "d"] }).stop).toEqual(["a", "b", "c", "d"]);
  });
});

describe("in a session", () => {
  const user = (content: string): ChatMessage => ({ role: "user", content });
  const assistant = (content: string): ChatMessage => ({ role: "assistant", content });
  const system: ChatMessage = { role: "system", content: "Be brief." };

  test.each<[string, ChatMessage[], ChatMessage[]]>([
    ["a first message", [user("a")], [user("a")]],
    ["what follows the last reply", [user("a"), assistant("b"), user("c"), user("d")], [user("c"), user("d")]],
    [
      "instructions, wherever they stood",
      [system, user("a"), assistant("b"), { role: "developer", content: "Now." }, user("c")],
      [system, { role: "developer", content: "Now." }, user("c")],
    ],
    [
      "the answers of the client's own tools",
      [user("a"), assistant("b"), { role: "tool", toolCallId: "c", content: "42" }],
      [{ role: "tool", toolCallId: "c", content: "42" }],
    ],
    ["nothing, where the last word is a reply", [user("a"), assistant("b")], []],
  ])("%s count as new", (_what, messages, expected) => {
    expect(newMessagesOf(messages)).toEqual(expected);
  });
});

test("no body whatsoever does worse than to be refused", () => {
  const keys = [
    ...Object.keys(documented),
    "model",
    "messages",
    "stream_options",
    "role",
    "content",
    "type",
    "tool_calls",
    "function",
    "name",
  ];
  const value = fc.letrec((tie) => ({
    any: fc.oneof(
      { maxDepth: 4 },
      fc.constantFrom<unknown>(null, true, 0, -1, 1e300, "", "user", "text", "function", "auto"),
      fc.array(tie("any"), { maxLength: 3 }),
      fc.dictionary(fc.constantFrom(...keys), tie("any"), { maxKeys: 4 }),
    ),
  })).any;

  fc.assert(
    fc.property(fc.dictionary(fc.constantFrom(...keys), value), (more) => {
      try {
        expect(parseChatRequest({ ...hello, ...more }).messages.length).toBeGreaterThan(0);
      } catch (error) {
        expect(error).toMatchObject({ name: "AppError", client: { param: expect.any(String) } });
      }
    }),
    { numRuns: 500 },
  );
});
