import { randomBytes } from "node:crypto";
import { fileURLToPath } from "node:url";
import { Context } from "@temporalio/activity";
import { Client, WorkflowFailedError, type WorkflowHandle, type WorkflowHandleWithFirstExecutionRunId } from "@temporalio/client";
import { ApplicationFailure, type Payload, type PayloadCodec } from "@temporalio/common";
import proto from "@temporalio/proto";
import { DefaultLogger, Runtime, Worker, bundleWorkflowCode } from "@temporalio/worker";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { systemOwner, type TenantId, taskQueueOf } from "../../domain/tenant.ts";
import { type Database, openDatabase } from "../../storage/database.ts";
import { renewDataKey } from "../../storage/data-keys.ts";
import { type OpenedDataKeys, openDataKeys } from "../../storage/open-data-keys.ts";
import { createPayloadDecoder, encryptedConverter, keyOwnerOf } from "../../temporal/payload-codec.ts";
import { type TemporalConnection, connectTemporal, converterOption } from "../../temporal/temporal-connection.ts";
import { leaksIn } from "../planted-secrets.ts";
import { freshDatabase, quiet, sharedKek, someTenant, temporaryHome } from "../storage/fresh-database.ts";
import { type SecretActivities, type Secrets, asked, keepSecrets, secretPlaces, shown, told } from "./secret-workflows.ts";

const { temporal } = proto;
const acme = someTenant("acme").tenantId;
const globex = someTenant("globex").tenantId;
const erased = someTenant("erased").tenantId;
const namespace = "default";
const someSecrets = (): Secrets =>
  Object.fromEntries(
    secretPlaces.map((place) => [place, `planted-${place.replaceAll(" ", "-")}-${randomBytes(12).toString("hex")}`]),
  ) as Secrets;

let secrets = someSecrets();
let database: Database;
let keys: OpenedDataKeys;
let connection: TemporalConnection;
let workers: Worker[];
let running: Promise<unknown>;
const { home, remove } = temporaryHome();
/** What the test saw while the activity was pending: its heartbeat and its failure stand there in the server. */
let whilePending: Uint8Array = new Uint8Array();

const activities: SecretActivities = {
  async remember() {
    if (Context.current().info.attempt === 1) throw new Error(secrets["local activity failure"]);
    return secrets["local activity result"];
  },
  async beat() {
    const { info, heartbeat } = Context.current();
    if (info.attempt === 1) {
      heartbeat(secrets["activity heartbeat"]);
      throw ApplicationFailure.retryable(secrets["activity failure"], "planted", secrets["activity heartbeat"]);
    }
    const described = await connection.client.workflowService.describeWorkflowExecution({
      namespace,
      execution: { workflowId: info.workflowExecution?.workflowId ?? "" },
    });
    whilePending = temporal.api.workflowservice.v1.DescribeWorkflowExecutionResponse.encode(described).finish();
    expect(info.heartbeatDetails).toBe(secrets["activity heartbeat"]); // decoded for the next attempt
    return secrets["activity result"];
  },
};

beforeAll(async () => {
  Runtime.install({ logger: new DefaultLogger("ERROR"), shutdownSignals: [] });
  const ownerUrl = await freshDatabase();
  database = await openDatabase({ ownerUrl, log: quiet });
  keys = await openDataKeys({ database, home, keyEncryptionKey: sharedKek(ownerUrl), log: quiet });
  connection = await connectTemporal({ address: inject("temporalAddress"), namespace, dataKeys: keys.dataKeys });
  const workflowBundle = await bundleWorkflowCode({
    workflowsPath: fileURLToPath(new URL("secret-workflows.ts", import.meta.url)),
    failureConverterPath: fileURLToPath(new URL("../../workflows/failure-converter.ts", import.meta.url)),
    logger: new DefaultLogger("ERROR"),
  });
  workers = await Promise.all(
    [acme, globex, erased].map(
      async (tenantId) =>
        await Worker.create({
          connection: connection.native,
          taskQueue: taskQueueOf(tenantId),
          workflowBundle,
          activities,
          ...converterOption(connection.converterOf(tenantId)),
        }),
    ),
  );
  running = Promise.all(workers.map(async (worker) => await worker.run()));
});
afterAll(async () => {
  for (const worker of workers) worker.shutdown();
  await running;
  await connection.close();
  await keys.close();
  await database.close();
  remove();
});

async function start(
  tenantId: TenantId,
  ending: "fail" | "return",
  kind = "turn",
): Promise<WorkflowHandleWithFirstExecutionRunId<typeof keepSecrets>> {
  return await connection.client.workflow.start(keepSecrets, {
    workflowId: `${kind}:${tenantId}:${randomBytes(6).toString("hex")}`,
    taskQueue: taskQueueOf(tenantId),
    args: [secrets, ending],
    memo: { planted: secrets["memo"] },
    staticSummary: secrets["static summary"],
    staticDetails: secrets["static details"],
  });
}

