import { spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, writeFileSync } from "node:fs";
import { createServer, type AddressInfo } from "node:net";
import { join } from "node:path";
import { expect, test } from "vitest";
import { adminKeyPath } from "../../control-plane/credentials.ts";
import { mintAdminKey, mintTenantToken } from "../../control-plane/credentials.ts";
import { gatewayRecordPath } from "../../control-plane/gateway-record.ts";
import { parseTenantId } from "../../domain/tenant.ts";
import { binPath, fakeGateway, openclaw, run, sendError, sendJson, type Respond } from "./cli-stage.ts";
import { emptyHome } from "./control-stage.ts";

const adminKey = mintAdminKey("root").key;
const { token } = mintTenantToken(parseTenantId("acme"));

/** A gateway and the variables of an administrator who speaks to it. */
async function asAdmin(respond: Respond) {
  const gateway = await fakeGateway(respond);
  return { ...gateway, variables: { OPENCLAW_HOME: emptyHome(), OPENCLAW_URL: gateway.url, OPENCLAW_ADMIN_KEY: adminKey } };
}

test("a tenant is made, and its token is the answer", async () => {
  const { seen, variables } = await asAdmin((_request, response) => sendJson(response, { tenant: "acme", token }, 201));

  const plain = await openclaw(["tenants", "create", "acme", "--display-name", "Acme Ltd", "--markup", "0.10"], variables);
  const json = await openclaw(["tenants", "create", "acme", "--json"], variables);

  expect(plain).toEqual({ code: 0, stdout: `${token}\n`, stderr: "" });
  expect(JSON.parse(json.stdout)).toEqual({ tenant: "acme", token });
  expect(seen[0]).toEqual({
    method: "POST",
    path: "/v1/tenants",
    authorization: `Bearer ${adminKey}`,
    session: undefined,
    body: { id: "acme", display_name: "Acme Ltd", markup: "0.10" },
  });
});

const tenants = [
  { id: "acme", display_name: "Acme\u001b[2J\tLtd", state: "active", markup_ppm: 100_000, created_at: "2026-06-03T10:14:22.000Z" },
  { id: "globex", display_name: null, state: "suspended", markup_ppm: null, created_at: "2026-06-04T00:00:00.000Z" },
];

test("tenants are a table for a person, tab-separated lines for a script, JSON on request", async () => {
  const { variables } = await asAdmin(({ path }, response) =>
    sendJson(response, path === "/v1/tenants" ? { object: "list", data: tenants } : tenants[0]),
  );

  const script = await openclaw(["tenants", "list"], variables);
  const person = await openclaw(["tenants", "list"], { ...variables, NO_COLOR: "1" }, { interactive: true });
  const coloured = await openclaw(["tenants", "list"], variables, { interactive: true });
  const json = await openclaw(["tenants", "list", "--json"], variables);
  const one = await openclaw(["tenants", "show", "acme"], variables);

  expect(script.stdout).toBe("acme\tactive\t2026-06-03T10:14:22.000Z\tAcme\u001b[2J Ltd\nglobex\tsuspended\t2026-06-04T00:00:00.000Z\t\n");
  expect(person.stdout).toBe(
    "TENANT  STATE      CREATED                   NAME\nacme    active     2026-06-03T10:14:22.000Z  Acme[2J Ltd\nglobex  suspended  2026-06-04T00:00:00.000Z\n",
  );
  expect(coloured.stdout).toContain("\u001b[1mTENANT");
  expect(JSON.parse(json.stdout)).toEqual({ object: "list", data: tenants });
  expect(one.stdout).toMatch(/^markup +10 %$/m);
});

