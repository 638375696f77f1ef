import { createCipheriv, createDecipheriv, randomBytes } from "node:crypto";
import { AppError } from "../domain/app-error.ts";

/** AES-256-GCM as every envelope of ours holds it: 96-bit random nonce, 128-bit tag, ciphertext. */

const cipher = "aes-256-gcm";
const nonceBytes = 12;
const tagBytes = 16;

export const keyBytes = 32;

/** What authentication binds: a JSON array, so that no two lists of parts have the same text. */
export const boundTo = (...parts: readonly (string | number)[]): Buffer => Buffer.from(JSON.stringify(parts));

/** @returns nonce, tag and ciphertext */
export function encrypt(key: Uint8Array, bound: Uint8Array, plaintext: Uint8Array): Buffer {
  const nonce = randomBytes(nonceBytes);
  const sealing = createCipheriv(cipher, key, nonce, { authTagLength: tagBytes });
  sealing.setAAD(bound);
  const ciphertext = Buffer.concat([sealing.update(plaintext), sealing.final()]);
  return Buffer.concat([nonce, sealing.getAuthTag(), ciphertext]);
}

/** @throws {AppError} `internal` when anything of it was altered, or it was bound to something else */
export function decrypt(key: Uint8Array, bound: Uint8Array, envelope: Uint8Array): Buffer {
  const tagEnd = nonceBytes + tagBytes;
  if (envelope.length < tagEnd) throw new AppError("internal", { reason: "a sealed value is cut short" });
  const opening = createDecipheriv(cipher, key, envelope.subarray(0, nonceBytes), { authTagLength: tagBytes });
  opening.setAAD(bound);
  opening.setAuthTag(envelope.subarray(nonceBytes, tagEnd));
  try {
    return Buffer.concat([opening.update(envelope.subarray(tagEnd)), opening.final()]);
  } catch (cause) {
    throw new AppError("internal", { reason: "a sealed value does not open: it was altered or moved" }, { cause });
  }
}
