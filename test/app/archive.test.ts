import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { Client, Connection } from "@temporalio/client";
import type { PayloadCodec } from "@temporalio/common";
import { afterAll, beforeAll, expect, test } from "vitest";
import { archiveScheduleId } from "../../domain/history-archive.ts";
import { systemOwner, taskQueueOf } from "../../domain/tenant.ts";
import { type RunningProduct, configWithProvider, ownerUrlOf, startProduct } from "../product.ts";
import { runSql } from "../storage/fresh-database.ts";
import { type ModelServer, startModelServer } from "./model-server.ts";

type History = { readonly events: readonly { readonly eventType: string; readonly eventId: string }[] };
type Run = { readonly run_id: string; readonly workflow_id: string; readonly status: string; readonly events: number };

/** Results are encrypted under keys of the product's, and nobody looks at them here. */
const unread: PayloadCodec = {
  encode: async (payloads) => payloads,
  decode: async (payloads) => payloads.map(() => ({ metadata: { encoding: Buffer.from("binary/null") } })),
};

let model: ModelServer;
let product: RunningProduct;
let connection: Connection;
let client: Client;
const tokens = new Map<string, string>();
beforeAll(async () => {
  model = await startModelServer();
  const settings = "temporal: { archive_days: 90, lane_window_seconds: 2 }";
  product = await startProduct({ config: configWithProvider(model.url, settings) });
  for (const tenant of ["acme", "globex", "doomed"]) tokens.set(tenant, await product.createTenant(tenant));
  const { temporal } = JSON.parse(readFileSync(join(product.home, "gateway.json"), "utf8")) as {
    temporal: { address: string; namespace: string };
  };
  connection = await Connection.connect({ address: temporal.address });
  client = new Client({ connection, namespace: temporal.namespace, dataConverter: { payloadCodecs: [unread] } });
});
afterAll(async () => {
  await connection.close();
  await product.stop();
  await model.close();
});

const ask = async (tenant: string, session: string, content: string): Promise<void> => {
  const answer = await fetch(`${product.url}/v1/chat/completions`, {
    method: "POST",
    headers: {
      authorization: `Bearer ${tokens.get(tenant)}`,
      "content-type": "application/json",
      "x-openclaw-session": `api:${session}:default`,
    },
    body: JSON.stringify({ model: "default", messages: [{ role: "user", content }] }),
  });
  expect(answer.status).toBe(200);
};
/** A turn whose lane has closed behind it. @returns the ids of the run */
const closedRun = async (tenant: string, session: string): Promise<{ workflowId: string; runId: string }> => {
  await ask(tenant, session, "planted question\nSAY planted answer");
  const handle = client.workflow.getHandle(`turn:${tenant}:api:${session}:default`);
  const { runId, workflowId } = await handle.describe();
  await handle.result();
  return { workflowId, runId };
};

/** Archives now, as the schedule does each hour: what closed up to ten seconds ago. */
const archiveOnce = async (id: string): Promise<void> =>
  void (await client.workflow.execute("archive", { workflowId: `${archiveScheduleId}:${id}`, taskQueue: taskQueueOf(systemOwner) }));
/** Again until the run is old enough to be among them. */
const archived = async (tenant: string, runId: string): Promise<Run> => {
  let found: Run | undefined;
  await expect
    .poll(
      async () => {
        await archiveOnce(`until-${Date.now()}`);
        return (found = (await list(tenant)).find((run) => run.run_id === runId));
      },
      { timeout: 60_000, interval: 1_000 },
    )
    .toBeDefined();
  return found!;
};
const list = async (tenant: string, query = ""): Promise<readonly Run[]> =>
  (await product.admin("GET", `/v1/tenants/${tenant}/histories${query}`)).body["data"] as Run[];

const cli = async (...words: string[]): Promise<string> => {
  const bin = fileURLToPath(new URL("../../bin/openclaw.mjs", import.meta.url));
  const env = { ...process.env, OPENCLAW_URL: product.url, OPENCLAW_TOKEN: product.adminKey, OPENCLAW_HOME: product.home };
  return (await promisify(execFile)(process.execPath, [bin, ...words], { env })).stdout;
};

