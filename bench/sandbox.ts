// P50 and P95 of a sandbox run, cold and warm, beside a plain spawn of the same program, in turns, so that both see the same machine;
// what the way out to the network adds; what a sandbox that waits costs in memory; what a fork bomb next door costs.
// node bench/sandbox.ts [runs, default 100]
import { spawn } from "node:child_process";
import { once } from "node:events";
import { chown, mkdtemp, readdir, readFile, realpath, rm } from "node:fs/promises";
import { type AddressInfo, connect, createServer as createTcpServer, type Socket } from "node:net";
import { loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { performance } from "node:perf_hooks";
import { setTimeout as sleep } from "node:timers/promises";
import { parseEgressTarget } from "../domain/egress-rule.ts";
import { createBuiltinTools } from "../sandbox/builtin-tools.ts";
import { type BwrapDriverOptions, createBwrapDriver } from "../sandbox/bwrap-driver.ts";
import { createEgressDecider, realOutside } from "../sandbox/egress-decision.ts";
import { createEgressProxy } from "../sandbox/egress-proxy.ts";
import { memoryOf } from "../sandbox/process-tree.ts";
import { ownerName } from "../sandbox/run-owner.ts";
import type { SandboxDriver, SandboxJob, SandboxLimits } from "../sandbox/sandbox-driver.ts";
import { warmDefaults } from "../sandbox/warm-slots.ts";

const runs = Number(process.argv[2] ?? 100);
const WARM_UP = 5;
const MiB = 1024 * 1024;
const isRoot = process.getuid?.() === 0;
const limits: SandboxLimits = {
  wallMs: 10_000,
  memoryBytes: 256 * MiB,
  processes: 64,
  outputBytes: MiB,
  fileBytes: 64 * MiB,
  openFiles: 256,
  tmpBytes: 64 * MiB,
  cpuSeconds: 10,
};
const never = new AbortController().signal;

const timed = async (action: () => Promise<unknown>): Promise<number> => {
  const startedAt = performance.now();
  await action();
  return performance.now() - startedAt;
};

async function plain(argv: readonly string[]): Promise<void> {
  const [command = "", ...args] = argv;
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"], env: {} });
  child.stdout.resume();
  child.stderr.resume();
  await once(child, "close");
}

const quantile = (sorted: readonly number[], share: number): number =>
  sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;

/** Both actions by turns, after whatever `before` waits for; prints one line. */
async function compare(
  name: string,
  sandboxed: () => Promise<unknown>,
  bare: () => Promise<unknown>,
  before: () => Promise<unknown> = async () => undefined,
): Promise<void> {
  const [inside, outside]: [number[], number[]] = [[], []];
  for (let index = 0; index < runs + WARM_UP; index += 1) {
    await before();
    const [without, within] = [await timed(bare), await timed(sandboxed)];
    if (index >= WARM_UP) {
      inside.push(within);
      outside.push(without);
    }
  }
  for (const list of [inside, outside]) list.sort((a, b) => a - b);
  const show = (list: readonly number[]): string =>
    `P50 ${quantile(list, 0.5).toFixed(1)} ms  P95 ${quantile(list, 0.95).toFixed(1)} ms  min ${quantile(list, 0).toFixed(1)} ms`;
  console.log(
    `${name.padEnd(38)} ${show(inside)}   plain: ${show(outside)}   ratio at P50 ${(quantile(inside, 0.5) / quantile(outside, 0.5)).toFixed(1)}`,
  );
}

type Tenant = { readonly workDirectory: string; readonly uid: number | undefined };

async function makeTenant(number: number): Promise<Tenant> {
  const workDirectory = await mkdtemp(join(await realpath(tmpdir()), "openclaw-bench-"));
  const uid = isRoot ? 220_000 + number : undefined;
  if (uid !== undefined) await chown(workDirectory, uid, uid);
  return { workDirectory, uid };
}

/** The processes of this process's sandboxes that wait for their program: two of bubblewrap and a shell each. */
async function waiting(): Promise<number[]> {
  const pids = (await readdir("/proc")).filter((name) => /^\d+$/.test(name));
  const found = await Promise.all(
    pids.map(async (pid) =>
      (await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "")).includes(`\0${ownerName}-`) ? [Number(pid)] : [],
    ),
  );
  return found.flat();
}

