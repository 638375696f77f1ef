import type { IncomingMessage } from "node:http";
import type { FastifyError, FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { ZodError } from "zod";
import { AppError, type ErrorCode } from "../domain/app-error.ts";
import { errorCatalogue } from "../domain/error-catalogue.ts";

/** The OpenAI shape; all four keys are always there. */
export type ErrorBody = {
  readonly error: { readonly message: string; readonly type: string; readonly param: string | null; readonly code: string | null };
};

/** The body of an error, as HTTP answers and streams carry it. Unknown errors become `internal` without a word about their cause. */
export function errorBodyOf(error: unknown): ErrorBody {
  const { code, message, client } = toAppError(error);
  return { error: { message, type: errorCatalogue[code].type, param: client.param ?? null, code } };
}

export function registerErrorEdge(app: FastifyInstance): void {
  app.setErrorHandler(answerError);
  app.setNotFoundHandler(async (request, reply) => await answerError(new AppError("not_found"), request, reply));
}

/** For what Fastify refuses before there is a route: a path that cannot be decoded. */
export function answerFrameworkError(thrown: unknown, request: FastifyRequest, reply: FastifyReply): void {
  void answerError(thrown, request, reply);
}

async function answerError(thrown: unknown, request: FastifyRequest, reply: FastifyReply): Promise<FastifyReply> {
  const error = toAppError(thrown);
  if (error.code === "request_too_large") await discardBody(request.raw);
  const { http } = errorCatalogue[error.code];
  if (http >= 500) request.log.error({ err: thrown, details: error.details, requestId: request.id }, "a request failed");
  if (http === 401) void reply.header("www-authenticate", "Bearer");
  if (error.client.retryAfterSeconds !== undefined) void reply.header("retry-after", error.client.retryAfterSeconds);
  else if (http === 503) void reply.header("retry-after", 5);
  return await reply.code(http).send(errorBodyOf(error));
}

const discardedBytes = 64 * 1024 * 1024;
const discardMs = 10_000;

/** Reads the rest of a body and forgets it: a client that is still sending would meet a closed connection instead of the answer. */
async function discardBody(body: IncomingMessage): Promise<void> {
  const { promise: isOver, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, discardMs);
  let bytes = 0;
  body.on("data", (chunk: Buffer) => {
    bytes += chunk.length;
    if (bytes > discardedBytes) resolve();
  });
  for (const event of ["end", "close", "error"]) body.once(event, resolve);
  if (body.readableEnded || body.destroyed) resolve();
  await isOver;
  clearTimeout(timer);
}

/** Fastify's own refusals, which happen before any of our code sees the request. */
const fastifyCodes: Readonly<Record<string, ErrorCode>> = {
  FST_ERR_CTP_BODY_TOO_LARGE: "request_too_large",
  FST_ERR_CTP_INVALID_MEDIA_TYPE: "unsupported_media_type",
  FST_ERR_CTP_EMPTY_JSON_BODY: "invalid_json",
  FST_ERR_CTP_INVALID_JSON_BODY: "invalid_json",
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: "invalid_request",
  FST_ERR_BAD_URL: "not_found",
};

function toAppError(thrown: unknown): AppError {
  if (thrown instanceof AppError) return thrown;
  if (thrown instanceof ZodError) {
    const [issue] = thrown.issues;
    return new AppError(
      "invalid_request",
      { client: { message: issue?.message ?? "The request is not valid.", param: issue?.path.join(".") ?? "" } },
      { cause: thrown },
    );
  }
  const { code, statusCode } = thrown as Partial<FastifyError>;
  const known = code === undefined ? undefined : fastifyCodes[code];
  if (known !== undefined) return new AppError(known, {}, { cause: thrown });
  if (statusCode === 400 && thrown instanceof SyntaxError) return new AppError("invalid_json", {}, { cause: thrown });
  if (statusCode !== undefined && statusCode >= 400 && statusCode < 500) return new AppError("invalid_request", {}, { cause: thrown });
  return new AppError("internal", {}, { cause: thrown });
}
