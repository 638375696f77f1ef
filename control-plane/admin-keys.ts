import { readFileSync } from "node:fs";
import { join } from "node:path";
import { AppError } from "../domain/app-error.ts";
import type { Database } from "../storage/database.ts";
import { mintAdminKey, parseAdminKey } from "./credentials.ts";
import { createPrivateFile } from "./private-file.ts";

export const adminKeyPath = (home: string): string => join(home, "admin-key");

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
export async function bootstrapAdminKey({
  database,
  home,
}: {
  readonly database: Pick<Database, "withControl">;
  readonly home: string;
}): Promise<BootstrapOutcome> {
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
  return database.withControl(async (tx) => {
    await tx.execute("insert into control.admin_key (id, hash, scopes) values ($1, $2, '{all}') on conflict (id) do nothing", [
      key.keyId,
      key.hash,
    ]);
    const [row] = await tx.query<{ live: boolean }>(
      "select hash = $2 and revoked_at is null as live from control.admin_key where id = $1",
      [key.keyId, key.hash],
    );
    if (row?.live !== true) return { path, state: "stale" };
    return { path, state: created ? "created" : "existing" };
  });
}

function readKeyFile(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8").trim();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}
