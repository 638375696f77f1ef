import type { Overlay } from "../../control-plane/overlay.ts";
import { AppError } from "../../domain/app-error.ts";
import type { TurnId } from "../../domain/turn-id.ts";
import type { FinishedTurn, TurnReply, TurnSubmission } from "../../domain/turn.ts";
import { noUsage } from "../../domain/usage.ts";
import { createChatRoutes } from "../../gateway/chat-routes.ts";
import type { EdgeOptions } from "../../gateway/http-edge.ts";
import type { Idempotency, TurnService } from "../../gateway/turn-service.ts";
import type { TurnEvent } from "../../streams/token-bus.ts";
import { overlaysOf, someOverlay } from "../control-plane/some-overlay.ts";
import { type GatewayStage, gatewayStage, steadyTokens } from "./gateway-stage.ts";

/** What a turn does: shows events while it runs and ends. */
export type Script = (emit: (event: TurnEvent) => void, submission: TurnSubmission) => Promise<FinishedTurn>;

export type Submitted = { readonly tenant: string; readonly submission: TurnSubmission; readonly idempotency: Idempotency | undefined };

/** A turn service whose turns follow a script; it has the sessions that it is given. */
export function scriptedTurns(script: Script, sessions: readonly string[] = []): TurnService & { readonly submitted: Submitted[] } {
  const submitted: Submitted[] = [];
  return {
    submitted,
    async submit({ tenantId }, submission: TurnSubmission, idempotency) {
      submitted.push({ tenant: tenantId, submission, idempotency });
      const { promise: finished, resolve, reject } = Promise.withResolvers<FinishedTurn>();
      finished.catch(() => {});
      return {
        turnId: submission.turnId,
        finished,
        holdSlotUntil() {},
        onEvent: (listener) => void script(listener, submission).then(resolve, reject),
      };
    },
    hasSession: async (_context, sessionId) => sessions.includes(sessionId),
  };
}

/** A tenant without uploads. */
export const noFiles = async (): Promise<never> => {
  throw new AppError("not_found", { client: { message: "There is no such file.", param: "file_id" } });
};

/** The chat route before such a service. It knows the models `m` and `free`, which has no price. */
export async function chatStage(turns: TurnService, overlay = "", edge: EdgeOptions = {}): Promise<GatewayStage> {
  const resolveModel = (_overlay: Overlay, name: string): string => {
    if (name === "m" || name === "default") return "m";
    throw new AppError(name === "free" ? "model_not_priced" : "model_not_found", { client: { param: "model" } });
  };
  return await gatewayStage(
    createChatRoutes({ turns, tokens: steadyTokens, overlays: overlaysOf(someOverlay(overlay)), resolveModel, inputFiles: noFiles }),
    undefined,
    edge,
  );
}

export const done = (reply: Partial<TurnReply>): FinishedTurn => ({
  state: "done",
  reply: {
    content: null,
    toolCalls: [],
    finishReason: "stop",
    model: "m",
    usage: { ...noUsage, inputTokens: 10, outputTokens: 5 },
    modelCalls: 1,
    ...reply,
  },
});

/** The text in pieces, each with its place. */
export function textEvents(...pieces: readonly string[]): readonly TurnEvent[] {
  let offset = 0;
  return pieces.map((text) => {
    offset += text.length;
    return { type: "text", offset: offset - text.length, text };
  });
}

export const chatHeaders = { authorization: "Bearer acme", "content-type": "application/json" };
export const chatBody = (more: object = {}): string => JSON.stringify({ model: "m", messages: [{ role: "user", content: "hi" }], ...more });

export const requestIdOf = (turnId: TurnId): string => `chatcmpl-${turnId.slice(4)}`;
