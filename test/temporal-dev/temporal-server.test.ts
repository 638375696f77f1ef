import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readdir, readFile, realpath, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Client, Connection, type ConnectionOptions } from "@temporalio/client";
import { afterEach, expect, onTestFinished, test } from "vitest";
import { claimPort } from "../../temporal-dev/free-port.ts";
import { listensOn } from "../../temporal-dev/listening-process.ts";
import { identifyProcess } from "../../temporal-dev/process-identity.mjs";
import { findTemporalBinary } from "../../temporal-dev/temporal-binary.mjs";
import { startTemporalServer, type TemporalServer, type TemporalServerOptions } from "../../temporal-dev/temporal-server.ts";

const searchAttributes = { TenantId: "Keyword", SessionId: "KeywordList" } as const;
const namespace = "openclaw-test";

const cleanUps: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).toReversed()) await cleanUp();
});

async function newOptions(): Promise<
  TemporalServerOptions & { readonly logged: string[]; readonly port: number; readonly uiPort: number }
> {
  const binary = findTemporalBinary({ env: process.env });
  if (!binary) throw new Error("No Temporal CLI: run `node scripts/setup.mjs --dev`.");
  const dataDir = await realpath(await mkdtemp(join(tmpdir(), "openclaw-temporal-")));
  cleanUps.push(() => rm(dataDir, { recursive: true, force: true }));
  const logged: string[] = [];
  const [port, uiPort] = [await freePort(), await freePort()];
  const log = (message: string): void => void logged.push(message);
  return { binaryPath: binary.path, dataDir, namespace, port, uiPort, searchAttributes, log, logged };
}

async function freePort(): Promise<number> {
  const { port, release } = await claimPort([]);
  release();
  return port;
}

async function start(options: TemporalServerOptions): Promise<TemporalServer> {
  const server = await startTemporalServer(options);
  cleanUps.push(() => server.stop());
  return server;
}

/** Starts the server from a process of its own and returns both; the wrapper that ends it with its parent can be taken away. */
async function startInOtherProcess(options: TemporalServerOptions, { withSetpriv = true } = {}) {
  const bare = await mkdtemp(join(tmpdir(), "openclaw-bare-path-"));
  cleanUps.push(() => rm(bare, { recursive: true, force: true }));
  const env = withSetpriv ? process.env : { ...process.env, PATH: bare };
  const owner = spawn(process.execPath, [join(import.meta.dirname, "start-owner.ts"), JSON.stringify(options)], {
    env,
    stdio: ["ignore", "pipe", "pipe"],
  });
  cleanUps.push(() => kill(owner));
  let complaint = "";
  owner.stderr.on("data", (text: Buffer) => (complaint += text.toString()));
  const failed = once(owner, "close").then(() => Promise.reject(new Error(`The owner ended: ${complaint}`)));
  failed.catch(() => undefined);
  const [line] = (await Promise.race([once(owner.stdout, "data"), failed])) as [Buffer];
  return { owner, ...(JSON.parse(line.toString()) as { address: string; pid: number }) };
}

async function kill(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const gone = once(child, "exit");
  child.kill("SIGKILL");
  await gone;
}

async function connect(address: string, options: ConnectionOptions = {}): Promise<Connection> {
  const connection = await Connection.connect({ ...options, address });
  onTestFinished(() => connection.close());
  return connection;
}

async function until(isTrue: () => boolean | Promise<boolean>, withinMs: number): Promise<void> {
  const giveUpAt = Date.now() + withinMs;
  while (!(await isTrue())) {
    if (Date.now() > giveUpAt) throw new Error(`Not true within ${withinMs} ms: ${isTrue}`);
    await sleep(25);
  }
}

async function describeNamespace(address: string) {
  const { workflowService, operatorService } = await connect(address);
  const { config } = await workflowService.describeNamespace({ namespace });
  const { customAttributes } = await operatorService.listSearchAttributes({ namespace });
  return { retentionSeconds: Number(config?.workflowExecutionRetentionTtl?.seconds), attributes: Object.keys(customAttributes ?? {}) };
}

async function startWorkflow(address: string, workflowId: string): Promise<Client> {
  const client = new Client({ connection: await connect(address), namespace });
  await client.workflow.start("nobody", {
    workflowId,
    taskQueue: "tenant:acme",
    searchAttributes: { TenantId: ["acme"], SessionId: ["wa:1:default", "wa:2:default"] },
  });
  return client;
}

async function countOf(client: Client, query: string): Promise<number> {
  return (await client.workflow.count(query)).count;
}

