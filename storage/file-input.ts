import { AppError } from "../domain/app-error.ts";
import { asFileId } from "../domain/file-id.ts";
import type { TenantContext } from "../domain/tenant.ts";
import type { Database } from "./database.ts";
import { readFileRow } from "./file-repository.ts";
import type { TenantFiles } from "./tenant-files.ts";

/** An uploaded file as a model takes it. */
export type FileInput = { readonly filename: string; readonly mime: string; readonly dataUrl: string };

/**
 * What a `file_id` in a chat or Responses input stands for.
 * @throws {AppError} `not_found` where the tenant has no such file, also where another tenant has
 */
export async function fileAsDataUrl(
  { database, files }: { readonly database: Pick<Database, "withTenant">; readonly files: Pick<TenantFiles, "read"> },
  context: TenantContext,
  fileId: string,
): Promise<FileInput> {
  const id = asFileId(fileId);
  const row =
    id === undefined
      ? undefined
      : await database.withTenant(context, async (tx) => await readFileRow(tx, id, "upload"), { readOnly: true });
  if (row === undefined) throw new AppError("not_found", { client: { message: "There is no such file.", param: "file_id" } });
  const pieces: Buffer[] = [];
  for await (const piece of files.read(context, row.id)) pieces.push(piece);
  return { filename: row.filename, mime: row.mime, dataUrl: `data:${row.mime};base64,${Buffer.concat(pieces).toString("base64")}` };
}
