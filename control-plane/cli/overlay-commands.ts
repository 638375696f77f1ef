import { isatty } from "node:tty";
import type { Command } from "commander";
import type { CliContext } from "./cli-context.ts";
import { CliError, exitCodes } from "./exit-code.ts";
import { connectGateway } from "./gateway-client.ts";
import { tenantArgument } from "./tenant-argument.ts";
import { jsonText } from "./terminal.ts";
import { textArgument } from "./text-argument.ts";

type JsonFlag = { readonly json?: boolean };

const keysHelp = `
An overlay is YAML, 64 KB at most, with these keys only (all optional):
  model, fallbacks, aliases, max_tokens, temperature, system_prompt, allowed_tools, denied_tools, timezone,
  api, session, memory, channels, heartbeat, cron, sandbox, tts, skills
For example:
  model: claude-opus-4-7
  max_tokens: 8192
  system_prompt: You are Acme's reservation assistant. Be concise.
  allowed_tools: [read, list]
  api: { mode: agent, sessions: by-user }
Any other key, or a model that is not configured and priced, is refused with its key path and line, and nothing changes.`;

const setHelp = `
Examples:
  openclaw tenants overlay set acme acme.yaml
  openclaw tenants overlay get acme | sed 's/4096/8192/' | openclaw tenants overlay set acme -
  openclaw tenants overlay set acme /dev/null          # back to an empty overlay
The same text stands in <home>/tenants/<tenant>/config.yaml of the gateway; editing that file is the same change.`;

export function addOverlayCommands(tenants: Command, { variables, terminal }: CliContext): void {
  const overlay = tenants
    .command("overlay")
    .description("the tenant's own configuration, laid over config.yaml")
    .addHelpText("after", keysHelp);
  const pathOf = (raw: string): string => `/v1/tenants/${tenantArgument(raw)}/overlay`;

  overlay
    .command("get")
    .description("print the overlay as it was last accepted")
    .argument("<tenant>", "its id")
    .option("--json", "print JSON")
    .action(async (raw: string, { json }: JsonFlag) => {
      const response = await connectGateway(variables).request({ path: pathOf(raw) });
      const fault = response.headers.get("x-openclaw-overlay-fault");
      const text = await response.text();
      if (json) return terminal.write(jsonText({ tenant: raw, overlay: text, fault }));
      if (fault !== null) terminal.note(fault);
      return terminal.write(text === "" || text.endsWith("\n") ? text : `${text}\n`);
    });

  overlay
    .command("set")
    .description("replace the overlay by the text of a file; it holds from the next turn on, in every process")
    .argument("<tenant>", "its id")
    .argument("[file]", "a YAML file, or - for standard input", "-")
    .option("--json", "print JSON")
    .addHelpText("after", keysHelp + setHelp)
    .action(async (raw: string, file: string, { json }: JsonFlag) => {
      const path = pathOf(raw);
      if (file === "-" && isatty(0))
        throw new CliError(
          exitCodes.usage,
          "Name a file, or send the text on standard input: openclaw tenants overlay set acme < acme.yaml",
        );
      const text = await textArgument(file, terminal);
      await connectGateway(variables).request({ method: "PUT", path, text: { contentType: "application/yaml", content: text } });
      if (json) return terminal.write(jsonText({ tenant: raw, overlay: text, fault: null }));
      return terminal.note(`The overlay of ${raw} is set.`);
    });
}
