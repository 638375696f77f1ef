import { Readable } from "node:stream";
import type { FastifyPluginAsync, FastifyRequest } from "fastify";
import { z } from "zod";
import { AppError } from "../domain/app-error.ts";
import { type FileId, asFileId } from "../domain/file-id.ts";
import type { Database, TenantTx } from "../storage/database.ts";
import { type FileRow, deleteUpload, listFiles, readFileRow, readFileRowOnce, uploadsOf } from "../storage/file-repository.ts";
import type { TenantFiles } from "../storage/tenant-files.ts";
import { claimIdempotencyKey } from "../storage/turn-repository.ts";
import { tenantOf } from "./access.ts";
import { type Upload, largestUploadBytes, oneOf, receiveUpload, takeForms } from "./file-upload.ts";
import { claimOf, idempotencyKeyOf } from "./idempotency-key.ts";
import { invalid, refuseUnknown } from "./service-turns.ts";

export type FileRouteDeps = {
  readonly database: Pick<Database, "withTenant">;
  readonly files: TenantFiles;
  /** Of one tenant, at once. */
  readonly bounds: { readonly files: number; readonly bytes: number };
};

const purposes = ["assistants", "batch", "evals", "fine-tune", "user_data", "vision"] as const;
/** OpenAI's bounds of `expires_after[seconds]`: an hour to 30 days. */
const [leastSeconds, mostSeconds] = [3_600, 2_592_000];

const uploadForm = {
  summary: "Stores a file for later calls",
  bodyType: "multipart/form-data",
  body: z.object({
    file: z.string().meta({ format: "binary", maxLength: largestUploadBytes }),
    purpose: z.enum(purposes),
    "expires_after[anchor]": z.literal("created_at").optional(),
    "expires_after[seconds]": z.int().min(leastSeconds).max(mostSeconds).optional(),
  }),
};
const formFields: ReadonlySet<string> = new Set(Object.keys(uploadForm.body.shape));

const query = z.strictObject({
  after: z.string().max(64).optional(),
  limit: z.coerce.number().int().min(1).max(10_000).default(10_000),
  order: z.enum(["asc", "desc"]).default("desc"),
  purpose: z.string().max(64).optional(),
});

const missing = (): AppError => new AppError("not_found", { client: { message: "There is no such file.", param: "id" } });

/** OpenAI's Files: what a tenant uploaded, readable by that tenant only, until it deletes it or it expires. */
export const createFileRoutes =
  ({ database, files, bounds }: FileRouteDeps): FastifyPluginAsync =>
  async (app) => {
    await app.register(async (forms) => {
      await takeForms(forms);
      forms.post("/v1/files", { config: { access: "tenant", describes: uploadForm } }, async (request) => {
        const context = tenantOf(request);
        const key = idempotencyKeyOf(request);
        const upload = await receiveUpload(request, { context, files, role: "upload" });
        const { stored } = upload;
        let isKept = false;
        try {
          const asked = parseUpload(upload.fields);
          const row = await database.withTenant(context, async (tx) => {
            const earlier = key === undefined ? undefined : await earlierUpload(tx, key, upload, asked);
            if (earlier !== undefined) return earlier;
            await requireRoom(tx, stored.sizeBytes);
            return await files.finish(tx, { ...stored, ...asked });
          });
          isKept = row.id === stored.id;
          return toFile(row);
        } catch (error) {
          isKept = error instanceof AppError && error.details["outcome"] === "unknown"; // a repeat of the key tells
          throw error;
        } finally {
          if (!isKept) await files.remove(context, stored.id).catch(() => {}); // the sweep finds it
        }
      });
    });

    app.get("/v1/files", { config: { access: "tenant", describes: { summary: "The tenant's files", query } } }, async (request) => {
      const { after, limit, order, purpose } = query.parse(request.query);
      const from = after === undefined ? undefined : asFileId(after);
      if (after !== undefined && from === undefined) throw invalid("after", "The id of a file is expected.");
      const rows = await database.withTenant(tenantOf(request), async (tx) => await listFiles(tx, { after: from, limit, order, purpose }), {
        readOnly: true,
      });
      const data = rows.slice(0, limit).map(toFile);
      return {
        object: "list",
        data,
        first_id: data[0]?.id ?? null,
        last_id: data.at(-1)?.id ?? null,
        has_more: rows.length > limit,
      };
    });

    app.get("/v1/files/:id", { config: { access: "tenant", describes: { summary: "One file" } } }, async (request) =>
      toFile(await uploadOf(request)),
    );

    app.get("/v1/files/:id/content", { config: { access: "tenant", describes: { summary: "A file's bytes" } } }, async (request, reply) => {
      const { id, filename, sizeBytes } = await uploadOf(request);
      // Whatever it is, it is never shown as a page of ours.
      return await reply
        .headers({
          "content-type": "application/octet-stream",
          "content-length": sizeBytes,
          "content-disposition": `attachment; filename*=UTF-8''${encodeURIComponent(filename.toWellFormed())}`,
        })
        .send(Readable.from(files.read(tenantOf(request), id), { objectMode: false }));
    });

    app.delete("/v1/files/:id", { config: { access: "tenant", describes: { summary: "Deletes a file" } } }, async (request) => {
      const id = idOf(request);
      const isDeleted = await database.withTenant(tenantOf(request), async (tx) => await deleteUpload(tx, id));
      if (!isDeleted) throw missing();
      return { id, object: "file", deleted: true };
    });

    async function uploadOf(request: FastifyRequest): Promise<FileRow> {
      const id = idOf(request);
      const row = await database.withTenant(tenantOf(request), async (tx) => await readFileRow(tx, id, "upload"), { readOnly: true });
      if (row === undefined) throw missing();
      return row;
    }

    /** Counted under a lock: two uploads at once cannot both take the last place. */
    async function requireRoom(tx: TenantTx, sizeBytes: number): Promise<void> {
      const taken = await uploadsOf(tx);
      if (taken.files >= bounds.files)
        throw new AppError("invalid_request", {
          client: { message: `A tenant keeps at most ${bounds.files} files: delete some.`, param: "file" },
        });
      if (taken.bytes + sizeBytes > bounds.bytes)
        throw new AppError("request_too_large", {
          client: { message: "The tenant's files would take more room than they may: delete some.", param: "file" },
        });
    }
  };

