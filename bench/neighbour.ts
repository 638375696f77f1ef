// What a tenant who floods costs his neighbour: node bench/neighbour.ts [--quota 60] [--seconds 10] [--rounds 3] [--json]
//
// The neighbour calls at a steady rate; by turns nobody else does, another tenant calls as much as his quota lets him, and that one calls
// ten times as much, nine of ten calls of which are refused. The neighbour's P50 and P95 of each, and whether he lost anything. The
// machine is shared with the callers.
import { parseArgs } from "node:util";
import { startChild } from "./bench-child.ts";
import { onFreshHome, quantile } from "./bench-run.ts";
import { chatCaller, closeConnections } from "./turn-load.ts";
import { fastModel, slowModel } from "./turn-models.ts";
import { startProduct } from "./turn-product.ts";

const { values: options } = parseArgs({
  options: {
    seconds: { type: "string", default: "10" },
    quota: { type: "string", default: "60" },
    rounds: { type: "string", default: "3" },
    json: { type: "boolean", default: false },
  },
});
const seconds = Number(options.seconds);
const neighbourPerSecond = 5;
/** Of the tenant who floods: calls a minute, which he may make at once. */
const quotaPerMinute = Number(options.quota);
const phases = [
  { name: "alone", floodPerSecond: 0 },
  { name: "beside a tenant at his quota", floodPerSecond: quotaPerMinute / 60 },
  { name: "beside a tenant at ten times his quota", floodPerSecond: quotaPerMinute / 6 },
] as const;

type Outcome = { readonly times: number[]; failed: number };

/** Calls at a steady rate, whether or not earlier calls have ended. */
async function callSteadily(perSecond: number, call: () => Promise<number>): Promise<Outcome> {
  const outcome: Outcome = { times: [], failed: 0 };
  const open: Promise<void>[] = [];
  for (let n = 0; n < perSecond * seconds; n++) {
    open.push(
      call().then(
        (ms) => void outcome.times.push(ms),
        () => void outcome.failed++,
      ),
    );
    await new Promise((resolve) => setTimeout(resolve, 1_000 / perSecond));
  }
  await Promise.all(open);
  return outcome;
}

await onFreshHome("neighbour", async (home) => {
  const model = await startChild("./turn-model-server.ts");
  const product = await startProduct({ home, modelUrl: model.line, modelCall: "remote" });
  try {
    const callerOf = async (tenant: string, name: string) => {
      const call = chatCaller({
        url: product.url,
        token: await product.createTenant(tenant),
        model: name,
        stream: false,
        headersOf: () => ({}),
      });
      return async () => (await call(0)).ms;
    };
    const neighbour = await callerOf("neighbour", fastModel);
    const flooder = await callerOf("flooder", slowModel);
    await product.setQuota("flooder", { requests_per_minute: quotaPerMinute });
    for (let n = 0; n < 20; n++) await neighbour();

    const found = new Map(phases.map(({ name }) => [name, { times: [] as number[], lost: 0, answered: 0, refused: 0 }]));
    for (let round = 0; round < Number(options.rounds); round++) {
      for (const { name, floodPerSecond } of phases) {
        const [calm, flood] = await Promise.all([
          callSteadily(neighbourPerSecond, neighbour),
          floodPerSecond === 0 ? undefined : callSteadily(floodPerSecond, flooder),
        ]);
        const sums = found.get(name);
        if (sums === undefined) continue;
        sums.times.push(...calm.times);
        sums.lost += calm.failed;
        sums.answered += flood?.times.length ?? 0;
        sums.refused += flood?.failed ?? 0;
      }
    }
    const alone = quantile(found.get("alone")?.times ?? [], 0.95);
    for (const [name, { times, lost, answered, refused }] of found) {
      const [p50, p95] = [quantile(times, 0.5), quantile(times, 0.95)];
      console.log(
        `${name.padEnd(40)} P50 ${p50.toFixed(1).padStart(6)} ms, P95 ${p95.toFixed(1).padStart(6)} (${(p95 / alone).toFixed(2)} ×), ${times.length} calls, ${lost} lost; the other: ${answered} answered, ${refused} refused`,
      );
      if (options.json) console.log(JSON.stringify({ name, p50, p95, calls: times.length, lost, answered, refused }));
    }
  } finally {
    closeConnections();
    await product.stop();
    model.stop();
  }
});
