import { readFileSync } from "node:fs";
import { CliError, exitCodes } from "./exit-code.ts";
import type { Terminal } from "./terminal.ts";

/** The gateway takes far less, and says so. */
const maxBytes = 16 * 1_024 * 1_024;

/** The text of a file, or with `-` what comes on standard input, to its end, however late. @throws {CliError} usage */
export async function textArgument(file: string, terminal: Pick<Terminal, "input">): Promise<string> {
  try {
    return file === "-" ? Buffer.from(await terminal.input(maxBytes)).toString("utf8") : readFileSync(file, "utf8");
  } catch (error) {
    throw new CliError(exitCodes.usage, `${file} cannot be read: ${(error as Error).message}`, { cause: error });
  }
}
