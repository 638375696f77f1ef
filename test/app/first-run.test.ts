import { execFile } from "node:child_process";
import { readFileSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test } from "vitest";
import { leaksIn } from "../planted-secrets.ts";
import { type RunningProduct, startProduct } from "../product.ts";

const run = promisify(execFile);
const root = fileURLToPath(new URL("../..", import.meta.url));
let product: RunningProduct;
/** What was given out on the way, for a later test to look for. */
const tokens: string[] = [];
const keys: string[] = [];

beforeAll(async () => {
  product = await startProduct();
});
afterAll(async () => void (await product.stop()));

const openclaw = async (...args: string[]) =>
  await run(process.execPath, [join(root, "bin/openclaw.mjs"), ...args], {
    env: { ...process.env, OPENCLAW_HOME: product.home, OPENCLAW_URL: product.url, OPENCLAW_TOKEN: "", OPENCLAW_ADMIN_KEY: "" },
  }).then(
    ({ stdout, stderr }) => ({ code: 0, stdout, stderr }),
    (error: { code: number; stdout: string; stderr: string }) => ({ code: error.code, stdout: error.stdout, stderr: error.stderr }),
  );

test("the first screen tells the URLs, the admin key's place, a demo tenant with its token, and a curl line that works when pasted", async () => {
  const screen = product.output();
  expect(screen).toContain(`Gateway      ${product.url}`);
  expect(screen).toContain(`${product.url}/chat`);
  expect(screen).toMatch(/Temporal UI {2}http:\/\/127\.0\.0\.1:\d+/);
  expect(screen).toContain(join(product.home, "admin-key"));
  expect(screen).toContain(product.token);
  expect(product.token).toMatch(/^tk_demo_[0-9a-f]{32}$/);

  const curl = screen.split("\n").find((line) => line.startsWith("curl ")) ?? "";
  const { stdout } = await run("/bin/sh", ["-c", curl]);

  expect(stdout).toContain("[demo");
  expect(stdout.trimEnd()).toMatch(/data: \[DONE\]$/);
});

test("secrets in the home are the owner's alone", () => {
  for (const name of ["admin-key", "demo-token", "config.yaml", "gateway.log"])
    expect(statSync(join(product.home, name)).mode & 0o777).toBe(0o600);
});

test("the gateway is ready, and its page is there", async () => {
  expect((await fetch(`${product.url}/healthz`)).status).toBe(200);
  const ready = await fetch(`${product.url}/readyz`);
  expect(await ready.json()).toEqual({ status: "ok", checks: { config: "ok", database: "ok", temporal: "ok" } });
  expect(await (await fetch(`${product.url}/chat`)).text()).toContain("<!doctype html>");
});

test("a second start on a running home is refused and names the first", async () => {
  const second = await run(process.execPath, [join(root, "app/main.ts"), "start"], {
    env: { ...process.env, OPENCLAW_HOME: product.home },
  }).then(
    () => ({ code: 0, stderr: "" }),
    (error: { code: number; stderr: string }) => error,
  );

  expect(second.code).toBe(4);
  expect(second.stderr).toContain(product.url);
});

test("the command line creates and lists tenants, talks, and prints the bill", async () => {
  const created = await openclaw("tenants", "create", "acme", "--json");
  expect(created.code).toBe(0);
  const { token } = JSON.parse(created.stdout) as { token: string };
  expect(token).toMatch(/^tk_acme_[0-9a-f]{32}$/);
  tokens.push(token);
  expect((await openclaw("tenants", "create", "acme")).code).toBe(4);
  expect((await openclaw("tenants", "create", "Not A Slug")).code).not.toBe(0);
  expect((await openclaw("tenants", "list")).stdout).toContain("acme");
  expect((await openclaw("tenants", "list")).stdout).not.toContain(token);

  await fetch(`${product.url}/v1/chat/completions`, {
    method: "POST",
    headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
    body: JSON.stringify({ model: "default", messages: [{ role: "user", content: "hello" }] }),
  });
  const report = await openclaw("billing", "report", "acme", "--period", "today", "--csv");

  expect(report.code).toBe(0);
  const [header, row] = report.stdout.split("\n");
  expect(header).toBe("date,tenant,model,tokens_in,tokens_out,tokens_cached,reasoning_tokens,tool_calls,cost_usd");
  expect(row).toMatch(/^\d{4}-\d\d-\d\d,acme,demo,\d+,\d+,0,0,0,0\.\d{6}$/);
  expect(readFileSync(join(product.home, "gateway.log"), "utf8")).not.toContain(token);
  const verified = await openclaw("billing", "verify");
  expect([verified.code, verified.stderr]).toEqual([0, expect.stringMatching(/^2 rows of 2 tenants agree/)]);
});

test("a fresh install can try embeddings", async () => {
  const answer = await fetch(`${product.url}/v1/embeddings`, {
    method: "POST",
    headers: { authorization: `Bearer ${product.token}`, "content-type": "application/json" },
    body: JSON.stringify({ model: "demo-embedding", input: "hello" }),
  });

  expect(answer.status).toBe(200);
  expect(await answer.json()).toMatchObject({ object: "list", model: "demo-embedding", usage: { prompt_tokens: 1 } });
});

test("the command line rotates the keys while the gateway runs, and says each step once", async () => {
  const before = readFileSync(join(product.home, "kek"), "utf8");

  const rotated = await openclaw("keys", "rotate");

  expect([rotated.code, rotated.stderr]).toEqual([0, expect.stringContaining("The keys are rotated.")]);
  expect(rotated.stderr.match(/data keys renewed/g)).toHaveLength(1);
  expect(readFileSync(join(product.home, "kek"), "utf8")).not.toBe(before);
  keys.push(before);
  expect((await openclaw("doctor")).stdout).toMatch(/^ok +keys /m);
}, 30_000);

test("neither keys nor tokens are in the files of the database, of Temporal or of the log", () => {
  const raw = (name: string): Buffer => {
    const files = readdirSync(join(product.home, name), { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
    return Buffer.concat(files.map((entry) => readFileSync(join(entry.parentPath, entry.name))));
  };
  const database = raw("postgres/data");
  const temporal = raw("temporal");
  const log = readFileSync(join(product.home, "gateway.log"));
  keys.push(readFileSync(join(product.home, "kek"), "utf8"));
  const secrets: Record<string, string | Uint8Array> = {};
  for (const key of keys) Object.assign(secrets, { [`kek ${key}`]: key.trim(), [`bytes of kek ${key}`]: Buffer.from(key, "base64") });
  for (const token of [product.adminKey, product.token, ...tokens]) {
    const random = token.slice(-32);
    Object.assign(secrets, { [token]: token, [`random of ${token}`]: random, [`bytes of ${token}`]: Buffer.from(random, "hex") });
  }

  expect(keys.length + tokens.length).toBe(3);
  expect(leaksIn(database, { tenant: "acme", prompt: "hello" })).toEqual(["tenant", "prompt"]); // rows are text; what is found can be found
  expect(leaksIn(temporal, { workflow: "tenant:_system" })).toEqual(["workflow"]);
  for (const [place, bytes] of Object.entries({ database, temporal, log })) expect([place, leaksIn(bytes, secrets)]).toEqual([place, []]);
});

test("Ctrl-C stops everything cleanly within five seconds", async () => {
  const { exitCode, ms } = await product.stop();

  expect(exitCode).toBe(0);
  expect(ms).toBeLessThan(5_000); // contract: not a benchmark but a promise to whoever waits at the terminal
  await expect(fetch(`${product.url}/healthz`)).rejects.toThrow();
});
