import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { createServer, type AddressInfo } from "node:net";
import { homedir } from "node:os";
import { join } from "node:path";
import { fastModel, slowModel } from "./turn-models.ts";

/** Another gateway, in front of the same model server. */
export type Peer = {
  readonly name: string;
  readonly url: string;
  readonly path: string;
  readonly token: string;
  /** Its own name for one of the bench's models. */
  readonly modelOf: (model: string) => string;
  readonly headers: Readonly<Record<string, string>>;
  readonly pid: number;
  stop(): Promise<void>;
};

/** Installed once, from the package registries; nothing of theirs is a dependency of the product. */
const place = join(homedir(), ".cache/openclaw/peers");
const versions = { litellm: "1.106.2", portkey: "1.15.2", tensorzero: "2026.6.0" } as const;
const startPatienceMs = 120_000;

const python = (name: "litellm" | "tensorzero"): string => join(place, name, "bin/python");

function installPython(name: "litellm" | "tensorzero", requirement: string): void {
  if (existsSync(join(place, name, "installed"))) return;
  mkdirSync(place, { recursive: true });
  execFileSync("python3", ["-m", "venv", join(place, name)], { stdio: "inherit" });
  execFileSync(python(name), ["-m", "pip", "install", "-q", requirement], { stdio: "inherit" });
  writeFileSync(join(place, name, "installed"), requirement);
}

function installPortkey(): void {
  const directory = join(place, "portkey");
  if (existsSync(join(directory, "node_modules/@portkey-ai/gateway"))) return;
  mkdirSync(directory, { recursive: true });
  // With a newer @hono/node-server it answers every stream with 500 (its issue 1389).
  writeFileSync(join(directory, "package.json"), JSON.stringify({ private: true, overrides: { "@hono/node-server": "1.13.8" } }));
  execFileSync("npm", ["install", "--no-fund", "--no-audit", `@portkey-ai/gateway@${versions.portkey}`], {
    cwd: directory,
    stdio: "inherit",
  });
}

async function freePort(): Promise<number> {
  const server = createServer();
  await once(server.listen(0, "127.0.0.1"), "listening");
  const { port } = server.address() as AddressInfo;
  await once(server.close(), "close");
  return port;
}

type Start = {
  readonly command: string;
  readonly args: readonly string[];
  readonly cwd?: string;
  readonly env?: Readonly<Record<string, string>>;
};

function launch({ command, args, cwd, env = {} }: Start): { readonly child: ChildProcess; output(): string } {
  const child = spawn(command, args, { cwd, env: { ...process.env, ...env }, stdio: ["ignore", "pipe", "pipe"], detached: true });
  let output = "";
  for (const stream of [child.stdout, child.stderr])
    stream?.on("data", (piece: Buffer) => (output = (output + piece.toString()).slice(-4_000)));
  process.once("exit", () => child.kill("SIGKILL"));
  return { child, output: () => output };
}

async function stopChild(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, "exit");
  // Portkey stays for as long as connections are open.
  process.kill(-(child.pid ?? 0), "SIGKILL");
  await ended;
}

type Address = Pick<Peer, "url" | "path" | "token" | "modelOf" | "headers">;

