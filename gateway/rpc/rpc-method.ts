import type { z } from "zod";
import type { Actor } from "../../domain/audit.ts";
import type { SessionId } from "../../domain/session-id.ts";
import type { TenantContext } from "../../domain/tenant.ts";
import type { RunningTurn } from "../turn-service.ts";

/** Who calls: a tenant by its token, or an administrator for a tenant. Methods never take the tenant from their params. */
export type RpcCaller = {
  /** The request id is the call's own, also inside a batch. */
  readonly context: TenantContext;
  /** As whom a change is audited. */
  readonly actor: Actor;
  /** No turn may begin; only an administrator comes so far. */
  readonly isSuspended: boolean;
  /** The Idempotency-Key of an HTTP call. */
  readonly idempotencyKey: string | undefined;
  /** Watches a turn that this call began; without it nobody does, and the turn runs all the same. */
  readonly followTurn?: ((sessionId: SessionId, turn: RunningTurn) => void) | undefined;
};

/** A method of `/rpc`: its params by name, strictly, and its result. */
export type RpcMethod = {
  readonly name: string;
  readonly params: z.ZodType;
  readonly result: z.ZodType;
  run(caller: RpcCaller, params: unknown): Promise<unknown>;
};

/** Ties what a method does to the types that it declares. */
export const rpcMethod = <Params extends z.ZodType, Result extends z.ZodType>(method: {
  readonly name: string;
  readonly params: Params;
  readonly result: Result;
  run(caller: RpcCaller, params: z.output<Params>): Promise<z.input<Result>>;
}): RpcMethod => ({ ...method, run: async (caller, params) => await method.run(caller, params as z.output<Params>) });
