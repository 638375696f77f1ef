import { setTimeout as sleep } from "node:timers/promises";
import type { Command } from "commander";
import { z } from "zod";
import type { CliContext } from "./cli-context.ts";
import { CliError, exitCodes } from "./exit-code.ts";
import { connectGateway } from "./gateway-client.ts";
import { jsonText } from "./terminal.ts";

const startedSchema = z.looseObject({ workflow_id: z.string() });
const operationSchema = z.looseObject({
  state: z.enum(["running", "done", "failed"]),
  progress: z
    .looseObject({ failure: z.string().optional(), steps: z.array(z.looseObject({ name: z.string(), state: z.string() })) })
    .nullish(),
});

const lookAgainMs = 500;

export function addKeyCommands(program: Command, { variables, terminal }: CliContext): void {
  const keys = program.command("keys").description("the keys that secrets at rest are encrypted with");

  keys
    .command("rotate")
    .description("make new keys and bring everything sealed over to them; all of it stays readable meanwhile")
    .option("--no-wait", "do not wait for the end")
    .option("--json", "print JSON")
    .action(async ({ json, wait }: { readonly json?: boolean; readonly wait: boolean }) => {
      const gateway = connectGateway(variables);
      const started = await gateway.json(startedSchema, { method: "POST", path: "/v1/keys/rotate" });
      if (!wait) return await terminal.write(json ? jsonText(started) : `${started.workflow_id}\n`);
      terminal.note(`The rotation ${started.workflow_id} has begun.`);
      const path = `/v1/operations/${encodeURIComponent(started.workflow_id)}`;
      let shown = 0;
      for (;;) {
        const operation = await gateway.json(operationSchema, { path });
        const ended = operation.progress?.steps.filter(({ state }) => state === "done") ?? [];
        for (const { name } of ended.slice(shown)) terminal.note(`  ${name}`);
        shown = Math.max(shown, ended.length);
        if (operation.state === "failed") {
          const why = operation.progress?.failure ?? "its workflow in Temporal says why";
          throw new CliError(
            exitCodes.failed,
            `The rotation ${started.workflow_id} has failed, and what was sealed is readable as before: ${why}.`,
          );
        }
        if (operation.state === "done") return await (json ? terminal.write(jsonText(operation)) : terminal.note("The keys are rotated."));
        await sleep(lookAgainMs);
      }
    });
}
