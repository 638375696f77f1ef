import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { AppError } from "../../domain/app-error.ts";
import type { ChatMessage, SamplingSettings } from "../../domain/conversation.ts";
import { newMessagesOf, parseChatRequest } from "../../gateway/chat-request.ts";

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

  expect(request).toMatchObject({ model: "m", messages: [{ role: "user", content: "hi" }], tools: [], stream: false, includeUsage: false });
  expect(given(request.settings)).toEqual({});
});

/** Every field that OpenAI documents for `POST /v1/chat/completions` (API reference, 2026), in its order. */
const documented: Readonly<Record<string, { readonly sent: unknown; readonly becomes?: object; readonly refused?: true }>> = {
  audio: { sent: { format: "mp3", voice: "alloy" }, refused: true },
  frequency_penalty: { sent: -0.5, becomes: { frequencyPenalty: -0.5 } },
  function_call: { sent: "auto", refused: true },
  functions: { sent: [{ name: "f" }], refused: true },
  logit_bias: { sent: { "50256": -100 }, refused: true },
  logprobs: { sent: true, refused: true },
  max_completion_tokens: { sent: 7, becomes: { maxTokens: 7 } },
  max_tokens: { sent: 9, becomes: { maxTokens: 9 } },
  metadata: { sent: { a: "b" }, becomes: {} },
  modalities: { sent: ["text", "audio"], refused: true },
  n: { sent: 1, becomes: {} },
  parallel_tool_calls: { sent: false, becomes: { parallelToolCalls: false } },
  prediction: { sent: { type: "content", content: "x" }, refused: true },
  presence_penalty: { sent: 2, becomes: { presencePenalty: 2 } },
  prompt_cache_key: { sent: "k", refused: true },
  prompt_cache_retention: { sent: "24h", refused: true },
  reasoning_effort: { sent: "low", becomes: { reasoningEffort: "low" } },
  response_format: { sent: { type: "json_object" }, becomes: { responseFormat: { type: "json_object" } } },
  safety_identifier: { sent: "s", refused: true },
  seed: { sent: -3, becomes: { seed: -3 } },
  service_tier: { sent: "flex", refused: true },
  stop: { sent: "END", becomes: { stop: ["END"] } },
  store: { sent: true, refused: true },
  stream: { sent: false, becomes: {} },
  temperature: { sent: 0, becomes: { temperature: 0 } },
  tool_choice: { sent: "none", becomes: { toolChoice: "none" } },
  tools: { sent: [], becomes: {} },
  top_logprobs: { sent: 3, refused: true },
  top_p: { sent: 0.1, becomes: { topP: 0.1 } },
  user: { sent: "jane", becomes: {} },
  verbosity: { sent: "low", refused: true },
  web_search_options: { sent: {}, refused: true },
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

test.each(honoured)("%s is honoured", (name, { sent, becomes }) => {
  expect(given(settingsOf({ [name]: sent }))).toEqual(becomes);
});

test("null is as good as absent for every optional field", () => {
  const nulls = Object.fromEntries(Object.keys(documented).map((name) => [name, null]));

  expect(parseChatRequest({ ...hello, ...nulls, stream_options: null })).toEqual(parseChatRequest(hello));
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
    [{ messages: [{ role: "function", name: "f", content: "hi" }] }, "messages.0.role"],
    [{ messages: [{ role: "user" }] }, "messages.0.content"],
    [{ messages: [{ role: "user", content: null }] }, "messages.0.content"],
    [{ messages: [{ role: "user", content: [] }] }, "messages.0.content"],
    [{ messages: [...hello.messages, { role: "user", content: [{ type: "text" }] }] }, "messages.1.content.0.text"],
    [{ messages: [{ role: "user", content: [{ type: "input_audio", input_audio: {} }] }] }, "messages.0.content.0.type"],
    [{ messages: [{ role: "user", content: [{ type: "file", file: {} }] }] }, "messages.0.content.0.type"],
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
    [{ stream: true, stream_options: { include_obfuscation: true } }, "stream_options.include_obfuscation"],
    [{ tools: [{ type: "custom", custom: { name: "f" } }] }, "tools.0.type"],
    [{ tools: [tool, { type: "function", function: { name: "bad name" } }] }, "tools.1.function.name"],
    [{ tools: [{ type: "function", function: { name: "f", parameters: [] } }] }, "tools.0.function.parameters"],
    [{ tools: Array.from({ length: 129 }, () => tool) }, "tools"],
    [{ tool_choice: "always" }, "tool_choice"],
    [{ tool_choice: { type: "function", function: {} } }, "tool_choice.function.name"],
    [{ tool_choice: { type: "allowed_tools", allowed_tools: {} } }, "tool_choice.type"],
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
      includeUsage: true,
    });
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
      { role: "user", content: "What is in the box?" },
      { role: "assistant", content: null, toolCalls: [{ id: "c", name: "open", arguments: '{"box":' }] },
      { role: "tool", toolCallId: "c", content: "a cat" },
      { role: "assistant", content: "A cat.", toolCalls: undefined },
      { role: "assistant", content: null, toolCalls: [] },
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

  test("keep every character of their text", () => {
    fc.assert(
      fc.property(fc.string({ unit: fc.nat(0xff_ff).map((unit) => String.fromCharCode(unit)) }), (content) => {
        expect(parseChatRequest({ ...hello, messages: [{ role: "user", content }] }).messages).toEqual([{ role: "user", content }]);
      }),
    );
  });
});

describe("tools", () => {
  const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };

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
  ])("are chosen by %j", (sent, choice) => {
    expect(settingsOf({ tools: [tool], tool_choice: sent }).toolChoice).toEqual(choice);
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
