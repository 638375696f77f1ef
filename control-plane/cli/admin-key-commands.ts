import type { Command } from "commander";
import { z } from "zod";
import type { CliContext } from "./cli-context.ts";
import { connectGateway } from "./gateway-client.ts";
import { jsonText, paint, tableText } from "./terminal.ts";

const createdSchema = z.looseObject({ id: z.string(), scopes: z.array(z.string()), key: z.string() });
const listSchema = z.looseObject({
  data: z.array(
    z.looseObject({
      id: z.string(),
      scopes: z.array(z.string()),
      created_at: z.string(),
      last_used_at: z.string().nullable(),
      revoked_at: z.string().nullable(),
    }),
  ),
});
const revokedSchema = z.looseObject({ id: z.string() });

type JsonFlag = { readonly json?: boolean };

export function addAdminKeyCommands(program: Command, { variables, terminal }: CliContext): void {
  const keys = program
    .command("admin-keys")
    .description("make, list and revoke the keys of administrators")
    .addHelpText("after", "\nTo rotate a key: create one under a new id, hand it out, then revoke the old one.");

  keys
    .command("create")
    .description("make an admin key and print it, which happens this once")
    .argument("<id>", "1 to 16 lower-case letters and digits; the audit names its owner by it")
    .requiredOption("--scopes <list>", "some of read, tenants, billing, all, with commas between")
    .option("--json", "print JSON")
    .action(async (id: string, { scopes, json }: JsonFlag & { readonly scopes: string }) => {
      const created = await connectGateway(variables).json(createdSchema, {
        method: "POST",
        path: "/v1/admin-keys",
        body: { id, scopes: scopes.split(",").map((scope) => scope.trim()) },
      });
      if (json) return terminal.write(jsonText(created));
      if (!terminal.interactive) return terminal.write(`${created.key}\n`);
      terminal.note(`Admin key ${created.id} is ready. It is shown this once:`);
      return terminal.write(`${paint(terminal, "bold", created.key)}\n`);
    });

  keys
    .command("list")
    .description("list the admin keys, without their secrets")
    .option("--json", "print JSON")
    .action(async ({ json }: JsonFlag) => {
      const list = await connectGateway(variables).json(listSchema, { path: "/v1/admin-keys" });
      if (json) return terminal.write(jsonText(list));
      return terminal.write(
        tableText(
          terminal,
          [
            { title: "KEY", cell: ({ id }) => id },
            { title: "SCOPES", cell: ({ scopes }) => scopes.join(",") },
            { title: "STATE", cell: ({ revoked_at }) => (revoked_at === null ? "live" : "revoked") },
            { title: "CREATED", cell: ({ created_at }) => created_at },
            { title: "LAST USED", cell: ({ last_used_at }) => last_used_at ?? "never" },
          ],
          list.data,
        ),
      );
    });

  keys
    .command("revoke")
    .description("end an admin key at once, in every process")
    .argument("<id>", "its id")
    .option("--json", "print JSON")
    .action(async (id: string, { json }: JsonFlag) => {
      const revoked = await connectGateway(variables).json(revokedSchema, {
        method: "DELETE",
        path: `/v1/admin-keys/${encodeURIComponent(id)}`,
      });
      return json ? terminal.write(jsonText(revoked)) : terminal.note(`Admin key ${revoked.id} is revoked.`);
    });
}
