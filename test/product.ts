import { type ChildProcess, spawn } from "node:child_process";
import { randomInt, randomUUID } from "node:crypto";
import { once } from "node:events";
import { chmodSync, cpSync, existsSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { inject } from "vitest";
import { traversableDirectory } from "../storage/traversable-directory.ts";
import { homes } from "./running-products.ts";
import { sharedKek } from "./storage/fresh-database.ts";

const root = fileURLToPath(new URL("..", import.meta.url));

/** The whole product in a process of its own, with its own Postgres and Temporal, on a home of its own. */
export type RunningProduct = {
  readonly url: string;
  readonly home: string;
  readonly pid: number;
  /** What it printed so far. */
  readonly output: () => string;
  readonly adminKey: string;
  /** Of the demo tenant; the empty string where the configuration makes none. */
  readonly token: string;
  createTenant(id: string): Promise<string>;
  /** A call with the admin key; its answer is JSON. */
  admin(method: string, path: string, body?: object): Promise<{ readonly status: number; readonly body: Record<string, unknown> }>;
  /** kill -9 of the product's process only, and waits for its end. */
  kill(): Promise<void>;
  /** Starts again on the same home and port after `kill`, or another version of the product does: the tree at `from`. */
  restart(from?: string): Promise<void>;
  /** As an orchestrator ends it (SIGTERM): hands over what it can; answers the exit status. `restart` comes after it. */
  drain(): Promise<number | null>;
  /** As Ctrl-C does; answers the exit status and how long it took. */
  stop(): Promise<{ exitCode: number | null; ms: number }>;
};

export type ProductOptions = {
  /** The text of `config.yaml`; default: what a first start writes. */
  readonly config?: string;
  readonly env?: Readonly<Record<string, string>>;
  readonly role?: "all" | "gateway" | "worker";
  /** An existing home, shared with another process of the product. */
  readonly home?: string;
  /** The key of another gateway on the same database: a home of its own makes none. */
  readonly adminKey?: string;
};

/** `config.yaml` of a product whose only provider is an OpenAI-compatible server of the test's. */
export const configWithProvider = (baseUrl: string, more = ""): string => `
default_model: test-model
providers:
  local: { kind: openai-compatible, base_url: "${baseUrl}" }
models:
  test-model: { provider: local, context_window: 100000, max_output_tokens: 4000 }
  unpriced-model: { provider: local, context_window: 100000, max_output_tokens: 4000 }
billing:
  rate_card:
    test-model: { input: 15, output: 75, cache_read: 1.50, reasoning: 75 }
${more}`;

export async function startProduct({
  config,
  env = {},
  role = "all",
  home: shared,
  adminKey: givenKey,
}: ProductOptions = {}): Promise<RunningProduct> {
  const home = shared ?? mkdtempSync(join(tmpdir(), "openclaw-product-"));
  chmodSync(home, 0o711);
  if (config !== undefined) writeFileSync(join(home, "config.yaml"), config, { mode: 0o600 });
  shareBundle(home);
  homes.add(home);
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const given = env["DATABASE_URL"] === undefined ? env : { OPENCLAW_KEK: sharedKek(env["DATABASE_URL"]), ...env };
  let child = await launch(home, port, role, given);
  const adminKey = givenKey ?? readFileSync(join(home, "admin-key"), "utf8").trim();
  const demoTokenPath = join(home, "demo-token");

  return {
    url,
    home,
    adminKey,
    token: existsSync(demoTokenPath) ? readFileSync(demoTokenPath, "utf8").trim() : "",
    get pid() {
      return child.process.pid ?? 0;
    },
    output: () => child.output(),
    async createTenant(id) {
      const key = randomUUID();
      for (;;) {
        const answer = await fetch(`${url}/v1/tenants`, {
          method: "POST",
          headers: { authorization: `Bearer ${adminKey}`, "content-type": "application/json", "idempotency-key": key },
          body: JSON.stringify({ id }),
        });
        if (answer.status === 201) return ((await answer.json()) as { token: string }).token;
        // A busy machine may not record it in time; the answer says to come again with the same key.
        if (answer.status !== 503) throw new Error(`creating ${id} answered ${answer.status}: ${await answer.text()}`);
      }
    },
    async admin(method, path, body) {
      const answer = await fetch(url + path, {
        method,
        headers: { authorization: `Bearer ${adminKey}`, ...(body === undefined ? {} : { "content-type": "application/json" }) },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      });
      return { status: answer.status, body: (await answer.json()) as Record<string, unknown> };
    },
    async kill() {
      const exited = once(child.process, "exit");
      child.process.kill("SIGKILL");
      await exited;
    },
    async drain() {
      const exited = once(child.process, "exit");
      child.process.kill("SIGTERM");
      await exited;
      return child.process.exitCode;
    },
    async restart(from) {
      child = await launch(home, port, role, given, from);
    },
    async stop() {
      const startedAt = performance.now();
      if (child.process.exitCode === null && child.process.signalCode === null) {
        const exited = once(child.process, "exit");
        child.process.kill("SIGINT");
        await exited;
      }
      const ms = performance.now() - startedAt;
      const { exitCode } = child.process;
      if (shared === undefined) rmSync(home, { recursive: true, force: true });
      return { exitCode, ms };
    },
  };
}

/** A home of its own for one more process, beside another one's: the tenants' directories of both are the same, as on a shared volume. */
export function homeBeside(home: string): string {
  const beside = mkdtempSync(join(tmpdir(), "openclaw-product-"));
  cpSync(join(home, "home-id"), join(beside, "home-id"));
  const anybody = process.getuid?.() === 0 ? { uid: 65_534, gid: 65_534 } : undefined;
  symlinkSync(traversableDirectory(home, "tenants", anybody), join(beside, "tenants")); // as the first tenant's provisioning makes it
  return beside;
}

/** A copy of the product's own sources whose files `edits` changes, with the packages of this one. */
export function anotherVersion(edits: Readonly<Record<string, (text: string) => string>>): string {
  const tree = mkdtempSync(join(tmpdir(), "openclaw-version-"));
  const left = new Set([".git", "node_modules", "test", "bench", "docs"].map((name) => join(root, name)));
  cpSync(root, tree, { recursive: true, filter: (path) => !left.has(path) });
  symlinkSync(join(root, "node_modules"), join(tree, "node_modules"));
  for (const [path, edit] of Object.entries(edits)) {
    const [before, after] = [readFileSync(join(tree, path), "utf8"), edit(readFileSync(join(tree, path), "utf8"))];
    if (before === after) throw new Error(`${path} was not changed`);
    writeFileSync(join(tree, path), after);
  }
  return tree;
}

/** Bundling costs seconds: the run's one bundle serves every product. */
function shareBundle(home: string): void {
  cpSync(inject("bundleDirectory"), join(home, "cache"), { recursive: true });
}

async function launch(home: string, port: number, role: string, env: Readonly<Record<string, string>>, from = root) {
  const started = spawn(process.execPath, [join(from, "app/main.ts"), "start", "--role", role], {
    cwd: from,
    env: { ...process.env, OPENCLAW_HOME: home, OPENCLAW_PORT: String(port), OPENAI_API_KEY: "", ANTHROPIC_API_KEY: "", ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let output = "";
  await new Promise<void>((resolve, reject) => {
    const read = (chunk: Buffer): void => {
      output += chunk.toString();
      if (output.includes("OpenClawMU is ready") && output.includes("Ctrl-C")) resolve();
    };
    started.stdout.on("data", read);
    started.stderr.on("data", read);
    started.once("exit", (code) => reject(new Error(`the product ended with ${code}: ${output}`)));
  });
  return { process: started as ChildProcess, output: () => output };
}

/** Below the range that the kernel gives outgoing connections from, any of which could take a port before the product listens on it. */
export async function freePort(): Promise<number> {
  const [first, end] = [20_000, 32_000];
  for (;;) {
    const port = randomInt(first, end);
    const server = createServer();
    const isFree = await new Promise<boolean>((resolve) => {
      server.once("error", () => resolve(false));
      server.listen(port, "127.0.0.1", () => resolve(true));
    });
    if (!isFree) continue;
    server.close();
    await once(server, "close");
    return port;
  }
}

/** The product's own database, as its owner: for what is read and done from outside. */
export function ownerUrlOf(home: string): string {
  const state = JSON.parse(readFileSync(join(home, "postgres/state.json"), "utf8")) as { port: number; password: string };
  const record = JSON.parse(readFileSync(join(home, "gateway.json"), "utf8")) as { database: { url: string } };
  const url = new URL(record.database.url);
  [url.password, url.port] = [state.password, String(state.port)];
  return url.href;
}
