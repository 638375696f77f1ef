import { randomBytes } from "node:crypto";
import type { FastifyReply, FastifyRequest } from "fastify";
import type { Overlay } from "../control-plane/overlay.ts";
import type { OverlayReader } from "../control-plane/overlays.ts";
import { fromStoredError } from "../domain/app-error.ts";
import { type SessionId, statelessSessionOf } from "../domain/session-id.ts";
import type { TenantContext } from "../domain/tenant.ts";
import { type TurnId, mintTurnId } from "../domain/turn-id.ts";
import type { FinishedTurn, TurnMode, TurnRequest } from "../domain/turn.ts";
import { tenantOf, tenantPrincipalOf } from "./access.ts";
import { type FileInputs, inlineFiles, readerOf } from "./file-inputs.ts";
import { idempotencyKeyOf } from "./idempotency-key.ts";
import { type RateLimitDeps, setRateLimitHeaders } from "./rate-limit-headers.ts";
import { answerTaken } from "./slow-readers.ts";
import type { TokenWatch } from "./token-watch.ts";
import { modeOf, sessionOf } from "./turn-headers.ts";
import type { RunningTurn, TurnRecord, TurnService } from "./turn-service.ts";

/** How a call of Chat Completions or Responses becomes a turn. */

export type TurnCallDeps = {
  readonly turns: TurnService;
  readonly tokens: TokenWatch;
  readonly quota?: RateLimitDeps["quota"];
  readonly overlays: Pick<OverlayReader, "of">;
  /** The configured, priced model that a tenant's name for it means. @throws {AppError} `model_not_found`, `model_not_priced` */
  readonly resolveModel: (overlay: Overlay, name: string) => string;
  readonly inputFiles: FileInputs;
};

/** A call whose headers and model are understood. */
export type TurnCall = {
  readonly context: TenantContext;
  readonly turnId: TurnId;
  readonly overlay: Overlay;
  readonly overlayDigest: string;
  readonly model: string;
  readonly askedMode: TurnMode | undefined;
  /** Of the session header. */
  readonly askedSession: SessionId | undefined;
  readonly idempotencyKey: string | undefined;
  readonly body: unknown;
};

/** @throws {AppError} for a header or a model that is none */
export async function openCall(
  { turns, overlays, resolveModel }: Pick<TurnCallDeps, "turns" | "overlays" | "resolveModel">,
  request: FastifyRequest,
  modelName: string,
): Promise<TurnCall> {
  const context = tenantOf(request);
  const { overlay, digest } = await overlays.of(context.tenantId);
  return {
    context,
    turnId: mintTurnId(Date.now(), randomBytes(10)),
    overlay,
    overlayDigest: digest,
    model: resolveModel(overlay, modelName),
    askedMode: modeOf(request),
    askedSession: await sessionOf(turns, request, context),
    idempotencyKey: idempotencyKeyOf(request),
    body: request.body,
  };
}

export type CallWork = Pick<TurnRequest, "messages" | "tools" | "settings"> & {
  /** Undefined for a turn without a transcript. */
  readonly session: SessionId | undefined;
  /** Tells the bodies of this route from those of others under one Idempotency-Key; Chat Completions has none. */
  readonly route?: string;
  readonly record?: TurnRecord | undefined;
};

/** Hands the turn in. @throws {AppError} when it was not stored: nothing will run */
export async function submitCall(
  { turns, inputFiles }: Pick<TurnCallDeps, "turns" | "inputFiles">,
  reply: FastifyReply,
  { context, turnId, overlay, overlayDigest, model, askedMode, askedSession, idempotencyKey, body }: TurnCall,
  { session, messages, tools, settings, route, record }: CallWork,
): Promise<RunningTurn> {
  const turn = await turns.submit(
    context,
    {
      turnId,
      sessionId: session ?? statelessSessionOf(turnId),
      kind: "chat",
      mode: askedMode ?? overlay.api.mode ?? "agent",
      stateless: session === undefined,
      request: { model, messages: await inlineFiles(messages, readerOf(inputFiles, context)), tools, settings, overlay: overlayDigest },
    },
    // What was asked, not what the overlay made of it: a repeat after a change of the overlay is still a repeat.
    idempotencyKey === undefined
      ? undefined
      : { key: idempotencyKey, body: { route, session: askedSession, mode: askedMode ?? "agent", body } },
    record,
  );
  turn.holdSlotUntil(answerTaken(reply.raw));
  void reply.header("x-request-id", turn.turnId);
  return turn;
}

/** Writes a stream past the framework for as long as the caller's token holds; a rotation ends the stream, not the turn. */
export async function streamTurn<Turn extends { readonly finished: Promise<FinishedTurn> }>(
  { tokens, quota }: Pick<TurnCallDeps, "tokens" | "quota">,
  request: FastifyRequest,
  reply: FastifyReply,
  turn: Turn,
  write: (turn: Turn) => Promise<void>,
): Promise<void> {
  const principal = tenantPrincipalOf(request);
  if (quota !== undefined) await setRateLimitHeaders({ quota }, reply, principal.tenantId);
  const token = tokens.watch(principal);
  try {
    await write({ ...turn, finished: Promise.race([turn.finished, token.ended]) });
  } finally {
    token.stop();
  }
}

/** Waits for the answer of a turn whose events nobody looks at. @throws {AppError} the error that it ended with */
export async function answerOf(turn: RunningTurn): Promise<Extract<FinishedTurn, { state: "done" }>> {
  turn.onEvent(() => {});
  const finished = await turn.finished;
  if (finished.state !== "done") throw fromStoredError(finished.error);
  return finished;
}
