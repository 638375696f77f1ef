import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { join } from "node:path";
import { DeterminismViolationError } from "@temporalio/workflow";
import { Worker } from "@temporalio/worker";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { archiveScheduleId } from "../../domain/history-archive.ts";
import { reconcileScheduleId } from "../../domain/reconciliation.ts";
import { type TenantContext, ownerOfWorkflowId, systemOwner, taskQueueOf } from "../../domain/tenant.ts";
import type { NanoUsd } from "../../domain/money.ts";
import { callIdOf } from "../../domain/turn-id.ts";
import { demoServices } from "../../providers/demo-services.ts";
import { ModelCallError } from "../../providers/model-provider.ts";
import { insertTurn } from "../../storage/turn-repository.ts";
import type { ServiceSubmission, TurnSubmission } from "../../domain/turn.ts";
import { createInvoiceClient } from "../../temporal/invoice-client.ts";
import { converterOption } from "../../temporal/temporal-connection.ts";
import { type Lane, laneNameOf } from "../../temporal/tenant-client.ts";
import { findTemporalBinary } from "../../temporal-dev/temporal-binary.mjs";
import { workflowBundle } from "../../workers/workflow-bundle.ts";
import { type ChangesStage, startChanges } from "../control-plane/changes-stage.ts";
import { billCall, customerOf, dayOf, invoicesAt } from "../control-plane/invoice-stage.ts";
import { type FakeStripe, startFakeStripe } from "../fixtures/fake-stripe.ts";
import { type TurnStack, scriptedProvider, someTurn, startTurnStack } from "../turn-stack.ts";

/** One recorded history per kind of run and released version; `OPENCLAW_RECORD=<version> npx vitest run test/workflows/replay.test.ts` adds some. */
const directory = fileURLToPath(new URL("../histories", import.meta.url));
const recordedRuns = (): string[] => readdirSync(directory).filter((name) => name.endsWith(".json"));

let held = Promise.withResolvers<void>();
const provider = scriptedProvider(async ({ messages }, signal) => {
  const last = messages.at(-1);
  if (last?.content === "refuse") throw new ModelCallError("refused", "the model says no", { status: 400 });
  if (last?.content === "wait for an abort") {
    held.resolve();
    await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
    throw new ModelCallError("aborted", "aborted");
  }
  if (last?.role === "user" && last.content === "use a tool") return { toolCalls: [{ id: "call_0", name: "missing", arguments: "{}" }] };
  return { text: "an answer" };
});
let stack: TurnStack;
let tenant: TenantContext;
/** For the system's workflows, in a namespace of its own. */
let stage: ChangesStage;
let stripe: FakeStripe;

beforeAll(async () => {
  stack = await startTurnStack({
    provider: { ...provider, services: demoServices },
    lane: { turnsPerRun: 2 },
    isPlain: process.env["OPENCLAW_RECORD"] !== undefined,
  });
  tenant = await stack.addTenant("replay");
  stripe = await startFakeStripe();
  stage = await startChanges({ invoices: invoicesAt(stripe), isPlain: process.env["OPENCLAW_RECORD"] !== undefined });
});
afterAll(async () => {
  await stage.close();
  await stripe.close();
  await stack.close();
});

async function replay(history: unknown, workflowId: string, connection = stack.connection): Promise<void> {
  const { codePath } = await workflowBundle(inject("bundleDirectory"));
  await Worker.runReplayHistory(
    {
      workflowBundle: { codePath },
      replayName: "replay",
      taskQueue: taskQueueOf(ownerOfWorkflowId(workflowId)),
      ...converterOption(connection.converterOf()),
    } as never,
    history,
    workflowId,
  );
}

type StoredHistory = { readonly events: readonly [{ readonly workflowExecutionStartedEventAttributes: { readonly workflowId: string } }] };

