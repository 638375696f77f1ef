import { randomBytes } from "node:crypto";
import { Worker } from "@temporalio/worker";
import { DeterminismViolationError } from "@temporalio/workflow";
import { expect, inject, onTestFinished, test } from "vitest";
import { createArchivedHistories } from "../../control-plane/history-archive.ts";
import { type ArchiveReport, archiveScheduleId } from "../../domain/history-archive.ts";
import { systemOwner, taskQueueOf } from "../../domain/tenant.ts";
import { insertTurn } from "../../storage/turn-repository.ts";
import { eventsOfPage } from "../../temporal/closed-runs.ts";
import { converterOption } from "../../temporal/temporal-connection.ts";
import { laneNameOf } from "../../temporal/tenant-client.ts";
import { workflowBundle } from "../../workers/workflow-bundle.ts";
import { freshNamespace } from "../fresh-namespace.ts";
import { scriptedProvider, someTurn, startTurnStack } from "../turn-stack.ts";

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

test("a history that is gone, a tenant that is erased and another installation's runs stop nobody's archive", async () => {
  const namespace = await freshNamespace(inject("temporalAddress"));
  const stack = await startTurnStack({ provider: scriptedProvider(async () => ({ text: "an answer" })), namespace });
  onTestFinished(() => stack.close());
  const { connection, pool } = stack;
  const { workflow } = connection.client;
  const { tenantId } = await stack.addTenant("kept");
  // Closed at once and never served: one of ours, one of a tenant that is none here, one that is nobody's.
  for (const workflowId of [`turn:${tenantId}:api:x:default`, "turn:elsewhere:api:x:default", "nobody"]) {
    const handle = await workflow
      .start("turn", { workflowId, taskQueue: `unserved-${namespace}`, args: [] })
      .catch((error: unknown) => error);
    if (!(handle instanceof Error) && handle !== null && typeof handle === "object" && "terminate" in handle)
      await workflow.getHandle(workflowId).terminate("for the test");
  }
  await pool.wake(systemOwner);
  const archive = async (): Promise<ArchiveReport> =>
    await workflow.execute<() => Promise<ArchiveReport>>("archive", {
      workflowId: `${archiveScheduleId}:${randomBytes(4).toString("hex")}`,
      taskQueue: taskQueueOf(systemOwner),
    });

  await expect.poll(async () => (await archive()).archived, { timeout: 60_000, interval: 1_000 }).toBe(1);
});
