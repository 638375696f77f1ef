import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type ClientStage, startClientStage } from "./client-stage.ts";
import { type PythonClients, pythonClients } from "./python-venv.ts";

let stage: ClientStage;
let clients: PythonClients;

beforeAll(async () => {
  [clients, stage] = await Promise.all([pythonClients(), startClientStage()]);
}, 1_200_000);
afterAll(async () => await stage.close());

test("LangChain's standard tests of chat models pass over Responses, none of them skipped", { timeout: 600_000 }, async ({ skip }) => {
  if ("missing" in clients) return skip(clients.missing);
  const options = ["-q", "-rA", "-p", "no:cacheprovider", "--disable-recording", "-W", "ignore"];
  // The client keeps its connections from one test to the next, and with them the loop.
  const loop = ["-o", "asyncio_mode=auto", "-o", "asyncio_default_test_loop_scope=session"];

  const { stdout } = await promisify(execFile)(
    clients.python,
    ["-m", "pytest", ...options, ...loop, join(import.meta.dirname, "langchain_chat.py")],
    {
      env: {
        PATH: process.env["PATH"],
        HOME: process.env["HOME"],
        PYTHONDONTWRITEBYTECODE: "1",
        LANGSMITH_TRACING: "false",
        OPENCLAW_TEST_URL: stage.baseUrl,
        OPENCLAW_TEST_TOKEN: stage.token,
        OPENCLAW_TEST_API: "responses",
      },
      maxBuffer: 64 * 1024 * 1024,
    },
  ).catch((failure: { stdout?: string }) => ({ stdout: failure.stdout ?? String(failure) }));

  const summary = stdout.trimEnd().split("\n").at(-1);
  expect(summary, stdout.slice(-20_000)).toMatch(/^50 passed in [\d.]+s/); // a test that is skipped, fails or is left out shows
});
