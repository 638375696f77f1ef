import { z } from "zod";
import { jsonShapeFault } from "../json-shape.ts";
import { type RpcError, rpcError, rpcErrorOf } from "./rpc-error.ts";
import type { RpcCaller, RpcMethod } from "./rpc-method.ts";

export interface RpcEndpoint {
  /** What a message may be. */
  readonly message: z.ZodType;
  /** Answers one message of JSON-RPC 2.0. @returns the answer's text; undefined when nothing in it asked for one */
  answer(text: string, caller: RpcCaller): Promise<string | undefined>;
}

export type RpcEndpointDeps = {
  readonly methods: readonly RpcMethod[];
  /** For what went wrong here: the caller learns nothing of it. */
  readonly logFailure: (error: unknown, fields: Record<string, unknown>) => void;
};

const largestBatch = 20;

type RpcId = string | number | null;
type RpcAnswer = { readonly jsonrpc: "2.0"; readonly id: RpcId } & ({ readonly result: unknown } | { readonly error: RpcError });

/** A number must come back as it was sent: beyond 2^53 it would not. */
const idSchema = z.union([
  z.string(),
  z.number().refine((id) => !Number.isInteger(id) || Number.isSafeInteger(id), "too large an id"),
  z.null(),
]);
const callSchema = z.strictObject({
  jsonrpc: z.literal("2.0"),
  id: idSchema.optional(),
  method: z.string(),
  params: z.custom<object>((params) => params !== null && typeof params === "object").optional(),
});

const refusal = (id: RpcId, error: RpcError): RpcAnswer => ({ jsonrpc: "2.0", id, error });

export function createRpcEndpoint({ methods, logFailure }: RpcEndpointDeps): RpcEndpoint {
  const byName = new Map(methods.map((method) => [method.name, method]));

  async function runMethod(name: string, rawParams: unknown, caller: RpcCaller): Promise<{ result: unknown } | { error: RpcError }> {
    const method = byName.get(name);
    if (method === undefined) return { error: rpcError("methodNotFound", "There is no such method.") };
    if (Array.isArray(rawParams)) return { error: rpcError("invalidParams", "Params are given by name, in an object.") };
    try {
      const params = method.params.parse(rawParams ?? {});
      try {
        return { result: await method.run(caller, params) };
      } catch (error) {
        // A schema that fails inside a method is not about the caller's params.
        throw error instanceof z.ZodError ? new Error("a value inside the method was not valid", { cause: error }) : error;
      }
    } catch (thrown) {
      const error = rpcErrorOf(thrown);
      if ((error.data?.status ?? 0) >= 500) logFailure(thrown, { method: name, requestId: caller.context.requestId });
      return { error };
    }
  }

  /** @returns undefined for a notification, whatever came of it */
  async function answerCall(raw: unknown, caller: RpcCaller): Promise<RpcAnswer | undefined> {
    const call = callSchema.safeParse(raw);
    if (!call.success) return refusal(readableId(raw), rpcError("invalidRequest", "This is not a request of JSON-RPC 2.0."));
    const { id, method, params } = call.data;
    const outcome = await runMethod(method, params, caller);
    return id === undefined ? undefined : { jsonrpc: "2.0", id, ...outcome };
  }

  async function answerBatch(calls: readonly unknown[], caller: RpcCaller): Promise<RpcAnswer | readonly RpcAnswer[] | undefined> {
    if (calls.length === 0) return refusal(null, rpcError("invalidRequest", "A batch holds at least one request."));
    if (calls.length > largestBatch) {
      return refusal(null, rpcError("invalidRequest", `A batch holds at most ${largestBatch} requests.`));
    }
    const answers: RpcAnswer[] = [];
    for (const [place, call] of calls.entries()) {
      const answer = await answerCall(call, memberOf(caller, place));
      if (answer !== undefined) answers.push(answer);
    }
    return answers.length === 0 ? undefined : answers;
  }

  const [first, ...rest] = methods.map(({ name, params }) => callSchema.extend({ method: z.literal(name), params: params.optional() }));
  const call = first === undefined ? callSchema : z.union([first, ...rest]);

  return {
    message: z.union([call, z.array(call).min(1).max(largestBatch)]),
    async answer(text, caller) {
      const message = parseMessage(text);
      const answer =
        "fault" in message
          ? refusal(null, message.fault)
          : Array.isArray(message.value)
            ? await answerBatch(message.value, caller)
            : await answerCall(message.value, caller);
      return answer === undefined ? undefined : JSON.stringify(answer);
    },
  };
}

function parseMessage(text: string): { readonly value: unknown } | { readonly fault: RpcError } {
  const fault = jsonShapeFault(text);
  if (fault !== undefined) return { fault: rpcError("invalidRequest", fault) };
  try {
    return { value: JSON.parse(text) };
  } catch {
    return { fault: rpcError("parseError", "The message is not valid JSON.") };
  }
}

/** The id of something that is no request, where it can be told. */
function readableId(raw: unknown): RpcId {
  if (raw === null || typeof raw !== "object" || !Object.hasOwn(raw, "id")) return null;
  const id = idSchema.safeParse((raw as { id: unknown }).id);
  return id.success ? id.data : null;
}

/** Each call of a batch is one of its own: for the audit, and for what an Idempotency-Key stands for. */
const memberOf = (caller: RpcCaller, place: number): RpcCaller => ({
  ...caller,
  context: { ...caller.context, requestId: `${caller.context.requestId}.${place}` },
  idempotencyKey: caller.idempotencyKey === undefined ? undefined : `${caller.idempotencyKey}.${place}`,
});
