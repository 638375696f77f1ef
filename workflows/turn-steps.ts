import {
  ActivityCancellationType,
  ActivityFailure,
  ApplicationFailure,
  CancellationScope,
  isCancellation,
  proxyActivities,
  proxyLocalActivities,
} from "@temporalio/workflow";
import type { TurnActivities } from "../activities/turn-activities.ts";
import type { ErrorCode } from "../domain/app-error.ts";
import { errorCatalogue } from "../domain/error-catalogue.ts";
import { isServiceKind } from "../domain/service-request.ts";
import { callIdOf } from "../domain/turn-id.ts";
import type { TurnTicket, TurnVerdict } from "../domain/turn.ts";

/** Model calls of one turn before it is ended with `turn_limit`: a loop of tools must not run for ever. */
const modelCallsPerTurn = 32;

// A heartbeat of 5 s notices a dead worker within 6 s; the journal makes the next attempt safe, so nothing limits the attempts.
const effects = {
  startToCloseTimeout: "15 minutes",
  heartbeatTimeout: "5s",
  cancellationType: ActivityCancellationType.WAIT_CANCELLATION_COMPLETED, // an aborted call is still settled, a tool is dead first
  retry: { initialInterval: "200ms", maximumInterval: "5s" },
} as const;
const remote = proxyActivities<TurnActivities>(effects);
const local = proxyLocalActivities<TurnActivities>({
  startToCloseTimeout: "15 minutes",
  cancellationType: ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
  retry: { initialInterval: "200ms", maximumInterval: "5s" },
});

// protocols: a database step gives up in the database first (its statement time-out is below half of startToClose), and becomes an
// ordinary activity when the database stays away, since endless local retries would pin a workflow task slot.
const databaseStep = proxyLocalActivities<TurnActivities>({
  startToCloseTimeout: "10s",
  scheduleToCloseTimeout: "30s",
  retry: { initialInterval: "200ms", maximumInterval: "5s" },
});
const patientDatabaseStep = proxyActivities<TurnActivities>({
  startToCloseTimeout: "10s",
  retry: { initialInterval: "1s", maximumInterval: "10s" },
});

export type TurnRun = {
  readonly modelCall: "remote" | "local";
  /** Cancelled by an abort of this turn. */
  readonly scope: CancellationScope;
  readonly isAborted: () => boolean;
};

/** Model call, tools, model call, … until the model answers. Never throws: however the turn ends, its row and verdict say so. */
export async function runTurn(ticket: TurnTicket, { modelCall, scope, isAborted }: TurnRun): Promise<TurnVerdict> {
  try {
    if (isAborted()) return await endTurn(ticket, "turn_aborted");
    return await scope.run(() => (isServiceKind(ticket.kind) ? callService(ticket, modelCall) : runSteps(ticket, modelCall)));
  } catch (error) {
    return await endTurn(ticket, isAborted() || isCancellation(error) ? "turn_aborted" : codeOf(error));
  }
}

async function runSteps(ticket: TurnTicket, modelCall: "remote" | "local"): Promise<TurnVerdict> {
  const { turnId } = ticket;
  for (let step = 0; step < modelCallsPerTurn; step++) {
    const options = { summary: `model call ${step + 1} of ${turnId}` };
    const outcome =
      modelCall === "local"
        ? await local.callModel.executeWithOptions(options, [{ turnId, step }])
        : await remote.callModel.executeWithOptions({ ...effects, ...options, activityId: `model-${callIdOf(turnId, step)}` }, [
            { turnId, step },
          ]);
    if (outcome.state !== "tools") return outcome;
    for (const { n, name } of outcome.tools) {
      await remote.runTool.executeWithOptions(
        { ...effects, summary: `tool ${name.replaceAll(/\s+/g, " ")} of ${turnId}`, activityId: `tool-${callIdOf(turnId, step)}.${n}` },
        [{ turnId, step, n }],
      );
    }
  }
  return await endTurn(ticket, "turn_limit");
}

/** A service turn is one call and nothing else. */
async function callService({ turnId, kind }: TurnTicket, modelCall: "remote" | "local"): Promise<TurnVerdict> {
  const options = { summary: `${kind} of ${turnId}` };
  return modelCall === "local"
    ? await local.callService.executeWithOptions(options, [{ turnId }])
    : await remote.callService.executeWithOptions({ ...effects, ...options, activityId: `service-${turnId}` }, [{ turnId }]);
}

/** Writes the turn's end where no model call did; answers what the row says, which may be an answer that came before the abort. */
async function endTurn({ turnId }: TurnTicket, code: ErrorCode): Promise<TurnVerdict> {
  return await CancellationScope.nonCancellable(async () => {
    const step = { turnId, code };
    try {
      return await databaseStep.endTurn(step);
    } catch {
      return await patientDatabaseStep.endTurn(step);
    }
  });
}

function codeOf(error: unknown): ErrorCode {
  const cause = error instanceof ActivityFailure ? error.cause : error;
  const type = cause instanceof ApplicationFailure ? cause.type : undefined;
  return type != null && type in errorCatalogue ? (type as ErrorCode) : "internal";
}