const PROCESSES_OF_A_SLOT = 3;

/** Until a slot waits; a moment more lets it come to rest. */
async function slotReady(): Promise<void> {
  while ((await waiting()).length < PROCESSES_OF_A_SLOT) await sleep(5);
  await sleep(30);
}

const [one, other] = [await makeTenant(98), await makeTenant(99)];
const jobOf = (tenant: Tenant, argv: readonly string[]): SandboxJob => ({ ...tenant, argv, stdin: "", limits });

/** A run until its program's first output. */
const firstOutput = async (driver: SandboxDriver): Promise<unknown> =>
  await new Promise((resolve, reject) => {
    driver.run({ ...jobOf(one, ["/usr/bin/echo"]), onOutput: resolve }, never).then(() => reject(new Error("no output")), reject);
  });

async function benchRuns(options: BwrapDriverOptions, held: string): Promise<void> {
  const cold = createBwrapDriver(options);
  const warm = createBwrapDriver({ ...options, warm: { ...warmDefaults, ttlMs: 3_600_000, perKey: 1 } });
  for (const argv of [["/usr/bin/true"], ["/bin/bash", "-c", "true"]]) {
    const bare = async (): Promise<void> => await plain(argv);
    await compare(`cold, ${held}: ${argv.join(" ")}`, () => cold.run(jobOf(one, argv), never), bare);
    warm.prepare({ ...one, limits });
    await compare(`warm, ${held}: ${argv.join(" ")}`, () => warm.run(jobOf(one, argv), never), bare, slotReady);
  }
  await compare(
    `warm, ${held}: echo, to its output`,
    () => firstOutput(warm),
    () => plain(["/usr/bin/echo"]),
    slotReady,
  );
  for (const [name, driver, before] of [
    ["cold", cold, undefined],
    ["warm", warm, slotReady],
  ] as const) {
    const tools = createBuiltinTools({ driver });
    const call = (tool: string, args: object) => () =>
      tools.get(tool)?.run({ ...one, limits }, JSON.stringify(args), never) ?? Promise.reject(new Error(tool));
    await call("write", { path: "file", content: "text\n" })();
    const bare = async (): Promise<void> => await plain(["/usr/bin/cat", join(one.workDirectory, "file")]);
    await compare(`${name}, ${held}: tool read`, call("read", { path: "file" }), bare, before);
    await compare(`${name}, ${held}: tool write`, call("write", { path: "file", content: "text\n" }), bare, before);
  }
  await slotReady();
  const kibibytes = Math.round(memoryOf(await waiting(), 0) / 1024);
  const { peakMemoryBytes } = await cold.run(jobOf(one, ["/usr/bin/true"]), never);
  const peak = peakMemoryBytes === undefined ? "not told" : `${Math.round(peakMemoryBytes / 1024)} KiB`;
  console.log(`${held}: a slot that waits holds ${kibibytes} KiB (shared pages by share); peak of a run of true: ${peak}`);
  await Promise.all([cold.dispose(), warm.dispose()]);
}