test("ceilings are given with _ between digits, one at a time, and money stays text", async () => {
  const quota = { tokens_per_day: 2_000_000, cost_per_day_usd: "12.5", requests_per_minute: null };
  const { seen, variables } = await asAdmin(({ method }, response) =>
    sendJson(response, method === "POST" ? { tenant: "acme", token } : quota, method === "POST" ? 201 : 200),
  );

  await openclaw(["tenants", "create", "acme", "--tokens-per-day", "2_000_000"], variables);
  const updated = await openclaw(
    ["tenants", "quota", "update", "acme", "--cost-per-day-usd", "12.50", "--requests-per-minute", "none"],
    variables,
  );
  const json = await openclaw(["tenants", "quota", "show", "acme", "--json"], variables);

  expect(seen.map(({ method, path, body }) => [method, path, body])).toEqual([
    ["POST", "/v1/tenants", { id: "acme", quota: { tokens_per_day: 2_000_000 } }],
    ["PUT", "/v1/tenants/acme/quota", { cost_per_day_usd: "12.50", requests_per_minute: null }],
    ["GET", "/v1/tenants/acme/quota", undefined],
  ]);
  expect(updated.stdout).toMatch(/tokens per day +2,000,000\nUS dollars per day +12\.5\nrequests per minute +no ceiling\n/);
  expect(JSON.parse(json.stdout)).toEqual(quota);
});

test("a deletion is confirmed by the id, followed on stderr, and fails as its workflow does", async () => {
  let asked = 0;
  const progress = (done: number, at: string) => ({ steps: [{ name: "runs ended", state: at }], done, total: 2 });
  const { seen, variables } = await asAdmin(({ method, path }, response) => {
    if (method === "DELETE") return sendJson(response, { workflow_id: `erase:${path.includes("bad") ? "bad" : "acme"}` }, 202);
    if (path.endsWith("bad")) return sendJson(response, { workflow_id: "erase:bad", state: "failed", progress: null });
    const state = ++asked < 3 ? "running" : "done";
    return sendJson(response, { workflow_id: "erase:acme", state, progress: progress(asked - 1, "running") });
  });

  const unconfirmed = await openclaw(["tenants", "delete", "acme", "--confirm", "globex"], variables);
  const deleted = await openclaw(["tenants", "delete", "acme", "--confirm", "acme"], variables);
  const failed = await openclaw(["tenants", "delete", "bad", "--confirm", "bad"], variables);

  expect(unconfirmed).toMatchObject({ code: 2, stderr: expect.stringContaining("--confirm acme") });
  expect(seen[0]).toMatchObject({ method: "DELETE", path: "/v1/tenants/acme?confirm=acme" });
  expect(deleted).toMatchObject({ code: 0, stdout: "" });
  expect(deleted.stderr).toMatch(/0 % {2}runs ended\n.* 50 % {2}runs ended\n.*100 % {2}done\nTenant acme is deleted\.\n/);
  expect(failed).toMatchObject({ code: 1, stderr: expect.stringContaining("erase:bad failed") });
});

test("a report is CSV for a script, byte for byte, and a table for a person", async () => {
  const csv =
    "date,tenant,model,tokens_in,tokens_out,tokens_cached,reasoning_tokens,tool_calls,cost_usd\n2026-06-03,acme,claude-opus-4-7,142500,38200,12300,5400,42,5.968545\n";
  const { seen, variables } = await asAdmin(({ path }, response) => {
    if (path.includes("format=csv")) response.end(csv);
    else
      sendJson(response, {
        total_cost_usd: "5.968545000",
        rows: [
          {
            date: "2026-06-03",
            model: "claude-opus-4-7",
            tokens_in: 142_500,
            tokens_out: 38_200,
            tokens_cached: 12_300,
            reasoning_tokens: 5_400,
            tool_calls: 42,
            cost_usd: "5.968545000",
          },
        ],
      });
  });
  const words = ["billing", "report", "acme", "--period", "2026-06"];

  expect(await openclaw(words, variables)).toEqual({ code: 0, stdout: csv, stderr: "" });
  expect(await openclaw([...words, "--csv", "--detail"], variables)).toEqual({ code: 0, stdout: csv, stderr: "" });
  expect(JSON.parse((await openclaw([...words, "--json"], variables)).stdout)).toMatchObject({ total_cost_usd: "5.968545000" });
  const person = await openclaw(words, { ...variables, NO_COLOR: "1" }, { interactive: true });
  expect(person.stdout).toBe(
    "DATE        MODEL                 IN     OUT  CACHED  REASONING  TOOLS          USD\n2026-06-03  claude-opus-4-7  142,500  38,200  12,300      5,400     42  5.968545000\nTotal 5.968545000 USD\n",
  );
  expect(seen.map(({ path }) => path)).toEqual([
    "/v1/billing/report?tenant=acme&period=2026-06&format=csv",
    "/v1/billing/report?tenant=acme&period=2026-06&format=csv&detail=true",
    "/v1/billing/report?tenant=acme&period=2026-06&format=json",
    "/v1/billing/report?tenant=acme&period=2026-06&format=json",
  ]);
});

