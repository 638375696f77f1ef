import { execFile } from "node:child_process";
import { join } from "node:path";
import OpenAI from "openai";
import type { ResponseCreateParamsNonStreaming } from "openai/resources/responses/responses";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type ClientStage, startClientStage } from "./client-stage.ts";
import { type PythonClients, pythonClients } from "./python-venv.ts";

let stage: ClientStage;
let clients: PythonClients;

beforeAll(async () => {
  [clients, stage] = await Promise.all([pythonClients(), startClientStage()]);
}, 1_200_000);
afterAll(async () => await stage.close());

/** What the checker prints of objects that are handed to it. */
async function check(python: string, objects: readonly object[]): Promise<string> {
  return await new Promise((resolve, reject) => {
    const child = execFile(python, [join(import.meta.dirname, "check_responses.py")], { maxBuffer: 64 * 1024 * 1024 }, (error, stdout) =>
      error === null ? resolve(stdout) : reject(error),
    );
    child.stdin?.end(objects.map((object) => `${JSON.stringify(object)}\n`).join(""));
  });
}

const parameters = { type: "object", properties: { town: { type: "string" } }, required: ["town"], additionalProperties: false };
const questions: readonly Partial<ResponseCreateParamsNonStreaming>[] = [
  {},
  { instructions: "Be brief.", metadata: { a: "b" }, temperature: 0.5, reasoning: { effort: "low" }, prompt_cache_key: "k" },
  { include: ["message.output_text.logprobs"], top_logprobs: 1 },
  { input: "REFUSE this" },
  { max_output_tokens: 1 },
  { text: { format: { type: "json_object" }, verbosity: "low" } },
  { text: { format: { type: "json_schema", name: "answer", schema: parameters, strict: true, description: "A town" } } },
  {
    input: "What is the weather in Rome?",
    tools: [{ type: "function", name: "get_weather", strict: true, parameters }],
    tool_choice: { type: "allowed_tools", mode: "auto", tools: [{ type: "function", name: "get_weather" }] },
  },
];

test("every event and every response keeps to the published schema", { timeout: 120_000 }, async ({ skip }) => {
  if ("missing" in clients) return skip(clients.missing);
  const client = new OpenAI({ apiKey: stage.token, baseURL: stage.baseUrl, defaultHeaders: { "X-OpenClaw-Mode": "gateway" } });
  const objects: object[] = [];
  for (const question of questions) {
    const body = { model: "sample", input: "Tell of cats.", ...question };
    const made = await client.responses.create(body);
    objects.push(made, await client.responses.retrieve(made.id));
    for await (const event of await client.responses.create({ ...body, stream: true })) objects.push(event);
  }
  for (const question of questions) {
    const body = { model: "sample", input: "Later.", ...question, background: true, stream: true } as const;
    for await (const event of await client.responses.create(body)) objects.push(event);
  }
  const begun = await client.responses.create({ model: "sample", input: "Later.", background: true });
  objects.push(begun);
  for await (const event of await client.responses.retrieve(begun.id, { stream: true, include_obfuscation: true })) objects.push(event);
  const { id: conversation } = await client.conversations.create();
  objects.push(await client.responses.create({ model: "sample", input: "Together.", conversation }));

  const said = await check(clients.python, objects);
  const faults = await check(clients.python, [{ type: "response.output_text.delta", sequence_number: "none" }, { object: "response" }]);

  expect(said).toBe(`checked ${objects.length}\n`);
  expect(faults).toMatch(/checked 0\n$/);
});
