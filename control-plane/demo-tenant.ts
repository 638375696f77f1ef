import { readFileSync, unlinkSync } from "node:fs";
import { join } from "node:path";
import { AppError } from "../domain/app-error.ts";
import { parseTenantId, systemOwner, type TenantId } from "../domain/tenant.ts";
import { type AdminConfig, defaultQuota } from "./admin-config.ts";
import { changeOffline } from "./audit-chain.ts";
import type { CommandDeps } from "./commands.ts";
import { hashPrefixOf, mintTenantToken, parseTenantToken } from "./credentials.ts";
import { createPrivateFile } from "./private-file.ts";

export const demoTokenPath = (home: string): string => join(home, "demo-token");

export type DemoTenant = { readonly tenantId: TenantId; readonly token: string; readonly state: "created" | "existing" };

/**
 * The tenant to try the product with: made when a start finds no tenant at all and only the demonstration provider, and
 * returned by later starts until its token is rotated, which also removes `<home>/demo-token`.
 * @returns undefined where there is none
 */
export async function ensureDemoTenant(deps: CommandDeps & { readonly config: AdminConfig }): Promise<DemoTenant | undefined> {
  const path = demoTokenPath(deps.home);
  const kept = readToken(path);
  if (kept !== undefined && (await isLive(deps, kept))) return { tenantId: kept.tenantId, token: kept.token, state: "existing" };

  const onlyDemo = [...deps.config.providers.values()].every(({ kind }) => kind === "demo");
  if (!onlyDemo || (await hasTenants(deps))) {
    if (kept !== undefined) unlinkSync(path);
    return undefined;
  }
  // The file comes first: after a crash in between, the next start finds the token and makes the tenant for it.
  const tenantId = parseTenantId("demo");
  createPrivateFile(path, `${mintTenantToken(tenantId).token}\n`);
  const token = readToken(path);
  if (token === undefined)
    throw new AppError("invalid_configuration", { client: { message: `${path} does not hold a tenant token: remove it.` } });
  try {
    await changeOffline(deps, systemOwner, {
      opId: `demo:${hashPrefixOf(token.hash)}`,
      command: {
        type: "tenant.create",
        tenantId,
        displayName: "Demo",
        markup: null,
        tokenHash: token.hash.toString("hex"),
        quota: defaultQuota(deps.config),
      },
      actor: { type: "system", id: "start" },
      requestId: "start",
    });
    return { tenantId: token.tenantId, token: token.token, state: "created" };
  } catch (error) {
    if (error instanceof AppError && error.code === "conflict" && (await isLive(deps, token)))
      return { tenantId, token: token.token, state: "existing" };
    throw error;
  }
}

type KeptToken = { readonly tenantId: TenantId; readonly token: string; readonly hash: Buffer };

function readToken(path: string): KeptToken | undefined {
  try {
    const token = readFileSync(path, "utf8").trim();
    const parsed = parseTenantToken(token);
    return parsed === undefined ? undefined : { token, tenantId: parsed.tenantId, hash: parsed.hash };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}

async function isLive({ database }: CommandDeps, { tenantId, hash }: KeptToken): Promise<boolean> {
  const rows = await database.withControl(
    (tx) =>
      tx.query(
        `select from control.tenant_token token join control.tenant tenant on tenant.id = token.tenant_id
         where token.hash = $1 and token.tenant_id = $2 and token.revoked_at is null and tenant.state <> 'deleted'`,
        [hash, tenantId],
      ),
    { readOnly: true },
  );
  return rows.length > 0;
}

async function hasTenants({ database }: CommandDeps): Promise<boolean> {
  return (await database.withControl((tx) => tx.query("select from control.tenant limit 1"), { readOnly: true })).length > 0;
}
