import { randomBytes } from "node:crypto";
import { userInfo } from "node:os";
import { AppError } from "../../domain/app-error.ts";
import { parseTenantId } from "../../domain/tenant.ts";
import { changeOffline } from "../audit-chain.ts";
import { withOfflineDatabase } from "../offline-database.ts";
import { createTenants } from "../tenants.ts";
import { CliError, exitCodes } from "./exit-code.ts";
import { environmentOf, type Variables } from "./gateway-client.ts";

/** Who may read the home's database password may do this: the entry says so. */
export async function revokeOffline(variables: Variables, tenant: string): Promise<{ readonly tenant: string; readonly revoked: true }> {
  const environment = environmentOf(variables);
  const tenantId = parseTenantId(tenant);
  try {
    await withOfflineDatabase(environment, async (database) => {
      await createTenants({ database }).get(tenantId);
      await changeOffline({ database, home: environment.home }, tenantId, {
        opId: `break-glass-${randomBytes(8).toString("hex")}`,
        command: { type: "token.revoke" },
        actor: { type: "system", id: `break-glass:${userInfo().username}` },
        requestId: "break-glass",
      });
    });
  } catch (error) {
    if (error instanceof AppError && error.code === "unavailable")
      throw new CliError(exitCodes.unreachable, `The database does not answer: ${error.message}`, { cause: error });
    throw error;
  }
  return { tenant, revoked: true };
}