/** As the Temporal command line shows it: the form that operators and other tools exchange. */
function showHistory(workflowId: string, namespace: string): string {
  const binary = findTemporalBinary({ env: process.env })?.path ?? "temporal";
  const server = ["--address", inject("temporalAddress"), "--namespace", namespace];
  const args = ["workflow", "show", "--workflow-id", workflowId, "--output", "json", ...server];
  return execFileSync(binary, args, { encoding: "utf8", maxBuffer: 64 * 1024 * 1024 });
}

async function run(text: string, lane: Lane, meanwhile = async (_turn: TurnSubmission): Promise<void> => {}): Promise<string> {
  const turn = someTurn("sessionId" in lane ? lane.sessionId : "api:x:default", text, "pool" in lane ? { stateless: true } : {});
  return await submit(turn, lane, async () => await meanwhile(turn));
}

const someEmbedding = (text: string): ServiceSubmission => ({
  ...someTurn("api:x:default", text, { stateless: true }),
  kind: "embedding",
  request: { service: "embedding", model: "test-model", input: [text], dimensions: undefined, user: undefined },
});

async function submit(turn: TurnSubmission | ServiceSubmission, lane: Lane, meanwhile = async (): Promise<void> => {}): Promise<string> {
  await stack.database.withTenant(tenant, async (tx) => await insertTurn(tx, turn, laneNameOf(lane)));
  await stack.pool.wake(tenant.tenantId);
  await Promise.all([stack.clientOf(tenant.tenantId).submitTurn(lane, turn), meanwhile()]);
  return `turn:${tenant.tenantId}:${laneNameOf(lane)}`;
}

const kinds = {
  "session-turn": async () => await run("hello", { sessionId: someTurn("api:plain:default", "").sessionId }),
  "session-tools": async () => await run("use a tool", { sessionId: someTurn("api:tools:default", "").sessionId }),
  "session-moved": async () => {
    const lane = { sessionId: someTurn("api:moved:default", "").sessionId };
    await run("one", lane);
    await run("two", lane);
    return await run("three", lane);
  },
  "session-aborted": async () => {
    const lane = { sessionId: someTurn("api:aborted:default", "").sessionId };
    held = Promise.withResolvers();
    return await run("wait for an abort", lane, async ({ turnId }) => {
      await held.promise;
      await stack.clientOf(tenant.tenantId).abortTurn(lane, turnId);
    });
  },
  "session-failed": async () => await run("refuse", { sessionId: someTurn("api:failed:default", "").sessionId }),
  "pool-turn": async () => await run("hello", { pool: 3 }),
  "pool-service": async () => await submit(someEmbedding("hello"), { pool: 4 }),
  "chain-system": async () => (await lifeOf(), "tenant:_system"),
  "chain-tenant": async () => `tenant:${await lifeOf()}`,
  "chain-tenant-leased": async () => `tenant:${await leaseOf()}`,
  provision: async () => `provision:${await lifeOf()}`,
  invoice: async () => {
    const { tenantId } = await stage.createTenant("replay");
    stripe.customers.add(customerOf(tenantId));
    await billCall(stage.stack.database, tenantId, dayOf(-1), 5n);
    await stage.stack.pool.wake(systemOwner);
    const workflowId = await createInvoiceClient(stage.stack.connection).start(tenantId, "run", { firstDay: dayOf(-2) });
    await stage.stack.connection.client.workflow.getHandle(workflowId).result();
    return workflowId;
  },
  erase: async () => `erase:${await lifeOf()}`,
  archive: async () => {
    const { tenantId } = await stage.createTenant("archived");
    await stage.stack.pool.wake(systemOwner);
    const workflowId = `${archiveScheduleId}:${tenantId}`;
    await stage.stack.connection.client.workflow.execute("archive", { workflowId, taskQueue: taskQueueOf(systemOwner) });
    return workflowId;
  },
  reconcile: async () => {
    const { tenantId } = await stage.createTenant("replay");
    await billCall(stage.stack.database, tenantId, dayOf(-1), 5n);
    await stage.stack.pool.wake(systemOwner);
    const workflowId = `${reconcileScheduleId}:${tenantId}`;
    await stage.stack.connection.client.workflow.execute("reconcile", { workflowId, taskQueue: taskQueueOf(systemOwner) });
    return workflowId;
  },
};

