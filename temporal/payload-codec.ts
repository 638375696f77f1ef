import type { Payload, PayloadCodec, SerializationContext } from "@temporalio/common";
import { fileURLToPath } from "node:url";
import { AppError } from "../domain/app-error.ts";
import { type Owner, ownerOfWorkflowId, parseOwner, systemOwner } from "../domain/tenant.ts";
import { boundTo, decrypt, encrypt } from "../storage/authenticated-cipher.ts";
import type { DataKeys } from "../storage/data-keys.ts";

/** What clients and workers convert with. */
export type EncryptedConverter = { readonly payloadCodecs: PayloadCodec[]; readonly failureConverterPath: string };

export type PayloadCodecDeps = { readonly dataKeys: DataKeys; readonly namespace: string };

/** Puts messages and stacks of failures into payloads; the workflow bundle holds the same module. */
const failureConverterPath = fileURLToPath(new URL("../workflows/failure-converter.ts", import.meta.url));

/** Encrypts under the key of the workflow's tenant. `owner`: for payloads whose workflow has no id yet (a schedule's). */
export const encryptedConverter = (deps: PayloadCodecDeps, owner?: Owner): EncryptedConverter => ({
  payloadCodecs: [createPayloadCodec(deps, owner)],
  failureConverterPath,
});

const encoding = "binary/encrypted";
const form = 1;

/** Workflows whose histories outlive their tenant's key: the audit chains, and what makes and ends tenants. */
const kindsOfSystem: readonly string[] = ["tenant", "provision", "erase"];

/** Whose key encrypts the payloads of a workflow. @throws {AppError} `tenant_violation` for a name of nobody's */
export const keyOwnerOf = (workflowId: string): Owner =>
  kindsOfSystem.includes(workflowId.split(":", 1)[0] ?? "") ? systemOwner : ownerOfWorkflowId(workflowId);

/** A schedule starts its workflow under its id and the time; both are one workflow here, since a run reads its forerunner's result. */
const withoutScheduledTime = (workflowId: string): string => workflowId.replace(/-\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/, "");

type Place = { readonly namespace: string; readonly workflowId: string; readonly owner: Owner };

const boundPlace = ({ namespace, workflowId, owner }: Place, version: number): Buffer =>
  boundTo("payload", form, namespace, workflowId, owner, version);

function createPayloadCodec({ dataKeys, namespace }: PayloadCodecDeps, bound?: Owner): PayloadCodec {
  const encodeOne = async (payload: Payload, context: SerializationContext | undefined): Promise<Payload> => {
    try {
      const place = placeOf(context, namespace, bound);
      return await dataKeys.withCurrent(place.owner, ({ version, bytes }) => ({
        metadata: {
          encoding: Buffer.from(encoding),
          "key-id": Buffer.from(`${place.owner}/${version}`),
          "workflow-id": Buffer.from(place.workflowId),
        },
        data: encrypt(bytes("payload"), boundPlace(place, version), serialise(payload)),
      }));
    } catch (error) {
      if (isFailureText(payload)) return unreadableFailure;
      throw error;
    }
  };

  return {
    encode: async (payloads, context) => await Promise.all(payloads.map(async (payload) => await encodeOne(payload, context))),
    decode: async (payloads, context) =>
      await Promise.all(payloads.map(async (payload) => await decodeOne(dataKeys, namespace, payload, context))),
  };
}

/** Stands for a failure's message while there is no key: a worker that cannot tell of a failure at all stops for good. */
const unreadableFailure: Payload = {
  metadata: { encoding: Buffer.from("json/plain") },
  data: Buffer.from(JSON.stringify({ message: "a failure whose message could not be encrypted", stack_trace: "" })),
};

/** Whether it is what the failure converter makes of a message and a stack. */
function isFailureText(payload: Payload): boolean {
  if (textOf(payload, "encoding") !== "json/plain") return false;
  const value: unknown = JSON.parse(Buffer.from(payload.data ?? []).toString());
  return value !== null && typeof value === "object" && Object.keys(value).sort().join() === "message,stack_trace";
}

