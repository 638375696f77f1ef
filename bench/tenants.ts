// What a tenant costs: node bench/tenants.ts [--sizes 1,100,500,1000] [--seconds 20] [--json]
//
// One product that gets more and more tenants. At each size: memory of all processes with every tenant asleep and with workers for all
// that may live, CPU while nobody calls and while one in a hundred does, the first turn of tenants without a worker beside their next
// ones, and how late a workflow with a delayed start begins for a tenant without a worker.
import { parseArgs } from "node:util";
import { Client, Connection } from "@temporalio/client";
import { startChild } from "./bench-child.ts";
import { onFreshHome, quantile } from "./bench-run.ts";
import { processTree, pssMb } from "./process-usage.ts";
import { chatCaller, closeConnections } from "./turn-load.ts";
import { fastModel } from "./turn-models.ts";
import { type RunningProduct, startProduct } from "./turn-product.ts";

const { values: options } = parseArgs({
  options: {
    sizes: { type: "string", default: "1,100,500,1000" },
    seconds: { type: "string", default: "20" },
    json: { type: "boolean", default: false },
  },
});
const sizes = options.sizes.split(",").map(Number);
const idleSeconds = Number(options.seconds);
/** Tenants without a worker that are looked at, of each size. */
const sleepers = 20;
const reminderDelayMs = 5_000;
/** The lane of a stateless call closes after ten seconds; then its next call begins a run as a first one does. */
const laneClosedMs = 13_000;
const heapMb = 512;

const parts = ["product", "temporal", "postgres"] as const;
type Usage = Readonly<Record<(typeof parts)[number], { readonly memoryMb: number; readonly cpuMs: number }>>;

const pause = async (ms: number): Promise<void> => await new Promise((resolve) => setTimeout(resolve, ms));

function usageOf(pid: number): Usage {
  const usage = Object.fromEntries(parts.map((part) => [part, { memoryMb: 0, cpuMs: 0 }])) as Record<
    string,
    { memoryMb: number; cpuMs: number }
  >;
  for (const { pid: found, name, cpuMs, rssMb } of processTree(pid)) {
    const part = usage[name === "postgres" || name === "temporal" ? name : "product"];
    if (part === undefined) continue;
    part.memoryMb += pssMb(found) ?? rssMb;
    part.cpuMs += cpuMs;
  }
  return usage as Usage;
}

/** CPU of each part while `work` goes on, in per cent of a core. */
async function cpuDuring(pid: number, work: () => Promise<void>): Promise<readonly number[]> {
  const [before, beganAtMs] = [usageOf(pid), performance.now()];
  await work();
  const [after, ms] = [usageOf(pid), performance.now() - beganAtMs];
  return parts.map((part) => (100 * (after[part].cpuMs - before[part].cpuMs)) / ms);
}

const show = (values: readonly number[], digits = 1): string => values.map((value) => value.toFixed(digits)).join(" / ");

class Tenants {
  readonly #tokens: string[] = [];
  readonly #product: RunningProduct;
  constructor(product: RunningProduct) {
    this.#product = product;
  }
  async growTo(size: number): Promise<void> {
    const create = async (): Promise<void> => {
      while (this.#tokens.length < size) {
        const place = this.#tokens.push("") - 1;
        this.#tokens[place] = await this.#product.createTenant(`tenant-${place}`);
      }
    };
    await Promise.all(Array.from({ length: 4 }, create));
  }
  async turn(place: number): Promise<number> {
    const call = chatCaller({
      url: this.#product.url,
      token: this.#tokens[place] ?? "",
      model: fastModel,
      stream: false,
      headersOf: () => ({}),
    });
    return (await call(0)).ms;
  }
}

/** How late the first workflow task of a delayed start begins, in ms. Nothing of it runs: it has no input. */
async function reminderLateness(client: Client, tenant: string): Promise<number> {
  const startedAtMs = Date.now();
  const handle = await client.workflow.start("turn", {
    workflowId: `turn:${tenant}:api:reminder:default`,
    taskQueue: `tenant:${tenant}`,
    startDelay: reminderDelayMs,
    args: [],
  });
  try {
    for (;;) {
      const { events } = await handle.fetchHistory();
      const begun = events?.find(({ workflowTaskStartedEventAttributes }) => workflowTaskStartedEventAttributes != null)?.eventTime;
      if (begun != null) return Number(begun.seconds) * 1_000 + (begun.nanos ?? 0) / 1e6 - (startedAtMs + reminderDelayMs);
      await pause(200);
    }
  } finally {
    await handle.terminate("the bench is done with it");
  }
}

