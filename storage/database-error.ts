import { AppError } from "../domain/app-error.ts";

/** Failures of the connection or the server, not of the statement: the same call may work in a moment. */
const passingSqlStates = new Set([
  "40001", // serialization failure
  "40P01", // deadlock
  "53100", // disk full
  "53200", // out of memory
  "53300", // too many connections
  "55P03", // lock_timeout
  "57014", // statement_timeout
  "57P01", // server is shutting down
  "57P02", // server crashed
  "57P03", // server is starting
  "25P03", // idle in transaction for too long
]);

const connectionErrors = new Set(["ECONNREFUSED", "ECONNRESET", "EPIPE", "ETIMEDOUT", "ENOTFOUND", "EHOSTUNREACH", "EAI_AGAIN"]);

/** The five-character SQLSTATE of an error from the server, for example `23505` (unique violation). */
export function sqlStateOf(error: unknown): string | undefined {
  if (!(error instanceof Error) || !("code" in error) || typeof error.code !== "string") return undefined;
  return /^[0-9A-Z]{5}$/.test(error.code) ? error.code : undefined;
}

/** Whether the connection was lost or never made, so that its statement may not have been seen by the server at all. */
export function isConnectionError(error: unknown): boolean {
  const state = sqlStateOf(error);
  if (state !== undefined) return state.startsWith("08") || /^57P0[123]$/.test(state);
  if (!(error instanceof Error)) return false;
  if ("code" in error && typeof error.code === "string" && connectionErrors.has(error.code)) return true;
  return /^(Connection terminated|Client has encountered a connection error|timeout e|Query read timeout|Client was closed)/.test(
    error.message,
  );
}

/** What a caller sees: `unavailable` (to be retried) for a passing failure, everything else as it came. */
export function asStorageError(error: unknown, details: Record<string, unknown> = {}): unknown {
  const state = sqlStateOf(error);
  if (!isConnectionError(error) && !(state !== undefined && passingSqlStates.has(state))) return error;
  return new AppError(
    "unavailable",
    { ...details, reason: error instanceof Error ? error.message : String(error), sqlState: state },
    { cause: error },
  );
}
