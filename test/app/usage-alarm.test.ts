import { readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type RunningProduct, configWithProvider, startProduct } from "../product.ts";
import { type ModelServer, startModelServer } from "./model-server.ts";

let model: ModelServer;
let product: RunningProduct;
let acme: string;
beforeAll(async () => {
  model = await startModelServer();
  product = await startProduct({ config: configWithProvider(model.url) });
  acme = await product.createTenant("acme");
  await product.createTenant("globex");
});
afterAll(async () => {
  await product.stop();
  await model.close();
});

const ask = async (content: string): Promise<number> => {
  const answer = await fetch(`${product.url}/v1/chat/completions`, {
    method: "POST",
    headers: { authorization: `Bearer ${acme}`, "content-type": "application/json" },
    body: JSON.stringify({ model: "default", messages: [{ role: "user", content }] }),
  });
  await answer.text();
  return answer.status;
};

const asAdmin = async (path: string): Promise<Record<string, never>> => {
  const answer = await fetch(product.url + path, { headers: { authorization: `Bearer ${product.adminKey}` } });
  return (await answer.json()) as Record<string, never>;
};

type Entry = { actor: { type: string; id: string }; target: string; tenant: string; outcome: string };
const alarmsOf = async (tenant: string): Promise<Entry[]> =>
  (await asAdmin(`/v1/audit?tenant=${tenant}&action=usage.alarm`))["data"] as unknown as Entry[];

/** The alarms once there are so many: they are written behind the answer. */
async function untilAlarms(count: number): Promise<Entry[]> {
  for (;;) {
    const entries = await alarmsOf("acme");
    if (entries.length >= count) return entries;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

const counted = async (doubt: string): Promise<number> => {
  const text = await (await fetch(`${product.url}/metrics`)).text();
  return Number(new RegExp(`^openclaw_estimated_calls_total\\{doubt="${doubt}"\\} (\\d+)$`, "m").exec(text)?.[1] ?? Number.NaN);
};

test("a count that is ours is an estimated row, a number in the metrics, a line in the log and, once a day, an audit entry", async () => {
  const statuses = [
    await ask("USAGE 10 5 0 0"),
    await ask("NOUSAGE"),
    await ask("NOUSAGE\nagain"),
    await ask("USAGE 10000001 2 0 0"),
    await ask("CUT 3"),
  ];
  const entries = await untilAlarms(2);
  const { rows } = (await asAdmin("/v1/billing/report?tenant=acme&period=today&format=json&detail=true")) as unknown as {
    rows: { id: string; estimated: unknown; input_tokens: string; cache_read_tokens: string }[];
  };

  expect(statuses).toEqual([200, 200, 200, 200, 502]);
  expect(rows.map(({ estimated }) => String(estimated))).toEqual(["false", "true", "true", "true", "true"]);
  expect(await Promise.all(["missing", "unbelievable", "contradictory", "cut"].map(counted))).toEqual([2, 1, 0, 1]);
  expect(entries.map(({ target }) => target)).toEqual([`${rows[1]?.id} test-model missing`, `${rows[3]?.id} test-model unbelievable`]);
  for (const entry of entries)
    expect(entry).toMatchObject({ actor: { type: "system", id: "billing" }, tenant: "acme", outcome: "applied" });
  const log = readFileSync(join(product.home, "gateway.log"), "utf8");
  expect(log.split("\n").filter((line) => line.includes("ALARM: the tokens of a model call"))).toHaveLength(4);
  expect(await alarmsOf("globex")).toEqual([]);
});

test("after a kill of the process the same alarm is counted, and has no second entry that day", async () => {
  const before = await untilAlarms(2);
  await product.kill();
  await product.restart();

  await ask("NOUSAGE\nafter the kill");
  await ask("USAGE 10 5 40 0"); // a new kind, whose entry comes after what the other one would have written
  const after = await untilAlarms(3);
  const verified = await asAdmin("/v1/audit/verify");

  expect(await Promise.all(["missing", "contradictory"].map(counted))).toEqual([1, 1]);
  expect(after.slice(0, 2)).toEqual(before);
  expect(after[2]?.target).toMatch(/^trn_\w+\.0 test-model contradictory$/);
  expect(verified).toMatchObject({ ok: true });
});