async function measure(product: RunningProduct, client: Client): Promise<void> {
  const tenants = new Tenants(product);
  await tenants.growTo(1);
  await tenants.turn(0);
  await pause(laneClosedMs);
  const base = usageOf(product.pid);
  console.log(`memory with one tenant, MB: ${parts.map((part) => `${part} ${base[part].memoryMb.toFixed(0)}`).join(", ")}`);
  let known = 1;
  for (const size of sizes) {
    const beganAtMs = performance.now();
    await tenants.growTo(size);
    const createdMs = performance.now() - beganAtMs;
    const fresh = Array.from({ length: Math.min(sleepers, size - known) }, (_, n) => size - 1 - n);
    const first: number[] = [];
    const open: number[] = [];
    const closed: number[] = [];
    for (const place of fresh) first.push(await tenants.turn(place));
    for (const place of fresh) open.push(await tenants.turn(place));
    await pause(laneClosedMs);
    for (const place of fresh) closed.push(await tenants.turn(place));
    for (let place = known; place < size - fresh.length; place++) await tenants.turn(place); // the rest of them gets its worker
    await pause(laneClosedMs);
    const awake = usageOf(product.pid);
    const idle = await cpuDuring(product.pid, async () => await pause(idleSeconds * 1_000));
    const active = Math.ceil(size / 100);
    const busy = await cpuDuring(product.pid, async () => {
      for (let second = 0; second < idleSeconds; second++)
        await Promise.all([
          pause(1_000),
          ...Array.from({ length: active }, async (_, n) => await tenants.turn((second * active + n) % size)),
        ]);
    });
    const perTenant = parts.map((part) => (awake[part].memoryMb - base[part].memoryMb) / Math.max(1, size - 1));
    console.log(`\n${size} tenants (${((size - known) / Math.max(0.001, createdMs / 1_000)).toFixed(1)} created a second)`);
    console.log(
      `  memory, MB: ${show(
        parts.map((part) => awake[part].memoryMb),
        0,
      )}; over one tenant, for each: ${show(perTenant, 2)}   (product / temporal / postgres)`,
    );
    console.log(`  CPU, % of a core: nobody calls ${show(idle)}; ${active} turn${active === 1 ? "" : "s"} a second ${show(busy)}`);
    if (fresh.length > 0) {
      const [asleep, hot, reopened] = [first, open, closed].map((times) => quantile(times, 0.5)) as [number, number, number];
      console.log(
        `  first turn without a worker, P50 ${asleep.toFixed(1)} ms: ${(asleep / reopened).toFixed(2)} × one that opens a lane of a hot tenant (${reopened.toFixed(1)}), ${(asleep / hot).toFixed(2)} × one in an open lane (${hot.toFixed(1)})`,
      );
    }
    if (options.json) console.log(JSON.stringify({ size, awake, idle, busy, first, open, closed }));
    known = size;
  }
  await tenants.growTo(known + sleepers);
  const late = await Promise.all(Array.from({ length: sleepers }, async (_, n) => await reminderLateness(client, `tenant-${known + n}`)));
  console.log(
    `\n${sleepers} reminders of tenants without a worker: late by P50 ${quantile(late, 0.5).toFixed(0)} ms, at most ${Math.max(...late).toFixed(0)} ms`,
  );
}

await onFreshHome("tenant-cost", async (home) => {
  const model = await startChild("./turn-model-server.ts");
  const product = await startProduct({ home, modelUrl: model.line, modelCall: "remote", nodeOptions: [`--max-old-space-size=${heapMb}`] });
  const connection = await Connection.connect({ address: product.temporal.address });
  try {
    await measure(product, new Client({ connection, namespace: product.temporal.namespace }));
  } finally {
    closeConnections();
    await connection.close();
    await product.stop();
    model.stop();
  }
});
