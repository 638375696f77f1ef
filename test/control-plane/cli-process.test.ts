import { spawn, spawnSync, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { cpSync, existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { delimiter, dirname, join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { packageRoot } from "../../control-plane/environment.ts";
import { readGatewayRecord } from "../../control-plane/gateway-record.ts";
import { run } from "./cli-stage.ts";
import { emptyHome } from "./control-stage.ts";

/** Stands for app/main.ts: takes the home, answers /readyz, and needs a moment to stop. */
const standInApp = `
import { createServer } from "node:http";
import { writeFileSync, rmSync } from "node:fs";
import { join } from "node:path";
const home: string = process.env["OPENCLAW_HOME"] ?? "";
const server = createServer((_request, response) => response.end(JSON.stringify({ status: "ok", checks: { postgres: "ok" } })));
server.listen(0, "127.0.0.1", () => {
  const { port } = server.address() as { port: number };
  writeFileSync(join(home, "arguments.json"), JSON.stringify(process.argv.slice(2)));
  writeFileSync(join(home, "gateway.json"), JSON.stringify({
    url: "http://127.0.0.1:" + port, pid: process.pid,
    temporal: { address: "127.0.0.1:7233", namespace: "default", ui: "http://127.0.0.1:8233", cli: "/usr/bin/temporal" },
    database: { kind: "embedded", url: "postgres://openclaw@127.0.0.1:5432/openclaw" },
  }));
  process.stdout.write("ready\\n");
});
process.on("SIGTERM", () => setTimeout(() => { rmSync(join(home, "gateway.json")); process.exit(7); }, 300));
`;

/** A checkout with our command line and a stand-in for the rest. */
function standInCheckout(): { readonly bin: string; readonly home: string } {
  const root = join(emptyHome(), "checkout");
  for (const part of ["bin", "control-plane", "domain", "storage", "package.json"])
    cpSync(join(packageRoot, part), join(root, part), { recursive: true });
  symlinkSync(join(packageRoot, "node_modules"), join(root, "node_modules"));
  for (const folder of ["app", "scripts"]) mkdirSync(join(root, folder));
  writeFileSync(join(root, "app", "main.ts"), standInApp);
  writeFileSync(
    join(root, "scripts", "setup.mjs"),
    `import { writeFileSync } from "node:fs"; writeFileSync(new URL("../setup-ran", import.meta.url), "");`,
  );
  return { bin: join(root, "bin", "openclaw.mjs"), home: emptyHome() };
}

async function startGateway(node: string, bin: string, home: string, ...words: string[]): Promise<ChildProcess> {
  const child = spawn(node, [bin, "start", ...words], {
    env: { PATH: process.env["PATH"], OPENCLAW_HOME: home },
    stdio: ["ignore", "pipe", "inherit"],
  });
  onTestFinished(() => {
    const pid = readGatewayRecord(home)?.pid;
    if (pid !== undefined) process.kill(pid, "SIGKILL");
    child.kill("SIGKILL");
  });
  await once(child.stdout, "data");
  return child;
}

test("start sets up, runs the gateway in its own place, status tells where it is, stop waits for its end", async () => {
  const { bin, home } = standInCheckout();

  const gateway = await startGateway(process.execPath, bin, home, "--role", "gateway");
  const ended = once(gateway, "exit");

  expect(JSON.parse(readFileSync(join(home, "arguments.json"), "utf8"))).toEqual(["start", "--role", "gateway"]);
  expect(existsSync(join(dirname(bin), "..", "setup-ran"))).toBe(true);
  expect(readGatewayRecord(home)?.pid).toBe(gateway.pid); // no process of ours stays above it

  const status = await run(process.execPath, [bin, "status", "--json"], { OPENCLAW_HOME: home });
  expect(JSON.parse(status.stdout)).toEqual({
    gateway: { url: readGatewayRecord(home)?.url, pid: gateway.pid, ready: true, checks: { postgres: "ok" } },
    temporal: { address: "127.0.0.1:7233", namespace: "default", ui: "http://127.0.0.1:8233", cli: "/usr/bin/temporal" },
    database: { kind: "embedded", url: "postgres://openclaw@127.0.0.1:5432/openclaw" },
  });

  expect(await run(process.execPath, [bin, "stop"], { OPENCLAW_HOME: home })).toEqual({
    code: 0,
    stdout: `Stopped the gateway (process ${gateway.pid}).\n`,
    stderr: "",
  });
  expect(await ended).toEqual([7, null]);
  expect(await run(process.execPath, [bin, "stop"], { OPENCLAW_HOME: home })).toMatchObject({
    code: 0,
    stdout: `No gateway is running on ${home}.\n`,
  });
  expect(await run(process.execPath, [bin, "status"], { OPENCLAW_HOME: home })).toMatchObject({ code: 3 });
});

const oldNode = (process.env["PATH"] ?? "")
  .split(delimiter)
  .map((folder) => join(folder, "node"))
  .find((path) => existsSync(path) && /^v2[01]\./.test(spawnSync(path, ["--version"], { encoding: "utf8" }).stdout));

test.skipIf(oldNode === undefined)("an older Node hands over to the packaged one and passes signals and the exit code on", async () => {
  const { bin, home } = standInCheckout();
  const gateway = await startGateway(oldNode ?? "", bin, home);
  const ended = once(gateway, "exit");

  gateway.kill("SIGTERM");

  expect(await ended).toEqual([7, null]);
  expect(readGatewayRecord(home)).toBeUndefined();
  expect(await run(oldNode ?? "", [bin, "tenants", "list"], { OPENCLAW_HOME: home })).toMatchObject({ code: 3 });
});
