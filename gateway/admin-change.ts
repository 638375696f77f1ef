import type { FastifyInstance, FastifyRequest } from "fastify";
import { z } from "zod";
import { requireAdmin } from "../control-plane/authentication.ts";
import type { ChangeOptions } from "../control-plane/changes.ts";
import { AppError } from "../domain/app-error.ts";
import { idempotencyKeyOf } from "./idempotency-key.ts";
import { jsonParserOf } from "./json-body.ts";

/** Who changes something, and as what it is repeated: the actor is the admin key, never anything in the request. */
export function changeOptionsOf(request: FastifyRequest): ChangeOptions {
  if (request.principal === undefined || request.principal.kind !== "admin") throw new AppError("forbidden");
  const { keyId } = requireAdmin(request.principal, request.principal.scopes[0] ?? "all");
  const key = idempotencyKeyOf(request);
  return {
    actor: { type: "admin", id: keyId },
    requestId: request.id,
    idempotency: key === undefined ? undefined : { key, request: [request.method, request.url, request.body ?? null] },
  };
}

/** The body of a change that needs none: absent, empty or `{}`. */
export const noBody = z.strictObject({}).nullish();

/** Money and shares: no number under these keys becomes a float here. */
const decimalKeys: ReadonlySet<string> = new Set(["markup", "cost_per_day_usd"]);

/** The same value with its decimals as the text that was sent. */
function withDecimalTexts(body: string): unknown {
  return JSON.parse(body, (key, value: unknown, { source }: { readonly source?: string } = {}) =>
    typeof value === "number" && decimalKeys.has(key) ? source : value,
  ) as unknown;
}

/** Lets an empty body through whatever its content type says, for the routes that are registered on `app`. */
export function acceptEmptyBodies(app: FastifyInstance): void {
  const parseJson = jsonParserOf(app);
  app.removeContentTypeParser("application/json");
  app.addContentTypeParser("application/json", { parseAs: "string" }, (request, body, done) => {
    if (body === "") done(null, undefined);
    else parseJson(request, body, (error) => done(error, error ? undefined : withDecimalTexts(body as string)));
  });
  app.addContentTypeParser("*", { parseAs: "string" }, (_request, body, done) => {
    if (body === "") done(null, undefined);
    else done(new AppError("unsupported_media_type"), undefined);
  });
}
