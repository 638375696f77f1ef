import { Command, CommanderError } from "commander";
import { addAdminKeyCommands } from "./admin-key-commands.ts";
import { addAgentCommand } from "./agent-command.ts";
import { addAuditCommands } from "./audit-commands.ts";
import { addBillingCommands } from "./billing-commands.ts";
import type { CliContext } from "./cli-context.ts";
import { addCompletionCommand } from "./completion-command.ts";
import { addDoctorCommand } from "./doctor-command.ts";
import { CliError, exitCodes, type ExitCode, PassedExit } from "./exit-code.ts";
import { addHistoryCommands } from "./history-commands.ts";
import { addKeyCommands } from "./key-commands.ts";
import { addProcessCommands } from "./process-commands.ts";
import { addRateCommands } from "./rate-commands.ts";
import { addSandboxCommands } from "./sandbox-commands.ts";
import { addTenantCommands } from "./tenant-commands.ts";

const help = `
Credential: OPENCLAW_TOKEN, else OPENCLAW_ADMIN_KEY, else the file admin-key of the home.
Gateway:    OPENCLAW_URL, else the one that runs on the home (OPENCLAW_HOME).
Exit code:  0 done, 1 failed, 2 usage, 3 not reachable, 4 refused.`;

export function createProgram(context: CliContext, version: string): Command {
  const program = new Command("openclaw")
    .description("A multi-tenant AI gateway of durable turns. This command runs it and speaks to it.")
    .version(version)
    .addHelpText("after", help)
    .exitOverride()
    .configureOutput({
      writeOut: (text) => void context.terminal.write(text),
      writeErr: (text) => context.terminal.note(text.trimEnd()),
      outputError: (text) =>
        context.terminal.note(
          `openclaw: ${text
            .replace(/^error: /, "")
            .trim()
            .replaceAll(/\s*\n\s*/g, " ")} (--help says more)`,
        ),
    });
  addProcessCommands(program, context);
  addTenantCommands(program, context);
  addAdminKeyCommands(program, context);
  addKeyCommands(program, context);
  addAuditCommands(program, context);
  addBillingCommands(program, context);
  addRateCommands(program, context);
  addAgentCommand(program, context);
  addSandboxCommands(program, context);
  addHistoryCommands(program, context);
  addDoctorCommand(program, context);
  addCompletionCommand(program, context);
  return program;
}

/** Runs one command line. Errors end as one line on stderr. @returns an exit code of ours, or of the program that was run */
export async function runProgram(context: CliContext, version: string, words: readonly string[]): Promise<number> {
  try {
    await createProgram(context, version).parseAsync(words, { from: "user" });
    return exitCodes.done;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 || error.code === "commander.help" ? helpCode(error) : exitCodes.usage;
    if (error instanceof PassedExit) return error.status;
    const known =
      error instanceof CliError
        ? error
        : new CliError(exitCodes.failed, error instanceof Error ? error.message : String(error), { cause: error });
    context.terminal.note(`openclaw: ${known.message.replace(/\s*\n\s*/g, " ")}`);
    return known.exitCode;
  }
}

/** Help that was asked for is an answer; help in place of a missing command is not. */
const helpCode = ({ exitCode }: CommanderError): ExitCode => (exitCode === 0 ? exitCodes.done : exitCodes.usage);
