import type { Variables } from "./gateway-client.ts";
import type { Terminal } from "./terminal.ts";

/** What a command is given instead of reaching for the process. */
export type CliContext = {
  readonly variables: Variables;
  readonly terminal: Terminal;
  /** Of the installed package. */
  readonly packageRoot: string;
};
