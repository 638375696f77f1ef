import { readFileSync } from "node:fs";
import type { Command } from "commander";
import { z } from "zod";
import type { AuditEntry } from "../../domain/audit.ts";
import type { SignedAnchor } from "../../domain/audit-anchor.ts";
import { type AnchorAudit, auditAnchors } from "../anchor-audit.ts";
import type { AnchorKeys } from "../anchor-check.ts";
import { anchorSchema, directoryPlace, publicKeysIn } from "../anchor-place.ts";
import { keyIdOf, publicKeyOf } from "../audit-signing-key.ts";
import type { CliContext } from "./cli-context.ts";
import { CliError, exitCodes } from "./exit-code.ts";
import { type GatewayClient, connectGateway } from "./gateway-client.ts";
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
const listSchema = z.looseObject({ data: z.array(entrySchema), has_more: z.boolean(), next: z.string().nullable() });
const anchorsSchema = z.looseObject({ data: z.array(anchorSchema), next: z.string().nullable() });
const verificationSchema = z.looseObject({
  ok: z.boolean(),
  chains: z.number(),
  entries: z.number(),
  anchors: z.number(),
  findings: z.array(z.looseObject({ chain: z.string(), seq: z.number(), what: z.string() })),
  notes: z.array(z.string()),
});

type JsonFlag = { readonly json?: boolean };
type ListOptions = JsonFlag & {
  readonly tenant?: string;
  readonly since?: string;
  readonly action?: string;
  readonly limit?: string;
  readonly after?: string;
};
type VerifyOptions = JsonFlag & { readonly since?: string; readonly publicKey?: string; readonly anchors?: string };

export function addAuditCommands(program: Command, { variables, terminal }: CliContext): void {
  const audit = program.command("audit").description("who changed what, and whether the record is whole");

  audit
    .command("list")
    .description("list state changes, oldest first")
    .option("--tenant <tenant>", "of one tenant")
    .option("--since <time>", "from this date or time on: 2026-06-03 or 2026-06-03T10:14:22Z")
    .option("--action <action>", "of one kind, for example token.rotate")
    .option("--limit <entries>", "so many at most, up to 9999; 1000 when left out")
    .option("--after <place>", "go on behind a list that ended there")
    .option("--json", "print JSON")
    .action(async ({ tenant, json, ...options }: ListOptions) => {
      const query = { tenant: tenant === undefined ? undefined : tenantArgument(tenant), ...options };
      const list = await connectGateway(variables).json(listSchema, { path: "/v1/audit", query });
      if (json) return terminal.write(jsonText(list));
      if (list.next !== null) terminal.note(`There are more: go on with --after ${list.next}`);
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
    .description(
      "compare the entries with their hashes, audit.jsonl, the workflows and the signed anchors; exit code 1 names the first bad entry",
    )
    .option("--since <time>", "only from the last anchor before this date or time on")
    .option("--public-key <file>", "also compare here, believing only what this Ed25519 key (PEM) signed")
    .option("--anchors <directory>", "the same with the anchors of a copy; its own keys are believed where no --public-key is given")
    .option("--json", "print JSON")
    .action(async ({ since, publicKey, anchors: directory, json }: VerifyOptions) => {
      const keys = trustedKeys(publicKey, directory);
      const client = connectGateway(variables);
      const verification = await client.json(verificationSchema, { path: "/v1/audit/verify", query: { since }, timeoutMs: 600_000 });
      const own = keys === undefined ? undefined : await auditWith(client, keys, directory);
      const findings = [...verification.findings, ...(own?.findings ?? [])];
      const { chains, entries, anchors, notes } = verification;
      if (json)
        await terminal.write(jsonText({ ...verification, ok: findings.length === 0, findings, ...(own === undefined ? {} : { own }) }));
      else await terminal.write(findings.map(({ chain, seq, what }) => `${chain}\t${seq}\t${what}\n`).join(""));
      for (const note of notes) terminal.note(note);
      const [first] = findings;
      if (first !== undefined) {
        const where = first.seq === 0 ? first.chain : `${first.chain} from entry ${first.seq} on`;
        throw new CliError(exitCodes.failed, `The audit was tampered with: ${where}: ${first.what}.`);
      }
      terminal.note(`${entries} entries of ${chains} chains are whole; ${anchors} signed anchors fit.`);
      if (own === undefined) return;
      if (own.anchors === 0)
        throw new CliError(exitCodes.failed, "There is no anchor by the given key: nothing could be compared with it.");
      terminal.note(
        `By the given key: ${own.anchors} anchors of ${own.chains} chains fit the ${own.entries} entries that the gateway showed.`,
      );
    });
}

/** Keys that were given out of band; undefined where none was. @throws {CliError} usage */
function trustedKeys(publicKey: string | undefined, directory: string | undefined): AnchorKeys | undefined {
  if (publicKey === undefined && directory === undefined) return undefined;
  try {
    const pems = publicKey === undefined ? publicKeysIn(directory ?? "") : [readFileSync(publicKey, "utf8")];
    if (pems.length === 0) throw new Error(`there is no public key (.pem) in ${directory}: give one with --public-key`);
    return new Map(pems.map(publicKeyOf).map((key) => [keyIdOf(key), key]));
  } catch (error) {
    throw new CliError(exitCodes.usage, error instanceof Error ? error.message : String(error), { cause: error });
  }
}

async function auditWith(client: GatewayClient, keys: AnchorKeys, directory: string | undefined): Promise<AnchorAudit> {
  const listed = directory === undefined ? { anchors: await allAnchors(client), faults: [] } : await directoryPlace(directory).list();
  const [fault] = listed.faults;
  if (fault !== undefined) throw new CliError(exitCodes.failed, `The anchors cannot be read: ${fault}.`);
  return await auditAnchors({ anchors: listed.anchors, keys, entriesOf: (chain) => entriesOf(client, chain) });
}

async function allAnchors(client: GatewayClient): Promise<readonly SignedAnchor[]> {
  const anchors: SignedAnchor[] = [];
  for (let after: string | undefined; ;) {
    const page = await client.json(anchorsSchema, { path: "/v1/audit/anchors", query: { after } });
    anchors.push(...page.data);
    if (page.next === null) return anchors;
    after = page.next;
  }
}

async function* entriesOf(client: GatewayClient, chain: string): AsyncGenerator<readonly AuditEntry[]> {
  for (let after: string | undefined; ;) {
    const page = await client.json(listSchema, { path: "/v1/audit", query: { chain, after } });
    yield page.data as unknown as readonly AuditEntry[]; // hashed as it came: what is not an entry has another hash
    if (page.next === null) return;
    after = page.next;
  }
}
