import { type Command, Option } from "commander";
import { z } from "zod";
import { invoiceResolutions } from "../../domain/invoice.ts";
import type { CliContext } from "./cli-context.ts";
import { CliError, exitCodes } from "./exit-code.ts";
import { connectGateway } from "./gateway-client.ts";
import { followOperation, startedSchema } from "./operation-progress.ts";
import { checkPeriod } from "./period-argument.ts";
import { tenantArgument } from "./tenant-argument.ts";
import { type Column, type Terminal, jsonText, paint, tableText } from "./terminal.ts";

const previewSchema = z.looseObject({
  tenant: z.string(),
  customer: z.string(),
  mode: z.string(),
  total_usd: z.string(),
  lines: z.array(
    z.looseObject({
      event: z.string(),
      state: z.string(),
      event_name: z.string(),
      value: z.string(),
      amount_usd: z.string(),
      reason: z.string().nullable(),
    }),
  ),
});
const statusSchema = z.looseObject({
  mode: z.string(),
  data: z.array(
    z.looseObject({
      tenant: z.string(),
      mode: z.string(),
      customer: z.string(),
      state: z.string(),
      sent_events: z.number(),
      sent_usd: z.string(),
      undecided_count: z.number(),
      undecided: z.array(
        z.looseObject({
          event: z.string(),
          state: z.string(),
          amount_usd: z.string(),
          attempts: z.number(),
          reason: z.string().nullable(),
        }),
      ),
    }),
  ),
});

type Preview = z.infer<typeof previewSchema>;
type Account = z.infer<typeof statusSchema>["data"][number];
type Undecided = Account["undecided"][number] & { readonly tenant: string };
type RunOptions = { readonly tenant: string; readonly period: string; readonly dryRun?: boolean; readonly json?: boolean };

const lineColumns: readonly Column<Preview["lines"][number]>[] = [
  { title: "EVENT", cell: ({ event }) => event },
  { title: "STATE", cell: ({ state }) => state },
  { title: "METER", cell: ({ event_name }) => event_name },
  { title: "VALUE", align: "right", cell: ({ value }) => value },
  { title: "USD", align: "right", cell: ({ amount_usd }) => amount_usd },
];
const accountColumns: readonly Column<Account>[] = [
  { title: "TENANT", cell: ({ tenant }) => tenant },
  { title: "MODE", cell: ({ mode }) => mode },
  { title: "CUSTOMER", cell: ({ customer }) => customer },
  { title: "STATE", cell: ({ state }) => state },
  { title: "SENT", align: "right", cell: ({ sent_events }) => String(sent_events) },
  { title: "USD", align: "right", cell: ({ sent_usd }) => sent_usd },
  { title: "UNDECIDED", align: "right", cell: ({ undecided_count }) => String(undecided_count) },
];
const undecidedColumns: readonly Column<Undecided>[] = [
  { title: "TENANT", cell: ({ tenant }) => tenant },
  { title: "EVENT", cell: ({ event }) => event },
  { title: "STATE", cell: ({ state }) => state },
  { title: "USD", align: "right", cell: ({ amount_usd }) => amount_usd },
  { title: "TRIED", align: "right", cell: ({ attempts }) => String(attempts) },
  { title: "WHY", cell: ({ reason }) => reason ?? "" },
];

const path = "/v1/billing/invoices";

export function addInvoiceCommands(billing: Command, { variables, terminal }: CliContext): void {
  const invoice = billing.command("invoice").description("what Stripe is told of tenants' usage");

  invoice
    .command("run", { isDefault: true })
    .description("tell Stripe now what is owed for the days of a period that have ended")
    .requiredOption("--tenant <tenant>", "its id")
    .option("--period <period>", "today, yesterday, current-month, last-month, YYYY-MM or YYYY-MM-DD..YYYY-MM-DD (UTC)", "current-month")
    .option("--dry-run", "only show what would be told")
    .option("--json", "print JSON")
    .action(async ({ tenant: raw, period, dryRun, json }: RunOptions) => {
      const tenant = tenantArgument(raw);
      checkPeriod(period);
      const gateway = connectGateway(variables);
      const body = { tenant, period, dry_run: dryRun === true };
      if (dryRun) {
        const preview = await gateway.json(previewSchema, { method: "POST", path, body });
        return await terminal.write(json ? jsonText(preview) : previewText(terminal, preview));
      }
      const { workflow_id } = await gateway.json(startedSchema, { method: "POST", path, body });
      await followOperation(gateway, workflow_id, terminal);
      const status = await gateway.json(statusSchema, { path, query: { tenant } });
      await terminal.write(json ? jsonText(status) : statusText(terminal, status.data));
      const isLeft = status.data.some((account) => account.mode === status.mode && account.undecided_count > 0);
      if (isLeft) throw new CliError(exitCodes.failed, "Stripe has not taken everything: the list says why.");
    });

  invoice
    .command("status")
    .description("show what was told and what is not decided")
    .option("--tenant <tenant>", "only this one")
    .option("--json", "print JSON")
    .action(async ({ tenant: raw, json }: { readonly tenant?: string; readonly json?: boolean }) => {
      const tenant = raw === undefined ? undefined : tenantArgument(raw);
      const status = await connectGateway(variables).json(statusSchema, { path, query: { tenant } });
      return await terminal.write(json ? jsonText(status) : statusText(terminal, status.data));
    });

  invoice
    .command("resolve")
    .description("say what Stripe has of an event that is held or was refused")
    .argument("<event>", "as the status shows it: usage.2026-11-22.1")
    .requiredOption("--tenant <tenant>", "its id")
    .addOption(
      new Option("--as <state>", "sent: Stripe has it; open: it has not, send it again; dropped: never send it")
        .choices(invoiceResolutions)
        .makeOptionMandatory(),
    )
    .option("--json", "print JSON")
    .action(async (event: string, { tenant: raw, as, json }: { readonly tenant: string; readonly as: string; readonly json?: boolean }) => {
      const resolved = await connectGateway(variables).json(z.looseObject({ state: z.string() }), {
        method: "POST",
        path: `${path}/resolve`,
        body: { tenant: tenantArgument(raw), event, as },
      });
      return await (json ? terminal.write(jsonText(resolved)) : terminal.note(`${event} is ${resolved.state}.`));
    });
}

const previewText = (terminal: Terminal, { tenant, customer, mode, lines, total_usd }: Preview): string =>
  `${tableText(terminal, lineColumns, lines)}${paint(terminal, "bold", `${total_usd} USD would be told of ${tenant} for ${customer} (${mode} mode)`)}\n`;

function statusText(terminal: Terminal, accounts: readonly Account[]): string {
  const undecided = accounts.flatMap(({ tenant, undecided: events }) => events.map((event) => ({ tenant, ...event })));
  const rest = undecided.length === 0 ? "" : `\n${tableText(terminal, undecidedColumns, undecided)}`;
  return tableText(terminal, accountColumns, accounts) + rest;
}
