import type { Command } from "commander";
import { z } from "zod";
import type { CliContext } from "./cli-context.ts";
import { CliError, exitCodes, PassedExit } from "./exit-code.ts";
import { connectGateway } from "./gateway-client.ts";
import { tenantArgument } from "./tenant-argument.ts";
import { jsonText, tableText, type Terminal } from "./terminal.ts";

const lineSchema = z.discriminatedUnion("type", [
  z.looseObject({ type: z.literal("stdout"), data: z.base64() }),
  z.looseObject({ type: z.literal("stderr"), data: z.base64() }),
  z.looseObject({
    type: z.literal("exit"),
    exit_code: z.number().nullable(),
    signal: z.string().nullable(),
    reason: z.string(),
    detail: z.string().optional(),
    truncated: z.boolean(),
    mode: z.string(),
  }),
]);
type CommandEnd = Extract<z.infer<typeof lineSchema>, { type: "exit" }>;

const reasoned = z.looseObject({ value: z.union([z.string(), z.number(), z.null(), z.array(z.string())]), because: z.string() });
const explanationSchema = z.looseObject({
  installed: z.boolean(),
  allowed: z.boolean(),
  mode: reasoned,
  limits: z.record(z.string(), reasoned),
  runtime: reasoned,
  runtime_class: reasoned,
  image: reasoned,
  seccomp: reasoned,
  network: reasoned,
  enforcement: z.record(z.string(), z.string()).nullable(),
  refused: z.string().nullable(),
});
type Explanation = z.infer<typeof explanationSchema>;

/** What SIGKILL leaves as an exit status in a shell: 128 + 9. */
const killedStatus = 137;
/** 16 MiB of JSON hold no more as base64. */
const maxStdinBytes = 11 * 1_024 * 1_024;

export function addSandboxCommands(program: Command, { variables, terminal }: CliContext): void {
  const sandbox = program.command("sandbox").description("look into a tenant's sandbox");

  sandbox
    .command("exec")
    .description("run one command in a tenant's sandbox; stdin, stdout, stderr and the exit status are the command's own (no terminal)")
    .requiredOption("--tenant <tenant>", "its id")
    .option("--mode <mode>", "one of the configured modes")
    .argument("<command...>", "behind --: the program and its arguments")
    .action(async (command: readonly string[], { tenant: raw, mode }: { readonly tenant: string; readonly mode?: string }) => {
      const tenant = tenantArgument(raw);
      const gateway = connectGateway(variables);
      const stdin = await terminal.input(maxStdinBytes);
      const response = await gateway.request({
        method: "POST",
        path: `/v1/tenants/${tenant}/sandbox/exec`,
        body: {
          command,
          ...(mode === undefined ? {} : { mode }),
          ...(stdin.length === 0 ? {} : { stdin: Buffer.from(stdin).toString("base64") }),
        },
        timeoutMs: 0,
      });
      return endLike(await passOn(response, terminal), terminal);
    });

  sandbox
    .command("copy")
    .description("write a file of a tenant's sandbox to stdout: a plain file of at most 1 GiB, no link")
    .requiredOption("--tenant <tenant>", "its id")
    .argument("<path>", "below the sandbox's work directory, for example out/report.pdf")
    .action(async (path: string, { tenant: raw }: { readonly tenant: string }) => {
      const response = await connectGateway(variables).request({
        path: `/v1/tenants/${tenantArgument(raw)}/sandbox/file`,
        query: { path },
        timeoutMs: 0,
      });
      await copyOut(response, terminal);
    });

  sandbox
    .command("explain")
    .description("what would apply to a tool's run, and why")
    .requiredOption("--tenant <tenant>", "its id")
    .requiredOption("--tool <tool>", "its name, for example exec")
    .option("--json", "print JSON")
    .action(async ({ tenant: raw, tool, json }: { readonly tenant: string; readonly tool: string; readonly json?: boolean }) => {
      const path = `/v1/tenants/${tenantArgument(raw)}/sandbox/explain`;
      const explanation = await connectGateway(variables).json(explanationSchema, { path, query: { tool } });
      await terminal.write(json === true ? jsonText(explanation) : explanationText(terminal, explanation));
      if (explanation.refused !== null) terminal.note(`openclaw: nothing runs in this mode here: ${explanation.refused}`);
      else if (!explanation.installed) terminal.note(`openclaw: no tool "${tool}" is installed`);
      else if (!explanation.allowed) terminal.note(`openclaw: the tenant's overlay does not allow the tool "${tool}"`);
    });
}

/** @throws {CliError} when the answer breaks off: what was written is not the whole file */
async function copyOut(response: Response, terminal: Terminal): Promise<void> {
  try {
    for await (const chunk of (response.body ?? []) as AsyncIterable<Uint8Array>) await terminal.pass("stdout", chunk);
  } catch (error) {
    throw new CliError(exitCodes.failed, "The copy broke off: the file changed, or the connection was lost.", { cause: error });
  }
}

/** @throws {CliError} when the answer ends without the command's end: then nobody knows how it ended */
async function passOn(response: Response, terminal: Terminal): Promise<CommandEnd> {
  const decoder = new TextDecoder();
  let text = "";
  try {
    for await (const chunk of (response.body ?? []) as AsyncIterable<Uint8Array>) {
      text += decoder.decode(chunk, { stream: true });
      const lines = text.split("\n");
      text = lines.pop() ?? "";
      for (const raw of lines) {
        const line = lineSchema.parse(JSON.parse(raw));
        if (line.type === "exit") return line;
        await terminal.pass(line.type, Buffer.from(line.data, "base64"));
      }
    }
  } catch (error) {
    throw new CliError(exitCodes.failed, "The connection to the gateway was lost; the gateway ends the command.", { cause: error });
  }
  throw new CliError(exitCodes.failed, "The answer broke off before the command's end.");
}

function endLike({ exit_code: exitCode, signal, reason, detail, truncated, mode }: CommandEnd, terminal: Terminal): void {
  if (reason === "failed_to_start" || detail != null)
    throw new CliError(exitCodes.failed, `The sandbox did not start: ${detail ?? "it gave no reason"}`);
  if (truncated) terminal.note("openclaw: there was more output than the mode keeps; the rest is lost");
  if (reason !== "ok") terminal.note(`openclaw: the command met a limit of the mode ${mode}: ${reason}`);
  else if (signal !== null) terminal.note(`openclaw: the command was ended by ${signal}`);
  const status = exitCode ?? killedStatus;
  // A command that a limit ended has not done its work, whatever it said last.
  if (status !== 0 || reason !== "ok") throw new PassedExit(status === 0 ? killedStatus : status);
}

function explanationText(terminal: Terminal, explanation: Explanation): string {
  const { mode, limits, runtime, runtime_class, image, seccomp, network, enforcement } = explanation;
  const rows = Object.entries({ mode, runtime, runtime_class, image, seccomp, network, ...limits }).filter(
    ([, { value }]) => value !== null,
  );
  const held: Readonly<Record<string, string>> = {
    memory_limit_mb: "memory",
    cpu_quota: "cpu",
    pids: "processes",
    wall_seconds: "wall",
    output_kb: "output",
    disk_mb: "disk",
    inodes: "inodes",
  };
  return tableText(
    terminal,
    [
      { title: "what", cell: ([name]) => name },
      { title: "value", cell: ([, { value }]) => (Array.isArray(value) ? value.join(" ") || "none" : String(value)) },
      { title: "held", cell: ([name]) => enforcement?.[held[name] ?? ""] ?? "-" },
      { title: "because", cell: ([, { because }]) => because },
    ],
    rows,
  );
}