test("a report that breaks off is a failure, not a short report", async () => {
  const { variables } = await asAdmin((_request, response) => {
    response.writeHead(200, { "transfer-encoding": "chunked" }).write("date,tenant\n");
    setTimeout(() => response.destroy(), 50);
  });

  expect(await openclaw(["billing", "report", "acme", "--period", "today", "--csv"], variables)).toEqual({
    code: 1,
    stdout: "date,tenant\n",
    stderr: "openclaw: The report broke off before its end.\n",
  });
});

test("an explanation is its sentence", async () => {
  const { seen, variables } = await asAdmin((_request, response) => sendJson(response, { id: "trn_1.0", sentence: "On 2026-06-03 …" }));

  expect(await openclaw(["billing", "explain", "trn_1.0"], variables)).toEqual({ code: 0, stdout: "On 2026-06-03 …\n", stderr: "" });
  expect(seen[0]?.path).toBe("/v1/billing/rows/trn_1.0/explain");
});

test.each([
  [400, "invalid_period", 1],
  [401, "invalid_api_key", 4],
  [403, "forbidden", 4],
  [404, "not_found", 1],
  [409, "conflict", 4],
  [429, "tokens_per_day", 4],
  [500, "internal", 1],
  [503, "unavailable", 1],
])("an answer %i (%s) ends with exit code %i and one line", async (status, code, exit) => {
  const { variables } = await asAdmin((_request, response) => sendError(response, status, code, "So it\nis."));

  const outcome = await openclaw(["tenants", "list"], variables);

  expect(outcome.code).toBe(exit);
  expect(outcome.stdout).toBe("");
  expect(outcome.stderr).toMatch(/^openclaw: So it is\..*\n$/);
});

test("help that is asked for is an answer", async () => {
  const { code, stdout, stderr } = await openclaw(["billing", "--help"], {});

  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  expect(stdout).toContain("explain");
});

test.each([
  [["tenants", "create", "a_b"]],
  [["tenants", "creat", "acme"]],
  [["tenants"]],
  [["billing", "report", "acme"]],
  [["billing", "report", "acme", "--period", "tomorrow"]],
  [["billing", "report", "acme", "--period", "today", "--csv", "--json"]],
  [["agent", "--tenant", "acme"]],
  [["agent", "--tenant", "acme", "--message", "hi", "--session", "xx:y:z"]],
  [["start", "--role", "king"]],
  [["completion", "fish"]],
  [["tenants", "suspend", "a_b"]],
  [["tenants", "delete", "acme"]],
  [["tenants", "quota", "update", "acme"]],
  [["tenants", "quota", "update", "acme", "--tokens-per-day", "1__0"]],
  [["tenants", "quota", "update", "acme", "--cost-per-day-usd", "1e3"]],
  [["tenants", "token", "rotate"]],
  [["admin-keys", "create", "ops"]],
  [["audit"]],
  [["--frobnicate"]],
  [[]],
])("%j is a usage error", async (words) => {
  const outcome = await openclaw(words, { OPENCLAW_HOME: emptyHome(), OPENCLAW_URL: "http://127.0.0.1:1", OPENCLAW_TOKEN: token });

  expect(outcome.code).toBe(2);
  expect(outcome.stdout).toBe("");
});

