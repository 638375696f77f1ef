import { Client } from "@temporalio/client";
import { NativeConnection } from "@temporalio/worker";

export type TemporalOptions = { readonly address: string; readonly namespace: string };

/**
 * The process's one connection to Temporal, shared by its client and all its workers. The client stays in this room: the rest of
 * the product reaches it through `forTenant`.
 */
export type TemporalConnection = {
  readonly native: NativeConnection;
  readonly client: Client;
  readonly namespace: string;
  close(): Promise<void>;
};

export async function connectTemporal({ address, namespace }: TemporalOptions): Promise<TemporalConnection> {
  const native = await NativeConnection.connect({ address });
  return { native, client: new Client({ connection: native, namespace }), namespace, close: async () => await native.close() };
}
