import type { Command } from "commander";
import { z } from "zod";
import type { CliContext } from "./cli-context.ts";
import { connectGateway } from "./gateway-client.ts";
import { tenantArgument } from "./tenant-argument.ts";
import { jsonText, paint } from "./terminal.ts";

const rotatedSchema = z.looseObject({ tenant: z.string(), token: z.string() });
const revokedSchema = z.looseObject({ tenant: z.string(), revoked: z.boolean() });
const shownSchema = z.looseObject({
  tenant: z.string(),
  prefix: z.string(),
  hash_prefix: z.string(),
  created_at: z.string(),
  last_used_at: z.string().nullable(),
});

type JsonFlag = { readonly json?: boolean };

export function addTokenCommands(tenants: Command, { variables, terminal }: CliContext): void {
  const token = tenants.command("token").description("replace, look at and revoke a tenant's token");

  token
    .command("rotate")
    .description("make a new token and end the old one at once; the new one is shown this once")
    .argument("<tenant>", "its id")
    .option("--json", "print JSON")
    .action(async (raw: string, { json }: JsonFlag) => {
      const rotated = await connectGateway(variables).json(rotatedSchema, {
        method: "POST",
        path: `/v1/tenants/${tenantArgument(raw)}/token/rotate`,
      });
      if (json) return terminal.write(jsonText(rotated));
      if (!terminal.interactive) return terminal.write(`${rotated.token}\n`);
      terminal.note(`The old token of ${rotated.tenant} has ended. The new one is shown this once:`);
      return terminal.write(`${paint(terminal, "bold", rotated.token)}\n`);
    });

  token
    .command("show")
    .description("show what is known of the token; only its hash is kept, so it cannot be shown again")
    .argument("<tenant>", "its id")
    .option("--json", "print JSON")
    .action(async (raw: string, { json }: JsonFlag) => {
      const shown = await connectGateway(variables).json(shownSchema, { path: `/v1/tenants/${tenantArgument(raw)}/token` });
      if (json) return terminal.write(jsonText(shown));
      const facts = [
        ["token", `${shown.prefix}…`],
        ["hash", `${shown.hash_prefix}…`],
        ["created", shown.created_at],
        ["last used", shown.last_used_at ?? "never"],
      ] as const;
      await terminal.write(facts.map(([name, value]) => `${paint(terminal, "dim", name.padEnd(9))} ${value}\n`).join(""));
      return terminal.note("A hashed token cannot be shown again. A lost one is replaced: openclaw tenants token rotate.");
    });

  token
    .command("revoke")
    .description("end the token at once, in every process; rotate makes another one")
    .argument("<tenant>", "its id")
    .option("--offline", "write to the database of this home directly, while Temporal or the gateway is down; audited as break-glass")
    .option("--json", "print JSON")
    .action(async (raw: string, { json, offline }: JsonFlag & { readonly offline?: boolean }) => {
      const tenant = tenantArgument(raw);
      const revoked = offline
        ? await (await import("./break-glass.ts")).revokeOffline(variables, tenant)
        : await connectGateway(variables).json(revokedSchema, { method: "POST", path: `/v1/tenants/${tenant}/token/revoke` });
      return json ? terminal.write(jsonText(revoked)) : terminal.note(`The token of ${revoked.tenant} is revoked.`);
    });
}
