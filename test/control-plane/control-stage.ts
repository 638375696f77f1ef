import { randomBytes } from "node:crypto";
import { onTestFinished } from "vitest";
import { createTenants, type Tenants } from "../../control-plane/tenants.ts";
import { parseTenantId, type TenantId } from "../../domain/tenant.ts";
import { openDatabase, type Database } from "../../storage/database.ts";
import { freshDatabase, quiet, temporaryHome } from "../storage/fresh-database.ts";

export type ControlStage = { readonly database: Database; readonly home: string; readonly tenants: Tenants; readonly ownerUrl: string };

/** An empty home and an empty database of the run's server; both go when the test ends. */
export async function controlStage(): Promise<ControlStage> {
  const ownerUrl = await freshDatabase();
  const database = await openDatabase({ ownerUrl, log: quiet });
  const { home, remove } = temporaryHome();
  onTestFinished(async () => {
    await database.close();
    remove();
  });
  return { database, home, tenants: createTenants({ database, home }), ownerUrl };
}

/** Tenant names are roles of the whole server, which test files share. */
export const someTenantId = (name = "acme"): TenantId => parseTenantId(`${name}-${randomBytes(4).toString("hex")}`);

/** A home without a database. */
export function emptyHome(): string {
  const { home, remove } = temporaryHome();
  onTestFinished(remove);
  return home;
}
