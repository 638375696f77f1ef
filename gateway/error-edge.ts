import type { IncomingMessage } from "node:http";
import type { Socket } from "node:net";
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

/** A tenant that was deleted after its request was authenticated is told what its next request will be told. */
const goneCodes: ReadonlySet<ErrorCode> = new Set(["tenant_deleted", "data_key_erased"]);

async function answerError(thrown: unknown, request: FastifyRequest, reply: FastifyReply): Promise<FastifyReply> {
  const found = toAppError(thrown);
  const isGone = goneCodes.has(found.code) && request.principal?.kind === "tenant";
  const error = isGone ? new AppError("invalid_api_key", {}, { cause: thrown }) : found;
  if (error.code === "request_too_large") await discardBody(request.raw);
  const { http } = errorCatalogue[error.code];
  if (!reply.hasHeader("x-request-id")) void reply.header("x-request-id", request.id); // no hook runs for framework errors
  if (http >= 500) logFailure(request, thrown, error);
  if (http === 401) void reply.header("www-authenticate", "Bearer");
  if (error.client.retryAfterSeconds !== undefined) void reply.header("retry-after", error.client.retryAfterSeconds);
  else if (http === 503) void reply.header("retry-after", 5);
  return await reply.code(http).send(errorBodyOf(error));
}

/** A thrown thing whose properties cannot be read must not turn the answer into Fastify's own. */
function logFailure(request: FastifyRequest, thrown: unknown, error: AppError): void {
  const fields = { details: error.details, requestId: request.id };
  try {
    request.log.error({ err: thrown, ...fields }, "a request failed");
  } catch {
    request.log.error(fields, "a request failed with something that cannot be logged");
  }
}

const clientErrors: Readonly<Record<string, string>> = {
  HPE_HEADER_OVERFLOW: "431 Request Header Fields Too Large",
  ERR_HTTP_REQUEST_TIMEOUT: "408 Request Timeout",
};

/** For bytes that are no HTTP request: there is no Fastify request to answer. */
export function answerClientError(error: NodeJS.ErrnoException, socket: Socket): void {
  if (error.code === "ECONNRESET" || !socket.writable) return void socket.destroy();
  const body = JSON.stringify(errorBodyOf(new AppError("invalid_request")));
  const head = [
    `HTTP/1.1 ${clientErrors[error.code ?? ""] ?? "400 Bad Request"}`,
    "content-type: application/json; charset=utf-8",
    `content-length: ${Buffer.byteLength(body)}`,
    "connection: close",
  ];
  socket.end(`${head.join("\r\n")}\r\n\r\n${body}`);
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
      {
        client: {
          message: issue?.message ?? "The request is not valid.",
          ...(issue === undefined || issue.path.length === 0 ? {} : { param: issue.path.join(".") }),
        },
      },
      { cause: thrown },
    );
  }
  const { code, statusCode } = (thrown ?? {}) as Partial<FastifyError>;
  const known = code === undefined ? undefined : fastifyCodes[code];
  if (known !== undefined) return new AppError(known, {}, { cause: thrown });
  if (statusCode === 400 && thrown instanceof SyntaxError) return new AppError("invalid_json", {}, { cause: thrown });
  if (statusCode !== undefined && statusCode >= 400 && statusCode < 500) return new AppError("invalid_request", {}, { cause: thrown });
  return new AppError("internal", {}, { cause: thrown });
}