/** What an earlier call of the same key stored. @throws {AppError} `idempotency_mismatch` where it was another file */
async function earlierUpload(tx: TenantTx, key: string, { stored, filename, mime }: Upload, asked: object): Promise<FileRow | undefined> {
  const body = { route: "files", filename, mime, sha256: Buffer.from(stored.sha256).toString("hex"), ...asked };
  const claimed = await claimIdempotencyKey(tx, stored.id, claimOf({ key, body }));
  if (!claimed.matches) throw new AppError("idempotency_mismatch");
  if (claimed.turnId === stored.id) return undefined;
  const row = await readFileRowOnce(tx, claimed.turnId);
  if (row === undefined) throw missing();
  return row;
}

function parseUpload(form: Upload["fields"]): { readonly purpose: string; readonly lifetimeMs: number | undefined } {
  refuseUnknown(form.keys(), formFields);
  const purpose = oneOf(form, "purpose");
  if (!purposes.some((known) => known === purpose)) throw invalid("purpose", `The purpose must be one of ${purposes.join(", ")}.`);
  const [anchor, seconds] = [oneOf(form, "expires_after[anchor]"), oneOf(form, "expires_after[seconds]")];
  if (anchor === undefined && seconds === undefined) return { purpose: purpose ?? "", lifetimeMs: undefined };
  const count = /^\d{1,8}$/.test(seconds ?? "") ? Number(seconds) : Number.NaN;
  if (anchor !== "created_at" || !(count >= leastSeconds && count <= mostSeconds))
    throw invalid("expires_after", `expires_after needs the anchor 'created_at' and ${leastSeconds} to ${mostSeconds} seconds.`);
  return { purpose: purpose ?? "", lifetimeMs: count * 1_000 };
}

function idOf(request: FastifyRequest): FileId {
  const { id } = z.object({ id: z.string() }).parse(request.params);
  const known = asFileId(id);
  if (known === undefined) throw missing();
  return known;
}

const toFile = ({ id, sizeBytes, createdAtMs, expiresAtMs, filename, purpose }: FileRow) => ({
  id,
  object: "file",
  bytes: sizeBytes,
  created_at: Math.floor(createdAtMs / 1_000),
  ...(expiresAtMs === null ? {} : { expires_at: Math.floor(expiresAtMs / 1_000) }),
  filename,
  purpose,
  status: "processed",
});
