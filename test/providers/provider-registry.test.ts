import { expect, test } from "vitest";
import { AppError } from "../../domain/app-error.ts";
import { createProviders } from "../../providers/provider-registry.ts";
import { finishCall } from "./one-call.ts";
import { dataEvents, namedEvents, startWireServer } from "./wire-server.ts";

test("each configured provider speaks its own protocol with its own key", async () => {
  const server = await startWireServer();
  const chat = dataEvents({ id: "c", choices: [{ index: 0, delta: { content: "chat" }, finish_reason: "stop" }] }, "[DONE]");
  const messages = namedEvents(
    { type: "message_start", message: { id: "m", usage: { input_tokens: 1, output_tokens: 1 } } },
    { type: "message_delta", delta: { stop_reason: "end_turn" }, usage: { output_tokens: 2 } },
    { type: "message_stop" },
  );
  const response = namedEvents({
    type: "response.completed",
    response: { id: "r", output: [], usage: { input_tokens: 1, output_tokens: 1 } },
  });
  server.answer({ steps: [chat] }, { steps: [messages] }, { steps: [chat] }, { steps: [response] });
  const providers = createProviders(
    [
      { name: "o", kind: "openai", baseUrl: `${server.url}/v1` },
      { name: "a", kind: "anthropic", baseUrl: server.url },
      { name: "local", kind: "openai-compatible", baseUrl: `${server.url}/api/v1/` },
      { name: "new", kind: "openai-compatible", api: "responses", baseUrl: `${server.url}/v1` },
      { name: "demo", kind: "demo" },
    ],
    new Map([
      ["o", [{ name: "OPENAI_API_KEY", secret: "sk-openai-key" }]],
      ["a", [{ name: "ANTHROPIC_API_KEY", secret: "sk-ant-key" }]],
    ]),
    { limitsOf: () => ({ contextWindow: 1_000, maxOutputTokens: 77 }) },
  );

  for (const provider of providers.values()) await finishCall(provider);
  await server.close();

  expect([...providers].map(([name, provider]) => [name, provider.name])).toEqual([
    ["o", "o"],
    ["a", "a"],
    ["local", "local"],
    ["new", "new"],
    ["demo", "demo"],
  ]);
  expect(server.requests.map(({ url, headers }) => [url, headers.authorization ?? headers["x-api-key"]])).toEqual([
    ["/v1/chat/completions", "Bearer sk-openai-key"],
    ["/v1/messages", "Bearer sk-ant-key"],
    ["/api/v1/chat/completions", undefined],
    ["/v1/responses", undefined],
  ]);
  expect(server.requests[1]?.body).toMatchObject({ max_tokens: 77 });
});

test("a provider without its key is an error of the configuration, not a silent one", () => {
  expect(() => createProviders([{ name: "a", kind: "anthropic" }], new Map())).toThrow(AppError);
  expect(() => createProviders([{ name: "a", kind: "anthropic" }], new Map())).toThrow("The provider 'a' has no API key.");
});
