import { randomBytes } from "node:crypto";
import type { FastifyReply } from "fastify";
import type { Overlay } from "../control-plane/overlay.ts";
import type { OverlayReader } from "../control-plane/overlays.ts";
import { AppError, fromStoredError } from "../domain/app-error.ts";
import type { ServiceKind, ServiceRequest } from "../domain/service-request.ts";
import { statelessSessionOf } from "../domain/session-id.ts";
import type { TenantContext } from "../domain/tenant.ts";
import { type TurnId, mintTurnId } from "../domain/turn-id.ts";
import type { TurnReply } from "../domain/turn.ts";
import type { TenantFiles } from "../storage/tenant-files.ts";
import type { Idempotency } from "./idempotency-key.ts";
import type { TurnService } from "./turn-service.ts";

export type ServiceDeps = {
  readonly turns: TurnService;
  readonly files: TenantFiles;
  readonly overlays: Pick<OverlayReader, "of">;
  /** The configured, priced model of a kind. @throws {AppError} `model_not_found`, `model_not_priced`, `invalid_request` for one of another kind */
  readonly resolveModel: (kind: ServiceKind, overlay: Overlay, name: string) => string;
};

export type ServiceAnswer = {
  readonly turnId: TurnId;
  /** Whether an earlier turn's answer is repeated. */
  readonly isRepeat: boolean;
  readonly reply: TurnReply;
  /** The answer as its service packs it; to be read to its end, once. */
  readonly pieces: AsyncGenerator<Buffer, void, undefined>;
};

/** Submits a service call as a turn and waits for its answer, as chat does. */
export async function answerOfService(
  { turns, files }: ServiceDeps,
  {
    context,
    reply,
    request,
    idempotency,
  }: {
    readonly context: TenantContext;
    readonly reply: FastifyReply;
    readonly request: ServiceRequest;
    readonly idempotency: Idempotency | undefined;
  },
): Promise<ServiceAnswer> {
  const turnId = mintTurnId(Date.now(), randomBytes(10));
  const turn = await turns.submit(
    context,
    { turnId, sessionId: statelessSessionOf(turnId), kind: request.service, mode: "gateway", stateless: true, request },
    idempotency,
  );
  void reply.header("x-request-id", turn.turnId);
  turn.onEvent(() => {});
  const finished = await turn.finished;
  if (finished.state !== "done") throw fromStoredError(finished.error);
  const { resultFile } = finished.reply;
  if (resultFile === undefined) throw new AppError("internal", { turnId: turn.turnId, reason: "a service turn has no answer" });
  const isKept = idempotency !== undefined;
  async function* pieces(): AsyncGenerator<Buffer, void, undefined> {
    try {
      yield* files.read(context, resultFile as NonNullable<typeof resultFile>);
    } finally {
      if (!isKept) await files.remove(context, resultFile as NonNullable<typeof resultFile>).catch(() => {}); // it expires
    }
  }
  return { turnId: turn.turnId, isRepeat: turn.turnId !== turnId, reply: finished.reply, pieces: pieces() };
}

/** The answer of a service that answers JSON. */
export async function jsonOf({ pieces }: ServiceAnswer): Promise<Record<string, unknown>> {
  const held: Buffer[] = [];
  for await (const piece of pieces) held.push(piece);
  if (held.length === 0) throw new AppError("unavailable", { why: "the answer is not kept any more" });
  return JSON.parse(Buffer.concat(held).toString()) as Record<string, unknown>;
}

/** @throws {AppError} `invalid_request` for a field that is not one of `known`, as OpenAI words it */
export function refuseUnknown(names: Iterable<string>, known: ReadonlySet<string>): void {
  for (const name of names) {
    const shown = name.slice(0, 64);
    if (!known.has(name))
      throw new AppError("invalid_request", { client: { message: `Unrecognized request argument supplied: ${shown}`, param: shown } });
  }
}

export const invalid = (param: string, message: string): AppError => new AppError("invalid_request", { client: { message, param } });

/** @throws {AppError} `invalid_request` for what is no JSON object */
export function bodyObject(raw: unknown): Record<string, unknown> {
  if (raw === null || typeof raw !== "object" || Array.isArray(raw))
    throw new AppError("invalid_request", { client: { message: "The body must be a JSON object." } });
  return raw as Record<string, unknown>;
}

/** @throws {AppError} `invalid_request` naming the field */
export function modelNameOf(raw: unknown): string {
  if (typeof raw !== "string" || raw === "" || raw.length > 256) throw invalid("model", "The model must be a name of 1 to 256 characters.");
  return raw;
}
