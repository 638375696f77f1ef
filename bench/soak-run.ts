import { Client, Connection } from "@temporalio/client";
import { startChild } from "./bench-child.ts";
import { quantile } from "./bench-run.ts";
import { processTree } from "./process-usage.ts";
import { type Caller, type Timing, chatCaller } from "./turn-load.ts";
import { fastModel } from "./turn-models.ts";
import { startProduct } from "./turn-product.ts";

export type SoakOptions = {
  readonly home: string;
  readonly seconds: number;
  /** Turns begun a second, whether or not earlier ones have ended. */
  readonly turnsPerSecond: number;
  readonly tenants: number;
  /** What V8 may keep, in MB: without a bound it collects late, and memory that is leaked looks like memory that is not needed yet. */
  readonly heapMb: number;
  readonly onSample: (sample: SoakSample) => void;
};

/** Resident memory of all processes of each kind, in MB, and what the turns since the last sample took. */
export type SoakSample = {
  readonly atSeconds: number;
  readonly productMb: number;
  readonly temporalMb: number;
  readonly postgresMb: number;
  readonly turns: number;
  readonly p50: number;
  readonly p99: number;
};

export type SoakResult = {
  readonly samples: readonly SoakSample[];
  readonly turns: number;
  readonly failures: readonly string[];
  readonly providerCalls: number;
  readonly billingRows: number;
  /** Events of the longest history, of all runs that the server knows. */
  readonly longestHistory: { readonly workflowId: string; readonly events: number };
};

const samples = 12;

/**
 * Turns at a steady rate, over many tenants: of four, one is stateless, one is stateless and streamed, one is of a session that all its
 * tenant's share, and one is of a session that ends with it.
 */
export async function soak({ home, seconds, turnsPerSecond, tenants, heapMb, onSample }: SoakOptions): Promise<SoakResult> {
  const model = await startChild("./turn-model-server.ts");
  const product = await startProduct({
    home,
    modelUrl: model.line,
    modelCall: "remote",
    nodeOptions: [`--max-old-space-size=${heapMb}`],
  });
  try {
    const ids = Array.from({ length: tenants }, (_, n) => `soak-${n}`);
    const callers: Caller[] = [];
    for (const id of ids) {
      const token = await product.createTenant(id);
      const base = { url: product.url, token, model: fastModel };
      callers.push(
        chatCaller({ ...base, stream: false, headersOf: () => ({}) }),
        chatCaller({ ...base, stream: true, headersOf: () => ({}) }),
        chatCaller({ ...base, stream: false, headersOf: () => ({ "x-openclaw-session": "api:always:default" }) }),
        chatCaller({ ...base, stream: true, headersOf: (turn) => ({ "x-openclaw-session": `api:once-${turn}:default` }) }),
      );
    }

    const failures: string[] = [];
    const open = new Set<Promise<void>>();
    const taken: SoakSample[] = [];
    let recent: Timing[] = [];
    let turns = 0;
    const startedAtMs = performance.now();
    const sample = (): void => {
      const memory = { product: 0, temporal: 0, postgres: 0 };
      for (const { name, rssMb } of processTree(product.pid))
        memory[name === "postgres" || name === "temporal" ? name : "product"] += rssMb;
      const times = recent.map(({ ms }) => ms);
      recent = [];
      const now = {
        atSeconds: (performance.now() - startedAtMs) / 1_000,
        productMb: memory.product,
        temporalMb: memory.temporal,
        postgresMb: memory.postgres,
        turns: times.length,
        p50: quantile(times, 0.5),
        p99: quantile(times, 0.99),
      };
      taken.push(now);
      onSample(now);
    };
    const sampling = setInterval(sample, (seconds * 1_000) / samples);
    const over = Promise.withResolvers<void>();
    const begin = (): void => {
      const dueTurns = Math.min(performance.now() - startedAtMs, seconds * 1_000) * (turnsPerSecond / 1_000);
      for (; turns < dueTurns; turns++) {
        const call = callers[turns % callers.length];
        if (call === undefined) break;
        const turn = call(turns).then(
          (timing) => void recent.push(timing),
          (error: unknown) => void failures.push(String(error)),
        );
        open.add(turn);
        void turn.finally(() => open.delete(turn));
      }
      if (performance.now() - startedAtMs > seconds * 1_000) over.resolve();
    };
    const beginning = setInterval(begin, 5);
    await over.promise;
    clearInterval(beginning);
    await Promise.all(open);
    clearInterval(sampling);

    let billingRows = 0;
    for (const id of ids) billingRows += await product.countRows(id);
    return {
      samples: taken,
      turns,
      failures,
      providerCalls: Number(await (await fetch(`${model.line}/calls`)).text()),
      billingRows,
      longestHistory: await longestHistory(product.temporal),
    };
  } finally {
    await product.stop();
    model.stop();
  }
}

async function longestHistory({ address, namespace }: { readonly address: string; readonly namespace: string }) {
  const connection = await Connection.connect({ address });
  try {
    const { workflow } = new Client({ connection, namespace });
    let longest = { workflowId: "", events: 0 };
    for await (const { workflowId, runId, historyLength } of workflow.list()) {
      // What the list says of an open run is what it was at its start.
      const events = Math.max(historyLength, (await workflow.getHandle(workflowId, runId).describe()).historyLength);
      if (events > longest.events) longest = { workflowId, events };
    }
    return longest;
  } finally {
    await connection.close();
  }
}
