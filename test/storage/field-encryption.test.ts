import { randomBytes } from "node:crypto";
import fc from "fast-check";
import { expect, onTestFinished, test } from "vitest";
import { systemOwner, type TenantId } from "../../domain/tenant.ts";
import { createDataKeys, renewDataKey } from "../../storage/data-keys.ts";
import type { FieldPlace } from "../../storage/field-encryption.ts";
import { environmentKeyRing, localKeyEncryption } from "../../storage/key-encryption.ts";
import { openDataKeys } from "../../storage/open-data-keys.ts";
import { createFieldEncryption } from "../../storage/tenant-field-encryption.ts";
import { emptyHome, someTenantId } from "../control-plane/control-stage.ts";
import { databaseWith, quiet, runSql, sharedKek } from "./fresh-database.ts";

const someKek = (): string => randomBytes(32).toString("base64");

/** Field encryption of a database of its own, for two tenants. */
async function stage() {
  const { database, ownerUrl } = await databaseWith();
  const open = async (kek = sharedKek(ownerUrl)) => {
    const opened = await openDataKeys({ database, home: emptyHome(), keyEncryptionKey: kek, log: quiet });
    onTestFinished(() => opened.close());
    return { ...opened, fields: createFieldEncryption(opened.dataKeys) };
  };
  return { database, ownerUrl, open, acme: someTenantId("acme"), globex: someTenantId("globex") };
}

const placeOf = (tenantId: TenantId): FieldPlace => ({ tenantId, table: "overlay", field: "text", row: "7" });

test("a sealed value opens in its own place and in no other, whatever the places are called", async () => {
  const { open, acme, globex } = await stage();
  const { fields } = await open();
  const text = fc.oneof(fc.constantFrom("a", "b", "a|b", 'a","b', "", "a\u0000b"), fc.string({ maxLength: 8 }));
  const place = fc.record({ tenantId: fc.constantFrom(acme, globex), table: text, field: text, row: text });
  const isSame = (one: FieldPlace, other: FieldPlace): boolean =>
    one.tenantId === other.tenantId && one.table === other.table && one.field === other.field && one.row === other.row;

  await fc.assert(
    fc.asyncProperty(place, place, fc.uint8Array({ maxLength: 64 }), async (sealedAt, openedAt, plaintext) => {
      const sealed = await fields.seal(sealedAt, plaintext);
      const opened = await fields.open(openedAt, sealed).then(
        (value) => Buffer.from(value).equals(plaintext),
        (error: unknown) => (error as { code?: string }).code,
      );
      expect(opened).toBe(isSame(sealedAt, openedAt) ? true : "internal");
      expect(Buffer.from(await fields.open(sealedAt, sealed))).toEqual(Buffer.from(plaintext));
    }),
    { numRuns: 300 },
  );
});

test("a value with one flipped bit, a byte less or a byte more does not open", async () => {
  const { open, acme } = await stage();
  const { fields } = await open();
  const sealed = Buffer.from(await fields.seal(placeOf(acme), Buffer.from("the secret")));
  const altered = [
    ...Array.from({ length: sealed.length * 8 }, (_, bit) => {
      const copy = Buffer.from(sealed);
      copy[bit >> 3] = (copy[bit >> 3] ?? 0) ^ (1 << (bit & 7));
      return copy;
    }),
    ...Array.from({ length: sealed.length }, (_, length) => sealed.subarray(0, length)),
    Buffer.concat([sealed, Buffer.of(0)]),
  ];

  const codes = await Promise.all(
    altered.map(async (value) =>
      fields.open(placeOf(acme), value).then(
        () => "opened",
        (error: unknown) => (error as { code?: string }).code,
      ),
    ),
  );

  expect(new Set(codes)).toEqual(new Set(["internal"]));
  expect(codes.length).toBeGreaterThan(300);
});

test("the same value is never sealed to the same bytes", async () => {
  const { open, acme } = await stage();
  const { fields } = await open();

  const sealed = await Promise.all(Array.from({ length: 50 }, async () => await fields.seal(placeOf(acme), Buffer.from("same"))));

  expect(new Set(sealed.map((value) => Buffer.from(value).toString("hex"))).size).toBe(50);
});