test("a malformed variable is a usage error that does not show its value", async () => {
  const outcome = await openclaw(["tenants", "list"], { OPENCLAW_HOME: emptyHome(), OPENCLAW_TOKEN: "hunter2" });

  expect(outcome).toMatchObject({ code: 2, stderr: expect.stringContaining("OPENCLAW_TOKEN") });
  expect(outcome.stderr).not.toContain("hunter2");
});

/** A port where nobody listens. */
async function closedUrl(): Promise<string> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return `http://127.0.0.1:${port}`;
}

test("no gateway, a gateway that is gone, and one that does not answer are not reachable", async () => {
  const home = emptyHome();
  const variables = { OPENCLAW_HOME: home, OPENCLAW_ADMIN_KEY: adminKey };
  const nobody = { ...variables, OPENCLAW_URL: await closedUrl() };

  expect(await openclaw(["tenants", "list"], variables)).toMatchObject({ code: 3, stderr: expect.stringContaining("openclaw start") });
  expect(await openclaw(["tenants", "list"], nobody)).toMatchObject({ code: 3, stderr: expect.stringContaining("ECONNREFUSED") });
  expect(await openclaw(["status"], nobody)).toMatchObject({ code: 3 });

  const { url, seen } = await fakeGateway((_request, response) => sendJson(response, {}));
  writeFileSync(gatewayRecordPath(home), JSON.stringify({ url, pid: process.pid })); // alive, and no gateway
  expect(await openclaw(["tenants", "list"], variables)).toMatchObject({ code: 3, stderr: expect.stringContaining("left over") });
  expect(seen).toEqual([]); // it was not shown the credential
});

test("a redirect is not followed: the credential stays where it was meant to go", async () => {
  const elsewhere = await fakeGateway((_request, response) => sendJson(response, { data: [] }));
  const { variables } = await asAdmin((_request, response) => response.writeHead(307, { location: `${elsewhere.url}/v1/tenants` }).end());

  expect(await openclaw(["tenants", "list"], variables)).toMatchObject({ code: 3 });
  expect(elsewhere.seen).toEqual([]);
});

test("the credential is OPENCLAW_TOKEN, else OPENCLAW_ADMIN_KEY, else the home's file", async () => {
  const { url, seen } = await fakeGateway((_request, response) => sendJson(response, { data: [] }));
  const home = emptyHome();
  const fileKey = mintAdminKey("file").key;
  const base = { OPENCLAW_HOME: home, OPENCLAW_URL: url };

  expect(await openclaw(["tenants", "list"], base)).toMatchObject({ code: 4, stderr: expect.stringContaining("No credential") });
  writeFileSync(adminKeyPath(home), `${fileKey}\n`);
  await openclaw(["tenants", "list"], base);
  await openclaw(["tenants", "list"], { ...base, OPENCLAW_ADMIN_KEY: adminKey });
  await openclaw(["tenants", "list"], { ...base, OPENCLAW_ADMIN_KEY: adminKey, OPENCLAW_TOKEN: token });

  expect(seen.map(({ authorization }) => authorization)).toEqual([fileKey, adminKey, token].map((credential) => `Bearer ${credential}`));
});

const event = (data: unknown): string => `data: ${typeof data === "string" ? data : JSON.stringify(data)}\n\n`;
const delta = (content: string): string => event({ choices: [{ index: 0, delta: { content } }] });

