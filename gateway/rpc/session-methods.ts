import { z } from "zod";
import type { SessionRow } from "../../storage/session-repository.ts";
import type { SessionService } from "../session-service.ts";
import { rpcMethod, type RpcMethod } from "./rpc-method.ts";
import { instantParam, limitParam, sessionIdParam } from "./rpc-params.ts";

export type SessionMethodDeps = { readonly sessions: SessionService };

const session = z.object({
  session_id: z.string(),
  channel: z.string(),
  created_at: z.iso.datetime(),
  updated_at: z.iso.datetime(),
  messages: z.int(),
});

const sessionJson = ({ id, channel, createdAt, updatedAt, messages }: SessionRow): z.input<typeof session> => ({
  session_id: id,
  channel,
  created_at: createdAt.toISOString(),
  updated_at: updatedAt.toISOString(),
  messages,
});

/** A place in the list: `<microseconds>.<session id>`; to callers a text that they hand back. */
const listPlace = z.union([
  z
    .string()
    .max(1_100)
    .regex(/^\d{1,18}\.[^\0]+$/)
    .transform((text) => ({ micros: BigInt(text.slice(0, text.indexOf("."))), id: text.slice(text.indexOf(".") + 1) })),
  instantParam.transform((at) => ({ micros: BigInt(at.getTime()) * 1_000n, id: "" })),
]);

const sessionParams = z.strictObject({ session_id: sessionIdParam });

export const createSessionMethods = ({ sessions }: SessionMethodDeps): readonly RpcMethod[] => [
  rpcMethod({
    name: "sessions.list",
    params: z.strictObject({
      limit: limitParam,
      before: listPlace.optional(),
      /** What the session ids begin with, e.g. `wa:`. */
      prefix: z
        .string()
        .max(1_000)
        .regex(/^[^\0]*$/)
        .default(""),
    }),
    /** By last message, newest first. `next_before` is the `before` of the next page; null on the last one. */
    result: z.object({ sessions: z.array(session), next_before: z.string().nullable() }),
    async run({ context }, { limit, before, prefix }) {
      const rows = await sessions.list(context, { limit: limit + 1, before, prefix });
      const page = rows.slice(0, limit);
      const last = page.at(-1);
      return {
        sessions: page.map(sessionJson),
        next_before: rows.length > limit && last !== undefined ? `${last.updatedAtMicros}.${last.id}` : null,
      };
    },
  }),
  rpcMethod({
    name: "sessions.get",
    params: sessionParams,
    result: session.extend({ open_turns: z.array(z.string()) }),
    async run({ context }, { session_id: sessionId }) {
      const { session: row, openTurns } = await sessions.get(context, sessionId);
      return { ...sessionJson(row), open_turns: [...openTurns] };
    },
  }),
  rpcMethod({
    name: "sessions.reset",
    params: sessionParams,
    result: z.object({ session_id: z.string(), aborted_turns: z.array(z.string()) }),
    run: async ({ context }, { session_id: sessionId }) => ({
      session_id: sessionId,
      aborted_turns: [...(await sessions.reset(context, sessionId))],
    }),
  }),
  rpcMethod({
    name: "sessions.delete",
    params: sessionParams,
    result: z.object({ session_id: z.string(), deleted: z.boolean(), aborted_turns: z.array(z.string()) }),
    run: async ({ context }, { session_id: sessionId }) => ({
      session_id: sessionId,
      deleted: true,
      aborted_turns: [...(await sessions.delete(context, sessionId))],
    }),
  }),
];
