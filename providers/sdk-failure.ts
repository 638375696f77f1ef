import { ModelCallError } from "./model-provider.ts";
import { errorText, kindOfStatus, providerFailure, retryAfterMs } from "./provider-failure.ts";

/** What an SDK's status error holds. */
export type StatusError = {
  readonly status: number;
  readonly headers: Headers | undefined;
  /** The parsed body, or its `error`. */
  readonly body: unknown;
  /** The SDK's message: the status and, where the body is no JSON, its text. */
  readonly message: string;
};

/** The error of an answer with an error status. */
export function statusFailure({ status, headers, body, message }: StatusError, secrets: readonly string[], nowMs: number): ModelCallError {
  const text = errorText(body) ?? errorText(message.replace(/^\d+ (?:status code \(no body\)$)?/, ""));
  const failure = providerFailure({ kind: kindOfStatus(status), text, status, retryAfterMs: retryAfterMs(headers, nowMs) }, secrets);
  const requestId = headers?.get("x-request-id") || headers?.get("request-id") || undefined;
  const { kind, retryAfterMs: wait, cause } = failure;
  return new ModelCallError(kind, failure.message, { status, retryAfterMs: wait, providerRequestId: requestId, cause });
}

/**
 * The error of a call that got no answer. Of what the network said only the code is kept (`ECONNREFUSED`): its messages hold
 * addresses and, for a malformed header, the key.
 */
export function transportFailure(cause: unknown): ModelCallError {
  for (let error = cause, depth = 0; error instanceof Error && depth < 5; error = error.cause, depth += 1) {
    if ("code" in error && typeof error.code === "string") return providerFailure({ kind: "unreachable", text: error.code }, []);
  }
  return providerFailure({ kind: "unreachable" }, []);
}
