import { expect, test, vi } from "vitest";
import { createAuthentication, requireAdmin, requireTenant, type Principal } from "../../control-plane/authentication.ts";
import { mintAdminKey, mintTenantToken } from "../../control-plane/credentials.ts";
import type { AppError } from "../../domain/app-error.ts";
import type { Database } from "../../storage/database.ts";
import { quiet } from "../storage/fresh-database.ts";
import { controlStage, someTenantId } from "./control-stage.ts";

const errorOf = (attempt: Promise<unknown>): Promise<AppError> =>
  attempt.then(
    () => {
      throw new Error("it was let in");
    },
    (error: AppError) => error,
  );

test("a tenant's token names its tenant, its epoch and the prefix that logs may show", async () => {
  const { database, tenants } = await controlStage();
  const id = someTenantId();
  const { token } = await tenants.create({ id, displayName: "Acme" });
  const authentication = createAuthentication({ database, log: quiet });

  const principal = await authentication.authenticate(`Bearer ${token}`);

  expect(principal).toEqual({
    kind: "tenant",
    tenantId: id,
    displayName: "Acme",
    tokenEpoch: 1,
    tokenHashPrefix: expect.stringMatching(/^[0-9a-f]{8}$/),
  });
  await authentication.close();
});

test("every refusal is the same error, and none writes a row", async () => {
  const { database, tenants } = await controlStage();
  const [id, other] = [someTenantId("acme"), someTenantId("other")];
  const { token } = await tenants.create({ id });
  const { token: otherToken } = await tenants.create({ id: other });
  const secretOf = (text: string): string => text.slice(-32);
  await database.withControl((tx) =>
    tx.execute("insert into control.admin_key (id, hash, scopes, revoked_at) values ('gone', $1, '{all}', now())", [
      mintAdminKey("gone").hash,
    ]),
  );
  const authentication = createAuthentication({ database, log: quiet });
  const before = await rowsOf(database);

  const refusals = await Promise.all(
    [
      undefined,
      "",
      "Bearer",
      "Bearer nonsense",
      `Basic ${token}`,
      `Bearer ${mintTenantToken(id).token}`,
      `Bearer ${mintTenantToken(someTenantId("nobody")).token}`,
      `Bearer tk_${other}_${secretOf(token)}`,
      `Bearer tk_${id}_${secretOf(otherToken)}`,
      `Bearer ${token.toUpperCase()}`,
      `Bearer ${token}0`,
      `Bearer ${mintAdminKey("root").key}`,
      `Bearer ${mintAdminKey("gone").key}`,
      "Bearer ak_root_' or true --",
    ].map((header) => errorOf(authentication.authenticate(header))),
  );

  expect(new Set(refusals.map(({ code, message, client }) => JSON.stringify([code, message, client])))).toEqual(
    new Set(['["invalid_api_key","The API key is missing or not valid.",{}]']),
  );
  await authentication.close();
  expect(await rowsOf(database)).toEqual(before);
});

test("a revoked token and a deleted tenant's token are refused, a suspended tenant's says so", async () => {
  const { database, tenants } = await controlStage();
  const authentication = createAuthentication({ database, log: quiet });
  const [revoked, deleted, suspended] = await Promise.all(
    ["revoked", "deleted", "suspended"].map(async (name) => tenants.create({ id: someTenantId(name) })),
  );
  if (revoked === undefined || deleted === undefined || suspended === undefined) throw new Error("three tenants");
  await database.withControl(async (tx) => {
    await tx.execute("update control.tenant_token set revoked_at = now() where tenant_id = $1", [revoked.tenant.id]);
    await tx.execute("update control.tenant set state = 'deleted' where id = $1", [deleted.tenant.id]);
    await tx.execute("update control.tenant set state = 'suspended' where id = $1", [suspended.tenant.id]);
  });

  expect(await errorOf(authentication.authenticate(`Bearer ${revoked.token}`))).toMatchObject({ code: "invalid_api_key" });
  expect(await errorOf(authentication.authenticate(`Bearer ${deleted.token}`))).toMatchObject({ code: "invalid_api_key" });
  expect(await errorOf(authentication.authenticate(`Bearer ${suspended.token}`))).toMatchObject({ code: "tenant_suspended" });
  expect(await errorOf(authentication.authenticate(`Bearer tk_${suspended.tenant.id}_${"0".repeat(32)}`))).toMatchObject({
    code: "invalid_api_key",
  });
});

