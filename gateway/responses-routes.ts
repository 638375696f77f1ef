import type { FastifyPluginAsync, FastifyRequest } from "fastify";
import { z } from "zod";
import { charactersOf, charactersPerToken, isInstruction, newestThatFit } from "../domain/context-window.ts";
import type { ChatMessage } from "../domain/conversation.ts";
import type { TenantContext } from "../domain/tenant.ts";
import type { FinishedTurn } from "../domain/turn.ts";
import { insertResponse } from "../storage/response-repository.ts";
import { tenantOf } from "./access.ts";
import { refusal } from "./chat-tools.ts";
import type { ConversationService, ConversationTail } from "./conversation-service.ts";
import { inlineImages, readerOf } from "./file-inputs.ts";
import { followResponse } from "./followed-response.ts";
import { includes, itemsQuery, pageOf } from "./item-pages.ts";
import { parseField } from "./parse-field.ts";
import { type StoredItem, nameItems, responseIdOf, toMessages, ulidOf } from "./responses-items.ts";
import { type ResponseView, toResponse } from "./responses-object.ts";
import { type ResponseRequest, describedResponseBody, parseResponseRequest } from "./responses-request.ts";
import type { ResponseService } from "./responses-service.ts";
import { streamResponse } from "./responses-stream.ts";
import { type TurnCall, type TurnCallDeps, answerOf, openCall, streamTurn, submitCall } from "./turn-call.ts";
import { headerOf, sessionOfUser } from "./turn-headers.ts";

export type ResponsesDeps = TurnCallDeps & {
  readonly responses: ResponseService;
  readonly conversations: Pick<ConversationService, "tailOf">;
  /** How many tokens of input the model takes beside its answer. */
  readonly inputTokensOf: (model: string) => number;
};

const describes = {
  summary: "Responses, JSON or server-sent events",
  body: describedResponseBody,
  headers: z.object({
    "X-OpenClaw-Session": z.string().optional(),
    "X-OpenClaw-Mode": z.enum(["agent", "gateway"]).optional(),
    "X-OpenClaw-Events": z.literal("tools").optional(),
  }),
};
const params = z.object({ id: z.string() });
const retrieveQuery = z.object({
  stream: z.enum(["true", "false"]).optional(),
  /** The number of the last event that the caller has. */
  starting_after: z.coerce.number().int().min(0).optional(),
  include_obfuscation: z.enum(["true", "false"]).optional(),
  include: includes,
  "include[]": includes,
});