test("a started server keeps histories for 30 days, finds runs by our search attributes and shows its page", async () => {
  const server = await start(await newOptions());

  const client = await startWorkflow(server.address, "turn:acme:one");

  expect((await describeNamespace(server.address)).retentionSeconds).toBe(30 * 24 * 60 * 60);
  await until(async () => (await countOf(client, `TenantId = "acme" AND SessionId = "wa:2:default"`)) === 1, 5000);
  expect(await countOf(client, `TenantId = "other"`)).toBe(0);
  await until(
    () =>
      fetch(server.uiUrl).then(
        (page) => page.ok,
        () => false,
      ),
    5000,
  );
});

test("our dynamic configuration is in force: more than ten Updates wait on one workflow at once", async () => {
  const server = await start(await newOptions());
  await startWorkflow(server.address, "turn:acme:updates");
  // Without interceptors there is no retry that would hide a refusal. Nobody works on the queue, so what is admitted waits.
  const connection = await connect(server.address, { interceptors: [] });

  const outcomes = await Promise.allSettled(
    Array.from({ length: 30 }, (_, index) =>
      connection.withDeadline(Date.now() + 1500, () =>
        connection.workflowService.updateWorkflowExecution({
          namespace,
          workflowExecution: { workflowId: "turn:acme:updates" },
          waitPolicy: { lifecycleStage: 2 },
          request: { meta: { updateId: `u${index}` }, input: { name: "submit" } },
        }),
      ),
    ),
  );

  const codes = outcomes.map((outcome) => (outcome.status === "rejected" ? (outcome.reason as { code: number }).code : "answered"));
  const stillWaiting = [1, 4]; // CANCELLED or DEADLINE_EXCEEDED, whichever side's clock is first; a refused one says 8, RESOURCE_EXHAUSTED
  expect(codes.filter((code) => !stillWaiting.includes(code as number))).toEqual([]);
});

test("ports that are taken are replaced by free ones, and the log says which", async () => {
  const options = await newOptions();
  for (const port of [options.port, options.uiPort]) {
    const occupant = createServer().listen(port, "127.0.0.1");
    await once(occupant, "listening");
    cleanUps.push(async () => void occupant.close());
  }

  const server = await start(options);

  const chosen = server.address.split(":")[1];
  expect(chosen).not.toBe(String(options.port));
  expect(options.logged).toContain(`Port ${options.port} is taken: Temporal listens on ${chosen}.`);
  expect(options.logged.join()).toContain(`Port ${options.uiPort} is taken`);
  expect((await describeNamespace(server.address)).attributes).toHaveLength(2);
});

test("two servers that want the same ports at once get different ones, also while the first is down, and each serves its own", async () => {
  const [options, others] = [await newOptions(), await newOptions()];
  const wanted = { port: options.port, uiPort: options.uiPort };
  const server = await start(options);
  const ownWorkflows = await startWorkflow(server.address, "turn:acme:own");

  process.kill(server.pid, "SIGKILL");
  const [second, third] = await Promise.all([start({ ...others, ...wanted }), start({ ...(await newOptions()), ...wanted })]);

  expect(new Set([server, second, third].map(({ address }) => address)).size).toBe(3);
  await until(
    async () =>
      await countOf(ownWorkflows, `TenantId = "acme"`).then(
        (count) => count === 1,
        () => false,
      ),
    30_000,
  );
  for (const { address } of [second, third])
    expect(await countOf(new Client({ connection: await connect(address), namespace }), `TenantId = "acme"`)).toBe(0);
});

test("a server of somebody else's that comes to the port before ours listens is not taken for ours", async () => {
  const options = await newOptions();
  const [real, stranger] = [options.binaryPath, join(options.dataDir, "stranger")];
  // Between our choice of the port and our server's start another one begins to serve there.
  await writeFile(
    `${stranger}.sh`,
    `#!/bin/bash
if [ ! -e '${stranger}.pid' ]; then
  '${real}' server start-dev --headless --ip 127.0.0.1 --port ${options.port} --namespace ${namespace} >/dev/null 2>&1 &
  echo $! > '${stranger}.pid'
  until '${real}' operator cluster health --address 127.0.0.1:${options.port} >/dev/null 2>&1; do :; done
fi
exec '${real}' "$@"
`,
    { mode: 0o755 },
  );
  cleanUps.push(async () => void process.kill(Number(await readFile(`${stranger}.pid`, "utf8")), "SIGKILL"));

  const server = await start({ ...options, binaryPath: `${stranger}.sh` });

  const ports = [options.port, Number(server.address.split(":")[1])];
  expect(ports.map((port) => listensOn(server.pid, port))).toEqual([false, true]);
  expect(listensOn(Number(await readFile(`${stranger}.pid`, "utf8")), options.port)).toBe(true);
  await startWorkflow(server.address, "turn:acme:own");
});

