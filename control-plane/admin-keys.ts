import { readFileSync } from "node:fs";
import { AppError } from "../domain/app-error.ts";
import type { Database } from "../storage/database.ts";
import { systemOwner } from "../domain/tenant.ts";
import { changeOffline } from "./audit-chain.ts";
import type { CommandDeps } from "./commands.ts";
import { adminKeyPath, mintAdminKey, parseAdminKey, type ParsedAdminKey } from "./credentials.ts";
import { createPrivateFile } from "./private-file.ts";

/**
 * `created`: made just now · `existing`: the file's key is valid · `stale`: the file's key was revoked or replaced ·
 * `elsewhere`: other admin keys exist and this home holds none.
 */
export type BootstrapOutcome = { readonly path: string; readonly state: "created" | "existing" | "stale" | "elsewhere" };

/**
 * Makes the first admin key (scope `all`) at the first start and keeps it in `<home>/admin-key`, mode 0600. The file comes
 * first, so a crash in between is mended by the next start; a key that exists is never printed or replaced.
 * @throws {AppError} `invalid_configuration` when the file holds something else.
 */
export async function bootstrapAdminKey(deps: CommandDeps): Promise<BootstrapOutcome> {
  const { database, home } = deps;
  const path = adminKeyPath(home);
  let created = false;
  if (readKeyFile(path) === undefined) {
    const [keys] = await database.withControl(
      (tx) => tx.query<{ any: boolean }>('select exists (select from control.admin_key) as "any"'),
      { readOnly: true },
    );
    if (keys?.any) return { path, state: "elsewhere" };
    created = createPrivateFile(path, `${mintAdminKey("root").key}\n`);
  }
  const key = parseAdminKey(readKeyFile(path) ?? "");
  if (key === undefined) {
    throw new AppError("invalid_configuration", {
      client: { message: `${path} does not hold an admin key (ak_<key id>_<32 hex>): put the key back or remove the file.` },
    });
  }
  const state = await stateOf(database, key);
  if (state !== "absent") return { path, state: state === "live" ? (created ? "created" : "existing") : "stale" };
  try {
    await changeOffline(deps, systemOwner, {
      opId: `bootstrap:${key.keyId}`,
      command: { type: "admin-key.create", keyId: key.keyId, keyHash: key.hash.toString("hex"), scopes: ["all"] },
      actor: { type: "system", id: "start" },
      requestId: "start",
    });
  } catch (error) {
    if (!(error instanceof AppError) || error.code !== "conflict") throw error; // another start was first
  }
  return { path, state: (await stateOf(database, key)) !== "live" ? "stale" : created ? "created" : "existing" };
}

async function stateOf(database: CommandDeps["database"], { keyId, hash }: ParsedAdminKey): Promise<"live" | "absent" | "other"> {
  const [row] = await database.withControl(
    (tx) =>
      tx.query<{ live: boolean }>("select hash = $2 and revoked_at is null as live from control.admin_key where id = $1", [keyId, hash]),
    { readOnly: true },
  );
  if (row === undefined) return "absent";
  return row.live ? "live" : "other";
}

/** An admin key as it may be shown. */
export type AdminKeyFacts = {
  readonly id: string;
  readonly scopes: readonly string[];
  readonly createdAtMs: number;
  readonly lastUsedAtMs: number | undefined;
  readonly revokedAtMs: number | undefined;
};

export async function listAdminKeys(database: Pick<Database, "withControl">): Promise<readonly AdminKeyFacts[]> {
  type Row = { id: string; scopes: string[]; created_at: Date; last_used_at: Date | null; revoked_at: Date | null };
  const rows = await database.withControl(
    (tx) => tx.query<Row>('select id, scopes, created_at, last_used_at, revoked_at from control.admin_key order by id collate "C"'),
    { readOnly: true },
  );
  return rows.map(({ id, scopes, created_at, last_used_at, revoked_at }) => ({
    id,
    scopes,
    createdAtMs: created_at.getTime(),
    lastUsedAtMs: last_used_at?.getTime(),
    revokedAtMs: revoked_at?.getTime(),
  }));
}

function readKeyFile(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8").trim();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}