/** @param addressOf undefined until the peer has said where it listens */
async function untilAnswering(name: string, start: Start, addressOf: (output: string) => Address | undefined): Promise<Peer> {
  const { child, output } = launch(start);
  const deadline = performance.now() + startPatienceMs;
  while (performance.now() < deadline && child.exitCode === null) {
    const address = addressOf(output());
    if (address !== undefined && (await answers(address)))
      return { name, ...address, pid: child.pid ?? 0, stop: async () => await stopChild(child) };
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
  await stopChild(child);
  throw new Error(`${name} does not answer: ${output()}`);
}

async function answers({ url, path, token, modelOf, headers }: Address): Promise<boolean> {
  try {
    const answer = await fetch(url + path, {
      method: "POST",
      headers: { authorization: `Bearer ${token}`, "content-type": "application/json", ...headers },
      body: JSON.stringify({ model: modelOf(fastModel), messages: [{ role: "user", content: "Say hello to the world." }] }),
      signal: AbortSignal.timeout(10_000),
    });
    return (await answer.text()).includes("Hello, world.");
  } catch {
    return false;
  }
}

async function startLiteLlm(modelUrl: string): Promise<Peer> {
  installPython("litellm", `litellm[proxy]==${versions.litellm}`);
  const model = (name: string): object => ({
    model_name: name,
    litellm_params: { model: `openai/${name}`, api_base: `${modelUrl}/v1`, api_key: "none" },
  });
  const config = join(place, "litellm.json");
  writeFileSync(
    config,
    JSON.stringify({
      model_list: [model(fastModel), model(slowModel)],
      litellm_settings: { num_retries: 0, request_timeout: 60, callbacks: [], telemetry: false },
      router_settings: { disable_cooldowns: true },
      general_settings: { master_key: "sk-bench" },
    }),
  );
  const port = await freePort();
  return await untilAnswering(
    `LiteLLM ${versions.litellm}`,
    {
      command: join(place, "litellm/bin/litellm"),
      args: ["--config", config, "--host", "127.0.0.1", "--port", String(port), "--num_workers", "1"],
      env: { LITELLM_LOCAL_MODEL_COST_MAP: "True", LITELLM_LOG: "ERROR" },
    },
    () => ({ url: `http://127.0.0.1:${port}`, path: "/v1/chat/completions", token: "sk-bench", modelOf: (name) => name, headers: {} }),
  );
}

async function startPortkey(modelUrl: string): Promise<Peer> {
  installPortkey();
  const port = await freePort();
  return await untilAnswering(
    `Portkey ${versions.portkey}`,
    {
      command: process.execPath,
      args: ["node_modules/@portkey-ai/gateway/build/start-server.js", "--headless", `--port=${port}`],
      cwd: join(place, "portkey"),
      env: { NODE_ENV: "production", TRUSTED_CUSTOM_HOSTS: "127.0.0.1" },
    },
    () => ({
      url: `http://127.0.0.1:${port}`,
      path: "/v1/chat/completions",
      token: "none",
      modelOf: (name) => name,
      headers: { "x-portkey-provider": "openai", "x-portkey-custom-host": `${modelUrl}/v1` },
    }),
  );
}

async function startTensorZero(modelUrl: string): Promise<Peer> {
  installPython("tensorzero", `tensorzero==${versions.tensorzero}`);
  const model = (name: string): string => `
[models.${name}]
routing = ["up"]
[models.${name}.providers.up]
type = "openai"
model_name = "${name}"
api_base = "${modelUrl}/v1/"
api_key_location = "none"
`;
  const config = join(place, "tensorzero.toml");
  writeFileSync(config, `[gateway]\nobservability.enabled = false\n${model(fastModel)}${model(slowModel)}`);
  // The HTTP gateway that the package carries, until it is killed.
  const program = `import sys, time
from tensorzero.tensorzero import _start_http_gateway
gateway = _start_http_gateway(config_file=sys.argv[1], clickhouse_url=None, postgres_url=None, valkey_url=None, async_setup=False)
print("BASE_URL", gateway.base_url, flush=True)
time.sleep(1e6)`;
  return await untilAnswering(
    `TensorZero ${versions.tensorzero}`,
    { command: python("tensorzero"), args: ["-c", program, config] },
    (output) => {
      const base = /BASE_URL (\S+)/.exec(output)?.[1];
      if (base === undefined) return undefined;
      const { origin, pathname } = new URL(base);
      return {
        url: origin,
        path: `${pathname.replace(/\/$/, "")}/chat/completions`,
        token: "none",
        modelOf: (name) => `tensorzero::model_name::${name}`,
        headers: {},
      };
    },
  );
}

/** Every peer that can be had here; of the others it says why not. */
export async function startPeers(modelUrl: string): Promise<readonly Peer[]> {
  const peers: Peer[] = [];
  for (const start of [startLiteLlm, startPortkey, startTensorZero]) {
    try {
      peers.push(await start(modelUrl));
    } catch (error) {
      console.error(`left out: ${String(error).slice(0, 1_000)}`);
    }
  }
  return peers;
}
