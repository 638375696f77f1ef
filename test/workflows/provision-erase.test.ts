import { existsSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { createTenants } from "../../control-plane/tenants.ts";
import { lifeWorkflowIdOf, systemOwner, tenantSchemaOf, type LifeKind, type TenantId } from "../../domain/tenant.ts";
import { readChain } from "../../storage/audit-repository.ts";
import { tenantDirectory } from "../../storage/tenant-paths.ts";
import { insertTurn } from "../../storage/turn-repository.ts";
import { laneNameOf } from "../../temporal/tenant-client.ts";
import { type ChangesStage, startChanges } from "../control-plane/changes-stage.ts";
import { runSql } from "../storage/fresh-database.ts";
import { someTurn } from "../turn-stack.ts";

let stage: ChangesStage;
const keys = { made: [] as TenantId[], erased: [] as TenantId[] };
beforeAll(async () => {
  stage = await startChanges({
    ensureDataKey: async (tenantId) => void keys.made.push(tenantId),
    eraseDataKey: async (tenantId) => {
      expect(existsSync(tenantDirectory(stage.stack.home, tenantId))).toBe(false);
      expect(await runsOf(tenantId)).toEqual([]);
      keys.erased.push(tenantId);
    },
  });
});
afterAll(async () => await stage.close());

const runsOf = async (tenantId: TenantId) => await stage.stack.clientOf(tenantId).openRuns();
const resultOf = async (kind: LifeKind, tenantId: TenantId, at = stage): Promise<unknown> =>
  await at.stack.connection.client.workflow.getHandle(lifeWorkflowIdOf(kind, tenantId)).result();
const hasStarted = async (kind: LifeKind, tenantId: TenantId, at = stage): Promise<void> =>
  await expect.poll(async () => await at.stack.operations.read(lifeWorkflowIdOf(kind, tenantId)), { timeout: 20_000 }).toBeDefined();
const remove = async (tenantId: TenantId, at = stage): Promise<void> => await at.make(systemOwner, { type: "tenant.delete", tenantId });
const hasDatabaseParts = async (tenantId: TenantId, at = stage) =>
  (
    await runSql(
      at.stack.ownerUrl,
      `select to_regnamespace('${tenantSchemaOf(tenantId)}') is not null as schema, to_regrole('${tenantSchemaOf(tenantId)}') is not null as role,
         exists (select from control.tenant_schema where tenant_id = '${tenantId}') as noted`,
    )
  ).rows[0] as unknown;
const entriesOf = async (chain: string) => await stage.stack.database.withControl(async (tx) => await readChain(tx, chain, 0, 1_000));

test("a creation starts the tenant's provision, which completes it and opens its chain", async () => {
  const { tenantId } = await stage.createTenant("made");
  expect(await hasDatabaseParts(tenantId)).toEqual({ schema: true, role: true, noted: true });

  await hasStarted("provision", tenantId);
  await resultOf("provision", tenantId);

  expect(keys.made).toContain(tenantId);
  expect(existsSync(join(tenantDirectory(stage.stack.home, tenantId), "sandbox"))).toBe(true);
  expect(await stage.stateOf(tenantId)).toMatchObject({
    tenant: { state: "active", tokenEpoch: 1, quota: { tokensPerDay: null, costPerDayNanoUsd: null, requestsPerMinute: null } },
  });
  expect(await stage.stack.operations.read(`provision:${tenantId}`)).toMatchObject({
    kind: "provision",
    tenantId,
    state: "done",
    progress: { done: 4, total: 4 },
  });
});

test("a deletion ends the tenant's runs and leaves its audit and nothing else", async () => {
  const { tenantId } = await stage.createTenant("gone");
  const other = await stage.createTenant("stays");
  await resultOf("provision", tenantId).catch(() => undefined);
  await stage.make(tenantId, { type: "quota.update", quota: { tokensPerDay: 5_000_000, costPerDayNanoUsd: null, requestsPerMinute: 2 } });
  const directory = tenantDirectory(stage.stack.home, tenantId);
  const outside = join(stage.stack.home, "outside");
  mkdirSync(outside, { recursive: true });
  writeFileSync(join(outside, "kept"), "kept");
  symlinkSync(outside, join(directory, "sandbox/link"));
  mkdirSync(join(directory, `memory/${"deep/".repeat(60)}`), { recursive: true });
  const turn = someTurn("api:jane:default", "hello");
  const context = { tenantId, requestId: "req_test" };
  await stage.stack.database.withTenant(context, async (tx) => await insertTurn(tx, turn, laneNameOf({ sessionId: turn.sessionId })));
  await stage.stack.pool.wake(tenantId);
  await stage.stack.clientOf(tenantId).submitTurn({ sessionId: turn.sessionId }, turn);

  await remove(tenantId);
  await expect(createTenants(stage.stack).get(tenantId)).rejects.toMatchObject({ code: "not_found" });
  await hasStarted("erase", tenantId);
  await resultOf("erase", tenantId);

  expect(keys.erased).toEqual([tenantId]);
  expect(await hasDatabaseParts(tenantId)).toEqual({ schema: false, role: false, noted: false });
  expect(existsSync(directory)).toBe(false);
  expect(existsSync(join(outside, "kept"))).toBe(true);
  expect(await hasDatabaseParts(other.tenantId)).toEqual({ schema: true, role: true, noted: true });
  expect(await createTenants(stage.stack).deletionOf(tenantId)).toBe("done");
  expect((await entriesOf(tenantId)).map(({ action }) => action)).toEqual(["quota.update", "tenant.erase"]);
  const ledger = await runSql(
    stage.stack.ownerUrl,
    `select count(*)::int as calls from control.usage_ledger where tenant_id = '${tenantId}'`,
  );
  expect(ledger.rows).toEqual([{ calls: 1 }]);
  const verification = await stage.verify();
  expect(verification.findings).toEqual([]);
  expect((await stage.stateOf(tenantId))?.head?.seq).toBe(2);
  expect(await stage.stack.operations.read(`erase:${tenantId}`)).toMatchObject({ state: "done", progress: { done: 7, total: 7 } });

  await expect(stage.make(tenantId, { type: "tenant.resume" })).rejects.toMatchObject({ code: "not_found" });
  await expect(remove(tenantId)).rejects.toMatchObject({ code: "not_found" });
  expect(await entriesOf(tenantId)).toHaveLength(2);
});

test("what cannot be completed is undone: the tenant is deleted, entries say so, and its id is used up", async () => {
  const failing = await startChanges({
    ensureDataKey: async () => {
      throw new Error("no key can be made");
    },
  });
  try {
    const { tenantId } = await failing.createTenant("undone");

    await hasStarted("provision", tenantId, failing);
    await expect(resultOf("provision", tenantId, failing)).rejects.toThrow();
    await hasStarted("erase", tenantId, failing);
    await resultOf("erase", tenantId, failing);

    expect(await hasDatabaseParts(tenantId, failing)).toEqual({ schema: false, role: false, noted: false });
    expect(existsSync(tenantDirectory(failing.stack.home, tenantId))).toBe(false);
    expect(await failing.stack.operations.read(`provision:${tenantId}`)).toMatchObject({ state: "failed" });
    const entries = await failing.stack.database.withControl(async (tx) => await readChain(tx, "system", 0, 10));
    expect(entries.map(({ action, actor }) => [action, actor.id])).toEqual([
      ["audit-key.create", "start"],
      ["tenant.create", "root"],
      ["tenant.delete", "provision"],
    ]);
    const again = { type: "tenant.create", tenantId, displayName: null, markup: null, tokenHash: "ab".repeat(32) } as const;
    await expect(failing.make(systemOwner, again)).rejects.toMatchObject({ code: "conflict" });
    expect((await failing.verify()).findings).toEqual([]);
  } finally {
    await failing.close();
  }
}, 120_000);

test("an erasure goes on although a step fails, an operator cancels it, and the chain moves to new runs", async () => {
  let failures = 2;
  const stubborn = await startChanges({
    changesPerRun: 1,
    eraseDataKey: async () => {
      if (failures-- > 0) throw new Error("the key store is away");
    },
  });
  try {
    const { tenantId } = await stubborn.createTenant("stubborn");
    await stubborn.make(tenantId, { type: "tenant.suspend" });
    await remove(tenantId, stubborn);
    await hasStarted("erase", tenantId, stubborn);
    await stubborn.stack.connection.client.workflow.getHandle(`erase:${tenantId}`).cancel();
    await remove(tenantId, stubborn); // a repeat meets the one that runs

    await resultOf("erase", tenantId, stubborn);

    expect(failures).toBe(-1);
    expect(await createTenants(stubborn.stack).deletionOf(tenantId)).toBe("done");
    const entries = await stubborn.stack.database.withControl(async (tx) => await readChain(tx, tenantId, 0, 10));
    expect(entries.map(({ action }) => action)).toEqual(["tenant.suspend", "tenant.erase"]);
    expect((await stubborn.verify()).findings).toEqual([]);
  } finally {
    await stubborn.close();
  }
}, 120_000);

test("a tenant that is not deleted cannot be erased, whoever asks", async () => {
  const { tenantId } = await stage.createTenant("alive");
  await hasStarted("provision", tenantId);
  await resultOf("provision", tenantId);

  await expect(stage.make(tenantId, { type: "tenant.erase" })).rejects.toMatchObject({ code: "conflict" });
  await expect(stage.stack.database.dropTenantSchema(tenantId)).rejects.toThrow("not deleted");
  await stage.stack.database.closeTenantSchema(tenantId);
  const turn = someTurn("api:jane:default", "hello");
  const stored = await stage.stack.database.withTenant(
    { tenantId, requestId: "req_test" },
    async (tx) => await insertTurn(tx, turn, laneNameOf({ sessionId: turn.sessionId })),
  );

  expect(stored).toBe(true);
  expect(await hasDatabaseParts(tenantId)).toEqual({ schema: true, role: true, noted: true });
});

test("the gateway's role makes a tenant's schema, of a well-formed name, and nothing else", async () => {
  const { database } = stage.stack;
  const asGateway = async (statement: string, ...values: string[]) =>
    await database.withControl(async (tx) => await tx.query(statement, values));

  await expect(asGateway("create schema mine")).rejects.toThrow("permission denied");
  await expect(asGateway("create role mine")).rejects.toThrow("permission denied");
  await expect(asGateway("update control.tenant_template set statements = 'select 1'")).rejects.toThrow("permission denied");
  for (const name of ["", "Acme", "a_b", 'a"; drop schema control cascade; --', "a".repeat(33)]) {
    await expect(asGateway("select control.make_tenant_schema($1)", name)).rejects.toThrow("not a tenant id");
  }
  const { tenantId } = await stage.createTenant("plain");
  await expect(
    database.withTenant({ tenantId, requestId: "req_test" }, async (tx) => await tx.query("select control.make_tenant_schema('evil')")),
  ).rejects.toThrow("permission denied");
});
