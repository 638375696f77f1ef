import { randomBytes } from "node:crypto";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { FileId } from "../../domain/file-id.ts";
import type { TenantContext } from "../../domain/tenant.ts";
import { type Database, openDatabase } from "../../storage/database.ts";
import { fileAsDataUrl } from "../../storage/file-input.ts";
import { type TenantFiles, createTenantFiles } from "../../storage/tenant-files.ts";
import { freshDatabase, quiet, runSql, someTenant } from "./fresh-database.ts";
import { testFieldEncryption } from "./test-field-encryption.ts";

let ownerUrl: string;
let database: Database;
let files: TenantFiles;
let acme: TenantContext;
let globex: TenantContext;
let uidIndex = 0;

beforeAll(async () => {
  ownerUrl = await freshDatabase();
  database = await openDatabase({ ownerUrl, log: quiet });
  files = createTenantFiles({ database, encryption: testFieldEncryption });
  [acme, globex] = [await addTenant("acme"), await addTenant("globex")];
});
afterAll(async () => await database.close());

async function addTenant(name: string): Promise<TenantContext> {
  const context = someTenant(name);
  await database.withControl(
    async (tx) => await tx.execute("insert into tenant (id, os_uid_index) values ($1, $2)", [context.tenantId, uidIndex++]),
  );
  await database.createTenantSchema(context.tenantId);
  return context;
}

const meta = { role: "upload", filename: "a.pdf", mime: "application/pdf" } as const;

async function upload(context: TenantContext, ...chunks: readonly Uint8Array[]): Promise<FileId> {
  const stored = await files.store(context, meta, chunks);
  await database.withTenant(context, async (tx) => await files.finish(tx, { ...stored, purpose: "user_data" }));
  return stored.id;
}

async function contentOf(context: TenantContext, id: FileId): Promise<Buffer> {
  const pieces: Buffer[] = [];
  for await (const piece of files.read(context, id)) pieces.push(piece);
  return Buffer.concat(pieces);
}

const idsIn = async ({ tenantId }: TenantContext): Promise<readonly string[]> =>
  (
    await database.withTenant(
      { tenantId, requestId: "look" },
      async (tx) => await tx.query<{ id: string }>("select id from file order by id"),
    )
  ).map(({ id }) => id);

test("bytes come back as they were, in whatever chunks they came, around the size of a piece", async () => {
  for (const sizeBytes of [0, 1, 1024 * 1024 - 1, 1024 * 1024, 1024 * 1024 + 1, 2_500_000]) {
    const bytes = randomBytes(sizeBytes);
    const chunks = [bytes.subarray(0, sizeBytes >> 2), bytes.subarray(sizeBytes >> 2, sizeBytes >> 1), bytes.subarray(sizeBytes >> 1)];

    const stored = await files.store(acme, meta, chunks);

    expect(stored.sizeBytes).toBe(sizeBytes);
    expect((await contentOf(acme, stored.id)).equals(bytes)).toBe(true);
    await files.remove(acme, stored.id);
  }
});

test("a file whose bytes break off is gone at once, and what a dead process left is swept by the next one", async () => {
  async function* broken() {
    yield await Promise.resolve(randomBytes(3_000_000));
    throw new Error("the client hung up");
  }
  await expect(files.store(acme, meta, broken())).rejects.toThrow("hung up");
  expect(await idsIn(acme)).toEqual([]);
  const { id: left } = await files.store(acme, meta, [Buffer.from("left")]);
  await runSql(ownerUrl, `update tenant_${acme.tenantId.replaceAll("-", "_")}.file set created_at = now() - interval '2 hours'`);

  const next = await upload(acme, Buffer.from("next"));

  expect(await idsIn(acme)).toEqual([next]);
  await expect(
    database.withTenant(acme, async (tx) => await files.finish(tx, { id: left, sizeBytes: 4, sha256: Buffer.alloc(32) })),
  ).rejects.toMatchObject({
    code: "unavailable",
  });
  await files.remove(acme, next);
});

test("a tenant that begins file after file and finishes none is stopped, and another one is not", async () => {
  const begun = [];
  for (let place = 0; place < 64; place++) begun.push(await files.store(acme, meta, []));

  await expect(files.store(acme, meta, [])).rejects.toMatchObject({ code: "unavailable" });

  expect(await idsIn(acme)).toHaveLength(64);
  await files.remove(globex, (await files.store(globex, meta, [])).id);
  for (const { id } of begun) await files.remove(acme, id);
});

test("a piece that was moved to another file or place does not open", async () => {
  const one = await upload(acme, randomBytes(1_500_000));
  const schema = `tenant_${acme.tenantId.replaceAll("-", "_")}`;
  await runSql(
    ownerUrl,
    `update ${schema}.file_piece set n = 1 - n + 10 where file_id = '${one}'; update ${schema}.file_piece set n = n - 10 where file_id = '${one}'`,
  );

  await expect(contentOf(acme, one)).rejects.toMatchObject({ code: "internal" });
  await files.remove(acme, one);
});

describe("a file_id", () => {
  test("stands for the file as a data URL", async () => {
    const id = await upload(acme, Buffer.from("%PDF-1.7"));

    expect(await fileAsDataUrl({ database, files }, acme, id)).toEqual({
      filename: "a.pdf",
      mime: "application/pdf",
      dataUrl: `data:application/pdf;base64,${Buffer.from("%PDF-1.7").toString("base64")}`,
    });
  });

  test("that is another tenant's, unfinished, expired, of a call or none is not there", async () => {
    const theirs = await upload(globex, Buffer.from("theirs"));
    const { id: unfinished } = await files.store(acme, meta, [Buffer.from("half")]);
    const ended = await upload(acme, Buffer.from("ended"));
    const ofCall = await files.store(acme, { ...meta, role: "input" }, [Buffer.from("audio")]);
    await database.withTenant(acme, async (tx) => {
      await files.finish(tx, ofCall);
      await tx.execute("update file set expires_at = now() - interval '1 second' where id = $1", [ended]);
    });

    for (const id of [theirs, unfinished, ended, ofCall.id, "file-", "../../etc/passwd", ""])
      await expect(fileAsDataUrl({ database, files }, acme, id)).rejects.toMatchObject({ code: "not_found" });
  });
});