test("every process that starts at once on a new database ends up with one key for each owner", async () => {
  const { ownerUrl, open, acme } = await stage();
  const processes = await Promise.all(Array.from({ length: 5 }, async () => await open()));

  const sealed = await Promise.all(processes.map(async ({ fields }) => await fields.seal(placeOf(acme), Buffer.from("from all"))));

  for (const { fields } of processes)
    for (const value of sealed) expect(Buffer.from(await fields.open(placeOf(acme), value)).toString()).toBe("from all");
  const { rows } = await runSql(ownerUrl, 'select owner, version, state from control.data_key order by owner collate "C"');
  expect(rows).toEqual([
    { owner: systemOwner, version: 1, state: "current" },
    { owner: acme, version: 1, state: "current" },
  ]);
});

test("the wrapped key of one tenant is no key of another's, nor of another version", async () => {
  const { database, ownerUrl, open, acme, globex } = await stage();
  const { fields, dataKeys } = await open();
  const sealed = await fields.seal(placeOf(globex), Buffer.from("globex"));
  await dataKeys.ensure(acme);
  await runSql(
    ownerUrl,
    `update control.data_key set wrapped = (select wrapped from control.data_key where owner = '${acme}') where owner = '${globex}'`,
  );
  const restarted = createDataKeys({ database, ring: environmentKeyRing(sharedKek(ownerUrl)), log: quiet });

  await expect(createFieldEncryption(restarted).open(placeOf(globex), sealed)).rejects.toMatchObject({ code: "internal" });
  const kek = localKeyEncryption(randomBytes(32));
  const wrapped = await kek.wrap({ owner: acme, version: 1 }, randomBytes(32));
  await expect(kek.unwrap({ owner: globex, version: 1 }, wrapped)).rejects.toMatchObject({ code: "internal" });
  await expect(kek.unwrap({ owner: acme, version: 2 }, wrapped)).rejects.toMatchObject({ code: "internal" });
  await expect(localKeyEncryption(randomBytes(32)).unwrap({ owner: acme, version: 1 }, wrapped)).rejects.toMatchObject({
    code: "internal",
  });
});

test("an erased key opens nothing in any process within a second, and the tenant never gets another one", async () => {
  const { ownerUrl, open, acme, globex } = await stage();
  const [one, two] = [await open(), await open()];
  const sealed = await one.fields.seal(placeOf(acme), Buffer.from("acme"));
  const others = await one.fields.seal(placeOf(globex), Buffer.from("globex"));
  await two.fields.open(placeOf(acme), sealed); // it holds the key now

  const erasedAtMs = performance.now();
  await one.dataKeys.erase(acme);
  await one.dataKeys.erase(acme);

  await expect(one.fields.open(placeOf(acme), sealed)).rejects.toMatchObject({ code: "data_key_erased" });
  await expect
    .poll(async () => two.fields.open(placeOf(acme), sealed).then(String, (error: unknown) => (error as { code?: string }).code), {
      interval: 5,
    })
    .toBe("data_key_erased");
  expect(performance.now() - erasedAtMs).toBeLessThan(1_000);
  await expect(two.fields.seal(placeOf(acme), Buffer.from("again"))).rejects.toMatchObject({ code: "data_key_erased" });
  await expect(two.dataKeys.ensure(acme)).rejects.toMatchObject({ code: "data_key_erased" });
  const { rows } = await runSql(ownerUrl, `select wrapped, state from control.data_key where owner = '${acme}'`);
  expect(rows).toEqual([{ wrapped: null, state: "erased" }]);
  expect(Buffer.from(await two.fields.open(placeOf(globex), others)).toString()).toBe("globex");
});