export const createResponsesRoutes =
  (deps: ResponsesDeps): FastifyPluginAsync =>
  async (app) => {
    const { turns, responses, inputFiles, inputTokensOf } = deps;

    /** What the response goes on from. */
    async function tailOf(context: TenantContext, { previousId, conversationId }: ResponseRequest): Promise<ConversationTail> {
      if (conversationId !== undefined) return await deps.conversations.tailOf(context, conversationId);
      return { items: previousId === undefined ? [] : await responses.chainOf(context, previousId), join: async () => {} };
    }

    /** What the model is asked: the instructions, what was said before, the input. */
    async function messagesOf(call: TurnCall, asked: ResponseRequest, items: readonly StoredItem[]): Promise<readonly ChatMessage[]> {
      const conversation = toMessages(await inlineImages(items, readerOf(inputFiles, call.context)));
      if (conversation.length === 0) throw refusal("There is no input.", "input");
      const kept = asked.truncate ? cutTo(inputTokensOf(call.model), conversation) : conversation;
      return asked.instructions === undefined ? kept : [{ role: "system", content: asked.instructions }, ...kept];
    }

    app.post("/v1/responses", { config: { access: "tenant", describes } }, async (request, reply) => {
      const asked = parseResponseRequest(request.body);
      const call = await openCall(deps, request, asked.model);
      const { context, turnId } = call;
      refuseInSession(call, asked);
      const isAlone = asked.previousId === undefined && asked.conversationId === undefined;
      const session = call.askedSession ?? (call.overlay.api.sessionsByUser && isAlone ? sessionOfUser(asked.user) : undefined);
      const withTools = toolEventsOf(request);
      const input = nameItems(ulidOf(turnId), await responses.resolve(context, asked.input));
      const tail = await tailOf(context, asked);
      const head = { ...asked.echo, model: call.model };
      const isRecorded = asked.store || asked.conversationId !== undefined;

      const turn = await submitCall(deps, reply, call, {
        session,
        // Of a locked conversation only the repeat of a call is answered, with its own turn: the record lets no other one in.
        messages: tail.items === undefined ? [] : await messagesOf(call, asked, [...tail.items, ...input]),
        tools: asked.tools,
        settings: asked.settings,
        route: "responses",
        record: isRecorded
          ? async (tx) => {
              const responseId = responseIdOf(turnId);
              await insertResponse(tx, { id: responseId, turnId, previousId: asked.previousId ?? null, head, input, isKept: asked.store });
              await tail.join(tx, { responseId, input });
            }
          : undefined,
      });
      const view: ResponseView = { turnId: turn.turnId, head, state: "queued", reply: null, error: null, finishedAtMs: null };
      const ended = async (finished: FinishedTurn): Promise<ResponseView> => {
        if (asked.store) return await responses.get(context, responseIdOf(turn.turnId));
        const finishedAtMs = Date.now();
        if (finished.state === "done") return { ...view, state: "done", reply: finished.reply, finishedAtMs };
        return { ...view, state: finished.state, error: finished.error, finishedAtMs };
      };
      const streaming = { view, ended, obfuscate: asked.obfuscate, withTools };
      if (asked.background) turn.keepText();
      if (asked.stream) {
        await streamTurn(deps, request, reply, turn, async (streamed) => {
          if (asked.background) await followResponse(reply, streamed, { ...streaming, startingAfter: -1 });
          else await streamResponse(reply, streamed, streaming);
        });
        return reply;
      }
      if (!asked.background) return toResponse(await ended(await answerOf(turn)));
      turn.onEvent(() => {});
      return toResponse(await responses.get(context, responseIdOf(turn.turnId)));
    });

    app.get(
      "/v1/responses/:id",
      { config: { access: "tenant", describes: { summary: "A kept response, JSON or server-sent events", query: retrieveQuery } } },
      async (request, reply) => {
        const context = tenantOf(request);
        const query = parseField(retrieveQuery, request.query, []);
        const view = await responses.get(context, params.parse(request.params).id);
        if (query.stream !== "true") {
          if (query.starting_after !== undefined)
            throw refusal("'starting_after' is only allowed when 'stream' is true.", "starting_after");
          return toResponse(view);
        }
        if (view.head["background"] !== true)
          throw refusal("Only a background response can be streamed again: ask for this one as a whole.", "stream");
        const turn = await turns.follow(context, view.turnId);
        try {
          await streamTurn(deps, request, reply, turn, async (followed) => {
            await followResponse(reply, followed, {
              view,
              ended: async () => await responses.get(context, view.id),
              startingAfter: query.starting_after ?? -1,
              obfuscate: query.include_obfuscation === "true",
              withTools: toolEventsOf(request),
            });
          });
        } finally {
          turn.stop();
        }
        return reply;
      },
    );

    app.delete("/v1/responses/:id", { config: { access: "tenant", describes: { summary: "Delete a response" } } }, async (request) => {
      const { id } = params.parse(request.params);
      await responses.delete(tenantOf(request), id);
      return { id, object: "response", deleted: true };
    });

    app.post(
      "/v1/responses/:id/cancel",
      { config: { access: "tenant", describes: { summary: "End a background response" } } },
      async (request) => toResponse(await responses.cancel(tenantOf(request), params.parse(request.params).id)),
    );

    app.get(
      "/v1/responses/:id/input_items",
      { config: { access: "tenant", describes: { summary: "What a response was asked, by pages", query: itemsQuery } } },
      async (request) => {
        const query = parseField(itemsQuery, request.query, []);
        const { input } = await responses.get(tenantOf(request), params.parse(request.params).id);
        const items = input as readonly StoredItem[];
        return pageOf(query.order === "asc" ? items : items.toReversed(), query);
      },
    );
  };

/** A session knows what came before. @throws {AppError} `invalid_request` */
function refuseInSession({ askedSession }: TurnCall, { previousId, conversationId }: ResponseRequest): void {
  if (askedSession === undefined) return;
  const message = "A session knows what came before: it is continued instead, not together with";
  if (previousId !== undefined) throw refusal(`${message} 'previous_response_id'.`, "previous_response_id");
  if (conversationId !== undefined) throw refusal(`${message} 'conversation'.`, "conversation");
}

function toolEventsOf(request: FastifyRequest): boolean {
  const events = headerOf(request, "x-openclaw-events");
  if (events === undefined || events === "tools") return events === "tools";
  throw refusal("The only events to ask for are 'tools'.", "X-OpenClaw-Events");
}

/** Instructions, and of the rest the newest that fit. */
function cutTo(tokens: number, messages: readonly ChatMessage[]): readonly ChatMessage[] {
  const room = tokens * charactersPerToken - charactersOf(messages.filter(isInstruction));
  const kept = new Set(
    newestThatFit(
      messages.filter((message) => !isInstruction(message)),
      room,
      { atLeastOne: true },
    ),
  );
  return kept.size === 0 ? messages : messages.filter((message) => isInstruction(message) || kept.has(message));
}