async function converse(handle: WorkflowHandleWithFirstExecutionRunId<typeof keepSecrets>) {
  await handle.signal(told, secrets["signal"]);
  return {
    updated: await handle.executeUpdate(asked, { args: [secrets["update"]] }),
    queried: await handle.query(shown, secrets["query"]),
  };
}

/** Everything that the server keeps of a workflow and its runs, as the bytes that it sends. */
async function storedBytes({ workflowId }: WorkflowHandle): Promise<Buffer> {
  const { workflowService } = connection.client;
  const listed = await workflowService.listWorkflowExecutions({ namespace, query: `WorkflowId = '${workflowId}'` });
  const children = await workflowService.listWorkflowExecutions({ namespace, query: `WorkflowType = 'failingChild'` });
  const runs = [...listed.executions, ...children.executions].map(({ execution }) => execution);
  expect(listed.executions.length).toBeGreaterThan(0);
  const histories = await Promise.all(
    runs.map(async (execution) => {
      const answer = await workflowService.getWorkflowExecutionHistory({ namespace, execution: execution ?? null });
      return temporal.api.workflowservice.v1.GetWorkflowExecutionHistoryResponse.encode(answer).finish();
    }),
  );
  const descriptions = await Promise.all(
    runs.map(async (execution) =>
      temporal.api.workflowservice.v1.DescribeWorkflowExecutionResponse.encode(
        await workflowService.describeWorkflowExecution({ namespace, execution: execution ?? null }),
      ).finish(),
    ),
  );
  const list = [listed, children].map((answer) => temporal.api.workflowservice.v1.ListWorkflowExecutionsResponse.encode(answer).finish());
  return Buffer.concat([...histories, ...descriptions, ...list]);
}

const isListed = async ({ workflowId }: WorkflowHandle, runs: number): Promise<void> =>
  await expect
    .poll(
      async () =>
        (
          await connection.client.workflowService.listWorkflowExecutions({
            namespace,
            query: `WorkflowId = '${workflowId}' AND CloseTime IS NOT NULL`,
          })
        ).executions.length,
      { timeout: 30_000 },
    )
    .toBe(runs);

for (const ending of ["fail", "return"] as const) {
  test(`no secret of a workflow that ends with ${ending} is in the server in any form, and its own side reads them all`, async () => {
    secrets = someSecrets();
    const handle = await start(acme, ending);

    expect(await converse(handle)).toEqual({ updated: secrets["update result"], queried: secrets["query result"] });
    const { workflowService } = connection.client;
    const raw = await workflowService.queryWorkflow({
      namespace,
      execution: { workflowId: handle.workflowId },
      query: { queryType: "__temporal_workflow_metadata" },
    });
    const outcome = await handle.result().catch((error: unknown) => error);
    await isListed(handle, ending === "fail" ? 1 : 2);

    if (ending === "return") expect(outcome).toBe(secrets["result"]);
    else {
      expect(outcome).toBeInstanceOf(WorkflowFailedError);
      expect((outcome as WorkflowFailedError).cause).toMatchObject({ message: secrets["failure"], details: [secrets["failure details"]] });
    }
    const memo = (await connection.client.workflow.getHandle(handle.workflowId, handle.firstExecutionRunId).describe()).memo;
    expect(memo).toEqual({ planted: secrets["memo"], more: secrets["upserted memo"] });
    const metadata = temporal.api.workflowservice.v1.QueryWorkflowResponse.encode(raw).finish();
    const stored = Buffer.concat([await storedBytes(handle), whilePending, metadata]);
    expect(stored.length).toBeGreaterThan(10_000);
    expect(stored.includes(handle.workflowId)).toBe(true);
    expect(leaksIn(stored, secrets)).toEqual([]);
  }, 60_000);
}

test("the search for secrets finds each of them where nothing is encrypted", async () => {
  secrets = someSecrets();
  const plain = await connectTemporal({ address: inject("temporalAddress"), namespace });
  const handle = await plain.client.workflow.start(keepSecrets, {
    workflowId: `turn:${acme}:${randomBytes(6).toString("hex")}`,
    taskQueue: taskQueueOf(acme), // its worker decodes what is not encrypted as it is
    args: [secrets, "fail"],
    memo: { planted: secrets["memo"] },
    staticSummary: secrets["static summary"],
  });
  await handle.terminate();
  await isListed(handle, 1);

  expect(leaksIn(await storedBytes(handle), secrets)).toEqual(expect.arrayContaining(["input", "memo", "static summary"]));
  expect(leaksIn(Buffer.from(Buffer.from(`x${secrets["input"]}y`).toString("base64")), secrets)).toEqual(["input"]);
  expect(leaksIn(Buffer.from(Buffer.from(`xy${secrets["input"]}`).toString("base64")), secrets)).toEqual(["input"]);
  await plain.close();
});

