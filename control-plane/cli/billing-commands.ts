import type { Command } from "commander";
import { z } from "zod";
import type { CliContext } from "./cli-context.ts";
import { CliError, exitCodes } from "./exit-code.ts";
import { connectGateway } from "./gateway-client.ts";
import { addInvoiceCommands } from "./invoice-commands.ts";
import { checkPeriod } from "./period-argument.ts";
import { tenantArgument } from "./tenant-argument.ts";
import { jsonText, paint, tableText, type Column } from "./terminal.ts";

const dayRowSchema = z.looseObject({
  date: z.string(),
  model: z.string(),
  tokens_in: z.number(),
  tokens_out: z.number(),
  tokens_cached: z.number(),
  reasoning_tokens: z.number(),
  tool_calls: z.number(),
  cost_usd: z.string(),
});
const reportSchema = z.looseObject({ rows: z.array(dayRowSchema), total_cost_usd: z.string() });
const verificationSchema = z.looseObject({
  ok: z.boolean(),
  tenants: z.number(),
  rows: z.number(),
  findings: z.array(z.looseObject({ tenant: z.string(), check: z.string(), kind: z.string(), subject: z.string(), what: z.string() })),
  has_more: z.boolean(),
  unread: z.array(z.string()),
});
const explanationSchema = z.looseObject({ sentence: z.string() });

type DayRow = z.infer<typeof dayRowSchema>;
type ReportOptions = { readonly period: string; readonly csv?: boolean; readonly json?: boolean; readonly detail?: boolean };

const number = (title: string, pick: (row: DayRow) => number): Column<DayRow> => ({
  title,
  align: "right",
  cell: (row) => pick(row).toLocaleString("en-US"),
});
const columns: readonly Column<DayRow>[] = [
  { title: "DATE", cell: ({ date }) => date },
  { title: "MODEL", cell: ({ model }) => model },
  number("IN", ({ tokens_in }) => tokens_in),
  number("OUT", ({ tokens_out }) => tokens_out),
  number("CACHED", ({ tokens_cached }) => tokens_cached),
  number("REASONING", ({ reasoning_tokens }) => reasoning_tokens),
  number("TOOLS", ({ tool_calls }) => tool_calls),
  { title: "USD", align: "right", cell: ({ cost_usd }) => cost_usd },
];

export function addBillingCommands(program: Command, context: CliContext): void {
  const { variables, terminal } = context;
  const billing = program.command("billing").description("what tenants used and what it cost");
  addInvoiceCommands(billing, context);

  billing
    .command("report")
    .description("a tenant's usage by day and model: a table on a terminal, else CSV")
    .argument("<tenant>", "its id")
    .requiredOption("--period <period>", "today, yesterday, current-month, last-month, YYYY-MM or YYYY-MM-DD..YYYY-MM-DD (UTC)")
    .option("--csv", "print CSV")
    .option("--json", "print JSON")
    .option("--detail", "one line per model call (CSV or JSON)")
    .action(async (raw: string, options: ReportOptions) => {
      if (options.csv && options.json) throw new CliError(exitCodes.usage, "--csv and --json exclude each other.");
      const tenant = tenantArgument(raw);
      checkPeriod(options.period);
      const gateway = connectGateway(variables);
      const request = (format: "csv" | "json") => ({
        path: "/v1/billing/report",
        query: { tenant, period: options.period, format, detail: options.detail ? "true" : undefined },
        timeoutMs: 0,
      });
      if (terminal.interactive && !options.csv && !options.json && !options.detail) {
        const report = await gateway.json(reportSchema, request("json"));
        await terminal.write(tableText(terminal, columns, report.rows));
        return terminal.write(`${paint(terminal, "bold", `Total ${report.total_cost_usd} USD`)}\n`);
      }
      const response = await gateway.request(request(options.json ? "json" : "csv"));
      await copyBody(response, (text) => terminal.write(text));
    });

  billing
    .command("explain")
    .description("how one billing row came to its price")
    .argument("<row id>", "<turn id>.<step>")
    .option("--json", "print JSON")
    .action(async (rowId: string, { json }: { readonly json?: boolean }) => {
      const explanation = await connectGateway(variables).json(explanationSchema, {
        path: `/v1/billing/rows/${encodeURIComponent(rowId)}/explain`,
      });
      return terminal.write(json ? jsonText(explanation) : `${explanation.sentence}\n`);
    });

  billing
    .command("verify")
    .description("compare calls, billing rows, daily sums, prices and counters to the digit; exit code 1 when something differs")
    .option("--tenant <tenant>", "only this one")
    .option("--period <period>", "only these days of admission, as for a report; default: all")
    .option("--json", "print JSON")
    .action(async ({ tenant, period, json }: { readonly tenant?: string; readonly period?: string; readonly json?: boolean }) => {
      if (period !== undefined) checkPeriod(period);
      const found = await connectGateway(variables).json(verificationSchema, {
        path: "/v1/billing/verify",
        query: { tenant: tenant === undefined ? undefined : tenantArgument(tenant), period },
        timeoutMs: 0,
      });
      if (json) await terminal.write(jsonText(found));
      else
        for (const { tenant: of, check, subject, what } of found.findings) await terminal.write(`${of}  ${check}  ${subject}: ${what}\n`);
      if (found.unread.length > 0) terminal.note(`Something of these tenants could not be read: ${found.unread.join(", ")}.`);
      if (!found.ok) {
        const count = `${found.has_more ? "more than " : ""}${found.findings.length}`;
        throw new CliError(exitCodes.failed, `${count} differences in ${found.rows} rows.`);
      }
      if (!json) terminal.note(`${found.rows} rows of ${found.tenants} tenants agree with their calls, sums, prices and counters.`);
    });
}

/** @throws {CliError} failed: a report that breaks off must not pass for a whole one. */
async function copyBody(response: Response, write: (text: string) => Promise<void>): Promise<void> {
  const decoder = new TextDecoder();
  try {
    for await (const chunk of response.body ?? []) await write(decoder.decode(chunk as Uint8Array, { stream: true }));
  } catch (error) {
    throw new CliError(exitCodes.failed, "The report broke off before its end.", { cause: error });
  }
}
