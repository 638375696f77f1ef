import { createCipheriv, createDecipheriv, randomBytes } from "node:crypto";
import type { Payload, PayloadCodec } from "@temporalio/common";
import { parseOwner } from "../../domain/tenant.ts";
import type { PayloadDecoder } from "../../gateway/codec-routes.ts";

const bytes = (text: string): Uint8Array => Buffer.from(text);

const plainForm = ({ metadata, data }: Payload): Uint8Array =>
  bytes(
    JSON.stringify({
      metadata: Object.entries(metadata ?? {}).map(([name, value]) => [name, Buffer.from(value).toString("base64")]),
      data: Buffer.from(data ?? []).toString("base64"),
    }),
  );

function ofPlainForm(text: string): Payload {
  const { metadata, data } = JSON.parse(text) as { metadata: [string, string][]; data: string };
  return {
    metadata: Object.fromEntries(metadata.map(([name, value]) => [name, Buffer.from(value, "base64")])),
    data: Buffer.from(data, "base64"),
  };
}

/** A small codec with one key for all: AES-256-GCM, the owner in the metadata and bound to it. */
export function aesCodec(owner: string, key = randomBytes(32)): PayloadCodec & PayloadDecoder {
  const decodeOne = (payload: Payload): Payload => {
    const { metadata, data } = payload;
    if (Buffer.from(metadata?.["encoding"] ?? "").toString() !== "binary/aes" || data == null) return payload;
    const sealed = Buffer.from(data);
    const decipher = createDecipheriv("aes-256-gcm", key, sealed.subarray(0, 12), { authTagLength: 16 });
    decipher.setAAD(metadata?.["owner"] ?? Buffer.alloc(0));
    decipher.setAuthTag(sealed.subarray(12, 28));
    return ofPlainForm(Buffer.concat([decipher.update(sealed.subarray(28)), decipher.final()]).toString());
  };
  return {
    async encode(payloads) {
      return payloads.map((payload) => {
        const nonce = randomBytes(12);
        const cipher = createCipheriv("aes-256-gcm", key, nonce, { authTagLength: 16 });
        cipher.setAAD(bytes(owner));
        const sealed = Buffer.concat([cipher.update(plainForm(payload)), cipher.final()]);
        return {
          metadata: { encoding: bytes("binary/aes"), owner: bytes(owner) },
          data: Buffer.concat([nonce, cipher.getAuthTag(), sealed]),
        };
      });
    },
    decode: async (...given: readonly unknown[]) => (given.findLast(Array.isArray) as Payload[]).map(decodeOne),
    ownerOf({ metadata }) {
      const name = metadata?.["owner"];
      return name === undefined ? undefined : parseOwner(Buffer.from(name).toString());
    },
  };
}
