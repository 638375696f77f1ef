import { Connection, isGrpcServiceError } from "@temporalio/client";
import type { TemporalOptions } from "./temporal-connection.ts";

/** What a Temporal server tells of itself and of one namespace. */
export type TemporalReport = {
  readonly serverVersion: string;
  /** Undefined: the namespace is not there. */
  readonly retentionDays: number | undefined;
  /** Names of the search attributes that the namespace lacks; undefined where the server does not tell (Temporal Cloud). */
  readonly missingSearchAttributes: readonly string[] | undefined;
};

const connectTimeoutMs = 3_000;
const answerTimeoutMs = 3_000;
const daySeconds = 24 * 60 * 60;
/** Of `google.rpc.Code`. */
const notFound = 5;

/** Changes nothing there. @throws {Error} when no Temporal server answers */
export async function describeTemporal(
  { address, tls, apiKey, namespace }: Pick<TemporalOptions, "address" | "tls" | "apiKey" | "namespace">,
  searchAttributes: Readonly<Record<string, string>>,
): Promise<TemporalReport> {
  const credential = apiKey === undefined ? {} : { apiKey };
  const connection = await Connection.connect({ address, tls: tls ?? null, connectTimeout: connectTimeoutMs, ...credential });
  try {
    return await connection.withDeadline(Date.now() + answerTimeoutMs, async () => {
      const { serverVersion } = await connection.workflowService.getSystemInfo({});
      const retentionDays = await retentionOf(connection, namespace);
      const missingSearchAttributes =
        retentionDays === undefined ? undefined : await missingIn(connection, namespace, Object.keys(searchAttributes));
      return { serverVersion, retentionDays, missingSearchAttributes };
    });
  } finally {
    await connection.close();
  }
}

async function retentionOf(connection: Connection, namespace: string): Promise<number | undefined> {
  try {
    const { config } = await connection.workflowService.describeNamespace({ namespace });
    return Number(config?.workflowExecutionRetentionTtl?.seconds ?? 0) / daySeconds;
  } catch (error) {
    if (isGrpcServiceError(error) && Number(error.code) === notFound) return undefined;
    throw error;
  }
}

async function missingIn(connection: Connection, namespace: string, names: readonly string[]): Promise<readonly string[] | undefined> {
  try {
    const { customAttributes } = await connection.operatorService.listSearchAttributes({ namespace });
    return names.filter((name) => customAttributes?.[name] === undefined);
  } catch {
    return undefined;
  }
}
