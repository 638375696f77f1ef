import { createHash } from "node:crypto";
import type { FastifyRequest } from "fastify";
import { AppError } from "../domain/app-error.ts";
import type { IdempotencyClaim } from "../storage/turn-repository.ts";

/** What a call is repeated by: the caller's key, and what has to be the same. */
export type Idempotency = { readonly key: string; readonly body: unknown };

const idempotencyMs = 24 * 60 * 60 * 1_000;

const keyPattern = /^[\x20-\x7e]{1,255}$/;

/** @throws {AppError} `invalid_request` for a malformed or repeated header */
export function idempotencyKeyOf({ headers }: Pick<FastifyRequest, "headers">): string | undefined {
  const key = headers["idempotency-key"];
  if (key === undefined || (typeof key === "string" && keyPattern.test(key))) return key;
  throw new AppError("invalid_request", {
    client: { message: "An Idempotency-Key has 1 to 255 printable ASCII characters.", param: "Idempotency-Key" },
  });
}

export const claimOf = ({ key, body }: Idempotency): IdempotencyClaim => ({
  keyHash: digest(key),
  fingerprint: digest(JSON.stringify(body)),
  expiresAtMs: Date.now() + idempotencyMs,
});

const digest = (text: string): Uint8Array => createHash("sha256").update(text).digest();
