import { createHash, randomBytes } from "node:crypto";
import { afterAll, beforeAll, expect, inject, onTestFinished, test } from "vitest";
import { createChanges } from "../../control-plane/changes.ts";
import { mintAdminKey, mintTenantToken } from "../../control-plane/credentials.ts";
import type { Actor } from "../../domain/audit.ts";
import { rotationWorkflowIdOf } from "../../domain/key-rotation.ts";
import { systemOwner, type Owner, type TenantId } from "../../domain/tenant.ts";
import { openDatabase } from "../../storage/database.ts";
import { openDataKeys } from "../../storage/open-data-keys.ts";
import { chainClient, guardedClient } from "../../temporal/chain-client.ts";
import { rekeyStarter } from "../../temporal/rekey-client.ts";
import { startKeyRotationRelay } from "../../workers/key-rotation-relay.ts";
import { rekeyProgress } from "../../workflows/rekey-messages.ts";
import { freshNamespace } from "../fresh-namespace.ts";
import { leaksIn } from "../planted-secrets.ts";
import { freshDatabase, runSql, sharedKek } from "../storage/fresh-database.ts";
import { quiet } from "../turn-stack.ts";
import { type ChangesStage, startChanges } from "./changes-stage.ts";
import { emptyHome } from "./control-stage.ts";

let stage: ChangesStage;
beforeAll(async () => {
  stage = await startChanges();
});
afterAll(async () => await stage.close());

const root: Actor = { type: "admin", id: "root" };
const someKey = (): string => `key-${randomBytes(6).toString("hex")}`;

type Call = { readonly key?: string; readonly request?: unknown; readonly actor?: Actor; readonly at?: ChangesStage["changes"] };

/** As the route does it: every call mints a token, and answers what the change says. */
async function rotate(tenantId: TenantId, { key, request = "rotate", actor = root, at = stage.changes }: Call = {}) {
  const { token, hash } = mintTenantToken(tenantId);
  const command = { type: "token.rotate", tokenHash: hash.toString("hex") } as const;
  const options = {
    actor,
    requestId: `req_${randomBytes(8).toString("hex")}`,
    idempotency: key === undefined ? undefined : { key, request },
  };
  return await at.issue(tenantId, command, options, { tenant: tenantId, token });
}
const keptAnswers = async (tenantId: TenantId): Promise<number> =>
  (await runSql(stage.stack.ownerUrl, `select 1 from control.sealed_answer where subject = 'tenant:${tenantId}'`)).rowCount ?? 0;

/** The changes of another gateway: its own database connection, its own memory of keys. */
async function anotherGateway() {
  const { ownerUrl, connection, pool } = stage.stack;
  const database = await openDatabase({ ownerUrl, log: quiet });
  const keys = await openDataKeys({ database, home: emptyHome(), keyEncryptionKey: sharedKek(ownerUrl), log: quiet });
  onTestFinished(async () => {
    await keys.close();
    await database.close();
  });
  const chainOf = (owner: Owner) => chainClient(owner, guardedClient(owner, connection));
  return createChanges({ database, dataKeys: keys.dataKeys, chainOf, wake: pool.wake, obstacle: () => undefined, log: quiet });
}

test("a repeat under its Idempotency-Key is answered the same token, in every process, until the token is replaced", async () => {
  const { tenantId } = await stage.createTenant();
  const key = someKey();
  const first = await rotate(tenantId, { key });
  const other = await anotherGateway();

  expect(await rotate(tenantId, { key })).toEqual(first);
  expect(await rotate(tenantId, { key, at: other })).toEqual(first);
  await expect(rotate(tenantId, { key, request: "another" })).rejects.toMatchObject({ code: "idempotency_mismatch" });

  const next = await rotate(tenantId);

  expect(next.token).not.toBe(first.token);
  expect(await keptAnswers(tenantId)).toBe(0);
  await expect(rotate(tenantId, { key })).rejects.toMatchObject({ code: "conflict" });
  await expect(rotate(tenantId, { key, at: other })).rejects.toMatchObject({ code: "conflict" });
});

test("a revocation erases the kept answer", async () => {
  const { tenantId } = await stage.createTenant();
  const key = someKey();
  await rotate(tenantId, { key });

  await stage.make(tenantId, { type: "token.revoke" });

  expect(await keptAnswers(tenantId)).toBe(0);
  await expect(rotate(tenantId, { key })).rejects.toMatchObject({ code: "conflict" });
});

