import { Client, type TLSConfig } from "@temporalio/client";
import { NativeConnection } from "@temporalio/worker";
import { AppError } from "../domain/app-error.ts";
import type { Owner } from "../domain/tenant.ts";
import type { DataKeys } from "../storage/data-keys.ts";
import { type EncryptedConverter, encryptedConverter } from "./payload-codec.ts";

/** Certificates in PEM; empty: TLS with what the machine trusts. */
export type TemporalTls = TLSConfig;

export type TemporalOptions = {
  readonly address: string;
  /** Undefined: in the clear. */
  readonly tls?: TemporalTls | undefined;
  /** Sent with every call; needs TLS. */
  readonly apiKey?: string | undefined;
  readonly namespace: string;
  /** Payloads are encrypted with these; undefined: they are not, which is for tests of other things only. */
  readonly dataKeys?: DataKeys | undefined;
};

/**
 * The process's one connection to Temporal, shared by its client and all its workers. The client stays in this room: the rest of
 * the product reaches it through `forTenant`.
 */
export type TemporalConnection = {
  readonly native: NativeConnection;
  readonly client: Client;
  readonly namespace: string;
  /** How payloads are converted; of an owner: also those that belong to no workflow yet. */
  converterOf(owner?: Owner): EncryptedConverter | undefined;
  close(): Promise<void>;
};

/** @throws {AppError} `unavailable` when no server answers there, or not one that the certificates fit */
export async function connectTemporal({ address, tls, apiKey, namespace, dataKeys }: TemporalOptions): Promise<TemporalConnection> {
  const credential = apiKey === undefined ? {} : { apiKey };
  const native = await NativeConnection.connect({ address, tls: tls ?? null, ...credential }).catch((error: unknown) => {
    const { message } = error as Error;
    throw new AppError("unavailable", { client: { message: `no Temporal server answers at ${address} (${message})` } }, { cause: error });
  });
  const converterOf = (owner?: Owner): EncryptedConverter | undefined =>
    dataKeys === undefined ? undefined : encryptedConverter({ dataKeys, namespace }, owner);
  return {
    native,
    client: new Client({ connection: native, namespace, ...converterOption(converterOf()) }),
    namespace,
    converterOf,
    close: async () => await native.close(),
  };
}

export const converterOption = (dataConverter: EncryptedConverter | undefined): { dataConverter?: EncryptedConverter } =>
  dataConverter === undefined ? {} : { dataConverter };
