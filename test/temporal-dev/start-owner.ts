/** A process that starts the Temporal server and says so on stdout; tests kill it. Arguments: the options as JSON. */
import { startTemporalServer, type TemporalServerOptions } from "../../temporal-dev/temporal-server.ts";

const options = JSON.parse(process.argv[2] ?? "{}") as Omit<TemporalServerOptions, "log">;
const server = await startTemporalServer({ ...options, log: () => undefined });
process.stdout.write(`${JSON.stringify({ address: server.address, pid: server.pid })}\n`);
setInterval(() => undefined, 60_000);