test("a killed server is back on the same address with everything it knew", async () => {
  const server = await start(await newOptions());
  await startWorkflow(server.address, "turn:acme:kept");
  const killed = server.pid;

  process.kill(killed, "SIGKILL");
  await until(() => server.pid !== killed && identifyProcess(killed) === undefined, 5000);

  const client = new Client({ connection: await connect(server.address), namespace });
  await until(
    () =>
      countOf(client, `TenantId = "acme"`).then(
        (count) => count === 1,
        () => false,
      ),
    10_000,
  );
  expect(await describeNamespace(server.address)).toMatchObject({ retentionSeconds: 30 * 24 * 60 * 60 });
});

test("a server that is killed again and again comes back each time, and stop still stops it", async () => {
  const server = await start(await newOptions());

  for (let round = 0; round < 3; round += 1) {
    const { pid } = server;
    process.kill(pid, "SIGKILL");
    await until(() => server.pid !== pid, 10_000);
  }
  await server.stop();

  expect(identifyProcess(server.pid)).toBeUndefined();
});

test("search attributes that a later release adds appear in an existing database", async () => {
  const options = await newOptions();
  const before = await startTemporalServer(options);
  await before.stop();

  const server = await start({ ...options, searchAttributes: { ...searchAttributes, TurnId: "KeywordList" } });

  const { attributes, retentionSeconds } = await describeNamespace(server.address);
  expect(attributes.toSorted()).toEqual(["SessionId", "TenantId", "TurnId"]);
  expect(retentionSeconds).toBe(30 * 24 * 60 * 60);
});

test("after stop the process has gone, and the directory can be used again", async () => {
  const options = await newOptions();
  const server = await start(options);
  const { pid } = server;

  await server.stop();

  expect(identifyProcess(pid)).toBeUndefined();
  expect(await readdir(options.dataDir)).not.toContain("temporal.pid.json");
  expect((await start(options)).address).toBe(`127.0.0.1:${options.port}`);
});

test("when its owner is killed the server ends by itself", async () => {
  const options = await newOptions();
  const { owner, pid } = await startInOtherProcess(options);

  await kill(owner);

  await until(() => identifyProcess(pid) === undefined, 5000);
  expect((await start(options)).address).toBe(`127.0.0.1:${options.port}`);
});

test("an orphan that outlived its killed owner is ended by the next start, which takes over its ports and data", async () => {
  const options = await newOptions();
  const { owner, pid, address } = await startInOtherProcess(options, { withSetpriv: false });
  await startWorkflow(address, "turn:acme:survivor");
  await kill(owner);
  expect(identifyProcess(pid)).toBeDefined();

  const server = await start(options);

  expect(identifyProcess(pid)).toBeUndefined();
  expect(server.address).toBe(address);
  const client = new Client({ connection: await connect(server.address), namespace });
  expect(await countOf(client, `TenantId = "acme"`)).toBe(1);
});

test("a stale pid file that names an innocent process harms nobody", async () => {
  const options = await newOptions();
  const innocent = spawn("sleep", ["60"], { stdio: "ignore" });
  cleanUps.push(() => kill(innocent));
  const pid = innocent.pid ?? 0;
  const startTime = identifyProcess(pid)?.startTime;
  const stale = { ownerPid: 999_999_999, ownerStartTime: "1", server: { pid, startTime, port: options.port, uiPort: options.uiPort } };
  await writeFile(join(options.dataDir, "temporal.pid.json"), JSON.stringify(stale));

  await start(options);

  expect(identifyProcess(pid)?.startTime).toBe(startTime);
  expect(innocent.killed).toBe(false);
});

test("a second owner of the same data directory is refused and told who has it", async () => {
  const options = await newOptions();
  const { owner, address } = await startInOtherProcess(options);

  await expect(startTemporalServer(options)).rejects.toThrow(`in use by process ${owner.pid}`);

  expect((await describeNamespace(address)).attributes).toHaveLength(2);
});

test("a database that a kill left half-made is set aside and a new one is begun", async () => {
  const options = await newOptions();
  await writeFile(join(options.dataDir, "temporal.db"), "");

  const server = await start(options);

  expect((await describeNamespace(server.address)).attributes).toHaveLength(2);
  expect((await readdir(options.dataDir)).filter((name) => /unusable-\d+$/.test(name))).toHaveLength(1);
});

test("a binary that cannot start fails with its own words, and leaves no claim behind", async () => {
  const options = await newOptions();
  const binaryPath = join(options.dataDir, "broken");
  await writeFile(binaryPath, "#!/bin/sh\necho 'disk on fire' >&2\nexit 3\n", { mode: 0o755 });

  await expect(startTemporalServer({ ...options, binaryPath })).rejects.toThrow("disk on fire");

  expect(await readdir(options.dataDir)).not.toContain("temporal.pid.json");
});

test("the server gets none of our secrets in its environment", async () => {
  process.env["OPENAI_API_KEY"] = "sk-planted";
  onTestFinished(() => void delete process.env["OPENAI_API_KEY"]);
  const server = await start(await newOptions());

  expect(await readFile(`/proc/${server.pid}/environ`, "utf8")).not.toContain("sk-planted");
});
