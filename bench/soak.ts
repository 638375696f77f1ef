// Whether the product stays as it is under a steady load: node bench/soak.ts [--minutes 60] [--rate 12] [--tenants 20] [--heap 256] [--json]
//
// Memory by sample, histories, and whether every turn has one model call and one billing row. `--rate` is turns a second: half of what
// two cores do over so many tenants, where turns share no workflow tasks and a quarter of them begin a session. CI runs a minute of it (test/app/soak.test.ts).
import { parseArgs } from "node:util";
import { onFreshHome } from "./bench-run.ts";
import { soak } from "./soak-run.ts";

const { values: options } = parseArgs({
  options: {
    minutes: { type: "string", default: "60" },
    rate: { type: "string", default: "12" },
    tenants: { type: "string", default: "20" },
    heap: { type: "string", default: "256" },
    json: { type: "boolean", default: false },
  },
});
const cells = (values: readonly (number | string)[]): string =>
  values.map((value) => (typeof value === "string" ? value : value.toFixed(0)).padStart(10)).join("");

await onFreshHome("soak", async (home) => {
  console.log(cells(["s", "turns", "P50 ms", "P99 ms", "product", "temporal", "postgres"]));
  const result = await soak({
    home,
    seconds: Number(options.minutes) * 60,
    turnsPerSecond: Number(options.rate),
    tenants: Number(options.tenants),
    heapMb: Number(options.heap),
    onSample: ({ atSeconds, turns, p50, p99, productMb, temporalMb, postgresMb }) =>
      console.log(cells([atSeconds, turns, p50, p99, productMb, temporalMb, postgresMb])),
  });
  const { samples, turns, failures, providerCalls, billingRows, longestHistory } = result;
  const middle = samples[Math.floor(samples.length / 2)]?.productMb ?? Number.NaN;
  console.log(`\n${turns} turns, ${failures.length} failed, ${providerCalls} model calls, ${billingRows} billing rows`);
  console.log(`the product's memory at the end is ${((samples.at(-1)?.productMb ?? Number.NaN) / middle).toFixed(2)} × that of the middle`);
  console.log(`the longest history has ${longestHistory.events} events: ${longestHistory.workflowId}`);
  for (const failure of failures.slice(0, 5)) console.log(`failed: ${failure}`);
  if (options.json) console.log(JSON.stringify(result));
  process.exitCode = failures.length === 0 && turns === providerCalls && turns === billingRows ? 0 : 1;
});
