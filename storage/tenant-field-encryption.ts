import { AppError } from "../domain/app-error.ts";
import type { Owner } from "../domain/tenant.ts";
import { boundTo, decrypt, encrypt } from "./authenticated-cipher.ts";
import type { DataKeys } from "./data-keys.ts";
import type { FieldEncryption, FieldPlace } from "./field-encryption.ts";

/** A place of a tenant's value, or of one of the system's. */
export type OwnedPlace = Omit<FieldPlace, "tenantId"> & { readonly owner: Owner };

// Envelope: form (1 byte), key version (4 bytes, big-endian), nonce, tag, ciphertext.
const form = 1;
const headBytes = 5;

const bound = ({ owner, table, field, row }: OwnedPlace, version: number): Buffer =>
  boundTo("field", form, owner, table, field, row, version);

export const createFieldEncryption = (dataKeys: DataKeys): FieldEncryption => ({
  seal: async ({ tenantId, ...place }, plaintext) => await sealValue(dataKeys, { owner: tenantId, ...place }, plaintext),
  open: async ({ tenantId, ...place }, sealed) => await openValue(dataKeys, { owner: tenantId, ...place }, sealed),
});

/** As `FieldEncryption.seal`, also for values of the system. */
export async function sealValue(dataKeys: DataKeys, place: OwnedPlace, plaintext: Uint8Array): Promise<Buffer> {
  return await dataKeys.withCurrent(place.owner, ({ version, bytes }) => {
    const head = Buffer.alloc(headBytes);
    head.writeUInt8(form);
    head.writeUInt32BE(version, 1);
    return Buffer.concat([head, encrypt(bytes("field"), bound(place, version), plaintext)]);
  });
}

/** As `FieldEncryption.open`, also for values of the system. */
export async function openValue(dataKeys: DataKeys, place: OwnedPlace, sealed: Uint8Array): Promise<Buffer> {
  const version = sealedVersionOf(sealed);
  return await dataKeys.withVersion(place.owner, version, ({ bytes }) =>
    decrypt(bytes("field"), bound(place, version), sealed.subarray(headBytes)),
  );
}

/** The data key version that sealed it. @throws {AppError} `internal` for what is no sealed value */
export function sealedVersionOf(sealed: Uint8Array): number {
  if (sealed[0] !== form || sealed.length < headBytes) throw new AppError("internal", { reason: "a sealed value has an unknown form" });
  return new DataView(sealed.buffer, sealed.byteOffset).getUint32(1);
}
