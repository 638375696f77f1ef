import { createHash, randomBytes } from "node:crypto";
import { AppError } from "../domain/app-error.ts";
import { type FileId, mintFileId } from "../domain/file-id.ts";
import type { TenantContext, TenantId } from "../domain/tenant.ts";
import type { Database, TenantTx } from "./database.ts";
import type { FieldEncryption, FieldPlace } from "./field-encryption.ts";
import { type FileEnd, type NewFile, addPiece, beginFile, finishFile, readPiece, removeFile } from "./file-repository.ts";

/** A file whose bytes are stored and that nobody sees yet: `finish` it in the transaction that makes it count. */
export type StoredBytes = Pick<FileEnd, "id" | "sizeBytes" | "sha256">;

export interface TenantFiles {
  /**
   * Stores bytes as they come, sealed piece by piece, so that no file is ever held whole. What fails, or is never finished, leaves
   * nothing that anybody sees, and is swept.
   * @throws {AppError} `unavailable` where the tenant has too many uploads under way; whatever `bytes` throws
   */
  store(context: TenantContext, file: Omit<NewFile, "id">, bytes: AsyncIterable<Uint8Array> | Iterable<Uint8Array>): Promise<StoredBytes>;
  /** @throws {AppError} `unavailable` when it took longer than an hour and was swept */
  finish(tx: TenantTx, end: FileEnd): Promise<Awaited<ReturnType<typeof finishFile>> & object>;
  /** The bytes, piece by piece. */
  read(context: TenantContext, id: FileId): AsyncGenerator<Buffer, void, undefined>;
  remove(context: TenantContext, id: FileId): Promise<void>;
}

const pieceBytes = 1024 * 1024;
/** What is not finished counts in no bound of the tenant's room, so it has one of its own. */
const mostUploadsAtOnce = 64;

export function createTenantFiles({
  database,
  encryption,
}: {
  readonly database: Pick<Database, "withTenant">;
  readonly encryption: FieldEncryption;
}): TenantFiles {
  async function remove(context: TenantContext, id: FileId): Promise<void> {
    await database.withTenant(context, async (tx) => await removeFile(tx, id));
  }

  return {
    remove,
    async store(context, file, bytes) {
      const id = mintFileId(Date.now(), randomBytes(10));
      const hash = createHash("sha256");
      let sizeBytes = 0;
      let n = 0;
      await database.withTenant(context, async (tx) => {
        const begun = await beginFile(tx, { id, ...file });
        if (begun > mostUploadsAtOnce && file.role !== "result")
          throw new AppError("unavailable", { client: { message: "Too many uploads of this tenant run at once.", retryAfterSeconds: 5 } });
      });
      try {
        for await (const piece of piecesOf(bytes)) {
          hash.update(piece);
          sizeBytes += piece.length;
          const sealed = await encryption.seal(placeOf(context.tenantId, id, n), piece);
          const place = n++;
          await database.withTenant(context, async (tx) => await addPiece(tx, id, place, sealed));
        }
      } catch (error) {
        await remove(context, id).catch(() => {}); // the sweep finds it
        throw error;
      }
      return { id, sizeBytes, sha256: hash.digest() };
    },
    async finish(tx, end) {
      const row = await finishFile(tx, end);
      if (row === undefined) throw new AppError("unavailable", { file: end.id, why: "the file was swept before it was whole" });
      return row;
    },
    async *read(context, id) {
      for (let n = 0; ; n++) {
        const place = n;
        const sealed = await database.withTenant(context, async (tx) => await readPiece(tx, id, place), { readOnly: true });
        if (sealed === undefined) return;
        yield Buffer.from(await encryption.open(placeOf(context.tenantId, id, place), sealed));
      }
    },
  };
}

/** Each piece is bound to its file and its place in it. */
const placeOf = (tenantId: TenantId, id: FileId, n: number): FieldPlace => ({
  tenantId,
  table: "file_piece",
  field: "sealed",
  row: `${id}/${n}`,
});

async function* piecesOf(bytes: AsyncIterable<Uint8Array> | Iterable<Uint8Array>): AsyncGenerator<Buffer, void, undefined> {
  let held: Uint8Array[] = [];
  let heldBytes = 0;
  for await (const chunk of bytes) {
    for (let at = 0; at < chunk.length;) {
      const part = chunk.subarray(at, at + pieceBytes - heldBytes);
      held.push(part);
      heldBytes += part.length;
      at += part.length;
      if (heldBytes < pieceBytes) continue;
      yield Buffer.concat(held);
      held = [];
      heldBytes = 0;
    }
  }
  if (heldBytes > 0) yield Buffer.concat(held);
}
