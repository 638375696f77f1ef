import type { Command } from "commander";
import { z } from "zod";
import type { CliContext } from "./cli-context.ts";
import { connectGateway } from "./gateway-client.ts";
import { tenantArgument } from "./tenant-argument.ts";
import { jsonText, tableText } from "./terminal.ts";

const listSchema = z.looseObject({
  data: z.array(
    z.looseObject({
      run_id: z.string(),
      workflow_id: z.string(),
      type: z.string(),
      status: z.string(),
      events: z.number(),
      closed_at: z.string(),
    }),
  ),
  has_more: z.boolean(),
});

type ListOptions = {
  readonly tenant: string;
  readonly workflow?: string;
  readonly after?: string;
  readonly limit?: string;
  readonly json?: boolean;
};

export function addHistoryCommands(program: Command, { variables, terminal }: CliContext): void {
  const history = program.command("history").description("workflow runs that Temporal need not keep any more (temporal.archive_days)");

  history
    .command("list")
    .description("list archived runs, newest first")
    .requiredOption("--tenant <tenant>", "its id")
    .option("--workflow <id>", "of one workflow, for example turn:acme:api:jane:default")
    .option("--limit <runs>", "so many at most, up to 1000; 100 when left out")
    .option("--after <run>", "go on behind a list that ended with this run")
    .option("--json", "print JSON")
    .action(async ({ tenant, json, ...query }: ListOptions) => {
      const list = await connectGateway(variables).json(listSchema, { path: `/v1/tenants/${tenantArgument(tenant)}/histories`, query });
      if (json === true) return await terminal.write(jsonText(list));
      const last = list.data.at(-1);
      if (list.has_more && last !== undefined) terminal.note(`There are more: go on with --after ${last.run_id}`);
      await terminal.write(
        tableText(
          terminal,
          [
            { title: "CLOSED", cell: ({ closed_at }) => closed_at },
            { title: "WORKFLOW", cell: ({ workflow_id }) => workflow_id },
            { title: "RUN", cell: ({ run_id }) => run_id },
            { title: "STATUS", cell: ({ status }) => status },
            { title: "EVENTS", align: "right", cell: ({ events }) => String(events) },
          ],
          list.data,
        ),
      );
    });

  history
    .command("export")
    .description("print an archived history as Temporal's tools read it, with its payloads encrypted")
    .requiredOption("--tenant <tenant>", "its id")
    .argument("<run>", "id of the run")
    .action(async (run: string, { tenant }: { readonly tenant: string }) => {
      const path = `/v1/tenants/${tenantArgument(tenant)}/histories/${encodeURIComponent(run)}`;
      await terminal.write(jsonText(await connectGateway(variables).json(z.looseObject({ events: z.array(z.unknown()) }), { path })));
    });
}
