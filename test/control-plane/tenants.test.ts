import { existsSync, readFileSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { parseAdminConfig } from "../../control-plane/admin-config.ts";
import { createAuthentication } from "../../control-plane/authentication.ts";
import { defaultConfigText } from "../../control-plane/default-config.ts";
import { demoTokenPath, ensureDemoTenant } from "../../control-plane/demo-tenant.ts";
import { quiet, runSql } from "../storage/fresh-database.ts";
import { controlStage, someTenantId, testTenants, type ControlStage } from "./control-stage.ts";

const demoConfig = parseAdminConfig(defaultConfigText({}));
const realConfig = parseAdminConfig(defaultConfigText({ OPENAI_API_KEY: "sk-1" }));

test("a new tenant has a schema, a private directory and a token that is stored as a hash only", async () => {
  const { database, home, tenants, ownerUrl } = await controlStage();
  const id = someTenantId();

  const { tenant, token } = await tenants.create({ id, displayName: "Acme Ltd", markup: "0.15" });

  expect(tenant).toMatchObject({ id, displayName: "Acme Ltd", state: "active", markupPpm: 150_000, osUidIndex: 0 });
  expect(await tenants.get(id)).toEqual(tenant);
  expect(await database.withTenant({ tenantId: id, requestId: "req_test" }, (tx) => tx.query("select from turn"))).toEqual([]);
  expect(statSync(join(home, "tenants", id)).mode & 0o777).toBe(0o700);
  expect(readdirSync(join(home, "tenants", id))).toContain("sandbox");
  const { rows } = await runSql(ownerUrl, "select tenant_token::text as line from control.tenant_token");
  expect(JSON.stringify(rows)).not.toContain(token.slice(-32));
});

test("ids that are taken, malformed or a deleted tenant's are refused", async () => {
  const { database, tenants } = await controlStage();
  const [id, dead] = [someTenantId(), someTenantId("dead")];
  await tenants.create({ id });
  await tenants.create({ id: dead });
  await database.withControl((tx) => tx.execute("update control.tenant set state = 'deleted' where id = $1", [dead]));

  await expect(tenants.create({ id })).rejects.toMatchObject({ code: "conflict" });
  await expect(tenants.create({ id: dead })).rejects.toMatchObject({ code: "conflict" });
  await expect(tenants.get(dead)).rejects.toMatchObject({ code: "not_found" });
  expect((await tenants.list()).map((tenant) => tenant.id)).toEqual([id]);
  for (const bad of ["", "a_b", "A", "../x", "a".repeat(33), "a--b"])
    await expect(tenants.create({ id: bad })).rejects.toMatchObject({ code: "invalid_tenant_id" });
  await expect(tenants.create({ id: someTenantId(), displayName: "a\u001b[2J" })).rejects.toMatchObject({ code: "invalid_request" });
  await expect(tenants.create({ id: someTenantId(), markup: "10%" })).rejects.toMatchObject({ code: "invalid_rate" });
});

test("of many who create the same tenant at once one gets it, and different ones get different uids", async () => {
  const { tenants, database } = await controlStage();
  const id = someTenantId();

  const same = await Promise.allSettled(Array.from({ length: 8 }, () => tenants.create({ id })));
  const different = await Promise.all(Array.from({ length: 8 }, (_, index) => tenants.create({ id: someTenantId(`t${index}`) })));

  expect(same.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
  expect(same.flatMap((outcome) => (outcome.status === "rejected" ? [(outcome.reason as { code: string }).code] : []))).toEqual(
    Array(7).fill("conflict"),
  );
  expect(new Set(different.map(({ tenant }) => tenant.osUidIndex)).size).toBe(8);
  const tokens = await database.withControl((tx) => tx.query("select from control.tenant_token where tenant_id = $1", [id]));
  expect(tokens).toHaveLength(1);
});

test("what a crash left behind is taken over by the next attempt", async () => {
  const { database, home, tenants } = await controlStage();
  const id = someTenantId();
  await database.createTenantSchema(id); // as far as an interrupted attempt may have come
  writeFileSync(join(home, "tenants"), "in the way");
  await expect(tenants.create({ id })).rejects.toThrow();
  expect(await tenants.list()).toEqual([]);

  const other = testTenants({ database, home: join(home, "second-home") });
  await expect(other.create({ id })).resolves.toMatchObject({ tenant: { id, osUidIndex: 0 } });
});

const tokenWorks = async ({ database }: ControlStage, token: string): Promise<boolean> => {
  const authentication = createAuthentication({ database, log: quiet });
  const works = await authentication.authenticate(`Bearer ${token}`).then(
    () => true,
    () => false,
  );
  await authentication.close();
  return works;
};

test("the first start with the demonstration model alone makes a demo tenant, later starts find its token", async () => {
  const stage = await controlStage();

  const first = await ensureDemoTenant({ ...stage, config: demoConfig });
  const second = await ensureDemoTenant({ ...stage, config: demoConfig });

  expect(first).toMatchObject({ tenantId: "demo", state: "created" });
  expect(second).toEqual({ ...first, state: "existing" });
  expect(await tokenWorks(stage, first?.token ?? "")).toBe(true);
  expect(readFileSync(demoTokenPath(stage.home), "utf8")).toBe(`${first?.token}\n`);
  expect(statSync(demoTokenPath(stage.home)).mode & 0o777).toBe(0o600);
});

test("a demo token that was rotated is not printed again, and no second demo tenant is made", async () => {
  const stage = await controlStage();
  await ensureDemoTenant({ ...stage, config: demoConfig });
  await stage.database.withControl((tx) => tx.execute("update control.tenant_token set revoked_at = now()"));

  expect(await ensureDemoTenant({ ...stage, config: demoConfig })).toBeUndefined();
  expect(existsSync(demoTokenPath(stage.home))).toBe(false);
  expect(await ensureDemoTenant({ ...stage, config: demoConfig })).toBeUndefined();
  expect(await stage.tenants.list()).toHaveLength(1);
});

test("a crash between the token file and the tenant is mended by the next start", async () => {
  const stage = await controlStage();
  writeFileSync(demoTokenPath(stage.home), `tk_demo_${"ab".repeat(16)}\n`);

  const demo = await ensureDemoTenant({ ...stage, config: demoConfig });

  expect(demo).toEqual({ tenantId: "demo", token: `tk_demo_${"ab".repeat(16)}`, state: "created" });
  expect(await tokenWorks(stage, demo?.token ?? "")).toBe(true);
});

test("there is no demo tenant beside a real provider or a real tenant", async () => {
  const withProvider = await controlStage();
  expect(await ensureDemoTenant({ ...withProvider, config: realConfig })).toBeUndefined();
  expect(await withProvider.tenants.list()).toEqual([]);

  const withTenant = await controlStage();
  await withTenant.tenants.create({ id: someTenantId() });
  expect(await ensureDemoTenant({ ...withTenant, config: demoConfig })).toBeUndefined();
  expect(await withTenant.tenants.list()).toHaveLength(1);
});
