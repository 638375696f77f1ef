import { createHash } from "node:crypto";
import type { FastifyPluginAsync } from "fastify";
import { z } from "zod";
import type { Changes, ChangeOptions } from "../control-plane/changes.ts";
import { systemOwner, type Owner } from "../domain/tenant.ts";
import { changeOptionsOf } from "./admin-change.ts";

/** Temporal's payload, as its SDK has it. */
export type CodecPayload = { readonly metadata?: Record<string, Uint8Array> | null; readonly data?: Uint8Array | null };

export interface PayloadDecoder {
  /** @returns payloads in the same order; one that is not encrypted comes back as it was. @throws when one cannot be decrypted */
  decode(namespace: string, payloads: readonly CodecPayload[]): Promise<readonly CodecPayload[]>;
  /** Whose key a payload is encrypted with; undefined for one that is not encrypted. */
  ownerOf(payload: CodecPayload): Owner | undefined;
}

export type CodecDeps = { readonly decoder: PayloadDecoder; readonly changes: Pick<Changes, "make"> };

const base64 = z.base64("must be base64");
const payloads = z.strictObject({
  payloads: z.array(z.strictObject({ metadata: z.record(z.string(), base64).nullish(), data: base64.nullish() })),
});
const namespaceHeader = z.string("the header X-Namespace names the namespace").min(1).max(255);

const describes = {
  summary: "Decodes payloads for Temporal's Web UI; audited",
  body: payloads,
  headers: z.object({ "X-Namespace": namespaceHeader }),
};

/** Requests of a page come apart: those of so many milliseconds are one entry. */
const batchMs = 200;
/** A look at the system's own payloads is recorded so often at most: the entry is itself one of them, and a page that watches would never rest. */
const systemRestMs = 60 * 60 * 1_000;

/**
 * Temporal's codec server, decoding only. Payloads are answered once the audit of each tenant whose payloads they are says who read
 * how many; what cannot be recorded is not answered.
 */
export const createCodecRoutes = ({ decoder, changes }: CodecDeps): FastifyPluginAsync => {
  const record = createDecodeAudit(changes);
  return async (app) => {
    app.post("/temporal-codec/decode", { config: { access: "admin-page:read", describes } }, async (request, reply) => {
      const namespace = namespaceHeader.parse(request.headers["x-namespace"]);
      const given = payloads.parse(request.body).payloads.map(fromJson);
      const decoded = await decoder.decode(namespace, given);
      const byOwner = Map.groupBy(given, (payload) => decoder.ownerOf(payload));
      const options = { ...changeOptionsOf(request), idempotency: undefined }; // each reading is an entry, a repeat too
      await Promise.all([...byOwner].map(async ([owner, read]) => (owner === undefined ? undefined : await record(owner, options, read))));
      return await reply.header("cache-control", "no-store").send({ payloads: decoded.map(toJson) });
    });
  };
};

type Batch = { readonly digest: ReturnType<typeof createHash>; count: number; readonly isRecorded: Promise<void> };

/** One entry for what one administrator reads of one tenant within a moment. */
function createDecodeAudit(changes: Pick<Changes, "make">) {
  const batches = new Map<string, Batch>();
  const systemRecordedMs = new Map<string, number>();

  return async (owner: Owner, options: ChangeOptions, read: readonly CodecPayload[]): Promise<void> => {
    const reader = options.actor.id;
    if (owner === systemOwner && performance.now() - (systemRecordedMs.get(reader) ?? -Infinity) < systemRestMs) return;
    const name = `${reader} ${owner}`;
    const batch = batches.get(name) ?? open();
    for (const { data } of read)
      batch.digest.update(
        createHash("sha256")
          .update(data ?? "")
          .digest(),
      );
    batch.count += read.length;
    await batch.isRecorded;

    function open(): Batch {
      const opened: Batch = {
        digest: createHash("sha256"),
        count: 0,
        isRecorded: new Promise((resolve) => setTimeout(resolve, batchMs)).then(async () => {
          batches.delete(name); // who comes from now on is in the next one
          const command = { type: "payloads.decode", count: opened.count, digest: opened.digest.digest("hex") } as const;
          await changes.make(owner, command, options);
          if (owner === systemOwner) systemRecordedMs.set(reader, performance.now());
        }),
      };
      batches.set(name, opened);
      return opened;
    }
  };
}

type JsonPayload = z.infer<typeof payloads>["payloads"][number];

const fromJson = ({ metadata, data }: JsonPayload): CodecPayload => ({
  metadata: Object.fromEntries(Object.entries(metadata ?? {}).map(([name, value]) => [name, Buffer.from(value, "base64")])),
  data: data == null ? null : Buffer.from(data, "base64"),
});

const toJson = ({ metadata, data }: CodecPayload): JsonPayload => ({
  metadata: Object.fromEntries(Object.entries(metadata ?? {}).map(([name, value]) => [name, Buffer.from(value).toString("base64")])),
  ...(data == null ? {} : { data: Buffer.from(data).toString("base64") }),
});
