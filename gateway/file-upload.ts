import type { FastifyInstance, FastifyRequest } from "fastify";
import multipart, { type MultipartFile } from "@fastify/multipart";
import { AppError } from "../domain/app-error.ts";
import type { TenantContext } from "../domain/tenant.ts";
import type { FileRole } from "../storage/file-repository.ts";
import type { StoredBytes, TenantFiles } from "../storage/tenant-files.ts";
import { invalid } from "./service-turns.ts";

/** Contract §3. */
export const largestUploadBytes = 25 * 1024 * 1024;

const limits = { fileSize: largestUploadBytes, files: 1, fields: 32, parts: 33, fieldSize: 64 * 1024, fieldNameSize: 100, headerPairs: 20 };
const longestName = 255;

/** A form whose file is stored, and seen by nobody yet. */
export type Upload = {
  readonly stored: StoredBytes;
  readonly filename: string;
  readonly mime: string;
  readonly fields: ReadonlyMap<string, readonly string[]>;
};

/** Lets the routes of `app` take multipart forms, and nothing else. */
export async function takeForms(app: FastifyInstance): Promise<void> {
  app.removeAllContentTypeParsers();
  await app.register(multipart, { limits });
}

/**
 * Reads a form of one file, named `file`, and texts. The file goes to storage as it comes; what ends badly, a client that hangs up
 * included, leaves none.
 * @throws {AppError} `invalid_request`, `request_too_large`, `unsupported_media_type`
 */
export async function receiveUpload(
  request: FastifyRequest,
  { context, files, role }: { readonly context: TenantContext; readonly files: TenantFiles; readonly role: FileRole },
): Promise<Upload> {
  if (!request.isMultipart())
    throw new AppError("unsupported_media_type", { client: { message: "The content type is not supported: send multipart/form-data." } });
  const fields = new Map<string, string[]>();
  let received: Omit<Upload, "fields"> | undefined;
  try {
    for await (const part of request.parts()) {
      if (part.type === "file") {
        if (part.fieldname !== "file") throw invalid(part.fieldname.slice(0, 64), "The only file of the form is named 'file'.");
        received = await storeFile(part, { context, files, role });
      } else if (typeof part.value !== "string" || part.valueTruncated) {
        throw invalid(part.fieldname.slice(0, 64), "The field must be a text of at most 64 KiB.");
      } else fields.set(part.fieldname, [...(fields.get(part.fieldname) ?? []), part.value]);
    }
    if (received === undefined) throw invalid("file", "The form holds no file.");
    if (received.stored.sizeBytes === 0) throw invalid("file", "The file is empty.");
    return { ...received, fields };
  } catch (error) {
    request.raw.resume();
    if (received !== undefined) await files.remove(context, received.stored.id).catch(() => {}); // the sweep finds it
    throw formFault(error);
  }
}

async function storeFile(
  part: MultipartFile,
  { context, files, role }: { readonly context: TenantContext; readonly files: TenantFiles; readonly role: FileRole },
): Promise<Omit<Upload, "fields">> {
  const filename = nameOf(part.filename);
  const mime = mimeOf(filename, part.mimetype);
  return { stored: await files.store(context, { role, filename, mime }, part.file), filename, mime };
}

/** The last component of what the client called it: it never names a place. */
const nameOf = (raw: string | undefined): string =>
  (raw ?? "")
    .replaceAll(/\p{Cc}/gu, "")
    .split(/[/\\]/)
    .at(-1)
    ?.slice(-longestName)
    .trim() || "file";

const mimes: Readonly<Record<string, string>> = {
  csv: "text/csv",
  gif: "image/gif",
  jpeg: "image/jpeg",
  jpg: "image/jpeg",
  json: "application/json",
  md: "text/markdown",
  pdf: "application/pdf",
  png: "image/png",
  txt: "text/plain",
  webp: "image/webp",
};

/** What the client says it is, or, from clients that say nothing, what its name does. */
function mimeOf(filename: string, given: string): string {
  const known = mimes[filename.slice(filename.lastIndexOf(".") + 1).toLowerCase()];
  const isGiven = /^[\w.+-]{1,64}\/[\w.+-]{1,64}$/.test(given) && given !== "application/octet-stream";
  return isGiven ? given : (known ?? "application/octet-stream");
}

/** Of the parser's errors those without a code: a form without a boundary, one that ends in the middle, a client that hung up. */
const brokenForm = /boundary not found|multipart data|premature close|^aborted$/i;

/** What the parser says of a form, in our words. */
function formFault(error: unknown): unknown {
  if (error instanceof AppError) return error;
  const { code, statusCode, message } = (error ?? {}) as { code?: unknown; statusCode?: unknown; message?: unknown };
  switch (code) {
    case "FST_REQ_FILE_TOO_LARGE":
      return new AppError("request_too_large", { client: { message: "The file is larger than 25 MiB.", param: "file" } });
    case "FST_PARTS_LIMIT":
    case "FST_FIELDS_LIMIT":
      return new AppError("request_too_large", { client: { message: "The form has too many parts." } });
    case "FST_FILES_LIMIT":
      return invalid("file", "The form may hold one file.");
    default:
      return typeof statusCode === "number" || brokenForm.test(String(message))
        ? new AppError("invalid_request", { client: { message: "The form is malformed or was cut short." } }, { cause: error })
        : error;
  }
}

/** The one value of a field. @throws {AppError} `invalid_request` where it was sent twice */
export function oneOf(fields: Upload["fields"], name: string): string | undefined {
  const [value, ...more] = fields.get(name) ?? [];
  if (more.length > 0) throw invalid(name, "The field was sent twice.");
  return value;
}
