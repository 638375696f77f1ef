import { randomBytes } from "node:crypto";
import type { FastifyPluginAsync } from "fastify";
import type { Overlay } from "../control-plane/overlay.ts";
import type { OverlayReader } from "../control-plane/overlays.ts";
import { z } from "zod";
import { AppError, fromStoredError } from "../domain/app-error.ts";
import type { ChatMessage } from "../domain/conversation.ts";
import { statelessSessionOf, type SessionId } from "../domain/session-id.ts";
import { mintTurnId, turnTimeMs } from "../domain/turn-id.ts";
import { answerTaken } from "./slow-readers.ts";
import { tenantOf, tenantPrincipalOf } from "./access.ts";
import { newMessagesOf } from "./chat-messages.ts";
import { type ChatRequest, describedChatBody, parseChatRequest } from "./chat-request.ts";
import { toChatCompletion } from "./chat-response.ts";
import { streamChat } from "./chat-stream.ts";
import { type FileInputs, inlineFiles, readerOf } from "./file-inputs.ts";
import { idempotencyKeyOf } from "./idempotency-key.ts";
import { type RateLimitDeps, setRateLimitHeaders } from "./rate-limit-headers.ts";
import type { TokenWatch } from "./token-watch.ts";
import { modeOf, sessionOf, sessionOfUser } from "./turn-headers.ts";
import type { TurnService } from "./turn-service.ts";

export type ChatDeps = {
  readonly turns: TurnService;
  readonly tokens: TokenWatch;
  readonly quota?: RateLimitDeps["quota"];
  readonly overlays: Pick<OverlayReader, "of">;
  /** The configured, priced model that a tenant's name for it means. @throws {AppError} `model_not_found`, `model_not_priced` */
  readonly resolveModel: (overlay: Overlay, name: string) => string;
  readonly inputFiles: FileInputs;
};

const describes = {
  summary: "Chat Completions, JSON or server-sent events",
  body: describedChatBody,
  headers: z.object({ "X-OpenClaw-Session": z.string().optional(), "X-OpenClaw-Mode": z.enum(["agent", "gateway"]).optional() }),
};

export const createChatRoutes =
  ({ turns, tokens, quota, overlays, resolveModel, inputFiles }: ChatDeps): FastifyPluginAsync =>
  async (app) => {
    app.post("/v1/chat/completions", { config: { access: "tenant", describes } }, async (request, reply) => {
      const context = tenantOf(request);
      const chat = parseChatRequest(request.body);
      const { overlay, digest } = await overlays.of(context.tenantId);
      const model = resolveModel(overlay, chat.model);
      const askedMode = modeOf(request);
      const turnId = mintTurnId(Date.now(), randomBytes(10));
      const askedSession = await sessionOf(turns, request, context);
      const session = askedSession ?? (overlay.api.sessionsByUser ? sessionOfUser(chat.user) : undefined);
      const idempotencyKey = idempotencyKeyOf(request);

      const turn = await turns.submit(
        context,
        {
          turnId,
          sessionId: session ?? statelessSessionOf(turnId),
          kind: "chat",
          mode: askedMode ?? overlay.api.mode ?? "agent",
          stateless: session === undefined,
          request: {
            model,
            messages: await inlineFiles(inputOf(chat, session), readerOf(inputFiles, context)),
            tools: chat.tools,
            settings: chat.settings,
            overlay: digest,
          },
        },
        // What was asked, not what the overlay made of it: a repeat after a change of the overlay is still a repeat.
        idempotencyKey === undefined
          ? undefined
          : { key: idempotencyKey, body: { session: askedSession, mode: askedMode ?? "agent", body: request.body } },
      );
      turn.holdSlotUntil(answerTaken(reply.raw));
      const head = { turnId: turn.turnId, model, createdAtMs: turnTimeMs(turn.turnId) };
      void reply.header("x-request-id", turn.turnId);
      if (chat.stream) {
        if (quota !== undefined) await setRateLimitHeaders({ quota }, reply, context.tenantId);
        // A rotation ends the stream, not the turn: that one completes and is billed.
        const token = tokens.watch(tenantPrincipalOf(request));
        try {
          await streamChat(reply, { ...turn, finished: Promise.race([turn.finished, token.ended]) }, head, chat.shape);
        } finally {
          token.stop();
        }
        return reply;
      }
      turn.onEvent(() => {});
      const finished = await turn.finished;
      if (finished.state !== "done") throw fromStoredError(finished.error);
      return toChatCompletion(head, finished.reply, chat.shape);
    });
  };

/** In a session the messages that are new. @throws {AppError} `invalid_request` when there is nothing to answer */
function inputOf({ messages, shape }: ChatRequest, session: SessionId | undefined): readonly ChatMessage[] {
  if (session === undefined) return messages;
  if (shape.withFunctions) {
    const message = "A session knows its calls by their ids, which functions do not have: use tools.";
    throw new AppError("unsupported_parameter", { client: { message, param: "functions" } });
  }
  const input = newMessagesOf(messages);
  if (input.some(({ role }) => role === "user" || role === "tool")) return input;
  throw new AppError("invalid_request", {
    client: { message: "There is no new message: in a session the last one must be the user's or a tool's.", param: "messages" },
  });
}