test("ten calls at once with one key are one rotation and one answer", async () => {
  const { tenantId } = await stage.createTenant();
  const key = someKey();
  const other = await anotherGateway();

  const answers = await Promise.all(
    Array.from({ length: 10 }, async (_, index) => await rotate(tenantId, { key, at: index % 2 === 0 ? stage.changes : other })),
  );

  expect(new Set(answers.map(({ token }) => token)).size).toBe(1);
});

test("another administrator's key of the same name is another operation, and learns no token", async () => {
  const { tenantId } = await stage.createTenant();
  const key = someKey();
  const first = await rotate(tenantId, { key });

  const second = await rotate(tenantId, { key, actor: { type: "admin", id: "ops" } });

  expect(second.token).not.toBe(first.token);
});

test("an admin key's answer is kept until the key is revoked; a refused change keeps none", async () => {
  const id = `k${randomBytes(4).toString("hex")}`;
  const key = someKey();
  const create = async (idempotencyKey: string) => {
    const minted = mintAdminKey(id);
    const command = { type: "admin-key.create", keyId: id, keyHash: minted.hash.toString("hex"), scopes: ["read"] } as const;
    const options = { actor: root, requestId: someKey(), idempotency: { key: idempotencyKey, request: id } };
    return await stage.changes.issue(systemOwner, command, options, { id, key: minted.key });
  };
  const first = await create(key);

  expect(await create(key)).toEqual(first);
  const refusedKey = someKey();
  await expect(create(refusedKey)).rejects.toMatchObject({ code: "conflict" });
  await expect(create(refusedKey)).rejects.toMatchObject({ code: "conflict" });
  await stage.make(systemOwner, { type: "admin-key.revoke", keyId: id });
  await expect(create(key)).rejects.toMatchObject({ code: "conflict", message: expect.stringContaining("revoked") });
});

test("an answer that was staged when its process died before the change counts for nothing, and the repeat has a token that works", async () => {
  const { tenantId } = await stage.createTenant();
  const key = someKey();
  const dead = createChanges({
    database: stage.stack.database,
    dataKeys: stage.stack.keys.dataKeys,
    chainOf: () => ({
      change: async () => await Promise.reject(new Error("killed")),
      state: async () => undefined,
      open: async () => {},
      isOpen: async () => false,
    }),
    wake: async () => {},
    obstacle: () => undefined,
    log: quiet,
    deadlineMs: 300,
  });
  await expect(rotate(tenantId, { key, at: dead })).rejects.toMatchObject({ code: "unavailable" });

  const made = await rotate(tenantId, { key });
  const repeated = await rotate(tenantId, { key });

  expect(repeated).toEqual(made);
  const hashes = await runSql(
    stage.stack.ownerUrl,
    `select hash from control.tenant_token where tenant_id = '${tenantId}' and revoked_at is null`,
  );
  expect(hashes.rows).toEqual([{ hash: createHash("sha256").update(made.token).digest() }]);
});

test("a kept answer that an insider copied to another operation does not open there", async () => {
  const { tenantId } = await stage.createTenant("acme");
  const { tenantId: other } = await stage.createTenant("globex");
  const [key, otherKey] = [someKey(), someKey()];
  await rotate(tenantId, { key });
  await rotate(other, { key: otherKey });
  const live = (id: TenantId) => `select answer from control.sealed_answer where subject = 'tenant:${id}' and live`;
  await runSql(
    stage.stack.ownerUrl,
    `update control.sealed_answer set answer = (${live(tenantId)}) where subject = 'tenant:${other}' and live`,
  );

  await expect(rotate(other, { key: otherKey })).rejects.toMatchObject({ code: "internal" });
});

/** A worker process with key-encryption keys of its own choosing, on a database of its own. */
async function rotationStage(ownerUrl: string, namespace: string, keyEncryptionKey: string) {
  const place = { ownerUrl, namespace, keyEncryptionKey };
  const own = await startChanges(place);
  const { database, connection, pool, keys } = own.stack;
  const relay = await startKeyRotationRelay({ database, start: rekeyStarter(connection), wake: pool.wake, log: quiet });
  return {
    own,
    keys,
    /** Asks for a rotation as the route does, and waits for its workflow's end. */
    async rotateKeys() {
      const rotationId = randomBytes(8).toString("hex");
      await own.make(systemOwner, { type: "keys.rotate", rotationId });
      const handle = connection.client.workflow.getHandle(rotationWorkflowIdOf(rotationId));
      await expect
        .poll(async () => (await runSql(ownerUrl, `select state from control.key_rotation where id = '${rotationId}'`)).rows[0]?.state, {
          timeout: 90_000,
        })
        .not.toBe("requested");
      return { rotationId, outcome: await handle.result().catch((error: Error) => error), progress: await handle.query(rekeyProgress) };
    },
    async close() {
      await relay.stop();
      await own.close();
    },
  };
}
const someKek = (): string => randomBytes(32).toString("base64");
const dataKeyRows = async (ownerUrl: string) =>
  (await runSql(ownerUrl, 'select owner, version, state, kek_id from control.data_key order by owner collate "C", version')).rows as {
    owner: string;
    version: number;
    state: string;
    kek_id: string;
  }[];

