import type { Command } from "commander";
import { z } from "zod";
import type { CliContext } from "./cli-context.ts";
import { CliError, exitCodes } from "./exit-code.ts";
import { connectGateway } from "./gateway-client.ts";
import { jsonText, tableText } from "./terminal.ts";
import { tenantArgument } from "./tenant-argument.ts";

const entrySchema = z.looseObject({
  chain: z.string(),
  seq: z.number(),
  ts: z.string(),
  actor: z.looseObject({ type: z.string(), id: z.string() }),
  action: z.string(),
  target: z.string(),
  outcome: z.string(),
});
const listSchema = z.looseObject({ data: z.array(entrySchema), has_more: z.boolean() });
const verificationSchema = z.looseObject({
  ok: z.boolean(),
  chains: z.number(),
  entries: z.number(),
  findings: z.array(z.looseObject({ chain: z.string(), seq: z.number(), what: z.string() })),
  notes: z.array(z.string()),
});

type JsonFlag = { readonly json?: boolean };
type ListOptions = JsonFlag & { readonly tenant?: string; readonly since?: string; readonly action?: string };

export function addAuditCommands(program: Command, { variables, terminal }: CliContext): void {
  const audit = program.command("audit").description("who changed what, and whether the record is whole");

  audit
    .command("list")
    .description("list state changes, oldest first")
    .option("--tenant <tenant>", "of one tenant")
    .option("--since <time>", "from this date or time on: 2026-06-03 or 2026-06-03T10:14:22Z")
    .option("--action <action>", "of one kind, for example token.rotate")
    .option("--json", "print JSON")
    .action(async ({ tenant, since, action, json }: ListOptions) => {
      const query = { tenant: tenant === undefined ? undefined : tenantArgument(tenant), since, action };
      const list = await connectGateway(variables).json(listSchema, { path: "/v1/audit", query });
      if (json) return terminal.write(jsonText(list));
      if (list.has_more) terminal.note("There are more: go on with --since.");
      return terminal.write(
        tableText(
          terminal,
          [
            { title: "TIME", cell: ({ ts }) => ts },
            { title: "CHAIN", cell: ({ chain }) => chain },
            { title: "SEQ", align: "right", cell: ({ seq }) => String(seq) },
            { title: "ACTOR", cell: ({ actor }) => `${actor.type}:${actor.id}` },
            { title: "ACTION", cell: (entry) => entry.action },
            { title: "TARGET", cell: ({ target }) => target },
            { title: "OUTCOME", cell: ({ outcome }) => outcome },
          ],
          list.data,
        ),
      );
    });

  audit
    .command("verify")
    .description("compare the entries with their hashes, audit.jsonl and the workflows; exit code 1 names the first bad entry")
    .option("--json", "print JSON")
    .action(async ({ json }: JsonFlag) => {
      const verification = await connectGateway(variables).json(verificationSchema, { path: "/v1/audit/verify", timeoutMs: 600_000 });
      const { ok, chains, entries, findings, notes } = verification;
      if (json) await terminal.write(jsonText(verification));
      else await terminal.write(findings.map(({ chain, seq, what }) => `${chain}\t${seq}\t${what}\n`).join(""));
      for (const note of notes) terminal.note(note);
      if (ok) return terminal.note(`${entries} entries of ${chains} chains are whole.`);
      const [first] = findings;
      throw new CliError(exitCodes.failed, `The audit was tampered with: ${first?.chain} from entry ${first?.seq} on: ${first?.what}.`);
    });
}