describe("a payload", () => {
  const converter = () => encryptedConverter({ dataKeys: keys.dataKeys, namespace }).payloadCodecs[0] as PayloadCodec;
  const contextOf = (workflowId: string) => ({ type: "workflow", namespace, workflowId }) as const;
  const plain: Payload = { metadata: { encoding: Buffer.from("json/plain"), more: Buffer.of(0, 255) }, data: Buffer.from('"hello"') };
  const own = `turn:${acme}:api:jane:default`;
  const encoded = async (workflowId = own): Promise<Payload> => (await converter().encode([plain], contextOf(workflowId)))[0] as Payload;
  const plainOf = ({ metadata, data }: Payload) => ({
    data: Buffer.from(data ?? []).toString(),
    metadata: Object.fromEntries(Object.entries(metadata ?? {}).map(([name, value]) => [name, Buffer.from(value).toString("hex")])),
  });
  const textOf = (payload: Payload, name: string): string => Buffer.from(payload.metadata?.[name] ?? []).toString();

  test("comes back whole, names its tenant and key, and is read by the same codec from before there was encryption", async () => {
    const payload = await encoded();
    const [decoded, old] = await converter().decode([payload, plain], contextOf(own));

    expect(plainOf(decoded as Payload)).toEqual(plainOf(plain));
    expect(old).toEqual(plain);
    expect([textOf(payload, "encoding"), textOf(payload, "key-id"), textOf(payload, "workflow-id")]).toEqual([
      "binary/encrypted",
      `${acme}/1`,
      own,
    ]);
  });

  test("of another workflow, or of another tenant's, is refused where a worker meets it", async () => {
    const foreign = [`turn:${acme}:api:joe:default`, `turn:${globex}:api:jane:default`, `tenant:${acme}`, "rekey:_system:1"];
    for (const workflowId of foreign) {
      await expect(converter().decode([await encoded(workflowId)], contextOf(own))).rejects.toMatchObject({ code: "tenant_violation" });
    }
  });

  test("that says of itself what it is not does not open", async () => {
    const payload = await encoded();
    await keys.dataKeys.ensure(globex);
    const relabelled = (metadata: Record<string, string>): Payload => ({
      ...payload,
      metadata: { ...payload.metadata, ...Object.fromEntries(Object.entries(metadata).map(([name, text]) => [name, Buffer.from(text)])) },
    });
    const other = `turn:${acme}:api:joe:default`;
    const attempts: readonly (readonly [Payload, string])[] = [
      [relabelled({ "workflow-id": other }), other],
      [relabelled({ "key-id": `${globex}/1`, "workflow-id": `turn:${globex}:x` }), `turn:${globex}:x`],
      [relabelled({ "key-id": `${globex}/1` }), own],
      [relabelled({ "key-id": `${acme}/9` }), own],
      [relabelled({ "key-id": "nonsense" }), own],
      [relabelled({ "workflow-id": "" }), own],
      [{ ...payload, data: Buffer.from(payload.data ?? []).fill(0, 40) }, own],
      [{ ...payload, data: Buffer.from(payload.data ?? []).subarray(0, 10) }, own],
      [{ ...payload, data: Buffer.alloc(0) }, own],
    ];
    for (const [attempt, workflowId] of attempts) {
      await expect(converter().decode([attempt], contextOf(workflowId))).rejects.toMatchObject({
        code: expect.stringMatching(/^(internal|tenant_violation)$/),
      });
    }
    const elsewhere = encryptedConverter({ dataKeys: keys.dataKeys, namespace: "another" }).payloadCodecs[0] as PayloadCodec;
    await expect(elsewhere.decode([payload], contextOf(own))).rejects.toMatchObject({ code: "internal" });
  });

  test("of a schedule is read by each of the schedule's runs, and by no other tenant's", async () => {
    const [bound] = encryptedConverter({ dataKeys: keys.dataKeys, namespace }, acme).payloadCodecs;
    const [scheduled] = (await bound?.encode([plain])) ?? [];
    const run = `cron:${acme}:daily-2026-11-23T09:00:00Z`;
    const next = `cron:${acme}:daily-2026-11-24T09:00:00Z`;
    const [result] = await converter().encode([plain], contextOf(run));

    expect(plainOf((await converter().decode([scheduled as Payload], contextOf(run)))[0] as Payload)).toEqual(plainOf(plain));
    expect(plainOf((await converter().decode([result as Payload], contextOf(next)))[0] as Payload)).toEqual(plainOf(plain));
    await expect(converter().decode([scheduled as Payload], contextOf(`cron:${globex}:daily`))).rejects.toMatchObject({
      code: "tenant_violation",
    });
    await expect(converter().encode([plain])).rejects.toMatchObject({ code: "internal" }); // of nobody's
  });

  test("with a failure's message that cannot be encrypted is replaced, since a worker that cannot tell of a failure stops", async () => {
    const failure = { ...plain, data: Buffer.from(JSON.stringify({ message: "planted", stack_trace: "at planted" })) };

    const [replaced] = await converter().encode([failure]);

    expect(JSON.parse(Buffer.from(replaced?.data ?? []).toString())).toEqual({
      message: expect.stringMatching(/encrypted/),
      stack_trace: "",
    });
    await expect(converter().encode([plain])).rejects.toMatchObject({ code: "internal" });
  });

  test("of the audit and of a tenant's beginning and end is the system's", () => {
    expect([`tenant:${acme}`, `erase:${acme}`, `provision:${acme}`, "tenant:_system", "rekey:_system:1"].map(keyOwnerOf)).toEqual(
      Array.from({ length: 5 }, () => systemOwner),
    );
    expect(keyOwnerOf(own)).toBe(acme);
  });

  test("is read under its old key version after a renewal, and decoded for the Web UI by what it says of itself", async () => {
    const before = await encoded();
    await database.withControl(async (tx) => await renewDataKey(tx, keys.ring, acme, randomBytes(4).toString("hex")));
    await expect.poll(async () => textOf(await encoded(), "key-id")).toBe(`${acme}/2`);
    const decoder = createPayloadDecoder({ dataKeys: keys.dataKeys });
    const spoilt = { ...before, data: Buffer.from(before.data ?? []).fill(0, 40) };

    const decoded = await decoder.decode(namespace, [before, await encoded(), plain, spoilt]);

    expect(decoded.slice(0, 3).map(plainOf)).toEqual(Array.from({ length: 3 }, () => plainOf(plain)));
    expect(decoded[3]).toBe(spoilt);
    expect(await decoder.decode("another", [before])).toEqual([before]);
  });
});

