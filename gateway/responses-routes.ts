import { randomBytes } from "node:crypto";
import type { FastifyPluginAsync, FastifyRequest } from "fastify";
import { z } from "zod";
import type { Overlay } from "../control-plane/overlay.ts";
import type { OverlayReader } from "../control-plane/overlays.ts";
import { AppError, fromStoredError } from "../domain/app-error.ts";
import type { ChatMessage } from "../domain/conversation.ts";
import { statelessSessionOf } from "../domain/session-id.ts";
import { mintTurnId } from "../domain/turn-id.ts";
import type { FinishedTurn } from "../domain/turn.ts";
import { insertResponse } from "../storage/response-repository.ts";
import { tenantOf, tenantPrincipalOf } from "./access.ts";
import { refusal } from "./chat-tools.ts";
import { type FileInputs, inlineFiles, readerOf } from "./file-inputs.ts";
import { idempotencyKeyOf } from "./idempotency-key.ts";
import { parseField } from "./parse-field.ts";
import { type RateLimitDeps, setRateLimitHeaders } from "./rate-limit-headers.ts";
import { nameItems, responseIdOf, toMessages } from "./responses-items.ts";
import { type ResponseView, toResponse } from "./responses-object.ts";
import { describedResponseBody, parseResponseRequest } from "./responses-request.ts";
import type { ResponseService } from "./responses-service.ts";
import { streamResponse } from "./responses-stream.ts";
import { answerTaken } from "./slow-readers.ts";
import type { TokenWatch } from "./token-watch.ts";
import { headerOf, modeOf, sessionOf, sessionOfUser } from "./turn-headers.ts";
import type { TurnService } from "./turn-service.ts";

