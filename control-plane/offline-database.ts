import { existsSync } from "node:fs";
import { join } from "node:path";
import { openDatabase, type Database } from "../storage/database.ts";
import { embeddedOwnerUrl, startEmbeddedPostgres } from "../storage/embedded-postgres.ts";
import { loadAdminConfig } from "./admin-config.ts";
import type { Environment } from "./environment.ts";

const quiet = (): void => {};

/** Works on the database of a home without its gateway: the operator's own, the running embedded one, or that one started for it. */
export async function withOfflineDatabase<T>({ home, databaseUrl }: Environment, work: (database: Database) => Promise<T>): Promise<T> {
  const configured = databaseUrl ?? (existsSync(join(home, "config.yaml")) ? loadAdminConfig(home).database.url : undefined);
  if (configured !== undefined) return await use(configured, work);
  const dataDir = join(home, "postgres");
  if (!existsSync(dataDir)) throw new Error(`there is no database in ${home}: set OPENCLAW_HOME or DATABASE_URL`);
  const server = await startEmbeddedPostgres({ dataDir, log: quiet }).catch((error: unknown) => {
    if (error instanceof Error && error.message.includes("already runs")) return undefined; // the gateway's own
    throw error;
  });
  try {
    return await use(server?.ownerUrl ?? embeddedOwnerUrl(dataDir), work);
  } finally {
    await server?.stop();
  }
}

async function use<T>(ownerUrl: string, work: (database: Database) => Promise<T>): Promise<T> {
  const database = await openDatabase({ ownerUrl, log: quiet, poolSize: 2 });
  try {
    return await work(database);
  } finally {
    await database.close();
  }
}
