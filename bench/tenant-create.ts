// What it costs to make a tenant through the API, one after the other, beside Temporal's own hello-world on the same server (issue 4).
// node bench/tenant-create.ts [--tenants 1000] [--json] [--profile DIRECTORY]
//
// The product runs as `app/main.ts start`. One caller makes the tenants, and runs one hello-world after every tenth of them, so that
// both see the same machine. Then the list is read through the API and by the command line.
import { execFile } from "node:child_process";
import { randomUUID } from "node:crypto";
import { fileURLToPath } from "node:url";
import { parseArgs, promisify } from "node:util";
import { Client, Connection } from "@temporalio/client";
import { startChild } from "./bench-child.ts";
import { onFreshHome, quantile } from "./bench-run.ts";
import { processTree } from "./process-usage.ts";
import { startProduct } from "./turn-product.ts";

const { values: options } = parseArgs({
  options: {
    tenants: { type: "string", default: "1000" },
    json: { type: "boolean", default: false },
    profile: { type: "string" },
  },
});
const tenants = Math.max(10, Math.trunc(Number(options.tenants)));
const helloEvery = 10;
const listReads = 20;
const commandRuns = 5;
const warmUps = 5;

const timed = async (work: () => Promise<unknown>): Promise<number> => {
  const startedAt = performance.now();
  await work();
  return performance.now() - startedAt;
};

function cpuByPart(pid: number): Readonly<Record<string, number>> {
  const sums: Record<string, number> = { product: 0, temporal: 0, postgres: 0 };
  for (const { name, cpuMs } of processTree(pid)) {
    const part = name === "postgres" || name === "temporal" ? name : "product";
    sums[part] = (sums[part] ?? 0) + cpuMs;
  }
  return sums;
}

type Target = { readonly says: string; readonly value: number; readonly limit: number };

async function measure(home: string): Promise<readonly Target[]> {
  const nodeOptions = options.profile === undefined ? [] : ["--cpu-prof", `--cpu-prof-dir=${options.profile}`];
  const product = await startProduct({ home, modelUrl: "http://127.0.0.1:9", modelCall: "remote", nodeOptions });
  const { address, namespace } = product.temporal;
  const taskQueue = "bench-hello";
  const helloWorker = await startChild("./turn-hello-worker.ts", [address, namespace, taskQueue]);
  const connection = await Connection.connect({ address });
  try {
    const client = new Client({ connection, namespace });
    const hello = async (): Promise<unknown> =>
      await client.workflow.execute("hello", { taskQueue, workflowId: `bench-hello-${randomUUID()}`, args: ["world"] });
    for (let n = 0; n < warmUps; n++) await Promise.all([hello(), product.createTenant(`warm-${n}`)]);

    const created: number[] = [];
    const greeted: number[] = [];
    const before = cpuByPart(product.pid);
    for (let n = 0; n < tenants; n++) {
      created.push(await timed(async () => await product.createTenant(`bench-${n}`)));
      if (n % helloEvery === 0) greeted.push(await timed(hello));
    }
    const after = cpuByPart(product.pid);
    const listed: number[] = [];
    for (let n = 0; n < listReads; n++) listed.push(await timed(product.listTenants));
    const cli = fileURLToPath(new URL("../bin/openclaw.mjs", import.meta.url));
    const commands: number[] = [];
    for (let n = 0; n < commandRuns; n++) {
      const env = { ...process.env, OPENCLAW_HOME: home, OPENCLAW_URL: product.url, OPENCLAW_TOKEN: "", OPENCLAW_ADMIN_KEY: "" };
      const list = async () => await promisify(execFile)(process.execPath, [cli, "tenants", "list"], { env });
      commands.push(await timed(list));
    }

    const lines = [
      ["create", created],
      ["hello-world", greeted],
      [`list of ${tenants + warmUps}, API`, listed],
      [`list of ${tenants + warmUps}, openclaw tenants list`, commands],
    ] as const;
    console.log(`${"".padEnd(38)}${["P50", "P95", "P99", "most"].map((name) => name.padStart(9)).join("")}   (ms)`);
    for (const [name, values] of lines) {
      const cells = [0.5, 0.95, 0.99, 1].map((share) => quantile(values, share).toFixed(1).padStart(9));
      console.log(`${name.padEnd(38)}${cells.join("")}`);
      if (options.json)
        console.log(JSON.stringify({ name, count: values.length, p50: quantile(values, 0.5), p99: quantile(values, 0.99) }));
    }
    const tenth = Math.max(1, Math.floor(tenants / 10));
    console.log(
      `create P50 of the first ${tenth}: ${quantile(created.slice(0, tenth), 0.5).toFixed(1)} ms, of the last: ${quantile(created.slice(-tenth), 0.5).toFixed(1)} ms`,
    );
    const cpu = Object.entries(after).map(([part, ms]) => `${part} ${((ms - (before[part] ?? 0)) / tenants).toFixed(1)}`);
    console.log(`CPU per tenant with its share of the hello-worlds, ms: ${cpu.join(", ")}`);
    return [
      { says: "create, P50, ms", value: quantile(created, 0.5), limit: 120 },
      { says: "create, P99, ms", value: quantile(created, 0.99), limit: 300 },
      { says: "create ÷ hello-world, P50", value: quantile(created, 0.5) / quantile(greeted, 0.5), limit: 2 },
      { says: `list of ${tenants + warmUps} through the API, P50, ms`, value: quantile(listed, 0.5), limit: 300 },
    ];
  } finally {
    await connection.close();
    helloWorker.stop();
    await product.stop();
  }
}

await onFreshHome("tenants", async (home) => {
  console.log(`${tenants} tenants`);
  for (const { says, value, limit } of await measure(home)) {
    const isMet = value <= limit;
    console.log(
      `  ${isMet ? "met   " : "missed"}  ${says.padEnd(48)} ${value.toFixed(value < 10 ? 2 : 1).padStart(7)}  (at most ${limit})`,
    );
    if (options.json) console.log(JSON.stringify({ target: says, value, limit, isMet }));
  }
});