export type ResponsesDeps = {
  readonly turns: TurnService;
  readonly responses: ResponseService;
  readonly tokens: TokenWatch;
  readonly quota?: RateLimitDeps["quota"];
  readonly overlays: Pick<OverlayReader, "of">;
  /** The configured, priced model that a tenant's name for it means. @throws {AppError} `model_not_found`, `model_not_priced` */
  readonly resolveModel: (overlay: Overlay, name: string) => string;
  readonly inputFiles: FileInputs;
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
const includes = z.union([z.string(), z.array(z.string())]).optional();
const retrieveQuery = z.object({
  stream: z.literal("false", "A response that is kept is not streamed again: ask for it until its status is final.").optional(),
  starting_after: z.undefined("A response that is kept is not streamed again.").optional(),
  include_obfuscation: z.enum(["true", "false"]).optional(),
  include: includes,
  "include[]": includes,
});
const listQuery = z.object({
  limit: z.coerce.number().int().min(1).max(100).default(20),
  order: z.enum(["asc", "desc"]).default("desc"),
  after: z.string().max(256).optional(),
  include: includes,
  "include[]": includes,
});

export const createResponsesRoutes =
  ({ turns, responses, tokens, quota, overlays, resolveModel, inputFiles, inputTokensOf }: ResponsesDeps): FastifyPluginAsync =>
  async (app) => {
    app.post("/v1/responses", { config: { access: "tenant", describes } }, async (request, reply) => {
      const context = tenantOf(request);
      const asked = parseResponseRequest(request.body);
      const { overlay, digest } = await overlays.of(context.tenantId);
      const model = resolveModel(overlay, asked.model);
      const askedMode = modeOf(request);
      const askedSession = await sessionOf(turns, request, context);
      if (askedSession !== undefined && asked.previousId !== undefined)
        throw refusal("A session knows what came before: 'previous_response_id' is not allowed in it.", "previous_response_id");
      const session =
        askedSession ?? (overlay.api.sessionsByUser && asked.previousId === undefined ? sessionOfUser(asked.user) : undefined);
      const withTools = toolEventsOf(request);
      const idempotencyKey = idempotencyKeyOf(request);
      const turnId = mintTurnId(Date.now(), randomBytes(10));
      const input = nameItems(turnId, await responses.resolve(context, asked.input));
      const earlier = asked.previousId === undefined ? [] : await responses.conversationOf(context, asked.previousId);
      const conversation = [...earlier, ...toMessages(input, earlier)];
      if (conversation.length === 0) throw refusal("There is no input.", "input");
      const kept = asked.truncate ? newestThatFit(conversation, inputTokensOf(model)) : conversation;
      const instructions: readonly ChatMessage[] =
        asked.instructions === undefined ? [] : [{ role: "system", content: asked.instructions }];
      const head = { ...asked.echo, model };

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
            messages: [...instructions, ...(await inlineFiles(kept, readerOf(inputFiles, context)))],
            tools: asked.tools,
            settings: asked.settings,
            overlay: digest,
          },
        },
        idempotencyKey === undefined
          ? undefined
          : { key: idempotencyKey, body: { route: "responses", session: askedSession, mode: askedMode ?? "agent", body: request.body } },
        asked.store
          ? async (tx) => {
              await insertResponse(tx, { id: responseIdOf(turnId), turnId, previousId: asked.previousId ?? null, head, input });
            }
          : undefined,
      );
      turn.holdSlotUntil(answerTaken(reply.raw));
      void reply.header("x-request-id", turn.turnId);
      const view: ResponseView = { turnId: turn.turnId, head, state: "queued", reply: null, error: null, finishedAtMs: null };
      const ended = async (finished: FinishedTurn): Promise<ResponseView> => {
        if (asked.store) return await responses.get(context, responseIdOf(turn.turnId));
        const finishedAtMs = Date.now();
        if (finished.state === "done") return { ...view, state: "done", reply: finished.reply, finishedAtMs };
        return { ...view, state: finished.state, error: finished.error, finishedAtMs };
      };
      if (asked.stream) {
        if (quota !== undefined) await setRateLimitHeaders({ quota }, reply, context.tenantId);
        // A rotation ends the stream, not the turn: that one completes and is billed.
        const token = tokens.watch(tenantPrincipalOf(request));
        const streamed = { ...turn, finished: Promise.race([turn.finished, token.ended]) };
        try {
          await streamResponse(reply, streamed, { view, ended, obfuscate: asked.obfuscate, withTools });
        } finally {
          token.stop();
        }
        return reply;
      }
      turn.onEvent(() => {});
      if (asked.background) return toResponse(await responses.get(context, responseIdOf(turn.turnId)));
      const finished = await turn.finished;
      if (finished.state !== "done") throw fromStoredError(finished.error);
      return toResponse(await ended(finished));
    });

    app.get(
      "/v1/responses/:id",
      { config: { access: "tenant", describes: { summary: "A kept response", query: retrieveQuery } } },
      async (request) => {
        parseField(retrieveQuery, request.query, []);
        return toResponse(await responses.get(tenantOf(request), params.parse(request.params).id));
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
      { config: { access: "tenant", describes: { summary: "What a response was asked, by pages", query: listQuery } } },
      async (request) => {
        const { limit, order, after } = parseField(listQuery, request.query, []);
        const { input } = await responses.get(tenantOf(request), params.parse(request.params).id);
        const items = input as readonly { readonly id: string }[];
        const ordered = order === "asc" ? items : items.toReversed();
        const place = after === undefined ? -1 : ordered.findIndex(({ id }) => id === after);
        if (after !== undefined && place === -1)
          throw new AppError("not_found", { client: { message: "There is no such item.", param: "after" } });
        const data = ordered.slice(place + 1, place + 1 + limit);
        return {
          object: "list",
          data,
          first_id: data.at(0)?.id ?? null,
          last_id: data.at(-1)?.id ?? null,
          has_more: place + 1 + limit < ordered.length,
        };
      },
    );
  };

function toolEventsOf(request: FastifyRequest): boolean {
  const events = headerOf(request, "x-openclaw-events");
  if (events === undefined || events === "tools") return events === "tools";
  throw refusal("The only events to ask for are 'tools'.", "X-OpenClaw-Events");
}

/** Characters of a prompt per token when it is cut: low, so that it errs towards a shorter prompt. */
const charactersPerToken = 3;

/** Instructions and the newest messages that fit, beginning with a user's: a provider refuses a tool's answer without its call. */
function newestThatFit(messages: readonly ChatMessage[], tokens: number): readonly ChatMessage[] {
  const isInstruction = ({ role }: ChatMessage): boolean => role === "system" || role === "developer";
  let left = tokens * charactersPerToken;
  for (const message of messages) if (isInstruction(message)) left -= JSON.stringify(message).length;
  let first = messages.length;
  for (let place = messages.length - 1; place >= 0; place--) {
    const message = messages[place];
    if (message === undefined || isInstruction(message)) continue;
    left -= JSON.stringify(message).length;
    if (left < 0 && first < messages.length) break;
    if (message.role === "user") first = place;
  }
  if (first === messages.length) return messages;
  return messages.filter((message, place) => place >= first || isInstruction(message));
}
