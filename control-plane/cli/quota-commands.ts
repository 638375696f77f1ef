import { type Command, InvalidArgumentError } from "commander";
import { z } from "zod";
import type { CliContext } from "./cli-context.ts";
import { CliError, exitCodes } from "./exit-code.ts";
import { connectGateway } from "./gateway-client.ts";
import { tenantArgument } from "./tenant-argument.ts";
import { type Terminal, jsonText, paint } from "./terminal.ts";

export const quotaSchema = z.looseObject({
  tokens_per_day: z.number().nullable(),
  cost_per_day_usd: z.string().nullable(),
  requests_per_minute: z.number().nullable(),
});
type Quota = z.infer<typeof quotaSchema>;

export type QuotaOptions = {
  readonly tokensPerDay?: number | "none";
  readonly costPerDayUsd?: string;
  readonly requestsPerMinute?: number | "none";
};

/** A whole number whose digits may hold `_`, or `none`. */
function wholeOrNone(text: string): number | "none" {
  if (text === "none") return text;
  const value = /^\d+(?:_\d+)*$/.test(text) ? Number(text.replaceAll("_", "")) : Number.NaN;
  if (!Number.isSafeInteger(value)) throw new InvalidArgumentError("give a whole number, 2_000_000 for example, or none.");
  return value;
}

/** Goes to the gateway as text: no decimal becomes a float here. */
function decimalOrNone(text: string): string {
  if (text === "none") return text;
  if (!/^\d+(?:_\d+)*(?:\.\d+)?$/.test(text)) throw new InvalidArgumentError("give US dollars, 12.50 for example, or none.");
  return text.replaceAll("_", "");
}

export const addQuotaOptions = (command: Command): Command =>
  command
    .option("--tokens-per-day <n>", "input, output and reasoning tokens of a UTC day, or none", wholeOrNone)
    .option("--cost-per-day-usd <n>", "US dollars of a UTC day, or none", decimalOrNone)
    .option("--requests-per-minute <n>", "turns admitted in a minute, or none", wholeOrNone);

const orNull = <T>(value: T): T | null => (value === "none" ? null : value);

/** The API's form of the ceilings that were given. */
export const quotaBodyOf = ({ tokensPerDay, costPerDayUsd, requestsPerMinute }: QuotaOptions) => ({
  ...(tokensPerDay === undefined ? {} : { tokens_per_day: orNull(tokensPerDay) }),
  ...(costPerDayUsd === undefined ? {} : { cost_per_day_usd: orNull(costPerDayUsd) }),
  ...(requestsPerMinute === undefined ? {} : { requests_per_minute: orNull(requestsPerMinute) }),
});

export const quotaFacts = (quota: Quota): readonly (readonly [string, string])[] => [
  ["tokens per day", quota.tokens_per_day?.toLocaleString("en-US") ?? "no ceiling"],
  ["US dollars per day", quota.cost_per_day_usd ?? "no ceiling"],
  ["requests per minute", quota.requests_per_minute?.toLocaleString("en-US") ?? "no ceiling"],
];

export function addQuotaCommands(tenants: Command, { variables, terminal }: CliContext): void {
  const quota = tenants.command("quota").description("look at and change what a tenant may use");

  quota
    .command("show")
    .description("show the ceilings of a tenant")
    .argument("<tenant>", "its id")
    .option("--json", "print JSON")
    .action(async (raw: string, { json }: { readonly json?: boolean }) => {
      const shown = await connectGateway(variables).json(quotaSchema, { path: `/v1/tenants/${tenantArgument(raw)}/quota` });
      return await terminal.write(json ? jsonText(shown) : quotaText(terminal, shown));
    });

  addQuotaOptions(
    quota
      .command("update")
      .description("change the ceilings that are given; the others stay")
      .argument("<tenant>", "its id")
      .option("--json", "print JSON"),
  ).action(async (raw: string, { json, ...options }: QuotaOptions & { readonly json?: boolean }) => {
    const body = quotaBodyOf(options);
    if (Object.keys(body).length === 0)
      throw new CliError(exitCodes.usage, "Give at least one of --tokens-per-day, --cost-per-day-usd and --requests-per-minute.");
    const changed = await connectGateway(variables).json(quotaSchema, {
      method: "PUT",
      path: `/v1/tenants/${tenantArgument(raw)}/quota`,
      body,
    });
    return await terminal.write(json ? jsonText(changed) : quotaText(terminal, changed));
  });
}

const quotaText = (terminal: Terminal, quota: Quota): string =>
  quotaFacts(quota)
    .map(([name, value]) => `${paint(terminal, "dim", name.padEnd(19))} ${value}\n`)
    .join("");
