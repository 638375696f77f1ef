import { readdir } from "node:fs/promises";
import { join } from "node:path";
import type { Database } from "../storage/database.ts";
import { erasedAmong } from "../storage/tenant-remains.ts";
import { removeTenantDirectory } from "../storage/tenant-paths.ts";
import type { Log } from "./log.ts";

/** The channel that tells every process that a tenant is gone; the payload is its id. */
export const forgetChannel = "openclaw_forget";

const lookAgainMs = 60_000;

/**
 * Removes the files of erased tenants from this process's home: the worker that erased them could do so on its own home only. Looks
 * when it is told, at the start, for what was told while this process was down, and once a minute.
 */
export async function startErasedFiles({
  database,
  home,
  log,
}: {
  readonly database: Pick<Database, "withControl" | "listen">;
  readonly home: string;
  readonly log: Log;
}): Promise<{ stop(): Promise<void> }> {
  const look = async (): Promise<void> => {
    const names = await readdir(join(home, "tenants")).catch((error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT") return [];
      throw error;
    });
    if (names.length === 0) return;
    const erased = await database.withControl(async (tx) => await erasedAmong(tx, names), { readOnly: true });
    for (const tenantId of erased) {
      await removeTenantDirectory(home, tenantId);
      log("the files of an erased tenant were removed", { tenantId });
    }
  };
  let looking = Promise.resolve();
  const lookInTurn = (): void => {
    looking = looking.then(look).catch((error: unknown) => log("files of erased tenants are left, trying on", { error: String(error) }));
  };
  const stopListening = await database.listen(forgetChannel, lookInTurn, { onReconnect: lookInTurn });
  const timer = setInterval(lookInTurn, lookAgainMs);
  lookInTurn();
  return {
    async stop() {
      clearInterval(timer);
      await stopListening();
      await looking;
    },
  };
}
