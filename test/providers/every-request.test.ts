import fc from "fast-check";
import { expect, test } from "vitest";
import { parseChatRequest } from "../../gateway/chat-request.ts";
import { toAnthropicRequest } from "../../providers/anthropic-request.ts";
import { ModelCallError, type ModelRequest } from "../../providers/model-provider.ts";
import { toOpenAiRequest } from "../../providers/openai-request.ts";
import { toResponsesRequest } from "../../providers/responses-request.ts";

const text = fc.string({ unit: "grapheme", maxLength: 12 });
const someText = fc.string({ minLength: 1, maxLength: 12 });
const json: fc.Arbitrary<Record<string, unknown>> = fc.letrec((tie) => ({
  schema: fc.oneof(
    { maxDepth: 3 },
    fc.record({ type: fc.constantFrom("string", "integer", "null", ["string", "null"]), minimum: fc.nat() }, { requiredKeys: [] }),
    fc.record({ type: fc.constant("object"), properties: fc.dictionary(fc.constantFrom("a", "b", "__proto__"), tie("schema")) }),
    fc.record({ type: fc.constant("array"), items: tie("schema") }),
    fc.record({ anyOf: fc.array(tie("schema"), { maxLength: 2 }), $ref: fc.constant("#/$defs/a") }, { requiredKeys: [] }),
    fc.dictionary(fc.constantFrom("type", "$defs", "enum", "anyOf"), fc.anything({ maxDepth: 1 })),
  ),
})).schema as fc.Arbitrary<Record<string, unknown>>;

const part = fc.oneof(
  fc.record({ type: fc.constant("text"), text }),
  fc.record({
    type: fc.constant("image_url"),
    image_url: fc.record({ url: fc.constantFrom("https://a.b/c.png", "data:image/png;base64,AA==", "x") }),
  }),
  fc.record({ type: fc.constant("input_audio"), input_audio: fc.record({ data: someText, format: fc.constantFrom("wav", "mp3") }) }),
  fc.record({
    type: fc.constant("file"),
    file: fc.record({ file_data: fc.constantFrom("data:text/plain;base64,SGk=", "JVBERi0=", "x"), filename: text }),
  }),
);
const call = fc.oneof(
  fc.record({ id: someText, type: fc.constant("function"), function: fc.record({ name: text, arguments: text }) }),
  fc.record({ id: someText, type: fc.constant("custom"), custom: fc.record({ name: text, input: text }) }),
);
const message = fc.oneof(
  fc.record({ role: fc.constantFrom("system", "developer"), content: text, name: text }, { requiredKeys: ["role", "content"] }),
  fc.record({ role: fc.constant("user"), content: fc.oneof(text, fc.array(part, { minLength: 1, maxLength: 3 })) }),
  fc.record(
    { role: fc.constant("assistant"), content: fc.option(text), tool_calls: fc.array(call, { maxLength: 2 }), refusal: fc.option(text) },
    { requiredKeys: ["role"] },
  ),
  fc.record({ role: fc.constant("tool"), tool_call_id: someText, content: fc.oneof(text, fc.array(part, { maxLength: 2 })) }),
);
const tools = [
  { type: "function", function: { name: "f", parameters: { type: "object" } } },
  { type: "custom", custom: { name: "c" } },
];
const body = fc.record(
  {
    messages: fc.array(message, { minLength: 1, maxLength: 4 }),
    tools: fc.subarray(tools),
    tool_choice: fc.constantFrom("auto", "none", "required", { type: "function", function: { name: "f" } }),
    reasoning_effort: fc.constantFrom("none", "minimal", "high", "toString"),
    response_format: fc.oneof(
      fc.constantFrom({ type: "text" }, { type: "json_object" }),
      fc.record({ type: fc.constant("json_schema"), json_schema: fc.record({ name: fc.constant("a"), schema: json }) }),
    ),
    stop: fc.oneof(text, fc.array(text, { minLength: 1, maxLength: 4 })),
    max_tokens: fc.integer({ min: 1, max: 5_000 }),
    service_tier: fc.constantFrom("auto", "flex"),
    logprobs: fc.boolean(),
    seed: fc.integer(),
  },
  { requiredKeys: ["messages"] },
);

test("whatever passes the gateway is put into each provider's words, or refused by its name", () => {
  const adapters: readonly ((request: ModelRequest) => object)[] = [
    (request) => toOpenAiRequest("p", "openai", request),
    (request) => toOpenAiRequest("p", "openai-compatible", request),
    (request) => toResponsesRequest("p", request),
    (request) => toAnthropicRequest("p", request, { contextWindow: 9_000, maxOutputTokens: 5_000 }),
  ];
  const outcomes = new Set<string>();
  const attempt = (make: () => object): string => {
    try {
      return JSON.stringify(make()) === "" ? "nothing" : "sent";
    } catch (error) {
      if (!(error instanceof ModelCallError) || error.unsupported === undefined) throw error;
      return "refused";
    }
  };

  fc.assert(
    fc.property(body, fc.constantFrom("m", "claude-opus-4-1"), (given, model) => {
      let request: ModelRequest;
      try {
        request = { ...parseChatRequest({ model, ...given }), model, callId: "trn_1.0" };
      } catch {
        return; // refused at the gateway, as other tests show
      }
      for (const adapter of adapters) outcomes.add(attempt(() => adapter(request)));
    }),
    { numRuns: 2_000 },
  );

  expect(outcomes).toEqual(new Set(["sent", "refused"]));
});
