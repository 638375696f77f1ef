import { parseTenantId } from "../../domain/tenant.ts";
import { CliError, exitCodes } from "./exit-code.ts";

/** A tenant id as it was typed. @throws {CliError} usage */
export function tenantArgument(raw: string): string {
  try {
    return parseTenantId(raw);
  } catch (error) {
    throw new CliError(exitCodes.usage, `"${raw}" is not a tenant id: ${(error as Error).message}`, { cause: error });
  }
}
