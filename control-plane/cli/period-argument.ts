import { parsePeriod } from "../billing-period.ts";
import { CliError, exitCodes } from "./exit-code.ts";

/** @throws {CliError} usage, for what is no period */
export function checkPeriod(period: string): void {
  try {
    parsePeriod(period, Date.now());
  } catch (error) {
    throw new CliError(exitCodes.usage, (error as Error).message, { cause: error });
  }
}
