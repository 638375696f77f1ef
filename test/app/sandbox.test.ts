import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import OpenAI from "openai";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { binPath, openclaw, run } from "../control-plane/cli-stage.ts";
import { type RunningProduct, configWithProvider, ownerUrlOf, startProduct } from "../product.ts";
import { ownerName } from "../../sandbox/run-owner.ts";
import { missing, processesWith } from "../sandbox/sandbox-stage.ts";
import { runSql } from "../storage/fresh-database.ts";
import { type ModelServer, startModelServer } from "./model-server.ts";

const modes = `
sandbox:
  default_mode: normal
  modes:
    normal: { memory_limit_mb: 256, wall_seconds: 60 }
    short: { wall_seconds: 1 }
    container: { runtime: docker }
    strict: { seccomp: strict }
    build: { seccomp: ./profiles/build.json }
    broken: { seccomp: ./profiles/broken.json }
    log: { seccomp: log }
`;

describe.skipIf(missing !== undefined)("a tenant's sandbox", () => {
  let model: ModelServer;
  let product: RunningProduct;
  let token: string;
  beforeAll(async () => {
    model = await startModelServer();
    product = await startProduct({ config: configWithProvider(model.url, modes) });
    mkdirSync(join(product.home, "profiles"));
    writeFileSync(join(product.home, "profiles/build.json"), '{ "extends": "default", "deny": ["symlink", "symlinkat"] }');
    writeFileSync(join(product.home, "profiles/broken.json"), '{ "extends": "default", "allow": ["ptrace"] }');
    token = await product.createTenant("acme");
    await product.createTenant("globex");
  });
  afterAll(async () => {
    await product?.stop();
    await model?.close();
  });

  const variables = () => ({ OPENCLAW_URL: product.url, OPENCLAW_ADMIN_KEY: product.adminKey });
  const exec = async (...words: string[]) => await openclaw(["sandbox", "exec", "--tenant", "acme", ...words], variables());
  const post = async (body: object, { signal, headers = {} }: { signal?: AbortSignal; headers?: Record<string, string> } = {}) =>
    await fetch(`${product.url}/v1/tenants/acme/sandbox/exec`, {
      method: "POST",
      headers: { authorization: `Bearer ${product.adminKey}`, "content-type": "application/json", ...headers },
      body: JSON.stringify(body),
      ...(signal === undefined ? {} : { signal }),
    });
  const rows = async (sql: string): Promise<Record<string, unknown>[]> => {
    return (await runSql(ownerUrlOf(product.home), sql)).rows as Record<string, unknown>[];
  };

  test("exec keeps stdout, stderr and the exit status apart, and other tenants' files away", async () => {
    expect(await exec("--", "sh", "-c", "echo out; echo err >&2; echo mine > kept; exit 42")).toEqual({
      code: 42,
      stdout: "out\n",
      stderr: "err\n",
    });
    expect(await exec("--", "cat", "kept")).toMatchObject({ code: 0, stdout: "mine\n" });
    expect((await openclaw(["sandbox", "exec", "--tenant", "globex", "--", "ls"], variables())).stdout).toBe("");
  });

  test("a mode's filter holds, and one that cannot be used is refused with the reason", async () => {
    const link = ["--", "sh", "-c", "ln -s a b && rm b"];
    const listen = ["--", "perl", "-e", "socket(S, 2, 1, 0) or exit 7"];

    expect((await exec(...link)).code).toBe(0);
    expect(await exec("--mode", "build", ...link)).toMatchObject({ code: 1, stderr: expect.stringContaining("Operation not permitted") });
    expect((await exec("--mode", "strict", ...listen)).code).toBe(7);
    expect((await exec("--mode", "log", ...listen)).code).toBe(0);
    expect(await exec("--mode", "broken", ...listen)).toMatchObject({
      code: 4,
      stderr: expect.stringContaining("no profile may allow ptrace"),
    });
    const { stdout } = await openclaw(["doctor", "--json"], { ...variables(), OPENCLAW_HOME: product.home });
    expect(stdout).toContain("broken: the seccomp profile ./profiles/broken.json cannot be used: no profile may allow ptrace");
  });

  test("stdin goes in as it is, NULs and all, through the real command", async () => {
    const child = spawn(binPath, ["sandbox", "exec", "--tenant", "acme", "--", "sha256sum"], {
      env: { PATH: process.env["PATH"], ...variables() },
      stdio: ["pipe", "pipe", "inherit"],
    });
    let stdout = "";
    child.stdout.on("data", (chunk) => (stdout += String(chunk)));
    child.stdin.end(Buffer.from([0, 255, 10, 0]));
    const [code] = (await once(child, "close")) as [number];
    const { stdout: expected } = await run("sh", ["-c", "printf '\\000\\377\\n\\000' | sha256sum"], {});
    expect([code, stdout]).toEqual([0, expected]);
  });

  test("a command that meets a limit of its mode is told so and does not look done", async () => {
    const { code, stderr } = await exec("--mode", "short", "--", "sleep", "50");
    expect(code).toBe(137);
    expect(stderr).toContain("a limit of the mode short: wall");
  });

  test("a mode that this host cannot hold is refused, and so are an unknown one and a repeat; nothing is audited", async () => {
    const before = await rows("select count(*)::int as n from control.audit_entry where action = 'sandbox.exec'");
    expect((await exec("--mode", "container", "--", "true")).stderr).toContain("runtime docker needs an image");
    expect((await exec("--mode", "container", "--", "true")).code).toBe(4);
    expect((await post({ command: ["true"], mode: "absent" })).status).toBe(400);
    expect((await post({ command: [] })).status).toBe(400);
    expect((await post({ command: ["a\0b"] })).status).toBe(400);
    expect((await post({ command: ["true"] }, { headers: { "idempotency-key": "once" } })).status).toBe(400);
    expect(await rows("select count(*)::int as n from control.audit_entry where action = 'sandbox.exec'")).toEqual(before);
  });

  test("each command is audited by mode and digest, never by its words, and uses no quota", async () => {
    await exec("--", "echo", "a-secret-word");
    const [entry] = await rows(
      "select to_jsonb(e)::text as text from control.audit_entry e where action = 'sandbox.exec' order by seq desc limit 1",
    );
    expect(entry?.["text"]).toMatch(/normal:[0-9a-f]{8}/);
    expect(entry?.["text"]).not.toContain("a-secret-word");
    expect(await rows("select count(*)::int as n from control.usage_ledger")).toEqual([{ n: 0 }]);
  });

  test("explain names every value, where it comes from and how it is held", async () => {
    const { code, stdout } = await openclaw(["sandbox", "explain", "--tenant", "acme", "--tool", "exec", "--json"], variables());
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({
      tool: "exec",
      installed: true,
      allowed: true,
      mode: { value: "normal" },
      limits: { memory_limit_mb: { value: 256, because: "the administrator's mode normal" }, pids: { value: 128, because: "built in" } },
      enforcement: { wall: "group", disk: "polled" },
      refused: null,
    });
  });

  test("whoever hangs up ends the command", async () => {
    const hangUp = new AbortController();
    const answer = await post({ command: ["sh", "-c", "echo begun; sleep 7717"] }, { signal: hangUp.signal });
    await answer.body?.getReader().read();
    expect((await processesWith("7717")).length).toBeGreaterThan(0);

    hangUp.abort();

    await expect.poll(async () => await processesWith("7717"), { timeout: 20_000 }).toEqual([]);
  });

  test("copy brings out a plain file as it is, and nothing that only looks like one", async () => {
    const make = `umask 077; mkdir -p out/deep; perl -e 'print pack("N*", map { $_ * 2654435761 } 1 .. 500000)' > out/deep/made;
      sha256sum < out/deep/made | cut -c1-64; ln -s made out/deep/link; ln -s deep out/around; mkfifo out/fifo; ln out/deep/made out/twice;
      : > out/empty; ln -s /etc/passwd out/passwd`;
    const digest = (await exec("--", "sh", "-c", make)).stdout.trim();
    const copy = async (tenant: string, path: string) =>
      await fetch(`${product.url}/v1/tenants/${tenant}/sandbox/file?path=${encodeURIComponent(path)}`, {
        headers: { authorization: `Bearer ${product.adminKey}` },
      });
    const refusal = async (tenant: string, path: string) => {
      const answer = await copy(tenant, path);
      return [answer.status, ((await answer.json()) as { error: { message: string } }).error.message];
    };
    expect(await refusal("acme", "out/deep/made")).toEqual([400, "The path leads to a file with several names (hard links)."]);
    await exec("--", "rm", "out/twice");

    const bytes = Buffer.from(await (await copy("acme", "out/deep/made")).arrayBuffer());

    expect([bytes.length, createHash("sha256").update(bytes).digest("hex")]).toEqual([2_000_000, digest]);
    expect((await (await copy("acme", "out/empty")).arrayBuffer()).byteLength).toBe(0);
    expect(await refusal("acme", "out/deep/link")).toEqual([400, "The path leads through a link."]);
    expect((await refusal("acme", "out/around/made"))[0]).toBe(400);
    expect((await refusal("acme", "out/passwd"))[0]).toBe(400);
    expect(await refusal("acme", "out/fifo")).toEqual([400, "The path is not a plain file."]);
    expect(await refusal("acme", "out")).toEqual([400, "The path is a directory."]);
    expect((await refusal("acme", "../../globex/sandbox/x"))[0]).toBe(400);
    expect((await refusal("globex", "out/deep/made"))[0]).toBe(404);
    expect(await openclaw(["sandbox", "copy", "--tenant", "acme", "out/empty"], variables())).toEqual({ code: 0, stdout: "", stderr: "" });
    const entries = await rows("select target from control.audit_entry where action = 'sandbox.copy' order by seq");
    expect(entries.map(({ target }) => String(target).split(":")[0])).toEqual(["2000000 bytes", "0 bytes", "0 bytes"]);
  });

  const slots = async (): Promise<string[]> => {
    const { pid } = JSON.parse(readFileSync(join(product.home, "gateway.json"), "utf8")) as { pid: number };
    return await processesWith(`\u0000${ownerName.replace(/\d+$/, String(pid))}-`);
  };
  const ask = (content: string) => ({ model: "default", messages: [{ role: "user" as const, content }] });
  const clientOf = (apiKey: string) => new OpenAI({ baseURL: `${product.url}/v1`, apiKey, maxRetries: 0, timeout: 60_000 });

  test("a tool leaves a sandbox ready for the next one, which ends with its tenant's suspension", async () => {
    const client = clientOf(await product.createTenant("initech"));
    const others = await slots();
    const own = async () => (await slots()).filter((pid) => !others.includes(pid));
    await client.chat.completions.create(ask('CALL exec {"command":"echo one"}'));
    await expect.poll(own, { timeout: 30_000 }).not.toEqual([]);

    expect(await openclaw(["tenants", "suspend", "initech"], variables())).toMatchObject({ code: 0 });

    await expect.poll(own, { timeout: 30_000 }).toEqual([]);
  });

  test("an aborted turn ends its tool's program", async () => {
    const rpc = async (method: string, params: object) => {
      const answer = await fetch(`${product.url}/rpc`, {
        method: "POST",
        headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
        body: JSON.stringify({ jsonrpc: "2.0", id: 1, method, params }),
      });
      return ((await answer.json()) as { result: { turn_id: string } }).result;
    };
    const text = 'CALL exec {"command":"trap \'\' TERM; sleep 7719 & wait; sleep 7719"}';
    const { turn_id } = await rpc("chat.send", { session_id: "api:abort:default", text });
    await expect.poll(async () => (await processesWith("sleep\u00007719")).length, { timeout: 30_000 }).toBeGreaterThan(0);

    await rpc("chat.abort", { turn_id });

    await expect.poll(async () => await processesWith("7719"), { timeout: 40_000 }).toEqual([]);
  });

  test("kill -9 during a tool's exec in a sandbox that was ready: nothing runs on, and the command is not run twice but reported as interrupted", async () => {
    const client = clientOf(token);
    const session = { headers: { "X-OpenClaw-Session": "api:jane:default" } };
    await client.chat.completions.create(ask('CALL exec {"command":"true"}'), session);
    // Two processes of bubblewrap and the shell.
    await expect.poll(async () => (await slots()).length, { timeout: 30_000 }).toBeGreaterThanOrEqual(3);
    const ready = await slots();
    const cut = client.chat.completions.create(ask('CALL exec {"command":"echo ran >> runs; sleep 7718"}'), session).catch(() => "cut off");
    await expect.poll(async () => (await processesWith("sleep\u00007718")).length, { timeout: 30_000 }).toBeGreaterThan(0);
    const shell = await processesWith("7718");
    expect(ready.filter((pid) => shell.includes(pid))).not.toEqual([]);
    const leftBefore = await slots();

    await product.kill();
    expect(await cut).toBe("cut off");
    await expect.poll(async () => await processesWith("7718"), { timeout: 20_000 }).toEqual([]);
    await expect.poll(async () => leftBefore.filter((pid) => existsSync(`/proc/${pid}/exe`)), { timeout: 20_000 }).toEqual([]);
    await product.restart();
    await client.chat.completions.create(ask("and on"), session);

    const runs = await rows("select state, attempt from tenant_acme.tool_run where name = 'exec' and arguments::text like '%7718%'");
    expect(runs).toEqual([{ state: "failed", attempt: 2 }]);
    expect(JSON.stringify(await rows("select content from tenant_acme.message"))).toContain("not known whether it took effect");
    expect((await exec("--", "cat", "runs")).stdout).toBe("ran\n");
  }, 120_000);
});
