import { connect } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { Connection } from "@temporalio/client";
import { retentionDays, type SearchAttributeType } from "./server-settings.ts";

export type NamespaceSettings = {
  readonly namespace: string;
  readonly searchAttributes: Readonly<Record<string, SearchAttributeType>>;
};

/** Numbers of `temporal.api.enums.v1.IndexedValueType`. */
const indexedValueType: Readonly<Record<SearchAttributeType, number>> = { Keyword: 2, KeywordList: 7 };
const retentionSeconds = retentionDays * 24 * 60 * 60;

/** Resolves when the server says SERVING and knows the namespace. `signal` ends the wait. */
export async function connectWhenServing(address: string, namespace: string, signal: AbortSignal): Promise<Connection> {
  for (;;) {
    // gRPC backs off for seconds after a refused connection, so the port is watched by plain TCP.
    const connection = (await isListening(address)) ? await tryConnect(address, namespace) : undefined;
    if (connection !== undefined) return connection;
    await sleep(20, undefined, { signal });
  }
}

function isListening(address: string): Promise<boolean> {
  const [host = "", port] = address.split(":");
  return new Promise((resolve) => {
    const socket = connect({ host, port: Number(port) });
    socket.once("connect", () => resolve(true));
    socket.once("error", () => resolve(false));
    socket.once("close", () => resolve(false));
    socket.once("connect", () => socket.destroy());
  });
}

async function tryConnect(address: string, namespace: string): Promise<Connection | undefined> {
  let connection: Connection | undefined;
  try {
    connection = await Connection.connect({ address, connectTimeout: 2000 });
    const open = connection;
    await open.withDeadline(Date.now() + 2000, async () => {
      const health = await open.healthService.check({ service: "temporal.api.workflowservice.v1.WorkflowService" });
      if (health.status !== 1) throw new Error("The server is not serving yet.");
      await open.workflowService.describeNamespace({ namespace });
    });
    return open;
  } catch {
    await connection?.close();
    return undefined;
  }
}

/**
 * Brings an existing database up to what we need. The server's flags act only when it creates a namespace:
 * the retention, and search attributes that a later release of ours adds, have to be set here. Safe to repeat.
 */
export async function ensureNamespace(connection: Connection, { namespace, searchAttributes }: NamespaceSettings): Promise<void> {
  await connection.withDeadline(Date.now() + 10_000, async () => {
    const described = await connection.workflowService.describeNamespace({ namespace });
    const retention = Number(described.config?.workflowExecutionRetentionTtl?.seconds ?? 0);
    if (retention < retentionSeconds) {
      await connection.workflowService.updateNamespace({
        namespace,
        // protobufjs takes a number where the typings ask for a Long, which is not a dependency of ours.
        config: { workflowExecutionRetentionTtl: { seconds: retentionSeconds as never } },
      });
    }

    const registered = await connection.operatorService.listSearchAttributes({ namespace });
    const missing = Object.entries(searchAttributes).filter(([name]) => registered.customAttributes?.[name] === undefined);
    if (missing.length > 0) {
      await connection.operatorService.addSearchAttributes({
        namespace,
        searchAttributes: Object.fromEntries(missing.map(([name, type]) => [name, indexedValueType[type]])),
      });
    }
  });
}