/** A tenant whose quota is leased, and lowered below what was granted. @returns its id */
async function leaseOf(): Promise<string> {
  const { tenantId } = await stage.createTenant("leased");
  await expect.poll(async () => (await stage.stack.operations.read(`provision:${tenantId}`))?.state, { timeout: 30_000 }).toBe("done");
  const { quota } = stage.stack;
  const amount = { tokens: 100, nanoUsd: 0n as NanoUsd };
  const ceilings = { costPerDayNanoUsd: null, requestsPerMinute: 10 };
  await stage.make(tenantId, { type: "quota.update", quota: { ...ceilings, tokensPerDay: 1_000_000 } });
  const callId = callIdOf(someTurn("api:plain:default", "").turnId, 0);
  const { holder, batch } = await quota.reserve(tenantId, callId, { least: amount, desired: amount });
  quota.settle(tenantId, { callId, holder, batch, actual: amount });
  await quota.admit(tenantId);
  await stage.make(tenantId, { type: "quota.update", quota: { ...ceilings, tokensPerDay: 50 } });
  const count = async () => await stage.stack.clientOf(tenantId).quota.count();
  await expect.poll(async () => (await count())?.leases, { timeout: 30_000 }).toBe(0);
  return tenantId;
}

/** From a tenant's creation to the end of its erasure. @returns its id */
async function lifeOf(): Promise<string> {
  const { tenantId } = await stage.createTenant("replay");
  await stage.make(tenantId, { type: "tenant.suspend" });
  await expect.poll(async () => (await stage.stack.operations.read(`provision:${tenantId}`))?.state, { timeout: 30_000 }).toBe("done");
  await stage.make(systemOwner, { type: "tenant.delete", tenantId });
  await expect.poll(async () => (await stage.stack.operations.read(`erase:${tenantId}`))?.state, { timeout: 60_000 }).toBe("done");
  return tenantId;
}

describe("a run of today replays", () => {
  for (const [kind, start] of Object.entries(kinds)) {
    test(
      kind,
      async () => {
        const workflowId = await start();
        const { connection } = workflowId.startsWith("turn:") ? stack : stage.stack;
        const history = await connection.client.workflow.getHandle(workflowId).fetchHistory();

        await replay(history, workflowId, connection);

        const version = process.env["OPENCLAW_RECORD"];
        if (version !== undefined) {
          mkdirSync(directory, { recursive: true });
          writeFileSync(join(directory, `${version}-${kind}.json`), showHistory(workflowId, connection.namespace));
        }
      },
      120_000,
    );
  }
});

test("there is a recorded run of every kind", () => {
  const missing = Object.keys(kinds).filter((kind) => !recordedRuns().some((name) => name.endsWith(`-${kind}.json`)));

  expect(missing).toEqual([]);
});

describe("a recorded run of an earlier version replays", () => {
  for (const name of recordedRuns()) {
    test(name, async () => {
      const history = JSON.parse(readFileSync(join(directory, name), "utf8")) as StoredHistory;

      await replay(history, history.events[0].workflowExecutionStartedEventAttributes.workflowId);
    });
  }
});

test("a history that the workflow would not have made is found out", async () => {
  const workflowId = await kinds["session-tools"]();
  const history = await stack.connection.client.workflow.getHandle(workflowId).fetchHistory();
  for (const { activityTaskScheduledEventAttributes: scheduled } of history.events ?? []) {
    if (scheduled?.activityType?.name === "runTool") scheduled.activityType.name = "anotherTool";
  }

  await expect(replay(history, workflowId)).rejects.toBeInstanceOf(DeterminismViolationError);
});
