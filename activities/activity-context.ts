import { ApplicationFailure, CancelledFailure, Context } from "@temporalio/activity";
import { AppError } from "../domain/app-error.ts";
import { errorCatalogue } from "../domain/error-catalogue.ts";
import { type TenantContext, tenantOfName } from "../domain/tenant.ts";

const heartbeatIntervalMs = 1_000;

/** Who the running activity acts for: the tenant of the task queue that it came by. */
function tenantContextOf({ info }: Context): TenantContext {
  return { tenantId: tenantOfName(info.taskQueue), requestId: `${info.workflowExecution?.workflowId ?? info.activityId}` };
}

/**
 * Runs an activity's body with heartbeats, a signal that fires when the activity is really to stop (an abort of the turn or this
 * worker's shutdown, not a late heartbeat), and errors translated to what Temporal retries or not.
 */
export async function asActivity<T>(body: (context: TenantContext, signal: AbortSignal) => Promise<T>): Promise<T> {
  const activity = Context.current();
  const stop = new AbortController();
  const onCancel = (): void => {
    const details = activity.cancellationDetails;
    if (details?.cancelRequested === true || details?.workerShutdown === true || details === undefined) stop.abort();
  };
  activity.cancellationSignal.addEventListener("abort", onCancel, { once: true });
  const heartbeats = activity.info.isLocal ? undefined : setInterval(() => activity.heartbeat(), heartbeatIntervalMs);
  try {
    return await body(tenantContextOf(activity), stop.signal);
  } catch (error) {
    if (activity.cancellationDetails?.cancelRequested === true) throw new CancelledFailure("the turn was aborted", [], toError(error));
    throw toActivityFailure(error);
  } finally {
    clearInterval(heartbeats);
    activity.cancellationSignal.removeEventListener("abort", onCancel);
  }
}

/** Whether the running activity was asked to stop because its worker goes down: another attempt follows. */
export const isWorkerShutdown = (): boolean => Context.current().cancellationDetails?.workerShutdown === true;

const toError = (error: unknown): Error => (error instanceof Error ? error : new Error(String(error)));

function toActivityFailure(error: unknown): unknown {
  if (!(error instanceof AppError)) return error;
  return ApplicationFailure.create({ message: error.message, type: error.code, nonRetryable: !errorCatalogue[error.code].retryable });
}