test("the root key of the environment has every scope, also when the table holds its id with another hash", async () => {
  const { database } = await controlStage();
  const root = mintAdminKey("ops");
  const stored = mintAdminKey("ops");
  await database.withControl((tx) =>
    tx.execute("insert into control.admin_key (id, hash, scopes) values ('ops', $1, '{read}')", [stored.hash]),
  );
  const authentication = createAuthentication({ database, rootAdminKey: root.key, log: quiet });

  expect(await authentication.authenticate(`Bearer ${root.key}`)).toEqual({ kind: "admin", keyId: "ops", scopes: ["all"] });
  expect(await authentication.authenticate(`Bearer ${stored.key}`)).toEqual({ kind: "admin", keyId: "ops", scopes: ["read"] });
  expect(() => createAuthentication({ database, rootAdminKey: "hunter2", log: quiet })).toThrow(
    expect.objectContaining({ code: "invalid_configuration" }),
  );
});

test("known and unknown credentials go the same way: one lookup each, a malformed one none", async () => {
  const { database, tenants } = await controlStage();
  const { token } = await tenants.create({ id: someTenantId() });
  let lookups = 0;
  const withControl: Database["withControl"] = (work, options) => {
    if (options?.readOnly) lookups++;
    return database.withControl(work, options);
  };
  const authentication = createAuthentication({ database: { withControl }, log: quiet });
  const lookupsOf = async (header: string): Promise<number> => {
    lookups = 0;
    await authentication.authenticate(header).catch(() => undefined);
    return lookups;
  };

  expect(await lookupsOf(`Bearer ${token}`)).toBe(1);
  expect(await lookupsOf(`Bearer ${mintTenantToken(someTenantId()).token}`)).toBe(1);
  expect(await lookupsOf(`Bearer ${mintAdminKey("root").key}`)).toBe(1);
  expect(await lookupsOf(`Bearer ${token}'`)).toBe(0);
  await authentication.close();
});

test("the last use is noted once a minute, and a failure to note it refuses nobody", async () => {
  const { database, tenants } = await controlStage();
  const { token, tenant } = await tenants.create({ id: someTenantId() });
  const clock = { nowMs: Date.now() };
  const writes = vi.fn<() => void>();
  let broken = false;
  const withControl: Database["withControl"] = (work, options) => {
    if (options?.readOnly) return database.withControl(work, options);
    writes();
    return broken ? Promise.reject(new Error("disk full")) : database.withControl(work, options);
  };
  const log = vi.fn<(message: string) => void>();
  const authentication = createAuthentication({ database: { withControl }, log, now: () => clock.nowMs });

  for (let call = 0; call < 20; call++) await authentication.authenticate(`Bearer ${token}`);
  await authentication.close();
  expect(writes).toHaveBeenCalledTimes(1);
  const [row] = await database.withControl((tx) =>
    tx.query<{ last_used_at: Date | null }>("select last_used_at from control.tenant_token where tenant_id = $1", [tenant.id]),
  );
  expect(row?.last_used_at).toBeInstanceOf(Date);

  broken = true;
  clock.nowMs += 60_000;
  expect(await authentication.authenticate(`Bearer ${token}`)).toMatchObject({ kind: "tenant" });
  await authentication.close();
  expect(log).toHaveBeenCalledTimes(1);
});

test("scopes are kept apart, and each side refuses the other's credential in its own way", () => {
  const tenant: Principal = {
    kind: "tenant",
    tenantId: someTenantId(),
    displayName: undefined,
    tokenEpoch: 1,
    tokenHashPrefix: "00000000",
  };
  const reader: Principal = { kind: "admin", keyId: "reader", scopes: ["read"] };
  const root: Principal = { kind: "admin", keyId: "root", scopes: ["all"] };

  expect(requireAdmin(reader, "read")).toBe(reader);
  expect(requireAdmin(root, "billing")).toBe(root);
  expect(() => requireAdmin(reader, "tenants")).toThrow(expect.objectContaining({ code: "forbidden" }));
  expect(() => requireAdmin(reader, "all")).toThrow(expect.objectContaining({ code: "forbidden" }));
  expect(() => requireAdmin(tenant, "read")).toThrow(expect.objectContaining({ code: "forbidden" }));
  expect(requireTenant(tenant)).toBe(tenant);
  expect(() => requireTenant(root)).toThrow(expect.objectContaining({ code: "invalid_api_key" }));
});

async function rowsOf(database: Database): Promise<unknown> {
  return database.withControl(async (tx) => [
    await tx.query("select * from control.tenant order by id"),
    await tx.query("select * from control.tenant_token order by hash"),
    await tx.query("select * from control.admin_key order by id"),
  ]);
}