test("an answer is printed as it comes, whatever the cuts of its bytes", async () => {
  const bytes = Buffer.from(
    `: hello\r\n\r\n${event({ choices: [{ index: 0, delta: { role: "assistant" } }] })}${delta("Grüße, ")}${delta("Jane €")}${event({ choices: [], usage: {} })}${event("[DONE]")}`,
  );
  const { url, seen } = await fakeGateway((_request, response) => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    let at = 0;
    const next = (): void => {
      if (at >= bytes.length) return void response.end();
      response.write(bytes.subarray(at, (at += 7)), () => setImmediate(next));
    };
    next();
  });
  const variables = { OPENCLAW_HOME: emptyHome(), OPENCLAW_URL: `${url}/`, OPENCLAW_TOKEN: token };

  const outcome = await openclaw(["agent", "--tenant", "acme", "--message", "hello", "--session", "jane doe"], variables);

  expect(outcome).toEqual({ code: 0, stdout: "Grüße, Jane €\n", stderr: "" });
  expect(seen[0]).toMatchObject({
    path: "/v1/chat/completions",
    session: "api:jane%20doe:default",
    body: { model: "default", stream: true, messages: [{ role: "user", content: "hello" }] },
  });
});

test("an answer cannot drive the terminal", async () => {
  const { url } = await fakeGateway((_request, response) =>
    response.end(delta("a\u001b]0;owned\u0007b\u001b[2Jc\u009b31md\n") + event("[DONE]")),
  );

  const outcome = await openclaw(
    ["agent", "--tenant", "acme", "--message", "x"],
    { OPENCLAW_HOME: emptyHome(), OPENCLAW_URL: url, OPENCLAW_TOKEN: token },
    { interactive: true },
  );

  expect(outcome.stdout).toBe("a]0;ownedb[2Jc31md\n");
});

test.each([
  ["breaks off", delta("half"), 1, "broke off"],
  [
    "reports a quota",
    delta("half") + event({ error: { message: "The tokens of this day are used up.", type: "quota_exceeded", code: "tokens_per_day" } }),
    4,
    "used up",
  ],
  [
    "reports a provider's failure",
    event({ error: { message: "The model provider did not answer.", type: "provider_error" } }),
    1,
    "did not answer",
  ],
])("a stream that %s is not a whole answer", async (_name, body, code, says) => {
  const { url } = await fakeGateway((_request, response) => response.end(body));

  const outcome = await openclaw(["agent", "--tenant", "acme", "--message", "x"], {
    OPENCLAW_HOME: emptyHome(),
    OPENCLAW_URL: url,
    OPENCLAW_TOKEN: token,
  });

  expect(outcome).toMatchObject({ code, stderr: expect.stringContaining(says) });
});

test("agent --json prints the turn", async () => {
  const { url, seen } = await fakeGateway((_request, response) => {
    response.setHeader("x-request-id", "trn_01");
    sendJson(response, { model: "demo", choices: [{ message: { content: "Hi" }, finish_reason: "stop" }], usage: { total_tokens: 3 } });
  });

  const outcome = await openclaw(["agent", "--tenant", "acme", "--message", "x", "--json"], {
    OPENCLAW_HOME: emptyHome(),
    OPENCLAW_URL: url,
    OPENCLAW_TOKEN: token,
  });

  expect(JSON.parse(outcome.stdout)).toEqual({
    turn_id: "trn_01",
    model: "demo",
    reply: "Hi",
    finish_reason: "stop",
    usage: { total_tokens: 3 },
  });
  expect(seen[0]).toMatchObject({ session: undefined, body: { stream: false } });
});

test("an admin key or another tenant's token is refused before anything is sent", async () => {
  const { seen, variables, url } = await asAdmin((_request, response) => response.end());

  expect(await openclaw(["agent", "--tenant", "acme", "--message", "x"], variables)).toMatchObject({
    code: 4,
    stderr: expect.stringContaining("A tenant token is needed"),
  });
  expect(
    await openclaw(["agent", "--tenant", "globex", "--message", "x"], {
      OPENCLAW_HOME: emptyHome(),
      OPENCLAW_URL: url,
      OPENCLAW_TOKEN: token,
    }),
  ).toMatchObject({
    code: 4,
    stderr: expect.stringContaining("belongs to the tenant acme"),
  });
  expect(seen).toEqual([]);
});

