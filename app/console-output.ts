import { AppError } from "../domain/app-error.ts";

/** What the first screen tells. */
export type ProductFacts = {
  readonly role: "all" | "gateway" | "worker";
  readonly url: string | undefined;
  readonly temporalUi: string | undefined;
  readonly home: string;
  readonly adminKeyPath: string | undefined;
  readonly demo: { readonly tenantId: string; readonly token: string } | undefined;
  readonly warnings: readonly string[];
  readonly startedInMs: number;
};

const isTerminal = process.stdout.isTTY === true && process.env["NO_COLOR"] === undefined;
const bold = (text: string): string => (isTerminal ? `\u001b[1m${text}\u001b[22m` : text);
const dim = (text: string): string => (isTerminal ? `\u001b[2m${text}\u001b[22m` : text);
const warn = (text: string): string => (isTerminal ? `\u001b[33m${text}\u001b[39m` : text);

export function printReady(facts: ProductFacts): void {
  const { url, demo } = facts;
  const lines = [
    "",
    `${bold("OpenClawMU is ready")} ${dim(`in ${(facts.startedInMs / 1000).toFixed(1)} s (role ${facts.role})`)}`,
    "",
    ...row("Gateway", url),
    ...row("WebChat", url === undefined ? undefined : `${url}/chat`),
    ...row("Temporal UI", facts.temporalUi),
    ...row("Home", facts.home),
    ...row("Admin key", facts.adminKeyPath),
    ...row("Demo tenant", demo?.tenantId),
    ...row("Demo token", demo?.token),
    ...facts.warnings.map((warning) => warn(`  ! ${warning}`)),
    ...(url === undefined || demo === undefined ? [] : ["", "Try it:", "", curlLine(url, demo.token)]),
    "",
    dim("Ctrl-C stops everything."),
    "",
  ];
  process.stdout.write(`${lines.join("\n")}\n`);
}

const row = (name: string, value: string | undefined): string[] => (value === undefined ? [] : [`  ${name.padEnd(12)} ${value}`]);

const curlLine = (url: string, token: string): string =>
  `curl -sN ${url}/v1/chat/completions -H "Authorization: Bearer ${token}" -H "Content-Type: application/json" -d '{"model":"default","stream":true,"messages":[{"role":"user","content":"help"}]}'`;

/** One line that says what is wrong and, where we know, what to do. */
export function printStartFailure(error: unknown): void {
  const says = error instanceof Error ? error.message : String(error);
  process.stderr.write(`openclaw: ${says}\n`);
  if (!(error instanceof AppError) && error instanceof Error && process.env["OPENCLAW_DEBUG"] !== undefined)
    process.stderr.write(`${error.stack ?? ""}\n`);
}
