import { createCipheriv, createDecipheriv, hkdfSync, randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { createPrivateFile } from "../control-plane/private-file.ts";
import { AppError } from "../domain/app-error.ts";
import type { FieldEncryption, FieldPlace } from "../storage/field-encryption.ts";

/** LEAD: delete this file when the branch with the tenants' data keys is merged. Keys are derived from the key-encryption key. */
export function interimFieldEncryption(home: string, keyEncryptionKey: string | undefined): FieldEncryption {
  const path = join(home, "interim-kek");
  if (keyEncryptionKey === undefined) createPrivateFile(path, randomBytes(32).toString("base64"));
  const master = Buffer.from(keyEncryptionKey ?? readFileSync(path, "utf8"), "base64");
  const keyOf = ({ tenantId }: FieldPlace): Buffer => Buffer.from(hkdfSync("sha256", master, "", `tenant ${tenantId}`, 32));
  const placeText = ({ tenantId, table, field, row }: FieldPlace): Buffer => Buffer.from(JSON.stringify([tenantId, table, field, row]));
  return {
    async seal(place, plaintext) {
      const nonce = randomBytes(12);
      const cipher = createCipheriv("aes-256-gcm", keyOf(place), nonce).setAAD(placeText(place));
      const sealed = Buffer.concat([cipher.update(plaintext), cipher.final()]);
      return Buffer.concat([nonce, cipher.getAuthTag(), sealed]);
    },
    async open(place, sealed) {
      try {
        const decipher = createDecipheriv("aes-256-gcm", keyOf(place), sealed.subarray(0, 12)).setAAD(placeText(place));
        decipher.setAuthTag(sealed.subarray(12, 28));
        return Buffer.concat([decipher.update(sealed.subarray(28)), decipher.final()]);
      } catch (error) {
        throw new AppError("internal", { reason: "a sealed value does not open" }, { cause: error });
      }
    },
  };
}
