import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type ClientStage, startClientStage } from "./client-stage.ts";
import { pythonClients } from "./python-venv.ts";

let stage: ClientStage;

beforeAll(async () => {
  stage = await startClientStage();
});
afterAll(async () => await stage.close());

/** Installing the packages for the first time takes minutes. */
const timeout = 1_200_000;

/** What a program of the folder prints, whose only environment is the product's address and a token. */
async function runPython(python: string, program: string, options: readonly string[] = []): Promise<string> {
  const { HOME, PATH } = process.env;
  const env = { HOME, PATH, PYTHONDONTWRITEBYTECODE: "1", OPENCLAW_TEST_URL: stage.baseUrl, OPENCLAW_TEST_TOKEN: stage.token };
  const running = promisify(execFile)(python, [...options, join(import.meta.dirname, program)], { env, maxBuffer: 64 * 1024 * 1024 });
  const { stdout, stderr = "" } = await running.catch((failure: { stdout?: string; stderr?: string }) => ({ stdout: "", ...failure }));
  return `${stderr}${stdout}`.trimEnd();
}

test("LangChain's standard tests of chat models pass over Chat Completions, none of them skipped", { timeout }, async ({ skip }) => {
  const clients = await pythonClients();
  if ("missing" in clients) return skip(clients.missing);
  const options = ["-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "--disable-recording", "-W", "ignore"];
  // The client keeps its connections from one test to the next, and with them the loop.
  const loop = ["-o", "asyncio_mode=auto", "-o", "asyncio_default_test_loop_scope=session"];

  const output = await runPython(clients.python, "langchain_chat.py", [...options, ...loop]);

  const summary = output.split("\n").at(-1);
  expect(summary, output.slice(-20_000)).toMatch(/^50 passed in [\d.]+s/); // a test that is skipped, fails or is left out shows
});

test.for([
  ["completes, streams, parses, calls tools and is refused", "openai_chat.py"],
  ["keeps conversations, and follows a background response from any event on", "openai_conversations.py"],
] as const)("the official client for Python %s", { timeout }, async ([, program], { skip }) => {
  const clients = await pythonClients();
  if ("missing" in clients) return skip(clients.missing);

  expect(await runPython(clients.python, program)).toBe("all is well");
});

test.runIf(process.env["OPENCLAW_TEST_FULL"] === "1")(
  "LiteLLM as a client completes, streams and calls tools",
  { timeout },
  async ({ skip }) => {
    const clients = await pythonClients("requirements-litellm.txt");
    if ("missing" in clients) return skip(clients.missing);

    expect(await runPython(clients.python, "litellm_chat.py")).toMatch(/all is well$/); // it warns of what it does not find here
  },
);
