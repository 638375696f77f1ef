import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createServer, type AddressInfo } from "node:net";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { fastModel, slowModel } from "./turn-models.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const startPatienceMs = 120_000;

/** The product in a process of its own, started as `npm start` does. */
export type RunningProduct = {
  readonly url: string;
  readonly pid: number;
  /** As it says itself: "ready in X s". */
  readonly readySeconds: number;
  /** From the spawn to that line. */
  readonly startedInMs: number;
  readonly temporal: { readonly address: string; readonly namespace: string };
  createTenant(id: string): Promise<string>;
  listTenants(): Promise<void>;
  setQuota(id: string, quota: { readonly requests_per_minute: number }): Promise<void>;
  /** Billing rows of a tenant. */
  countRows(tenantId: string): Promise<number>;
  stop(): Promise<void>;
};

export type ModelCallKind = "remote" | "local";

const configOf = (modelUrl: string, modelCall: ModelCallKind): string => `
default_model: ${fastModel}
providers:
  bench: { kind: openai-compatible, base_url: "${modelUrl}/v1" }
models:
  ${fastModel}: { provider: bench, context_window: 100000, max_output_tokens: 4000 }
  ${slowModel}: { provider: bench, context_window: 100000, max_output_tokens: 4000 }
billing:
  rate_card:
    ${fastModel}: { input: 15, output: 75 }
    ${slowModel}: { input: 15, output: 75 }
temporal:
  model_call: ${modelCall}
`;

/** Starts the product on `home`, which is made when it is missing; Node's own options (`--cpu-prof`) go before the program. */
export async function startProduct(options: {
  readonly home: string;
  readonly modelUrl: string;
  readonly modelCall: ModelCallKind;
  readonly nodeOptions?: readonly string[];
}): Promise<RunningProduct> {
  const { home, modelUrl, modelCall, nodeOptions = [] } = options;
  mkdirSync(home, { recursive: true, mode: 0o711 });
  writeFileSync(join(home, "config.yaml"), configOf(modelUrl, modelCall), { mode: 0o600 });
  const port = await freePort();
  const startedAt = performance.now();
  const child = spawn(process.execPath, [...nodeOptions, join(root, "app/main.ts"), "start"], {
    cwd: root,
    env: {
      ...process.env,
      OPENCLAW_HOME: home,
      OPENCLAW_PORT: String(port),
      DATABASE_URL: "",
      TEMPORAL_ADDRESS: "",
      OPENCLAW_ADMIN_KEY: "",
    },
    stdio: ["ignore", "pipe", "pipe"],
  });
  process.once("exit", () => child.kill("SIGTERM")); // whatever else goes wrong, it does not outlive the bench
  const readySeconds = await untilReady(child);
  const startedInMs = performance.now() - startedAt;
  const url = `http://127.0.0.1:${port}`;
  const adminKey = readFileSync(join(home, "admin-key"), "utf8").trim();
  const { temporal } = JSON.parse(readFileSync(join(home, "gateway.json"), "utf8")) as Pick<RunningProduct, "temporal">;
  const asAdmin = async (path: string, init: RequestInit = {}): Promise<string> => {
    const answer = await fetch(`${url}${path}`, {
      ...init,
      headers: { authorization: `Bearer ${adminKey}`, "content-type": "application/json" },
    });
    const text = await answer.text();
    if (!answer.ok) throw new Error(`${path} answered ${answer.status}: ${text}`);
    return text;
  };
  return {
    url,
    pid: child.pid ?? 0,
    readySeconds,
    startedInMs,
    temporal,
    async createTenant(id) {
      return (JSON.parse(await asAdmin("/v1/tenants", { method: "POST", body: JSON.stringify({ id }) })) as { token: string }).token;
    },
    async setQuota(id, quota) {
      await asAdmin(`/v1/tenants/${id}/quota`, { method: "PUT", body: JSON.stringify(quota) });
    },
    async listTenants() {
      await asAdmin("/v1/tenants");
    },
    async countRows(tenantId) {
      const csv = await asAdmin(`/v1/billing/report?tenant=${tenantId}&period=current-month&format=csv&detail=1`);
      return csv.trim().split("\n").length - 1;
    },
    async stop() {
      if (child.exitCode !== null || child.signalCode !== null) return;
      const exited = once(child, "exit");
      child.kill("SIGINT");
      const deadline = setTimeout(() => child.kill("SIGKILL"), 15_000);
      await exited;
      clearTimeout(deadline);
    },
  };
}

/** The product's own Postgres. */
export function databaseUrlOf(home: string): string {
  const state = JSON.parse(readFileSync(join(home, "postgres/state.json"), "utf8")) as { port: number; password: string };
  const record = JSON.parse(readFileSync(join(home, "gateway.json"), "utf8")) as { database: { url: string } };
  const url = new URL(record.database.url);
  url.password = state.password;
  url.port = String(state.port);
  return url.href;
}

async function untilReady(child: ChildProcess): Promise<number> {
  let output = "";
  return await new Promise<number>((resolve, reject) => {
    const deadline = setTimeout(() => {
      child.kill("SIGKILL");
      reject(new Error(`the product was not ready after ${startPatienceMs / 1000} s: ${output}`));
    }, startPatienceMs);
    const read = (piece: Buffer): void => {
      output += piece.toString();
      const [, seconds] = /is ready.*?in ([\d.]+) s/.exec(output) ?? [];
      if (seconds === undefined) return;
      clearTimeout(deadline);
      resolve(Number(seconds));
    };
    child.stdout?.on("data", read);
    child.stderr?.on("data", read);
    child.once("exit", (code) => {
      clearTimeout(deadline);
      reject(new Error(`the product ended with ${code}: ${output}`));
    });
  });
}

async function freePort(): Promise<number> {
  const server = createServer();
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}