/** The same work of one tenant alone and beside another's fork bomb. */
async function benchNeighbour(options: BwrapDriverOptions, held: string): Promise<void> {
  const driver = createBwrapDriver(options);
  const work = ["/usr/bin/perl", "-e", "my $x = 0; $x += $_ * $_ for 1 .. 3_000_000"];
  const measure = async (): Promise<number> => {
    const times: number[] = [];
    for (let index = 0; index < 9; index += 1) times.push(await timed(() => driver.run(jobOf(one, work), never)));
    return quantile(
      times.toSorted((a, b) => a - b),
      0.5,
    );
  };
  await measure();
  const alone = await measure();
  const stop = new AbortController();
  const bomb = driver.run(
    {
      ...jobOf(other, ["/usr/bin/perl", "-e", "fork while 1"]),
      limits: { ...limits, wallMs: 600_000, cpuSeconds: 600, cpus: 1 },
    },
    stop.signal,
  );
  await sleep(500);
  const beside = await measure();
  stop.abort();
  const { cpuMs } = await bomb;
  console.log(
    `${held}: work of ${alone.toFixed(0)} ms takes ${(beside / alone).toFixed(2)} times as long beside another tenant's fork bomb (${cpuMs ?? "?"} ms of CPU)`,
  );
  await driver.dispose();
}

/** What the way out adds: a decision by itself, and a tunnel through the proxy next to a connection without one, by turns. */
async function benchEgress(): Promise<void> {
  const decide = createEgressDecider(
    { rules: [...Array.from({ length: 50 }, (_, index) => `host-${index}.test:443`), "*.web.test:443"], allowPrivate: ["10.0.0.0/8"] },
    { ...realOutside(), resolve: async () => ["93.184.216.34", "2606:2800:220:1::1"] },
  );
  const target = parseEgressTarget("files.web.test:443");
  if (typeof target === "string") throw new Error(target);
  const decisions: number[] = [];
  for (let index = 0; index < runs * 10; index += 1) decisions.push(await timed(() => decide(target)));
  const sorted = decisions.slice(WARM_UP).toSorted((a, b) => a - b);
  console.log(
    `egress decision of 51 rules, two addresses: P50 ${quantile(sorted, 0.5).toFixed(3)} ms  P95 ${quantile(sorted, 0.95).toFixed(3)} ms`,
  );

  const echo = createTcpServer((socket) => socket.pipe(socket)).listen(0, "127.0.0.1");
  await once(echo, "listening");
  const { port } = echo.address() as AddressInfo;
  const directory = await mkdtemp(join(await realpath(tmpdir()), "openclaw-bench-egress-"));
  const path = join(directory, "sock");
  const limits = { upBytes: 1e12, downBytes: 1e12, connections: 1_000, requests: 1e9 };
  const grant = { rules: [`web.test:${port}`], allowPrivate: [], limits };
  const outside = { resolve: async () => ["127.0.0.1"], refuse: () => undefined };
  const proxy = createEgressProxy(grant, { outside, onEvent: () => undefined });
  await proxy.listen(path);
  const roundTrip = async (socket: Socket, hello: string): Promise<void> => {
    socket.write(hello);
    await once(socket, "data");
    socket.destroy();
  };
  await compare(
    "egress: CONNECT until it stands",
    () => roundTrip(connect(path), `CONNECT web.test:${port} HTTP/1.1\r\n\r\n`),
    () => roundTrip(connect(port, "127.0.0.1"), "x"),
  );
  await proxy.close();
  echo.close();
  await rm(directory, { recursive: true });
}

console.log(
  `load ${loadavg()[0]?.toFixed(1)}, ${runs} runs each, by turns; node ${process.version}${isRoot ? ", root with dropped uid" : ""}`,
);
await benchEgress();
for (const options of [{ enforcer: "any" }, { enforcer: "rlimit" }] as const satisfies readonly BwrapDriverOptions[]) {
  const driver = createBwrapDriver(options);
  const missing = await driver.probe();
  const held = driver.enforcement()?.memory === "group" ? "cgroup" : "rlimits";
  await driver.dispose();
  if (missing === undefined) {
    await benchRuns(options, held);
    await benchNeighbour(options, held);
  } else console.log(`SKIPPED: ${missing}`);
}
for (const { workDirectory } of [one, other]) await rm(workDirectory, { recursive: true });