test("an erased tenant's histories are read by nobody, its audit and the others' still are", async () => {
  const audit = `tenant:${erased}`;
  secrets = someSecrets();
  const start = async (workflowId: string) =>
    await connection.client.workflow.start(keepSecrets, { workflowId, taskQueue: taskQueueOf(erased), args: [secrets, "fail"] });
  const ids = [`turn:${erased}:api:jane:default`, audit, `turn:${globex}:${randomBytes(6).toString("hex")}`];
  const inputsOf = async (workflowId: string): Promise<Payload[]> => {
    const { events } = await connection.client.workflow.getHandle(workflowId).fetchHistory();
    return (events?.[0]?.workflowExecutionStartedEventAttributes?.input?.payloads ?? []) as Payload[];
  };
  for (const workflowId of ids) await (await start(workflowId)).terminate();
  const decoder = createPayloadDecoder({ dataKeys: keys.dataKeys });
  const readable = async (): Promise<boolean[]> =>
    await Promise.all(
      ids.map(async (workflowId) =>
        leaksIn(Buffer.from((await decoder.decode(namespace, await inputsOf(workflowId)))[0]?.data ?? []), secrets).includes("input"),
      ),
    );
  expect(await readable()).toEqual([true, true, true]);

  await keys.dataKeys.erase(erased);

  expect(await readable()).toEqual([false, true, true]);
  const client = new Client({ connection: connection.native, namespace, ...converterOption(connection.converterOf()) });
  await expect(start(`turn:${erased}:again`)).rejects.toThrow("erased");
  await expect(client.workflow.getHandle(audit).describe()).resolves.toMatchObject({ workflowId: audit });
});

test("a worker lives on when it meets a run whose key has gone", async () => {
  const tenantId = erased;
  const other = await connectTemporal({ address: inject("temporalAddress"), namespace });
  const plain = other.client.workflow;
  const handle = await plain.start(keepSecrets, {
    workflowId: `turn:${tenantId}:${randomBytes(6).toString("hex")}`,
    taskQueue: taskQueueOf(tenantId),
    args: [secrets, "fail"],
  });

  await expect
    .poll(async () => (await handle.describe()).raw.pendingWorkflowTask?.attempt ?? 0, { timeout: 30_000, interval: 200 })
    .toBeGreaterThan(1);

  expect(workers.map((worker) => worker.getState())).toEqual(["RUNNING", "RUNNING", "RUNNING"]);
  await handle.terminate();
  await other.close();
});