test("a closed run is kept when Temporal has forgotten it, in the form that its tools read", async () => {
  const { workflowId, runId } = await closedRun("acme", "jane");
  const original = await client.workflow.getHandle(workflowId, runId).fetchHistory();
  const run = await archived("acme", runId);
  await connection.workflowService.deleteWorkflowExecution({
    namespace: client.options.namespace,
    workflowExecution: { workflowId, runId },
  });
  const events = original.events?.length ?? 0;
  expect(run).toMatchObject({ workflow_id: workflowId, status: "COMPLETED", events });

  expect(await cli("history", "list", "--tenant", "acme", "--workflow", workflowId)).toContain(runId);
  const exported = await cli("history", "export", runId, "--tenant", "acme");
  expect(exported).not.toContain("planted");
  const history = JSON.parse(exported) as History;
  expect(history.events.map(({ eventId }) => Number(eventId))).toEqual(Array.from({ length: events }, (_, index) => index + 1));
  expect(history.events[0]?.eventType).toBe("EVENT_TYPE_WORKFLOW_EXECUTION_STARTED");
});

test("what was archived is archived once, however often and from wherever it is done, also over kill -9", async () => {
  const runs = [];
  for (let n = 0; n < 6; n++) runs.push(closedRun(n % 2 === 0 ? "acme" : "globex", `many-${n}`));
  const ids = (await Promise.all(runs)).map(({ runId }) => runId);
  await archived("acme", ids[0]!);
  const before = await list("globex");
  const handle = await client.workflow.start("archive", { workflowId: `${archiveScheduleId}:killed`, taskQueue: taskQueueOf(systemOwner) });
  await product.kill();
  await product.restart();
  await handle.result();
  await archiveOnce("again");

  const kept = [...(await list("acme")), ...(await list("globex"))].map(({ run_id }) => run_id);
  expect(kept.filter((runId) => ids.includes(runId)).toSorted(compare)).toEqual(ids.toSorted(compare));
  expect(new Set(kept).size).toBe(kept.length);
  expect(before.every(({ run_id }) => kept.includes(run_id))).toBe(true);
});

test("a list goes on where it ended, and one tenant's runs are no other's", async () => {
  const all = await list("acme");
  const first = await list("acme", "?limit=1");
  const rest = await list("acme", `?after=${first[0]?.run_id}`);
  expect([...first, ...rest]).toEqual(all);

  expect((await list("globex")).some(({ workflow_id }) => !workflow_id.includes(":globex"))).toBe(false);
  expect((await product.admin("GET", `/v1/tenants/globex/histories/${all[0]?.run_id}`)).status).toBe(404);
  expect((await product.admin("GET", "/v1/tenants/acme/histories/nonsense")).status).toBe(404);
  expect((await product.admin("GET", "/v1/tenants/acme/histories?limit=0")).status).toBe(400);
  expect((await product.admin("GET", `/v1/tenants/globex/histories?after=${all[0]?.run_id}`)).status).toBe(400);
  expect((await product.admin("GET", "/v1/tenants/nobody/histories")).status).toBe(404);
});

test("what is older than it is to be kept goes, and an erased tenant's with the tenant", async () => {
  const { runId } = await closedRun("doomed", "last");
  await archived("doomed", runId);
  const [old] = await list("acme");
  const ownerUrl = ownerUrlOf(product.home);
  await runSql(ownerUrl, `update tenant_acme.archived_run set closed_at = now() - interval '91 days' where run_id = '${old?.run_id}'`);
  await archiveOnce("pruning");

  expect((await list("acme")).map(({ run_id }) => run_id)).not.toContain(old?.run_id);
  const pages = await runSql(ownerUrl, `select from tenant_acme.archived_run_piece where run_id = '${old?.run_id}'`);
  expect(pages.rows).toEqual([]);
  await cli("tenants", "delete", "doomed", "--confirm", "doomed");
  expect((await product.admin("GET", "/v1/tenants/doomed/histories")).status).toBe(404);
});

test("it is done each hour", async () => {
  const scheduled = async (): Promise<string[]> => {
    const ids = [];
    for await (const { scheduleId } of client.schedule.list()) ids.push(scheduleId);
    return ids;
  };
  await expect.poll(scheduled, { timeout: 20_000 }).toContain(archiveScheduleId);
});

const compare = (one: string, other: string): number => (one < other ? -1 : 1);
