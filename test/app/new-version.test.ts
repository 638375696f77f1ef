import { rmSync } from "node:fs";
import { Connection, WorkflowClient } from "@temporalio/client";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { anotherVersion } from "../product.ts";
import { type ScalingStage, type StageTenant, answerTo, clientOf, startScalingStage } from "./scaling-stage.ts";

let stage: ScalingStage;
let newer: string;

const patch = "of-a-newer-version";

beforeAll(async () => {
  stage = await startScalingStage();
  // A turn that begins with one more step: without `patched` no history of the older version could be gone on with.
  newer = anotherVersion({
    "workflows/turn-steps.ts": (text) =>
      text
        .replace("  isCancellation,\n", "  isCancellation,\n  patched,\n  sleep,\n")
        .replace("  const { turnId } = ticket;\n", `  const { turnId } = ticket;\n  if (patched("${patch}")) await sleep(1);\n`),
  });
});
afterAll(async () => {
  await stage?.close();
  if (newer !== undefined) rmSync(newer, { recursive: true, force: true });
});

/** The names of the patches that runs of a tenant's lanes have taken. */
async function patchesOf({ id }: StageTenant): Promise<ReadonlySet<string>> {
  const connection = await Connection.connect({ address: inject("temporalAddress") });
  try {
    const client = new WorkflowClient({ connection, namespace: stage.namespace });
    const names = new Set<string>();
    for await (const { workflowId, runId } of client.list({ query: `TenantId = '${id}' AND WorkflowType = 'turn'` })) {
      const { events } = await client.getHandle(workflowId, runId).fetchHistory();
      for (const { markerRecordedEventAttributes: marker } of events ?? [])
        if (marker?.markerName != null) names.add(JSON.stringify(marker.details) + marker.markerName);
    }
    return names;
  } finally {
    await connection.close();
  }
}

test("a new version of a workflow, deployed under load with turns in flight: none fails, and what comes after runs the new one", async () => {
  const { model, gateways, workers, rows } = stage;
  const tenants = await Promise.all(Array.from({ length: 4 }, stage.createTenant));
  const inSession = async (tenant: StageTenant, text: string): Promise<string> => {
    const client = clientOf(gateways[0], tenant);
    const headers = { "x-openclaw-session": "api:long:default" };
    const answer = await client.chat.completions.create({ model: "default", messages: [{ role: "user", content: text }] }, { headers });
    return answer.choices[0]?.message.content ?? "";
  };
  for (const tenant of tenants) expect(await inSession(tenant, "before")).toBe("echo: before");

  // In the middle of their model calls when their worker goes.
  const holds = tenants.map((_, n) => model.hold(`in flight ${n}`));
  const inFlight = tenants.map(async (tenant, n) => await inSession(tenant, `in flight ${n}`));
  await Promise.all(holds.map(({ arrived }) => arrived));

  let isOver = false;
  let asked = tenants.length * 2;
  const load = tenants.map(async (tenant, n) => {
    for (let round = 0; !isOver; round++) {
      asked++;
      const text = `load ${n}-${round}`;
      expect(await answerTo(gateways[round % 2 === 0 ? 0 : 1], tenant, text)).toBe(`echo: ${text}`);
    }
  });
  const deploy = async (): Promise<void> => {
    for (const worker of workers) {
      const drained = worker.drain();
      for (const hold of holds) if (!hold.isReleased()) hold.release(); // while it drains
      expect(await drained).toBe(0);
      await worker.restart(newer);
    }
  };
  await Promise.race([deploy(), Promise.all(load)]).finally(() => (isOver = true));
  await Promise.all(load);
  expect(await Promise.all(inFlight)).toEqual(tenants.map((_, n) => `echo: in flight ${n}`));
  for (const tenant of tenants) {
    asked++;
    expect(await inSession(tenant, "after")).toBe("echo: after");
  }

  expect(await rows("select count(*)::int as rows, count(distinct id)::int as calls from control.usage_ledger")).toEqual([
    { rows: asked, calls: asked },
  ]);
  for (const tenant of tenants) expect([...(await patchesOf(tenant))].join()).toContain("patch");
}, 240_000);