test("a tenant that never had a key, or is deleted, cannot get one after its erasure", async () => {
  const { database, ownerUrl, open, acme, globex } = await stage();
  const { dataKeys } = await open();
  await database.withControl((tx) => tx.execute("insert into tenant (id, os_uid_index, state) values ($1, 0, 'deleted')", [globex]));

  await dataKeys.erase(acme);

  await expect(dataKeys.ensure(acme)).rejects.toMatchObject({ code: "data_key_erased" });
  await expect(dataKeys.ensure(globex)).rejects.toMatchObject({ code: "data_key_erased" });
  const { rows } = await runSql(ownerUrl, "select owner from control.data_key where wrapped is not null");
  expect(rows).toEqual([{ owner: systemOwner }]);
});

test("erasing and making at the same moment leaves the tenant without a key", async () => {
  const { open } = await stage();
  const processes = [await open(), await open(), await open()];

  for (let round = 0; round < 10; round++) {
    const tenantId = someTenantId("raced");
    await Promise.allSettled(
      processes.map(async ({ dataKeys, fields }, index) =>
        index === 1 ? await dataKeys.erase(tenantId) : await fields.seal(placeOf(tenantId), Buffer.from("x")),
      ),
    );
    for (const { dataKeys } of processes) {
      await expect
        .poll(async () => dataKeys.ensure(tenantId).then(String, (error: unknown) => (error as { code?: string }).code))
        .toBe("data_key_erased");
    }
  }
});

test("a new version seals at once in every process, and what older ones sealed stays readable", async () => {
  const { database, open, acme } = await stage();
  const [one, two] = [await open(), await open()];
  const old = await one.fields.seal(placeOf(acme), Buffer.from("old"));
  await two.fields.open(placeOf(acme), old);

  await database.withControl(async (tx) => await renewDataKey(tx, one.ring, acme, "r1"));
  await database.withControl(async (tx) => await renewDataKey(tx, one.ring, acme, "r1")); // a repeat of the same rotation

  await expect.poll(async () => (await two.fields.seal(placeOf(acme), Buffer.from("new")))[4]).toBe(2);
  const renewed = await two.fields.seal(placeOf(acme), Buffer.from("new"));
  expect(Buffer.from(await one.fields.open(placeOf(acme), renewed)).toString()).toBe("new");
  expect(Buffer.from(await two.fields.open(placeOf(acme), old)).toString()).toBe("old");
});

test("a process with another key does not start, and changes nothing; with the right one among several it does", async () => {
  const { ownerUrl, open, acme } = await stage();
  const first = await open();
  const sealed = await first.fields.seal(placeOf(acme), Buffer.from("kept"));
  const keys = async () => (await runSql(ownerUrl, "select owner, version, wrapped, kek_id from control.data_key order by owner")).rows;
  const before = await keys();

  await expect(open(someKek())).rejects.toMatchObject({ code: "invalid_configuration", message: expect.stringContaining("OPENCLAW_KEK") });

  expect(await keys()).toEqual(before);
  const { fields } = await open(`${someKek()},${sharedKek(ownerUrl)}`);
  expect(Buffer.from(await fields.open(placeOf(acme), sealed)).toString()).toBe("kept");
});

test("without a key file a process does not start on a database whose keys another one wrapped, and makes no file", async () => {
  const { database, open } = await stage();
  await open();
  const home = emptyHome();

  await expect(openDataKeys({ database, home, log: quiet })).rejects.toMatchObject({
    code: "invalid_configuration",
    message: expect.stringContaining("no file kek"),
  });
});

test("a forgotten key is read again, never used as the zeros that it was overwritten with", async () => {
  const { open, acme } = await stage();
  const { fields, dataKeys } = await open();
  const cache = dataKeys as typeof dataKeys & { forget(payload: string): void };
  const sealing = Array.from({ length: 200 }, async (_, index) => {
    if (index % 3 === 0) cache.forget(index % 2 === 0 ? "*" : acme);
    const sealed = await fields.seal(placeOf(acme), Buffer.from(String(index)));
    cache.forget(acme);
    return sealed;
  });

  const values = await Promise.all(sealing.map(async (sealed) => Buffer.from(await fields.open(placeOf(acme), await sealed)).toString()));

  expect(values).toEqual(values.map((_, index) => String(index)));
});