test("keys given by the environment are rotated to the first of the list, and the others can then be left out", async () => {
  const ownerUrl = await freshDatabase();
  const namespace = await freshNamespace(inject("temporalAddress"));
  const [old, next] = [someKek(), someKek()];
  const before = await rotationStage(ownerUrl, namespace, old);
  const { tenantId } = await before.own.createTenant();
  const key = someKey();
  const answer = await rotate(tenantId, { key, at: before.own.changes });
  await before.close();

  const rotating = await rotationStage(ownerUrl, namespace, `${next},${old}`);
  const { outcome, progress } = await rotating.rotateKeys();

  const [newKey] = rotating.keys.ring.keys();
  expect(outcome).toMatchObject({ keyId: newKey?.keyId, dataKeysRenewed: 2, valuesResealed: 1, readableVersionsKept: 2 });
  expect(progress).toMatchObject({ done: 6, total: 6, steps: Array.from({ length: 6 }, () => ({ state: "done" })) });
  expect(await dataKeyRows(ownerUrl)).toEqual(
    [systemOwner, tenantId].flatMap((owner) => [
      { owner, version: 1, state: "readable", kek_id: newKey?.keyId },
      { owner, version: 2, state: "current", kek_id: newKey?.keyId },
    ]),
  );
  await rotating.close();
  const after = await rotationStage(ownerUrl, namespace, next);
  expect(await rotate(tenantId, { key, at: after.own.changes })).toEqual(answer);
  expect((await after.own.verify()).findings).toEqual([]);
  await after.close();
  await expect(rotationStage(ownerUrl, namespace, old)).rejects.toMatchObject({ code: "invalid_configuration" });
}, 120_000);

test("while a live process does not hold the new key nothing is rotated, and the refusal names the process", async () => {
  const ownerUrl = await freshDatabase();
  const namespace = await freshNamespace(inject("temporalAddress"));
  const [old, next] = [someKek(), someKek()];
  const database = await openDatabase({ ownerUrl, log: quiet });
  const behind = await openDataKeys({ database, home: emptyHome(), keyEncryptionKey: old, log: quiet });
  const rotating = await rotationStage(ownerUrl, namespace, `${next},${old}`);
  const { tenantId } = await rotating.own.createTenant();
  await rotating.keys.dataKeys.ensure(tenantId);
  const before = await dataKeyRows(ownerUrl);

  const first = rotating.rotateKeys();
  await expect
    .poll(async () => (await runSql(ownerUrl, "select 1 from control.key_rotation where state = 'requested'")).rowCount, {
      timeout: 20_000,
    })
    .toBe(1);
  await expect(rotating.own.make(systemOwner, { type: "keys.rotate", rotationId: "another" })).rejects.toMatchObject({ code: "conflict" });
  const { outcome, rotationId } = await first;

  expect(outcome).toBeInstanceOf(Error);
  const { rows } = await runSql(ownerUrl, `select state, report from control.key_rotation where id = '${rotationId}'`);
  expect(rows[0]).toMatchObject({ state: "failed", report: { reason: expect.stringContaining(`process ${process.pid}`) } });
  expect(await dataKeyRows(ownerUrl)).toEqual(before);

  await behind.close();
  expect((await rotating.rotateKeys()).outcome).toMatchObject({ readableVersionsKept: 2 });
  await rotating.close();
  await database.close();
}, 200_000);

test("a tenant's chain cannot rotate the keys", async () => {
  const { tenantId } = await stage.createTenant();

  await expect(stage.make(tenantId, { type: "keys.rotate", rotationId: "mine" })).rejects.toMatchObject({ code: "internal" });
});

test("no token that was ever kept is in the database in any form", async () => {
  const { tenantId } = await stage.createTenant();
  const { token } = await rotate(tenantId, { key: someKey() });
  const dump = await runSql(stage.stack.ownerUrl, "select string_agg(answer::text, '') as text from control.sealed_answer sealed_answer");

  expect(dump.rows[0].text.length).toBeGreaterThan(200);
  expect(leaksIn(Buffer.from(dump.rows[0].text), { token, random: token.slice(-32) })).toEqual([]);
});
