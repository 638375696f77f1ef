import type { FileId } from "../domain/file-id.ts";
import type { TenantTx } from "./database.ts";
import { toStorableText } from "./jsonb.ts";

/** The rows of one tenant's files; `tenant-files.ts` fills them. */

/** `upload`: the tenant's own. `input` and `result` belong to one call. */
export type FileRole = "upload" | "input" | "result";

export type FileRow = {
  readonly id: FileId;
  readonly role: FileRole;
  readonly state: "writing" | "ready" | "deleted";
  readonly purpose: string | null;
  readonly filename: string;
  readonly mime: string;
  readonly sizeBytes: number;
  readonly createdAtMs: number;
  readonly expiresAtMs: number | null;
};

export type NewFile = {
  readonly id: FileId;
  readonly role: FileRole;
  readonly filename: string;
  readonly mime: string;
};

const columns = `id, role, state, purpose, filename, mime, size_bytes::float8 AS "sizeBytes",
  (extract(epoch FROM created_at) * 1000)::float8 AS "createdAtMs", (extract(epoch FROM expires_at) * 1000)::float8 AS "expiresAtMs"`;
const isLive = "state = 'ready' AND (expires_at IS NULL OR expires_at > now())";

/**
 * Begins a file that nobody sees yet, and removes what is left of others: of a process that died while it wrote, of what has expired,
 * and of what was deleted longer ago than an Idempotency-Key is remembered.
 * @returns how many files of its role the tenant has begun in these minutes and not finished, this one included
 */
export async function beginFile(tx: TenantTx, { id, role, filename, mime }: NewFile): Promise<number> {
  await tx.execute(
    `DELETE FROM file WHERE id IN (
       SELECT id FROM file
       WHERE expires_at < now() OR (state = 'writing' AND created_at < now() - interval '1 hour')
         OR deleted_at < now() - interval '25 hours'
       LIMIT 100 FOR UPDATE SKIP LOCKED
     )`,
  );
  await tx.execute("INSERT INTO file (id, role, state, filename, mime) VALUES ($1, $2, 'writing', $3, $4)", [
    id,
    role,
    toStorableText(filename),
    toStorableText(mime),
  ]);
  const [row] = await tx.query<{ begun: number }>(
    "SELECT count(*)::float8 AS begun FROM file WHERE role = $1 AND state = 'writing' AND created_at > now() - interval '2 minutes'",
    [role],
  );
  return row?.begun ?? 0;
}

export async function addPiece(tx: TenantTx, id: FileId, n: number, sealed: Uint8Array): Promise<void> {
  await tx.execute("INSERT INTO file_piece (file_id, n, sealed) VALUES ($1, $2, $3)", [id, n, sealed]);
}

export type FileEnd = {
  readonly id: FileId;
  readonly sizeBytes: number;
  readonly sha256: Uint8Array;
  readonly purpose?: string | undefined;
  /** Undefined: it stays until it is deleted. */
  readonly lifetimeMs?: number | undefined;
};

/** The file is whole. @returns it, or undefined when it was swept meanwhile */
export async function finishFile(tx: TenantTx, end: FileEnd): Promise<FileRow | undefined> {
  const [row] = await tx.query<FileRow>(
    `UPDATE file SET state = 'ready', size_bytes = $2, sha256 = $3, purpose = $4, expires_at = created_at + $5::float8 * interval '1 ms'
     WHERE id = $1 AND state = 'writing' RETURNING ${columns}`,
    [end.id, end.sizeBytes, end.sha256, end.purpose ?? null, end.lifetimeMs ?? null],
  );
  return row;
}

/** What the tenant's uploads take. Nobody else counts them until the transaction ends. */
export async function uploadsOf(tx: TenantTx): Promise<{ files: number; bytes: number }> {
  await tx.execute("SELECT pg_advisory_xact_lock(hashtext('file of ' || $1))", [tx.tenantId]);
  const [sum] = await tx.query<{ files: number; bytes: number }>(
    `SELECT count(*)::float8 AS files, coalesce(sum(size_bytes), 0)::float8 AS bytes FROM file WHERE role = 'upload' AND ${isLive}`,
  );
  return sum ?? { files: 0, bytes: 0 };
}

/** A file that is there; of the callers' files only uploads are. */
export async function readFileRow(tx: TenantTx, id: FileId, role: FileRole): Promise<FileRow | undefined> {
  const [row] = await tx.query<FileRow>(`SELECT ${columns} FROM file WHERE id = $1 AND role = $2 AND ${isLive}`, [id, role]);
  return row;
}

/** A file as it once was answered, also when it was deleted since. */
export async function readFileRowOnce(tx: TenantTx, id: FileId): Promise<FileRow | undefined> {
  const [row] = await tx.query<FileRow>(`SELECT ${columns} FROM file WHERE id = $1`, [id]);
  return row;
}

export async function readPiece(tx: TenantTx, id: FileId, n: number): Promise<Buffer | undefined> {
  const [row] = await tx.query<{ sealed: Buffer }>("SELECT sealed FROM file_piece WHERE file_id = $1 AND n = $2", [id, n]);
  return row?.sealed;
}

export type FilePage = {
  readonly after: FileId | undefined;
  readonly limit: number;
  readonly order: "asc" | "desc";
  readonly purpose: string | undefined;
};

/** The tenant's uploads by age, one more than `limit` where there are more. */
export async function listFiles(tx: TenantTx, { after, limit, order, purpose }: FilePage): Promise<readonly FileRow[]> {
  const [beyond, direction] = order === "asc" ? [">", "ASC"] : ["<", "DESC"];
  return await tx.query<FileRow>(
    `SELECT ${columns} FROM file
     WHERE role = 'upload' AND ${isLive} AND ($1::text IS NULL OR id COLLATE "C" ${beyond} $1) AND ($2::text IS NULL OR purpose = $2)
     ORDER BY id COLLATE "C" ${direction} LIMIT $3`,
    [after ?? null, purpose ?? null, limit + 1],
  );
}

/** Takes an upload and its bytes away; its row tells a repeat of its Idempotency-Key what was answered, for another day. */
export async function deleteUpload(tx: TenantTx, id: FileId): Promise<boolean> {
  const deleted = await tx.execute(
    `UPDATE file SET state = 'deleted', deleted_at = now() WHERE id = $1 AND role = 'upload' AND ${isLive}`,
    [id],
  );
  await tx.execute(
    "DELETE FROM file_piece USING file WHERE file_piece.file_id = $1 AND file.id = file_piece.file_id AND file.state = 'deleted'",
    [id],
  );
  return deleted === 1;
}

/** Removes a file without a trace: one that was never answered, or that belonged to a call. */
export async function removeFile(tx: TenantTx, id: FileId): Promise<void> {
  await tx.execute("DELETE FROM file WHERE id = $1", [id]);
}
