import type { FastifyInstance, FastifyRequest } from "fastify";
import { AppError } from "../domain/app-error.ts";

export type BodyBounds = {
  /** Bytes of request bodies that are held at once, of all callers. */
  readonly all: number;
  /** Of one tenant; administrators count as one. */
  readonly perTenant: number;
};

const defaultBounds: BodyBounds = { all: 256 * 1_048_576, perTenant: 64 * 1_048_576 };

/** No body is read any further (contract §3): uploads are the largest. */
const largestBytes = 25 * 1_048_576;

/**
 * Bounds the request bodies that are held in memory, before one is read: a call keeps its body until it is answered, so a hundred large
 * ones at once would be gigabytes. Who is over it is told to come again in a second; one body always fits.
 */
export function boundBodies(app: FastifyInstance, { all, perTenant }: BodyBounds = defaultBounds): void {
  const heldBy = new Map<string, number>();
  let held = 0;
  app.addHook("preParsing", async (request, reply) => {
    const bytes = bytesOf(request);
    if (bytes === 0) return;
    const owner = request.principal?.kind === "tenant" ? request.principal.tenantId : "";
    const ofOwner = heldBy.get(owner) ?? 0;
    if ((held > 0 && held + bytes > all) || (ofOwner > 0 && ofOwner + bytes > perTenant))
      throw new AppError("unavailable", { client: { message: "Too many large requests are being read.", retryAfterSeconds: 1 } });
    held += bytes;
    heldBy.set(owner, ofOwner + bytes);
    reply.raw.once("close", () => {
      held -= bytes;
      const left = (heldBy.get(owner) ?? 0) - bytes;
      if (left === 0) heldBy.delete(owner);
      else heldBy.set(owner, left);
    });
  });
}

function bytesOf({ headers }: FastifyRequest): number {
  if (headers["transfer-encoding"] !== undefined) return largestBytes;
  const declared = Number(headers["content-length"] ?? 0);
  return Number.isSafeInteger(declared) && declared > 0 ? Math.min(declared, largestBytes) : 0;
}
