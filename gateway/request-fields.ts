import { z } from "zod";
import { AppError } from "../domain/app-error.ts";
import { refusal } from "./chat-tools.ts";

/** What the bodies of OpenAI's routes have in common: no field is silently ignored (contract §3). */

const text = z.string();

/** Pairs that a caller keeps with an object; they go nowhere else. */
export const metadataPairs = z
  .record(text.max(64), text.max(512))
  .refine((pairs) => Object.keys(pairs).length <= 16, "It holds 16 pairs at most.");
export const metadata = metadataPairs.nullish();

/**
 * The body as an object of known fields.
 * @param unsupported fields that OpenAI documents and nobody honours here, and why
 * @throws {AppError} `invalid_request`, `unsupported_parameter` naming the field
 */
export function knownFields(
  raw: unknown,
  known: Readonly<Record<string, unknown>>,
  unsupported: Readonly<Record<string, string>> = {},
): Readonly<Record<string, unknown>> {
  if (raw === null || typeof raw !== "object" || Array.isArray(raw))
    throw new AppError("invalid_request", { client: { message: "The body must be a JSON object." } });
  for (const [key, value] of Object.entries(raw)) {
    if (Object.hasOwn(unsupported, key)) {
      if (value !== null) throw unsupportedField(key, unsupported[key] ?? "");
    } else if (!Object.hasOwn(known, key)) throw refusal(`Unrecognized request argument supplied: ${key.slice(0, 64)}`, key.slice(0, 64));
  }
  return raw as Readonly<Record<string, unknown>>;
}

export const unsupportedField = (param: string, why: string): AppError =>
  new AppError("unsupported_parameter", { client: { message: `The parameter '${param}' is not supported here. ${why}`, param } });
