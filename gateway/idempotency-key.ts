import type { FastifyRequest } from "fastify";
import { AppError } from "../domain/app-error.ts";

const keyPattern = /^[\x20-\x7e]{1,255}$/;

/** @throws {AppError} `invalid_request` for a malformed or repeated header */
export function idempotencyKeyOf({ headers }: Pick<FastifyRequest, "headers">): string | undefined {
  const key = headers["idempotency-key"];
  if (key === undefined || (typeof key === "string" && keyPattern.test(key))) return key;
  throw new AppError("invalid_request", {
    client: { message: "An Idempotency-Key has 1 to 255 printable ASCII characters.", param: "Idempotency-Key" },
  });
}
