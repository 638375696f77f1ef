import type { FastifyRequest } from "fastify";
import { AppError } from "../domain/app-error.ts";
import { encodePeer, parseSessionId, sessionPartsOf, type SessionId } from "../domain/session-id.ts";
import type { TenantContext } from "../domain/tenant.ts";
import type { TurnMode } from "../domain/turn.ts";
import type { TurnService } from "./turn-service.ts";

/** What the headers of a call say of its turn (contract §3). */

/** The session that a call continues by its header; undefined when it names none. @throws {AppError} `invalid_request`, `not_found` */
export async function sessionOf(
  turns: Pick<TurnService, "hasSession">,
  request: FastifyRequest,
  context: TenantContext,
): Promise<SessionId | undefined> {
  const header = headerOf(request, "x-openclaw-session");
  if (header === undefined) return undefined;
  const sessionId = parseSessionHeader(header);
  const { prefix } = sessionPartsOf(sessionId);
  const mayBeCreated = prefix === "api" || prefix === "web";
  if (!mayBeCreated && !(await turns.hasSession(context, sessionId))) {
    throw new AppError("not_found", { client: { message: "There is no such session.", param: "X-OpenClaw-Session" } });
  }
  return sessionId;
}

function parseSessionHeader(header: string): SessionId {
  try {
    return parseSessionId(header);
  } catch (error) {
    if (!(error instanceof AppError)) throw error;
    throw new AppError(error.code, { client: { ...error.client, message: error.message, param: "X-OpenClaw-Session" } });
  }
}

/** The session of a call that names its user only, for a tenant that wants it so. */
export function sessionOfUser(user: string | undefined): SessionId | undefined {
  if (user === undefined) return undefined;
  try {
    return parseSessionId(`api:${encodePeer(user)}:default`);
  } catch (error) {
    if (!(error instanceof AppError)) throw error;
    throw new AppError("invalid_request", { client: { message: "The user is too long to name a session.", param: "user" } });
  }
}

export function headerOf(request: FastifyRequest, name: string): string | undefined {
  const value = request.headers[name];
  if (value === undefined || typeof value === "string") return value;
  throw new AppError("invalid_request", { client: { message: `The header ${name} was sent twice.`, param: name } });
}

export function modeOf(request: FastifyRequest): TurnMode | undefined {
  const mode = headerOf(request, "x-openclaw-mode");
  if (mode === undefined || mode === "agent" || mode === "gateway") return mode;
  throw new AppError("invalid_request", { client: { message: "The mode is 'agent' or 'gateway'.", param: "X-OpenClaw-Mode" } });
}
