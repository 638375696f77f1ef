import { createCipheriv, createDecipheriv, createHash } from "node:crypto";
import { AppError } from "../../domain/app-error.ts";
import type { FieldEncryption, FieldPlace } from "../../storage/field-encryption.ts";

const digest = (...parts: readonly (string | Uint8Array)[]): Buffer => {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part).update("/");
  return hash.digest();
};
const bytesOf = ({ tenantId, table, field, row }: FieldPlace): Buffer => Buffer.from(JSON.stringify([tenantId, table, field, row]));

/** AES-256-GCM under a key made of the tenant's id: the same value seals to the same bytes, and opens in its own place only. */
export const testFieldEncryption: FieldEncryption = {
  async seal(place, plaintext) {
    const nonce = digest(bytesOf(place), plaintext).subarray(0, 12);
    const cipher = createCipheriv("aes-256-gcm", digest("key", place.tenantId), nonce).setAAD(bytesOf(place));
    return Buffer.concat([nonce, cipher.update(plaintext), cipher.final(), cipher.getAuthTag()]);
  },
  async open(place, sealed) {
    try {
      const decipher = createDecipheriv("aes-256-gcm", digest("key", place.tenantId), sealed.subarray(0, 12)).setAAD(bytesOf(place));
      decipher.setAuthTag(sealed.subarray(-16));
      return Buffer.concat([decipher.update(sealed.subarray(12, -16)), decipher.final()]);
    } catch (error) {
      throw new AppError("internal", { reason: "a sealed value does not open" }, { cause: error });
    }
  },
};
