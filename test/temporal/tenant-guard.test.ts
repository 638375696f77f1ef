import { WorkflowFailedError, WithStartWorkflowOperation } from "@temporalio/client";
import { ApplicationFailure, WorkflowIdConflictPolicy } from "@temporalio/common";
import { Client } from "@temporalio/client";
import { afterAll, beforeAll, expect, test } from "vitest";
import { AppError } from "../../domain/app-error.ts";
import { type TenantContext, taskQueueOf } from "../../domain/tenant.ts";
import { ownerGuard } from "../../temporal/chain-client.ts";
import { submitTurn, turnArrived } from "../../workflows/turn-messages.ts";
import { type TurnStack, scriptedProvider, someTurn, startTurnStack } from "../turn-stack.ts";

const provider = scriptedProvider(async () => ({ text: "hello" }));
let stack: TurnStack;
let acme: TenantContext;
let globex: TenantContext;

beforeAll(async () => {
  stack = await startTurnStack({ provider });
  acme = await stack.addTenant("acme");
  globex = await stack.addTenant("globex");
  await stack.pool.wake(acme.tenantId);
  await stack.pool.wake(globex.tenantId);
});
afterAll(async () => await stack.close());

const laneInput = (context: TenantContext) => ({
  tenantId: context.tenantId,
  sessionId: undefined,
  concurrency: 1,
  windowMs: 2_000,
  modelCall: "remote" as const,
});

/** A client that is bound to acme, and tries globex's names. */
function guarded() {
  return new Client({ connection: stack.connection.native, namespace: "default", interceptors: { workflow: [ownerGuard(acme.tenantId)] } })
    .workflow;
}
const globexLane = () => `turn:${globex.tenantId}:api:jane:default`;

const start = (workflowId: string, taskQueue: string) => ({ workflowId, taskQueue, args: [laneInput(acme)] as const });

const crossings: Record<string, () => Promise<unknown>> = {
  "starting the other's workflow id": async () =>
    await guarded().start("turn", { ...start(globexLane(), taskQueueOf(acme.tenantId)), args: [laneInput(acme)] }),
  "starting on the other's queue": async () =>
    await guarded().start("turn", { ...start(`turn:${acme.tenantId}:x`, taskQueueOf(globex.tenantId)), args: [laneInput(acme)] }),
  "executing the other's workflow id": async () =>
    await guarded().execute("turn", { ...start(globexLane(), taskQueueOf(acme.tenantId)), args: [laneInput(acme)] }),
  "signalling the other": async () => await guarded().getHandle(globexLane()).signal(turnArrived, someTurn("api:jane:default", "hi")),
  "signal-with-start of the other": async () =>
    await guarded().signalWithStart("turn", {
      ...start(globexLane(), taskQueueOf(acme.tenantId)),
      args: [laneInput(acme)],
      signal: turnArrived,
      signalArgs: [someTurn("api:jane:default", "hi")],
    }),
  "an Update of the other": async () =>
    await guarded()
      .getHandle(globexLane())
      .executeUpdate(submitTurn, { args: [someTurn("api:jane:default", "hi")] }),
  "update-with-start of the other": async () =>
    await guarded().executeUpdateWithStart(submitTurn, {
      args: [someTurn("api:jane:default", "hi")],
      startWorkflowOperation: new WithStartWorkflowOperation("turn", {
        ...start(globexLane(), taskQueueOf(acme.tenantId)),
        args: [laneInput(acme)],
        workflowIdConflictPolicy: WorkflowIdConflictPolicy.USE_EXISTING,
      }),
    }),
  "querying the other": async () => await guarded().getHandle(globexLane()).query("lane"),
  "terminating the other": async () => await guarded().getHandle(globexLane()).terminate(),
  "cancelling the other": async () => await guarded().getHandle(globexLane()).cancel(),
  "describing the other": async () => await guarded().getHandle(globexLane()).describe(),
};

for (const [crossing, attempt] of Object.entries(crossings)) {
  test(`a tenant's client refuses ${crossing}`, async () => {
    const refusal = await attempt().then(
      () => undefined,
      (error: unknown) => error,
    );

    expect(refusal).toBeInstanceOf(AppError);
    expect(refusal).toMatchObject({ code: "tenant_violation" });
  });
}

test("a worker refuses a workflow that carries the other tenant's id on its queue", async () => {
  const workflowId = `turn:${globex.tenantId}:api:forged:default`;
  const handle = await stack.connection.client.workflow.start("turn", {
    workflowId,
    taskQueue: taskQueueOf(acme.tenantId),
    args: [laneInput(globex)],
  });

  const failure = await handle.result().then(
    () => undefined,
    (error: unknown) => error,
  );

  expect(failure).toBeInstanceOf(WorkflowFailedError);
  expect((failure as WorkflowFailedError).cause).toBeInstanceOf(ApplicationFailure);
  expect((failure as WorkflowFailedError).cause).toMatchObject({ type: "tenant_violation", nonRetryable: true });
});

test("one tenant's turn id means nothing in another tenant", async () => {
  const turn = someTurn("api:jane:default", "of acme");

  const verdict = await stack.clientOf(globex.tenantId).submitTurn({ sessionId: turn.sessionId }, turn);

  expect(verdict).toEqual({ state: "aborted", code: "turn_aborted" }); // there is no such row in globex: nothing runs
  expect(provider.calls).toEqual([]);
});
