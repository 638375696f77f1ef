/** A process of its own that runs an embedded Postgres until it is killed: `node start-postgres.ts <data directory>`. */
import { startEmbeddedPostgres } from "../../storage/embedded-postgres.ts";

const server = await startEmbeddedPostgres({ dataDir: process.argv[2] ?? "", log: () => undefined });
console.log(JSON.stringify({ ownerUrl: server.ownerUrl, pid: server.pid }));
setInterval(() => undefined, 60_000);
