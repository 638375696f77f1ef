import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { AppError } from "../domain/app-error.ts";
import type { AdminConfig, KeySource } from "./admin-config.ts";

/** In Temporal's own form; empty: TLS with what the machine trusts. */
type TemporalTls = {
  readonly serverNameOverride?: string;
  readonly serverRootCACertificate?: Uint8Array;
  readonly clientCertPair?: { readonly crt: Uint8Array; readonly key: Uint8Array };
};

type FileKey = "tls_ca_file" | "tls_cert_file" | "tls_key_file";

/**
 * How Temporal is spoken to, by `temporal.tls…`; paths are relative to the home. Undefined: in the clear.
 * @throws {AppError} `invalid_configuration` naming the key of a file that cannot be read or is not PEM
 */
export function temporalTlsOf({ temporal }: Pick<AdminConfig, "temporal">, home: string): TemporalTls | undefined {
  const { tls, tls_server_name: serverNameOverride, tls_cert_file: certFile, api_key_env: keyName } = temporal;
  const read = (key: FileKey): Buffer | undefined => {
    const path = temporal[key];
    return path === undefined ? undefined : readPem(key, resolve(home, path));
  };
  const ca = read("tls_ca_file");
  const crt = read("tls_cert_file");
  const key = read("tls_key_file");
  const isWanted = tls ?? (ca !== undefined || certFile !== undefined || serverNameOverride !== undefined || keyName !== undefined);
  if (!isWanted) return undefined;
  return {
    ...(serverNameOverride === undefined ? {} : { serverNameOverride }),
    ...(ca === undefined ? {} : { serverRootCACertificate: ca }),
    ...(crt === undefined || key === undefined ? {} : { clientCertPair: { crt, key } }),
  };
}

/**
 * The API key that Temporal is asked with; undefined where it asks for none.
 * @throws {AppError} `invalid_configuration` naming the variable that is not set, or does not hold what can stand in a header
 */
export function temporalApiKeyOf({ temporal }: Pick<AdminConfig, "temporal">, variables: KeySource): string | undefined {
  const { api_key_env: name } = temporal;
  if (name === undefined) return undefined;
  const key = variables[name]?.trim();
  const says = !key ? "is not set" : /^[\x21-\x7e]+$/.test(key) ? undefined : "holds no key";
  if (says === undefined) return key;
  throw new AppError("invalid_configuration", {
    client: { message: `temporal.api_key_env: ${name} ${says}`, param: "temporal.api_key_env" },
  });
}

function readPem(key: FileKey, path: string): Buffer {
  const invalid = (says: string): AppError =>
    new AppError("invalid_configuration", { client: { message: `temporal.${key}: ${path} ${says}`, param: `temporal.${key}` } });
  let pem: Buffer;
  try {
    pem = readFileSync(path);
  } catch (error) {
    throw invalid(`cannot be read (${(error as NodeJS.ErrnoException).code ?? String(error)})`);
  }
  if (!pem.includes("-----BEGIN ")) throw invalid("is not PEM");
  return pem;
}
