import type { FastifyPluginAsync } from "fastify";
import { z } from "zod";
import { AppError } from "../domain/app-error.ts";
import type { ChatMessage } from "../domain/conversation.ts";
import type { SessionId } from "../domain/session-id.ts";
import { turnTimeMs } from "../domain/turn-id.ts";
import { newMessagesOf } from "./chat-messages.ts";
import { type ChatRequest, describedChatBody, parseChatRequest } from "./chat-request.ts";
import { toChatCompletion } from "./chat-response.ts";
import { streamChat } from "./chat-stream.ts";
import { type TurnCallDeps, answerOf, openCall, streamTurn, submitCall } from "./turn-call.ts";
import { sessionOfUser } from "./turn-headers.ts";

const describes = {
  summary: "Chat Completions, JSON or server-sent events",
  body: describedChatBody,
  headers: z.object({ "X-OpenClaw-Session": z.string().optional(), "X-OpenClaw-Mode": z.enum(["agent", "gateway"]).optional() }),
};

export const createChatRoutes =
  (deps: TurnCallDeps): FastifyPluginAsync =>
  async (app) => {
    app.post("/v1/chat/completions", { config: { access: "tenant", describes } }, async (request, reply) => {
      const chat = parseChatRequest(request.body);
      const call = await openCall(deps, request, chat.model);
      const session = call.askedSession ?? (call.overlay.api.sessionsByUser ? sessionOfUser(chat.user) : undefined);
      const turn = await submitCall(deps, reply, call, {
        session,
        messages: inputOf(chat, session),
        tools: chat.tools,
        settings: chat.settings,
      });
      const head = { turnId: turn.turnId, model: call.model, createdAtMs: turnTimeMs(turn.turnId) };
      if (chat.stream) {
        await streamTurn(deps, request, reply, turn, async (streamed) => await streamChat(reply, streamed, head, chat.shape));
        return reply;
      }
      return toChatCompletion(head, (await answerOf(turn)).reply, chat.shape);
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
