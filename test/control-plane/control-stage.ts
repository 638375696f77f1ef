import { randomBytes } from "node:crypto";
import { onTestFinished } from "vitest";
import { changeOffline } from "../../control-plane/audit-chain.ts";
import type { CommandDeps } from "../../control-plane/commands.ts";
import { mintTenantToken } from "../../control-plane/credentials.ts";
import { createTenants, type Tenant, type Tenants } from "../../control-plane/tenants.ts";
import { parseTenantId, systemOwner, type TenantId } from "../../domain/tenant.ts";
import { openDatabase, type Database } from "../../storage/database.ts";
import { freshDatabase, quiet, temporaryHome } from "../storage/fresh-database.ts";

export type TestTenants = Tenants & {
  create(tenant: {
    readonly id: string;
    readonly displayName?: string;
    readonly markup?: string;
  }): Promise<{ readonly tenant: Tenant; readonly token: string }>;
};

export type ControlStage = { readonly database: Database; readonly home: string; readonly tenants: TestTenants; readonly ownerUrl: string };

/** An empty home and an empty database of the run's server; both go when the test ends. */
export async function controlStage(): Promise<ControlStage> {
  const ownerUrl = await freshDatabase();
  const database = await openDatabase({ ownerUrl, log: quiet });
  const { home, remove } = temporaryHome();
  onTestFinished(async () => {
    await database.close();
    remove();
  });
  return { database, home, tenants: testTenants({ database, home }), ownerUrl };
}

/** Tenant names are roles of the whole server, which test files share. */
export const someTenantId = (name = "acme"): TenantId => parseTenantId(`${name}-${randomBytes(4).toString("hex")}`);

/** A home without a database. */
export function emptyHome(): string {
  const { home, remove } = temporaryHome();
  onTestFinished(remove);
  return home;
}

/** Tenants that are also made, by changes that the database alone records: without Temporal. */
export function testTenants(deps: CommandDeps): TestTenants {
  const tenants = createTenants(deps);
  return {
    ...tenants,
    async create({ id, displayName, markup }) {
      const tenantId = parseTenantId(id);
      const { token, hash } = mintTenantToken(tenantId);
      await changeOffline(deps, systemOwner, {
        opId: `test-${randomBytes(8).toString("hex")}`,
        command: {
          type: "tenant.create",
          tenantId,
          displayName: displayName ?? null,
          markup: markup ?? null,
          tokenHash: hash.toString("hex"),
        },
        actor: { type: "system", id: "test" },
        requestId: "req_test",
      });
      return { tenant: await tenants.get(tenantId), token };
    },
  };
}
