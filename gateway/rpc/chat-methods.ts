import { randomBytes } from "node:crypto";
import { z } from "zod";
import type { Overlay } from "../../control-plane/overlay.ts";
import type { OverlayReader } from "../../control-plane/overlays.ts";
import { AppError } from "../../domain/app-error.ts";
import type { ChatMessage, ContentPart } from "../../domain/conversation.ts";
import { type SessionId, sessionPartsOf } from "../../domain/session-id.ts";
import type { TenantContext } from "../../domain/tenant.ts";
import { mintTurnId } from "../../domain/turn-id.ts";
import type { HistoryPlace, SessionService } from "../session-service.ts";
import type { TurnService } from "../turn-service.ts";
import { rpcMethod, type RpcMethod } from "./rpc-method.ts";
import { instantParam, limitParam, sessionIdParam, turnIdParam } from "./rpc-params.ts";

export type ChatMethodDeps = {
  readonly turns: TurnService;
  readonly sessions: SessionService;
  readonly overlays: Pick<OverlayReader, "of">;
  /** The model of a turn that names none. @throws {AppError} `model_not_found`, `model_not_priced` */
  readonly defaultModel: (overlay: Overlay) => string;
};

const content = z.union([
  z.string(),
  z.array(
    z.discriminatedUnion("type", [
      z.object({ type: z.literal("text"), text: z.string() }),
      /** `url` is null for an image that was sent inline. */
      z.object({ type: z.literal("image"), url: z.string().nullable() }),
      z.object({ type: z.literal("audio"), format: z.string() }),
      z.object({ type: z.literal("file"), name: z.string().nullable() }),
    ]),
  ),
]);
const message = z.object({ role: z.string(), content, turn_id: z.string().nullable(), at: z.iso.datetime() });

const historyPlace = z.union([
  z
    .string()
    .regex(/^\d{1,18}$/)
    .transform((seq): HistoryPlace => ({ seq: BigInt(seq) })),
  turnIdParam.transform((turnId): HistoryPlace => ({ turnId })),
  instantParam.transform((at): HistoryPlace => ({ at })),
]);

export const createChatMethods = ({ turns, sessions, overlays, defaultModel }: ChatMethodDeps): readonly RpcMethod[] => [
  rpcMethod({
    name: "chat.send",
    params: z.strictObject({
      session_id: sessionIdParam,
      text: z.string().regex(/\S/, "The text is empty."),
      parts: z.array(z.unknown()).optional(),
    }),
    result: z.object({ turn_id: z.string() }),
    async run(caller, { session_id: sessionId, text, parts = [] }) {
      const { context, idempotencyKey, isSuspended, followTurn } = caller;
      if (isSuspended) throw new AppError("tenant_suspended");
      if (parts.length > 0) {
        throw new AppError("unsupported_parameter", { client: { message: "Parts are not supported here yet.", param: "parts" } });
      }
      const { overlay, digest } = await overlays.of(context.tenantId);
      await requireSession(turns, context, sessionId);
      const turn = await turns.submit(
        context,
        {
          turnId: mintTurnId(Date.now(), randomBytes(10)),
          sessionId,
          kind: "chat",
          mode: overlay.api.mode ?? "agent",
          stateless: false,
          request: {
            model: defaultModel(overlay),
            messages: [{ role: "user", content: text }],
            tools: [],
            settings: {},
            overlay: digest,
          },
        },
        idempotencyKey === undefined ? undefined : { key: idempotencyKey, body: { method: "chat.send", sessionId, text } },
      );
      if (followTurn === undefined) turn.onEvent(() => {});
      else followTurn(sessionId, turn);
      return { turn_id: turn.turnId };
    },
  }),
  rpcMethod({
    name: "chat.history",
    params: z.strictObject({ session_id: sessionIdParam, limit: limitParam, before: historyPlace.optional() }),
    /** `next_before` is the `before` of the page of older messages; null where there are none. */
    result: z.object({ messages: z.array(message), next_before: z.string().nullable() }),
    async run({ context }, { session_id: sessionId, limit, before }) {
      const { messages, hasOlder } = await sessions.history(context, sessionId, { limit, before });
      return {
        messages: messages.map(({ content: said, turnId, at }) => ({
          role: said.role,
          content: contentJson(said.content),
          turn_id: turnId,
          at: at.toISOString(),
        })),
        next_before: hasOlder ? String(messages[0]?.seq) : null,
      };
    },
  }),
  rpcMethod({
    name: "chat.abort",
    params: z.strictObject({ turn_id: turnIdParam }),
    /** `aborted` is false for a turn that had ended. */
    result: z.object({ turn_id: z.string(), aborted: z.boolean() }),
    run: async ({ context }, { turn_id: turnId }) => ({ turn_id: turnId, aborted: await sessions.abort(context, turnId) }),
  }),
];

/** The session rule of contract §3: an unknown one comes into being for the prefixes `api` and `web` only. */
async function requireSession(turns: TurnService, context: TenantContext, sessionId: SessionId): Promise<void> {
  const { prefix } = sessionPartsOf(sessionId);
  if (prefix === "api" || prefix === "web" || (await turns.hasSession(context, sessionId))) return;
  throw new AppError("not_found", { client: { message: "There is no such session.", param: "session_id" } });
}

const contentJson = (said: ChatMessage["content"]): z.input<typeof content> =>
  typeof said === "string" ? said : said === null ? "" : said.map(partJson);

/** What came inline stays here: a page of history would not carry it. */
function partJson(part: ContentPart) {
  switch (part.type) {
    case "text":
      return { type: part.type, text: part.text };
    case "image":
      return { type: part.type, url: part.url.startsWith("data:") ? null : part.url };
    case "audio":
      return { type: part.type, format: part.format };
    case "file":
      return { type: part.type, name: part.name ?? null };
  }
}
