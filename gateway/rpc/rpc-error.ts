import { ZodError } from "zod";
import type { ErrorCode } from "../../domain/app-error.ts";
import { errorCatalogue } from "../../domain/error-catalogue.ts";
import { errorBodyOf } from "../error-edge.ts";

/** The codes that JSON-RPC 2.0 itself gives out. */
export const rpcCodes = {
  parseError: -32_700,
  invalidRequest: -32_600,
  methodNotFound: -32_601,
  invalidParams: -32_602,
  internal: -32_603,
};

export type RpcError = {
  readonly code: number;
  readonly message: string;
  /** What the same error says over HTTP. */
  readonly data?: { readonly type: string; readonly code: string | null; readonly param: string | null; readonly status: number };
};

export const rpcError = (code: keyof typeof rpcCodes, message: string): RpcError => ({ code: rpcCodes[code], message });

/**
 * Our errors in JSON-RPC's numbers: 400 to 449 are -32000 to -32049, 501 to 549 are -32051 to -32099, so that 404 is -32004, 429 is
 * -32029 and 503 is -32053. Params that do not fit are the protocol's own -32602, and what went wrong here is its -32603.
 */
export function rpcErrorOf(error: unknown): RpcError {
  const { message, type, param, code } = errorBodyOf(error).error;
  const status = errorCatalogue[code as ErrorCode].http;
  const data = { type, code, param, status };
  if (error instanceof ZodError) return { code: rpcCodes.invalidParams, message, data };
  if (status === 500) return { code: rpcCodes.internal, message, data };
  return { code: status < 500 ? -32_000 - (status - 400) : -32_050 - (status - 500), message, data };
}
