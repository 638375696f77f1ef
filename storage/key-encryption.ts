import { hkdfSync } from "node:crypto";
import { AppError } from "../domain/app-error.ts";
import type { Owner } from "../domain/tenant.ts";
import { boundTo, decrypt, encrypt, keyBytes } from "./authenticated-cipher.ts";

/** Whose data key is wrapped: a wrapped key opens for this owner and version only. */
export type WrappingContext = { readonly owner: Owner; readonly version: number };

/** One key-encryption key: the port that a key-management service stands behind (its encryption context is ours). */
export interface KeyEncryption {
  /** Kept beside what the key wrapped; says nothing of the key. */
  readonly keyId: string;
  wrap(context: WrappingContext, dataKey: Uint8Array): Promise<Uint8Array>;
  /** @throws {AppError} `internal` when the wrapped key was altered, or belongs to another owner or version */
  unwrap(context: WrappingContext, wrapped: Uint8Array): Promise<Uint8Array>;
}

/** The keys at hand: the first is the one to rotate to, all of them unwrap. */
export interface KeyRing {
  /** Where the keys come from, for operators. */
  readonly place: string;
  keys(): readonly KeyEncryption[];
  /** Reads the keys again. @throws {AppError} `invalid_configuration` */
  reload(): void;
  /** Makes sure that there is a key to rotate to; a ring that only the operator changes has what it has. @returns its id */
  prepareNext(currentId: string): string;
  /** Forgets all keys but this one, where the ring is ours to change. */
  keepOnly(keyId: string): void;
}

const envelopeVersion = 1;

/** @param key 32 bytes */
export function localKeyEncryption(key: Uint8Array): KeyEncryption {
  if (key.length !== keyBytes) throw new AppError("internal", { reason: "a key-encryption key has 32 bytes" });
  const derive = (info: string, length: number): Buffer => Buffer.from(hkdfSync("sha256", key, "", `openclaw ${info}`, length));
  const wrapping = derive("wrapping of data keys", keyBytes);
  const keyId = derive("key id", 8).toString("hex");
  const bound = ({ owner, version }: WrappingContext): Buffer => boundTo("data key", envelopeVersion, keyId, owner, version);
  return {
    keyId,
    wrap: async (context, dataKey) => Buffer.concat([Buffer.of(envelopeVersion), encrypt(wrapping, bound(context), dataKey)]),
    async unwrap(context, wrapped) {
      if (wrapped[0] !== envelopeVersion) throw new AppError("internal", { reason: "a wrapped key has an unknown form" });
      return decrypt(wrapping, bound(context), wrapped.subarray(1));
    },
  };
}

/** The key of this id in the ring, which is read again when it is not there: another process may have rotated. */
export function keyOfRing(ring: KeyRing, keyId: string): KeyEncryption {
  const find = (): KeyEncryption | undefined => ring.keys().find((key) => key.keyId === keyId);
  const known = find();
  if (known !== undefined) return known;
  ring.reload();
  const found = find();
  if (found === undefined) throw missingKey(ring, keyId);
  return found;
}

/** @param heldBy where the key is, although it was not looked for there */
export const missingKey = ({ place }: KeyRing, keyId: string, heldBy?: string): AppError =>
  new AppError("invalid_configuration", {
    client: {
      message: `the data keys of this database are wrapped by the key-encryption key ${keyId}, which ${place} does not hold: ${heldBy === undefined ? "put that key back (the file kek of the home that this database was first started with, or OPENCLAW_KEK)" : `${heldBy} does, so unset OPENCLAW_KEK`}`,
      param: "OPENCLAW_KEK",
    },
  });

/** Keys of `OPENCLAW_KEK`: the first is current, the others only unwrap. @param text checked by the environment's schema */
export function environmentKeyRing(text: string): KeyRing {
  const keys = text.split(",").map((part) => localKeyEncryption(Buffer.from(part, "base64")));
  return {
    place: "OPENCLAW_KEK",
    keys: () => keys,
    reload() {},
    prepareNext: (currentId) => keys[0]?.keyId ?? currentId,
    keepOnly() {},
  };
}
