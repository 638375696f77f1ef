import type { Command } from "commander";
import { z } from "zod";
import type { CliContext } from "./cli-context.ts";
import { CliError, exitCodes } from "./exit-code.ts";
import { connectGateway } from "./gateway-client.ts";
import { followOperation, startedSchema } from "./operation-progress.ts";
import { type QuotaOptions, addQuotaCommands, addQuotaOptions, quotaBodyOf, quotaFacts, quotaSchema } from "./quota-commands.ts";
import { addOverlayCommands } from "./overlay-commands.ts";
import { jsonText, paint, tableText } from "./terminal.ts";
import { tenantArgument } from "./tenant-argument.ts";
import { addTokenCommands } from "./token-commands.ts";

const tenantSchema = z.looseObject({
  id: z.string(),
  display_name: z.string().nullable(),
  state: z.string(),
  markup_ppm: z.number().nullable(),
  quota: quotaSchema.optional(),
  created_at: z.string(),
});
const tenantListSchema = z.looseObject({ data: z.array(tenantSchema) });
const createdSchema = z.looseObject({ tenant: z.string(), token: z.string() });

type JsonFlag = { readonly json?: boolean };

export function addTenantCommands(program: Command, context: CliContext): void {
  const { variables, terminal } = context;
  const tenants = program.command("tenants").description("make, look at, suspend, resume and delete tenants");

  const create = tenants
    .command("create")
    .description("make a tenant and print its first token, which is shown this once")
    .argument("<tenant>", "id: 1 to 32 lower-case letters, digits and single inner hyphens")
    .option("--display-name <name>", "name for people")
    .option("--markup <decimal>", "added to every price, 0.10 for 10 %; default: the one of config.yaml")
    .option("--json", "print JSON");
  addQuotaOptions(create).action(
    async (tenant: string, options: JsonFlag & QuotaOptions & { readonly displayName?: string; readonly markup?: string }) => {
      const quota = quotaBodyOf(options);
      const id = tenantArgument(tenant);
      const created = await connectGateway(variables).json(createdSchema, {
        method: "POST",
        path: "/v1/tenants",
        body: {
          id,
          ...(options.displayName === undefined ? {} : { display_name: options.displayName }),
          ...(options.markup === undefined ? {} : { markup: options.markup }),
          ...(Object.keys(quota).length === 0 ? {} : { quota }),
        },
      });
      if (options.json) return terminal.write(jsonText(created));
      if (!terminal.interactive) return terminal.write(`${created.token}\n`);
      terminal.note(`Tenant ${created.tenant} is ready. Its token is shown this once:`);
      return terminal.write(`${paint(terminal, "bold", created.token)}\n`);
    },
  );

  tenants
    .command("list")
    .description("list the tenants")
    .option("--json", "print JSON")
    .action(async ({ json }: JsonFlag) => {
      const list = await connectGateway(variables).json(tenantListSchema, { path: "/v1/tenants" });
      if (json) return terminal.write(jsonText(list));
      return terminal.write(
        tableText(
          terminal,
          [
            { title: "TENANT", cell: ({ id }) => id },
            { title: "STATE", cell: ({ state }) => state },
            { title: "CREATED", cell: ({ created_at }) => created_at },
            { title: "NAME", cell: ({ display_name }) => display_name ?? "" },
          ],
          list.data,
        ),
      );
    });

  tenants
    .command("show")
    .description("show one tenant")
    .argument("<tenant>", "its id")
    .option("--json", "print JSON")
    .action(async (raw: string, { json }: JsonFlag) => {
      const tenant = await connectGateway(variables).json(tenantSchema, { path: `/v1/tenants/${tenantArgument(raw)}` });
      if (json) return terminal.write(jsonText(tenant));
      const facts = [
        ["tenant", tenant.id],
        ["name", tenant.display_name ?? ""],
        ["state", tenant.state],
        ["markup", tenant.markup_ppm === null ? "as in config.yaml" : `${tenant.markup_ppm / 10_000} %`],
        ["created", tenant.created_at],
        ...(tenant.quota === undefined ? [] : quotaFacts(tenant.quota)),
      ] as const;
      return terminal.write(facts.map(([name, value]) => `${paint(terminal, "dim", name.padEnd(19))} ${value}\n`).join(""));
    });

  const changes = [
    ["suspend", "refuse every call of a tenant until it is resumed"],
    ["resume", "serve a suspended tenant again"],
  ] as const;
  for (const [name, description] of changes) {
    tenants
      .command(name)
      .description(description)
      .argument("<tenant>", "its id")
      .option("--json", "print JSON")
      .action(async (raw: string, { json }: JsonFlag) => {
        const tenant = await connectGateway(variables).json(tenantSchema, {
          method: "POST",
          path: `/v1/tenants/${tenantArgument(raw)}/${name}`,
        });
        return json ? terminal.write(jsonText(tenant)) : terminal.note(`Tenant ${tenant.id} is ${tenant.state}.`);
      });
  }
  tenants
    .command("delete")
    .description("delete a tenant for ever; its bills and its audit stay, and its id is not given again")
    .argument("<tenant>", "its id")
    .option("--confirm <tenant>", "its id again: deleting cannot be taken back")
    .option("--json", "print JSON")
    .action(async (raw: string, { confirm, json }: JsonFlag & { readonly confirm?: string }) => {
      const tenant = tenantArgument(raw);
      if (confirm !== tenant) throw new CliError(exitCodes.usage, `Deleting cannot be taken back: repeat the id as --confirm ${tenant}.`);
      const gateway = connectGateway(variables);
      const started = await gateway.json(startedSchema, { method: "DELETE", path: `/v1/tenants/${tenant}`, query: { confirm } });
      const operation = await followOperation(gateway, started.workflow_id, terminal);
      return json ? terminal.write(jsonText(operation)) : terminal.note(`Tenant ${tenant} is deleted.`);
    });
  addQuotaCommands(tenants, context);
  addTokenCommands(tenants, context);
  addOverlayCommands(tenants, context);
}