test("status of a gateway elsewhere tells what can be known from here", async () => {
  const { url } = await fakeGateway((_request, response) =>
    sendJson(response, { status: "unavailable", checks: { postgres: "ok", temporal: "failed" } }, 503),
  );

  const outcome = await openclaw(["status", "--json"], { OPENCLAW_HOME: emptyHome(), OPENCLAW_URL: url });

  expect(outcome.code).toBe(0);
  expect(JSON.parse(outcome.stdout)).toEqual({
    gateway: { url, pid: null, ready: false, checks: { postgres: "ok", temporal: "failed" } },
    temporal: { address: null, namespace: null, ui: null, cli: null },
    database: {},
  });
});

test("doctor names what is missing and how to mend it", async () => {
  const home = emptyHome();
  const { url } = await fakeGateway((_request, response) => response.end());
  const taken = new URL(url).port;
  mkdirSync(join(home, "empty"));
  writeFileSync(join(home, "config.yaml"), "default_modle: x\n");

  const outcome = await openclaw(["doctor", "--json"], {
    OPENCLAW_HOME: home,
    OPENCLAW_PORT: taken,
    DATABASE_URL: "postgres://x@127.0.0.1:1/x",
    TEMPORAL_CLI_PATH: join(home, "no-such-file"),
    PATH: join(home, "empty"),
    HOME: home,
  });

  const { ok, findings } = JSON.parse(outcome.stdout) as {
    ok: boolean;
    findings: { check: string; state: string; says: string; mend?: string }[];
  };
  expect(ok).toBe(false);
  expect(outcome.code).toBe(1);
  const failed = findings.filter(({ state }) => state === "failed").map(({ check }) => check);
  expect(failed).toEqual(expect.arrayContaining(["temporal", "postgres", "port", "config"]));
  expect(findings.find(({ check }) => check === "node")?.state).toBe("ok");
  expect(findings.find(({ check }) => check === "config")?.says).toContain("line 1: default_modle");
});

test.each(["bash", "zsh"])("the %s completion knows the commands that exist and no others", async (shell) => {
  const { code, stdout } = await openclaw(["completion", shell], {});

  expect(code).toBe(0);
  expect(stdout).toContain('"tenants") candidates="create list show suspend resume delete quota token overlay --help"');
  expect(stdout).toContain('"tenants token revoke") candidates="--offline --json --help"');
  expect(stdout).toContain('"billing report") candidates="--period --csv --json --detail --help"');
  for (const absent of ["onboard"]) expect(stdout).not.toContain(absent);
});

test("the bash completion completes", () => {
  const script = `eval "$("$NODE" "$BIN" completion bash)"; COMP_WORDS=(openclaw billing report acme --p); COMP_CWORD=4; _openclaw; echo "\${COMPREPLY[*]}"; COMP_WORDS=(openclaw t); COMP_CWORD=1; _openclaw; echo "\${COMPREPLY[*]}"`;

  const { stdout, status } = spawnSync("bash", ["-c", script], {
    encoding: "utf8",
    env: { PATH: process.env["PATH"], NODE: process.execPath, BIN: binPath },
  });

  expect({ stdout, status }).toEqual({ stdout: "--period\ntenants\n", status: 0 });
});

test("the packaged command runs, passes its exit code on and ends quietly when its reader has left", async () => {
  const { variables } = await asAdmin((_request, response) => sendJson(response, { data: tenants }));

  expect(await run(process.execPath, [binPath, "tenants", "list"], variables)).toMatchObject({
    code: 0,
    stderr: "",
    stdout: expect.stringMatching(/^acme\t/),
  });
  expect(await run(process.execPath, [binPath, "tenants", "list"], { ...variables, OPENCLAW_URL: await closedUrl() })).toMatchObject({
    code: 3,
    stdout: "",
  });
  expect(await run("bash", ["-c", `set -o pipefail; "${process.execPath}" "${binPath}" --help | true`], variables)).toMatchObject({
    code: 0,
    stderr: "",
  });
});
