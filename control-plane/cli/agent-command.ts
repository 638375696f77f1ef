import type { Command } from "commander";
import { z } from "zod";
import { encodePeer, parseSessionId } from "../../domain/session-id.ts";
import type { CliContext } from "./cli-context.ts";
import { CliError, exitCodes, type ExitCode } from "./exit-code.ts";
import { GatewayClient, environmentOf, findCredential, gatewayUrlOf, type FoundCredential, type GatewayRequest } from "./gateway-client.ts";
import { eventData } from "./server-sent-events.ts";
import { tenantArgument } from "./tenant-argument.ts";
import { jsonText, type Terminal } from "./terminal.ts";

const chunkSchema = z.looseObject({
  choices: z.array(z.looseObject({ delta: z.looseObject({ content: z.string().nullish() }).optional() })).optional(),
  error: z.looseObject({ message: z.string(), type: z.string().optional() }).optional(),
});
const completionSchema = z.looseObject({
  model: z.string(),
  choices: z
    .array(z.looseObject({ message: z.looseObject({ content: z.string().nullable() }), finish_reason: z.string().nullable() }))
    .min(1),
  usage: z.unknown().optional(),
});

type AgentOptions = { readonly tenant: string; readonly message: string; readonly session?: string; readonly json?: boolean };

export function addAgentCommand(program: Command, { variables, terminal }: CliContext): void {
  program
    .command("agent")
    .description("send one message to a tenant's assistant and print the answer as it comes; needs the tenant's token in OPENCLAW_TOKEN")
    .requiredOption("--tenant <tenant>", "its id")
    .requiredOption("--message <text>", "what to say")
    .option("--session <session>", "continue this session: a session id, or a name of your own (jane = api:jane:default)")
    .option("--json", "print JSON")
    .action(async (options: AgentOptions) => {
      const tenant = tenantArgument(options.tenant);
      const session = options.session === undefined ? undefined : sessionArgument(options.session);
      const environment = environmentOf(variables);
      const credential = findCredential(environment);
      requireTokenOf(tenant, credential);
      const gateway = new GatewayClient(gatewayUrlOf(environment), credential);
      const request = (stream: boolean): GatewayRequest => ({
        method: "POST",
        path: "/v1/chat/completions",
        body: { model: "default", stream, messages: [{ role: "user", content: options.message }] },
        headers: session === undefined ? {} : { "x-openclaw-session": session },
        timeoutMs: 0,
      });
      if (options.json) return printJson(gateway, request(false), terminal);
      return printStream(await gateway.request(request(true)), terminal);
    });
}

function sessionArgument(raw: string): string {
  try {
    return parseSessionId(raw.includes(":") ? raw : `api:${encodePeer(raw)}:default`);
  } catch (error) {
    throw new CliError(exitCodes.usage, (error as Error).message, { cause: error });
  }
}

function requireTokenOf(tenant: string, { parsed, source }: FoundCredential): void {
  if (parsed.kind === "admin") {
    throw new CliError(
      exitCodes.refused,
      `A tenant token is needed: ${source} is an admin key, which cannot speak for a tenant. Set OPENCLAW_TOKEN to the token that "openclaw tenants create" printed.`,
    );
  }
  if (parsed.tenantId !== tenant)
    throw new CliError(exitCodes.refused, `The token in ${source} belongs to the tenant ${parsed.tenantId}, not to ${tenant}.`);
}

async function printJson(gateway: GatewayClient, request: GatewayRequest, terminal: Terminal): Promise<void> {
  const response = await gateway.request(request);
  const completion = completionSchema.safeParse(await response.json().catch(() => undefined)).data;
  const [choice] = completion?.choices ?? [];
  if (completion === undefined || choice === undefined) throw new CliError(exitCodes.failed, "The gateway's answer cannot be understood.");
  await terminal.write(
    jsonText({
      turn_id: response.headers.get("x-request-id"),
      model: completion.model,
      reply: choice.message.content,
      finish_reason: choice.finish_reason,
      usage: completion.usage ?? null,
    }),
  );
}

/** @throws {CliError} also when the stream ends without `[DONE]`: half an answer is not an answer. */
async function printStream(response: Response, terminal: Terminal): Promise<void> {
  let endsLine = true;
  for await (const data of readable(response)) {
    if (data === "[DONE]") return endsLine ? undefined : terminal.write("\n");
    const chunk = chunkSchema.safeParse(parseJson(data)).data;
    if (chunk?.error !== undefined) throw new CliError(exitCodeOfStream(chunk.error.type), chunk.error.message);
    const text = chunk?.choices?.[0]?.delta?.content ?? "";
    if (text === "") continue;
    endsLine = text.endsWith("\n");
    await terminal.write(text);
  }
  throw new CliError(exitCodes.failed, "The answer broke off. The turn goes on in the gateway: its end stands in the session.");
}

async function* readable(response: Response): AsyncGenerator<string> {
  try {
    yield* eventData((response.body ?? []) as AsyncIterable<Uint8Array>);
  } catch (error) {
    throw new CliError(exitCodes.failed, "The connection to the gateway was lost in the middle of the answer.", { cause: error });
  }
}

const exitCodeOfStream = (type: string | undefined): ExitCode =>
  type === "quota_exceeded" || type === "forbidden" || type === "conflict" || type === "rate_limited"
    ? exitCodes.refused
    : exitCodes.failed;

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
