// A stock Worker, with all its defaults, for Temporal's hello-world. node bench/turn-hello-worker.ts <address> <namespace> <task queue>
import { fileURLToPath } from "node:url";
import { DefaultLogger, NativeConnection, Runtime, Worker } from "@temporalio/worker";

const [address = "", namespace = "", taskQueue = ""] = process.argv.slice(2);
Runtime.install({ logger: new DefaultLogger("ERROR"), shutdownSignals: [] });
const worker = await Worker.create({
  connection: await NativeConnection.connect({ address }),
  namespace,
  taskQueue,
  workflowsPath: fileURLToPath(new URL("./turn-hello-workflow.ts", import.meta.url)),
  activities: { greet: async (name: string): Promise<string> => `Hello, ${name}!` },
});
process.on("disconnect", () => process.exit(0)); // the bench has gone
process.stdout.write("polling\n");
await worker.run();