function placeOf(context: SerializationContext | undefined, namespace: string, bound: Owner | undefined): Place {
  if (context?.workflowId === undefined) {
    // Nobody's payload is sent in the clear, and none under a key that was guessed.
    if (bound === undefined) throw new AppError("internal", { reason: "a payload without a workflow cannot be encrypted" });
    return { namespace, workflowId: "", owner: bound };
  }
  return {
    namespace,
    workflowId: withoutScheduledTime(context.workflowId),
    owner: keyOwnerOf(context.workflowId),
  };
}

/** What is not ours, from before there was encryption, stays as it is. */
async function decodeOne(
  dataKeys: DataKeys,
  namespace: string,
  payload: Payload,
  context: SerializationContext | undefined,
): Promise<Payload> {
  if (textOf(payload, "encoding") !== encoding) return payload;
  const { owner, version, workflowId } = claimOf(payload);
  const expected = context?.workflowId;
  if (expected !== undefined) {
    const isOwn = workflowId === "" ? keyOwnerOf(expected) === owner : withoutScheduledTime(expected) === workflowId;
    if (!isOwn) throw new AppError("tenant_violation", { expected, claimed: workflowId });
  }
  return await dataKeys.withVersion(owner, version, ({ bytes }) =>
    parse(decrypt(bytes("payload"), boundPlace({ namespace, workflowId, owner }, version), payload.data ?? new Uint8Array())),
  );
}

/** What a payload says of itself: believed once it has been decrypted, since its authentication binds it. */
function claimOf(payload: Payload): { readonly owner: Owner; readonly version: number; readonly workflowId: string } {
  const [, name, digits] = /^([^/]+)\/([1-9]\d{0,8})$/.exec(textOf(payload, "key-id")) ?? [];
  const workflowId = textOf(payload, "workflow-id");
  if (name === undefined || digits === undefined) throw new AppError("internal", { reason: "an encrypted payload names no key" });
  const owner = parseOwner(name);
  if (workflowId !== "" && keyOwnerOf(workflowId) !== owner) throw new AppError("tenant_violation", { owner, workflowId });
  return { owner, version: Number(digits), workflowId };
}

const textOf = ({ metadata }: Payload, name: string): string => Buffer.from(metadata?.[name] ?? []).toString();

/** For the Web UI: decodes what a list of payloads of a namespace claims to be. */
export interface PayloadDecoder {
  /** A payload that cannot be decoded (its tenant was erased, it was altered) is given back as it is. */
  decode(namespace: string, payloads: readonly Payload[]): Promise<readonly Payload[]>;
  /** Whose key a payload says it is encrypted with; undefined for one that is not encrypted, or that nobody can decode. */
  ownerOf(payload: Payload): Owner | undefined;
}

export const createPayloadDecoder = ({ dataKeys }: Pick<PayloadCodecDeps, "dataKeys">): PayloadDecoder => ({
  decode: async (namespace, payloads) =>
    await Promise.all(
      payloads.map(async (payload) =>
        decodeOne(dataKeys, namespace, payload, undefined).catch((error: unknown) => {
          if (error instanceof AppError && error.code === "unavailable") throw error;
          return payload;
        }),
      ),
    ),
  ownerOf(payload) {
    if (textOf(payload, "encoding") !== encoding) return undefined;
    try {
      return claimOf(payload).owner;
    } catch {
      return undefined;
    }
  },
});

// A payload as bytes: the count of its metadata (1 byte), each name and value behind its length (4 bytes), the data.
function serialise({ metadata, data }: Payload): Buffer {
  const entries = Object.entries(metadata ?? {});
  const parts: Uint8Array[] = [Buffer.of(entries.length)];
  for (const [name, value] of entries) {
    for (const part of [Buffer.from(name), value]) {
      const length = Buffer.alloc(4);
      length.writeUInt32BE(part.length);
      parts.push(length, part);
    }
  }
  return Buffer.concat([...parts, Buffer.from(data ?? [])]); // nothing, sent by a workflow, arrives as a plain array
}

function parse(bytes: Buffer): Payload {
  let offset = 1;
  const next = (): Buffer => {
    const end = offset + 4 + bytes.readUInt32BE(offset);
    const part = bytes.subarray(offset + 4, end);
    offset = end;
    return part;
  };
  const metadata: Record<string, Uint8Array> = {};
  for (let left = bytes.readUInt8(0); left > 0; left--) metadata[next().toString()] = next();
  return { metadata, data: bytes.subarray(offset) };
}
