import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import type { AdminConfig } from "../control-plane/admin-config.ts";
import { AppError } from "../domain/app-error.ts";
import type { TemporalTls } from "../temporal/temporal-connection.ts";

type FileKey = "tls_ca_file" | "tls_cert_file" | "tls_key_file";

/**
 * How Temporal is spoken to, by `temporal.tls…`; paths are relative to the home. Undefined: in the clear.
 * @throws {AppError} `invalid_configuration` naming the key of a file that cannot be read or is not PEM
 */
export function temporalTlsOf({ temporal }: Pick<AdminConfig, "temporal">, home: string): TemporalTls | undefined {
  const { tls, tls_server_name: serverNameOverride, tls_cert_file: certFile } = temporal;
  const read = (key: FileKey): Buffer | undefined => {
    const path = temporal[key];
    return path === undefined ? undefined : readPem(key, resolve(home, path));
  };
  const ca = read("tls_ca_file");
  const crt = read("tls_cert_file");
  const key = read("tls_key_file");
  const isWanted = tls ?? (ca !== undefined || certFile !== undefined || serverNameOverride !== undefined);
  if (!isWanted) return undefined;
  return {
    ...(serverNameOverride === undefined ? {} : { serverNameOverride }),
    ...(ca === undefined ? {} : { serverRootCACertificate: ca }),
    ...(crt === undefined || key === undefined ? {} : { clientCertPair: { crt, key } }),
  };
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
