import { ApplicationFailure, CancelledFailure, Context } from "@temporalio/activity";
import { AppError } from "../domain/app-error.ts";
import { errorCatalogue } from "../domain/error-catalogue.ts";
import {
  type Owner,
  type TenantContext,
  type TenantId,
  ownerOfTaskQueue,
  systemOwner,
  tenantOfInvoiceWorkflow,
  tenantOfLifeWorkflow,
  tenantOfName,
} from "../domain/tenant.ts";
import { processEnding } from "./activity-ending.ts";
import type { StopReason } from "./joined-attempts.ts";

const heartbeatIntervalMs = 1_000;

/** Who the running activity acts for: the tenant of the task queue that it came by. */
function tenantContextOf({ info }: Context): TenantContext {
  return { tenantId: tenantOfName(info.taskQueue), requestId: `${info.workflowExecution?.workflowId ?? info.activityId}` };
}

/** Whether it is a tenant or the system itself that the running activity acts for. */
const ownerOf = ({ info }: Context): Owner => ownerOfTaskQueue(info.taskQueue);

/** As `asActivity`, for work that a tenant's queue and the system's share: the owner is the queue's. */
export const asOwnActivity = async <T>(body: (owner: Owner, signal: AbortSignal) => Promise<T>): Promise<T> => await runBody(ownerOf, body);

/** As `asOwnActivity`, for what only the system's own queue does. @throws {ApplicationFailure} `tenant_violation` on any other queue. */
export const asSystemActivity = async <T>(body: (signal: AbortSignal) => Promise<T>): Promise<T> =>
  await asOwnActivity(async (owner, signal) => {
    if (owner !== systemOwner) throw new AppError("tenant_violation", { owner });
    return await body(signal);
  });

/** As `asOwnActivity`, for work of the system on the tenant that the workflow `provision:` or `erase:` is named after. */
export const asLifeActivity = async <T>(body: (tenantId: TenantId, signal: AbortSignal) => Promise<T>): Promise<T> =>
  await runBody(({ info }) => tenantOfLifeWorkflow(info.workflowExecution?.workflowId ?? ""), body);

/** As `asOwnActivity`, for work of the system on the tenant that the workflow `invoice:<tenant>:…` is named after. */
export const asInvoiceActivity = async <T>(body: (tenantId: TenantId, signal: AbortSignal) => Promise<T>): Promise<T> =>
  await runBody(({ info }) => tenantOfInvoiceWorkflow(info.workflowExecution?.workflowId ?? ""), body);

/** As `asOwnActivity`, for work of tenants only. @throws {ApplicationFailure} `tenant_violation` on any other queue. */
export const asActivity = async <T>(body: (context: TenantContext, signal: AbortSignal) => Promise<T>): Promise<T> =>
  await runBody(tenantContextOf, body);

/**
 * Runs an activity's body with heartbeats, a signal that fires when the activity is really to stop (an abort of the turn or this
 * worker's shutdown, not a late heartbeat), and errors translated to what Temporal retries or not.
 */
async function runBody<Whom, T>(whomOf: (activity: Context) => Whom, body: (whom: Whom, signal: AbortSignal) => Promise<T>): Promise<T> {
  const activity = Context.current();
  const stop = new AbortController();
  const onCancel = (): void => {
    const details = activity.cancellationDetails;
    if (details?.workerShutdown === true) stop.abort("shutdown" satisfies StopReason);
    else if (details?.cancelRequested === true || details === undefined) stop.abort("abort" satisfies StopReason);
  };
  const onEnding = (): void => stop.abort("shutdown" satisfies StopReason);
  const ending = processEnding();
  activity.cancellationSignal.addEventListener("abort", onCancel, { once: true });
  ending?.addEventListener("abort", onEnding, { once: true });
  if (ending?.aborted === true) onEnding();
  const heartbeats = activity.info.isLocal ? undefined : setInterval(() => activity.heartbeat(), heartbeatIntervalMs);
  try {
    return await body(whomOf(activity), stop.signal);
  } catch (error) {
    if (activity.cancellationDetails?.cancelRequested === true) throw new CancelledFailure("the turn was aborted", [], toError(error));
    throw toActivityFailure(error);
  } finally {
    clearInterval(heartbeats);
    activity.cancellationSignal.removeEventListener("abort", onCancel);
    ending?.removeEventListener("abort", onEnding);
  }
}

const toError = (error: unknown): Error => (error instanceof Error ? error : new Error(String(error)));

/** Only what is known to pass is tried again: a fault of our own would come back for ever, and hold up its session. */
function toActivityFailure(error: unknown): unknown {
  if (error instanceof AppError)
    return ApplicationFailure.create({ message: error.message, type: error.code, nonRetryable: !errorCatalogue[error.code].retryable });
  if (error instanceof ApplicationFailure || error instanceof CancelledFailure) return error;
  return ApplicationFailure.create({ message: toError(error).message, type: "internal", nonRetryable: true, cause: toError(error) });
}
