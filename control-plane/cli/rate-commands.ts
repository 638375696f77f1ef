import { isatty } from "node:tty";
import type { Command } from "commander";
import { z } from "zod";
import type { CliContext } from "./cli-context.ts";
import { CliError, exitCodes } from "./exit-code.ts";
import { connectGateway } from "./gateway-client.ts";
import { type Column, jsonText, paint, tableText } from "./terminal.ts";
import { textArgument } from "./text-argument.ts";

const ratesSchema = z.looseObject({
  input: z.string(),
  output: z.string(),
  cache_read: z.string().optional(),
  cache_write: z.string().optional(),
  reasoning: z.string().optional(),
});
const setSchema = z.looseObject({ hash: z.string(), rate_card: z.record(z.string(), ratesSchema) });
const cardSchema = setSchema.extend({ valid_from: z.string().nullable(), markup_ppm: z.number(), fault: z.string().nullable() });
const checkSchema = cardSchema.extend({
  unpriced: z.array(z.looseObject({ model: z.string(), used_by: z.array(z.string()), tenants: z.array(z.string()) })),
});
type RateRow = z.infer<typeof ratesSchema> & { readonly model: string };
type UnpricedRow = z.infer<typeof checkSchema>["unpriced"][number];
type JsonFlag = { readonly json?: boolean };

const ratesHelp = `
Prices are US dollars per 1M tokens: decimals with at most 6 places, 0 to 1,000,000. Without them cache_read and cache_write cost
what input does, and reasoning what output does. A card counts for calls that begin after the change, never backwards; every
billing row names the card that it was priced with. A model without a price is refused before its provider is called.`;

const setHelp = `
The card is YAML or JSON, as billing.rate_card in config.yaml, and replaces the one in force as a whole:
  rate_card:
    gpt-5-mini: { input: 0.25, output: 2.00, cache_read: 0.025 }
Examples:
  openclaw billing rates get > card.yaml
  openclaw billing rates set card.yaml
  openclaw billing rates get | sed 's/output: 2 /output: 2.2 /' | openclaw billing rates set -
It is written into the gateway's config.yaml, whose other text and comments stay; editing that file is the same change.`;

const checkHelp = `
In use is what config.yaml lists under models, what tenants name in their overlays, and what was billed in the last 31 days.
Exit code 1 when there is such a model.`;

const optional = (title: string, pick: (row: RateRow) => string | undefined, otherwise: (row: RateRow) => string): Column<RateRow> => ({
  title,
  align: "right",
  cell: (row) => pick(row) ?? `(${otherwise(row)})`,
});
const rateColumns: readonly Column<RateRow>[] = [
  { title: "MODEL", cell: ({ model }) => model },
  { title: "INPUT", align: "right", cell: ({ input }) => input },
  { title: "OUTPUT", align: "right", cell: ({ output }) => output },
  optional(
    "CACHE READ",
    ({ cache_read }) => cache_read,
    ({ input }) => input,
  ),
  optional(
    "CACHE WRITE",
    ({ cache_write }) => cache_write,
    ({ input }) => input,
  ),
  optional(
    "REASONING",
    ({ reasoning }) => reasoning,
    ({ output }) => output,
  ),
];
const unpricedColumns: readonly Column<UnpricedRow>[] = [
  { title: "MODEL", cell: ({ model }) => model },
  { title: "USED BY", cell: ({ used_by }) => used_by.join(", ") },
  { title: "TENANTS", cell: ({ tenants }) => tenants.join(", ") },
];

/** `openclaw billing rates …`, below the command `billing`. */
export function addRateCommands(program: Command, { variables, terminal }: CliContext): void {
  const billing = program.commands.find((command) => command.name() === "billing") ?? program.command("billing");
  const rates = billing.command("rates").description("what model calls cost").addHelpText("after", ratesHelp);

  rates
    .command("get")
    .description("print the rate card in force: a table on a terminal, else YAML that `set` takes")
    .option("--json", "print JSON")
    .addHelpText("after", ratesHelp)
    .action(async ({ json }: JsonFlag) => {
      const card = await connectGateway(variables).json(cardSchema, { path: "/v1/rate-card" });
      if (json) return await terminal.write(jsonText(card));
      if (card.fault !== null) terminal.note(card.fault);
      if (!terminal.interactive) return await terminal.write(yamlOf(card));
      await terminal.write(
        tableText(
          terminal,
          rateColumns,
          Object.entries(card.rate_card).map(([model, row]) => ({ model, ...row })),
        ),
      );
      const markup = card.markup_ppm === 0 ? "no markup" : `markup ${card.markup_ppm / 10_000} %`;
      return await terminal.write(
        paint(terminal, "dim", `USD per 1M tokens, ${markup}, card ${card.hash.slice(0, 12)} since ${card.valid_from ?? "unknown"}\n`),
      );
    });

  rates
    .command("set")
    .description("replace the rate card by the one in a file")
    .argument("[file]", "a YAML or JSON file, or - for standard input", "-")
    .option("--json", "print JSON")
    .addHelpText("after", ratesHelp + setHelp)
    .action(async (file: string, { json }: JsonFlag) => {
      if (file === "-" && isatty(0))
        throw new CliError(exitCodes.usage, "Name a file, or send the card on standard input: openclaw billing rates set < card.yaml");
      const text = { contentType: "application/yaml", content: await textArgument(file, terminal) };
      const card = await connectGateway(variables).json(setSchema, { method: "PUT", path: "/v1/rate-card", text });
      if (json) return await terminal.write(jsonText(card));
      return terminal.note(`The rate card ${card.hash.slice(0, 12)} with ${Object.keys(card.rate_card).length} models is in force.`);
    });

  rates
    .command("check")
    .description("list the models in use that have no price")
    .option("--json", "print JSON")
    .addHelpText("after", checkHelp)
    .action(async ({ json }: JsonFlag) => {
      const card = await connectGateway(variables).json(checkSchema, { path: "/v1/rate-card", query: { check: "true" }, timeoutMs: 0 });
      const { unpriced } = card;
      if (json) await terminal.write(jsonText({ hash: card.hash, fault: card.fault, unpriced }));
      else if (unpriced.length > 0) await terminal.write(tableText(terminal, unpricedColumns, unpriced));
      if (card.fault !== null) terminal.note(card.fault);
      if (unpriced.length > 0) {
        const models = unpriced.length === 1 ? "1 model in use has" : `${unpriced.length} models in use have`;
        throw new CliError(exitCodes.failed, `${models} no price: calls of it are refused until the rate card names it.`);
      }
      if (!json) terminal.note("Every model in use has a price.");
    });
}

function yamlOf({ rate_card }: z.infer<typeof cardSchema>): string {
  const lines = Object.entries(rate_card).map(([model, rates]) => {
    const pairs = Object.entries(rates).map(([name, rate]) => `${name}: ${String(rate)}`);
    return `  ${JSON.stringify(model)}: { ${pairs.join(", ")} }\n`;
  });
  return lines.length === 0 ? "rate_card: {}\n" : `rate_card:\n${lines.join("")}`;
}
