import { randomBytes, randomUUID } from "node:crypto";
import { Worker } from "@temporalio/worker";
import { DeterminismViolationError } from "@temporalio/workflow";
import { expect, inject, onTestFinished, test } from "vitest";
import { createArchivedHistories, createHistoryArchive } from "../../control-plane/history-archive.ts";
import { type ArchiveReport, archiveScheduleId } from "../../domain/history-archive.ts";
import { systemOwner, taskQueueOf } from "../../domain/tenant.ts";
import { insertTurn } from "../../storage/turn-repository.ts";
import { ensureArchiveSchedule } from "../../temporal/archive-client.ts";
import { createClosedRuns, eventsOfPage } from "../../temporal/closed-runs.ts";
import { connectTemporal, converterOption } from "../../temporal/temporal-connection.ts";
import { laneNameOf } from "../../temporal/tenant-client.ts";
import { workflowBundle } from "../../workers/workflow-bundle.ts";
import { freshNamespace } from "../fresh-namespace.ts";
import { quiet, scriptedProvider, someTurn, startTurnStack } from "../turn-stack.ts";

test("an archived turn replays with the workflow of today, and what is archived twice is stored once", async () => {
  const namespace = await freshNamespace(inject("temporalAddress"));
  const stack = await startTurnStack({
    provider: scriptedProvider(async () => ({ text: "an answer" })),
    namespace,
    lane: { windowMs: 500 },
  });
  onTestFinished(() => stack.close());
  const { database, connection, pool } = stack;
  const { workflow } = connection.client;
  const context = await stack.addTenant("archived");
  const { tenantId } = context;
  const turn = someTurn("api:jane:default", "a question");
  const lane = { sessionId: turn.sessionId };
  await pool.wake(tenantId);
  await pool.wake(systemOwner);
  await database.withTenant(context, async (tx) => await insertTurn(tx, turn, laneNameOf(lane)));
  await stack.clientOf(tenantId).submitTurn(lane, turn);
  const workflowId = `turn:${tenantId}:${laneNameOf(lane)}`;
  await workflow.getHandle(workflowId).result();
  const archive = async (): Promise<ArchiveReport> =>
    await workflow.execute<() => Promise<ArchiveReport>>("archive", {
      workflowId: `${archiveScheduleId}:${randomBytes(4).toString("hex")}`,
      taskQueue: taskQueueOf(systemOwner),
    });

  // What closed in the last seconds is left to the next run.
  const first = { report: await archive() };
  await expect.poll(async () => (first.report = await archive()).archived, { timeout: 60_000, interval: 1_000 }).toBe(1);
  expect(await archive()).toEqual({ archived: 0, known: 1, gone: 0, pruned: 0 });

  const histories = createArchivedHistories({ database });
  const [run] = await histories.list(context, { workflowId, after: undefined, limit: 10 });
  const events: unknown[] = [];
  for await (const page of await histories.open(context, run?.runId ?? "")) events.push(...eventsOfPage(page));
  const { codePath } = await workflowBundle(inject("bundleDirectory"));
  const options = { workflowBundle: { codePath }, taskQueue: taskQueueOf(tenantId), ...converterOption(connection.converterOf()) };
  expect(events).toHaveLength(run?.events ?? 0);
  await Worker.runReplayHistory(options, { events }, workflowId);

  const altered = JSON.parse(JSON.stringify(events).replaceAll('"callModel"', '"callAnother"')) as unknown;
  await expect(Worker.runReplayHistory(options, { events: altered }, workflowId)).rejects.toBeInstanceOf(DeterminismViolationError);
});

test("runs of an erased tenant and of another installation, nobody's, and a history that is gone stop nobody's archive", async () => {
  const namespace = await freshNamespace(inject("temporalAddress"));
  const stack = await startTurnStack({ provider: scriptedProvider(async () => ({ text: "an answer" })), namespace });
  onTestFinished(() => stack.close());
  const { connection, database } = stack;
  const { workflow } = connection.client;
  const [kept, erased] = [await stack.addTenant("kept"), await stack.addTenant("erased")];
  const workflowIds = [kept.tenantId, erased.tenantId, "elsewhere"].map((name) => `turn:${name}:api:x:default`);
  for (const workflowId of [...workflowIds, "nobody"]) {
    await workflow.start("turn", { workflowId, taskQueue: `unserved-${namespace}`, args: [] });
    await workflow.getHandle(workflowId).terminate("for the test");
  }
  const runs = createClosedRuns(connection);
  const window = { fromMs: 0, toMs: Date.now() + 60_000 };
  await expect.poll(async () => (await runs.list(window)).runs.length, { timeout: 30_000 }).toBe(3);
  await database.withControl(async (tx) => await tx.execute("update tenant set state = 'deleted' where id = $1", [erased.tenantId]));
  await database.dropTenantSchema(erased.tenantId);

  // The list of tenants is a moment old, and one run has no history any more.
  const archive = createHistoryArchive({
    database,
    runs: {
      ...runs,
      async list(query) {
        const { runs: found } = await runs.list(query);
        return {
          next: undefined,
          runs: [...found, ...found.slice(0, 1).map((run) => ({ ...run, tenantId: kept.tenantId, runId: randomUUID() }))],
        };
      },
    },
    tenants: async () => [kept.tenantId, erased.tenantId],
    keepDays: 1,
    log: quiet,
  });
  expect(await archive.archive(window, new AbortController().signal)).toEqual({ archived: 1, known: 0, gone: 2, next: undefined });
});

test("the schedule is there while days are kept, however often it is asked for, and gone without", async () => {
  const connection = await connectTemporal({
    address: inject("temporalAddress"),
    namespace: await freshNamespace(inject("temporalAddress")),
  });
  onTestFinished(() => connection.close());
  const scheduled = async (): Promise<readonly string[]> => {
    const ids = [];
    for await (const { scheduleId } of connection.client.schedule.list()) ids.push(scheduleId);
    return ids;
  };
  for (const isWanted of [false, true, true]) await ensureArchiveSchedule(connection, isWanted);
  await expect.poll(scheduled, { timeout: 20_000 }).toEqual([archiveScheduleId]);

  for (const isWanted of [false, false]) await ensureArchiveSchedule(connection, isWanted);
  await expect.poll(scheduled, { timeout: 20_000 }).toEqual([]);
});
