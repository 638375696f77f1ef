// What a call through the gateway adds to the provider's own time, beside LiteLLM, Portkey and TensorZero in front of the same
// provider, in one run. None of them keeps a record, checks a tenant's quota or writes a billing row; ours does all of it.
// node bench/gateway.ts [--seconds 5] [--rounds 3] [--model-call remote|local] [--json]
//
// Peers are installed from the package registries at the first run, below the user's cache directory. All targets take turns within
// each case, so that all see the same machine. `--seconds` is the measured time of a target in a case, divided over the rounds.
import { chmodSync, mkdtempSync, realpathSync, rmSync } from "node:fs";
import { cpus, loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { startChild } from "./bench-child.ts";
import { quantile } from "./bench-run.ts";
import { startPeers } from "./gateway-peers.ts";
import { processTree } from "./process-usage.ts";
import { type Caller, type Timing, chatCaller, closeConnections, runLoad } from "./turn-load.ts";
import { fastModel, slowModel, slowModelMs } from "./turn-models.ts";
import { startProduct } from "./turn-product.ts";

const { values: options } = parseArgs({
  options: {
    seconds: { type: "string", default: "5" },
    rounds: { type: "string", default: "3" },
    "model-call": { type: "string", default: "remote" },
    json: { type: "boolean", default: false },
  },
});
const rounds = Math.max(1, Math.trunc(Number(options.rounds)));
const sliceSeconds = Math.max(0.2, Number(options.seconds) / rounds);
const modelCall = options["model-call"] === "local" ? "local" : "remote";

type Target = {
  readonly name: string;
  readonly pid: number | undefined;
  readonly callerOf: (model: string, stream: boolean) => Caller;
};
type Case = { readonly callers: number; readonly model: string; readonly stream: boolean };
type Slice = { readonly timings: readonly Timing[]; readonly elapsedMs: number; readonly cpuMs: number };

const cases: readonly Case[] = [fastModel, slowModel].flatMap((model) =>
  [1, 32].flatMap((callers) => [false, true].map((stream) => ({ callers, model, stream }))),
);
const nameOf = ({ callers, model, stream }: Case): string =>
  `${callers} caller${callers === 1 ? "" : "s"}, model at ${model === slowModel ? slowModelMs : 0} ms, ${stream ? "streamed" : "whole"}`;

const cpuOf = (pid: number | undefined): number =>
  pid === undefined ? Number.NaN : processTree(pid).reduce((sum, { cpuMs }) => sum + cpuMs, 0);

async function runSlice({ callers, model, stream }: Case, { pid, callerOf }: Target): Promise<Slice> {
  const marks: number[] = [];
  const load = await runLoad(callerOf(model, stream), { callers, seconds: sliceSeconds, mark: () => marks.push(cpuOf(pid)) });
  const [begin = Number.NaN, end = Number.NaN] = marks;
  return { timings: load.timings, elapsedMs: load.elapsedMs, cpuMs: (end - begin) / Math.max(1, load.timings.length) };
}

type Row = Readonly<Record<"p50" | "p95" | "p99" | "perSecond" | "cpuMs", number>> & { readonly firstText: number | undefined };

function summarise(slices: readonly Slice[]): Row {
  const all = slices.flatMap(({ timings }) => timings);
  const times = all.map(({ ms }) => ms);
  const first = all.flatMap(({ firstTextMs }) => firstTextMs ?? []);
  return {
    p50: quantile(times, 0.5),
    p95: quantile(times, 0.95),
    p99: quantile(times, 0.99),
    perSecond: quantile(
      slices.map(({ timings, elapsedMs }) => (timings.length / elapsedMs) * 1_000),
      0.5,
    ),
    cpuMs: quantile(
      slices.map(({ cpuMs }) => cpuMs),
      0.5,
    ),
    firstText: first.length === 0 ? undefined : quantile(first, 0.5),
  };
}

function printCase(one: Case, targets: readonly Target[], rows: readonly Row[]): void {
  const [direct] = rows;
  if (direct === undefined) return;
  console.log(`\n${nameOf(one)}; load ${loadavg()[0]?.toFixed(1)}`);
  console.log(
    `${"".padEnd(22)}${["P50 ms", "P95", "P99", "added P50", "P95", "P99", "1st text", "calls/s", "CPU ms"].map((head) => head.padStart(10)).join("")}`,
  );
  for (const [index, target] of targets.entries()) {
    const row = rows[index] as Row;
    const added = (key: "p50" | "p95" | "p99"): string => (index === 0 ? "" : (row[key] - direct[key]).toFixed(1));
    const cells = [
      ...[row.p50, row.p95, row.p99].map((ms) => ms.toFixed(1)),
      ...[added("p50"), added("p95"), added("p99")],
      row.firstText?.toFixed(1) ?? "",
      row.perSecond.toFixed(1),
      Number.isNaN(row.cpuMs) ? "" : row.cpuMs.toFixed(1),
    ];
    console.log(`${target.name.padEnd(22)}${cells.map((cell) => cell.padStart(10)).join("")}`);
    if (options.json) console.log(JSON.stringify({ target: target.name, ...one, ...row }));
  }
}

const home = mkdtempSync(join(realpathSync(tmpdir()), "openclaw-bench-gateway-"));
chmodSync(home, 0o711); // Postgres runs as another user and has to reach its directory
const modelServer = await startChild("./turn-model-server.ts");
const modelCallsSeen = async (): Promise<number> => Number(await (await fetch(`${modelServer.line}/calls`)).text());
const product = await startProduct({ home, modelUrl: modelServer.line, modelCall });
const peers = await startPeers(modelServer.line);
try {
  console.log(
    `${cpus().length} cores ${cpus()[0]?.model ?? "unknown"}; node ${process.version}; load ${loadavg()
      .map((value) => value.toFixed(2))
      .join(" ")}`,
  );
  console.log(
    `${rounds} rounds of ${sliceSeconds.toFixed(1)} s; added: over the model server called directly; temporal.model_call: ${modelCall}`,
  );
  const token = await product.createTenant("bench");
  const callerOf =
    (target: {
      url: string;
      path?: string;
      token: string;
      headers: Readonly<Record<string, string>>;
      modelOf?: (model: string) => string;
    }) =>
    (model: string, stream: boolean): Caller =>
      chatCaller({ ...target, model: target.modelOf?.(model) ?? model, stream, headersOf: () => target.headers });
  const targets: readonly Target[] = [
    { name: "direct", pid: undefined, callerOf: callerOf({ url: modelServer.line, token: "none", headers: {} }) },
    { name: "OpenClawMU", pid: product.pid, callerOf: callerOf({ url: product.url, token, headers: { "x-openclaw-mode": "gateway" } }) },
    ...peers.map((peer) => ({ name: peer.name, pid: peer.pid, callerOf: callerOf(peer) })),
  ];
  for (const target of targets) await runLoad(target.callerOf(fastModel, true), { callers: 8, seconds: 1, mark: () => undefined }); // compiled and cached
  let calls = 0;
  const beforeRows = await product.countRows("bench");
  for (const one of cases) {
    const slices = targets.map((): Slice[] => []);
    for (let round = 0; round < rounds; round++) {
      for (let turn = 0; turn < targets.length; turn++) {
        const index = (turn + round) % targets.length;
        const target = targets[index] as Target;
        const before = await modelCallsSeen();
        slices[index]?.push(await runSlice(one, target));
        if (target.pid === product.pid) calls += (await modelCallsSeen()) - before;
      }
    }
    printCase(one, targets, slices.map(summarise));
  }
  const rows = (await product.countRows("bench")) - beforeRows;
  console.log(`\nOpenClawMU: ${calls} calls at the provider, ${rows} billing rows; load at the end ${loadavg()[0]?.toFixed(1)}`);
  if (calls !== rows) process.exitCode = 1;
} finally {
  closeConnections();
  for (const peer of peers) await peer.stop();
  await product.stop();
  modelServer.stop();
  rmSync(home, { recursive: true, force: true });
}
