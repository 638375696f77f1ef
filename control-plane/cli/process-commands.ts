import { spawn, spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { extname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Option, type Command } from "commander";
import { z } from "zod";
import { isCheckout } from "../environment.ts";
import { isGateway, runningGateway, type GatewayRecord } from "../gateway-record.ts";
import type { CliContext } from "./cli-context.ts";
import { CliError, exitCodes } from "./exit-code.ts";
import { environmentOf, gatewayUrlOf } from "./gateway-client.ts";
import { jsonText, paint } from "./terminal.ts";

const readinessSchema = z.looseObject({ status: z.string(), checks: z.record(z.string(), z.string()).optional() });

/** `.ts` in a checkout, `.js` in a package, whose types were stripped. */
const sourceEnding = extname(import.meta.filename);

export function addProcessCommands(program: Command, context: CliContext): void {
  const { variables, terminal } = context;

  program
    .command("start")
    .description("run the gateway in the foreground; Ctrl-C stops it")
    .addOption(new Option("--role <role>", "what this process does").choices(["all", "gateway", "worker"]).default("all"))
    .action(async ({ role }: { readonly role: string }) => start(context, role));

  program
    .command("stop")
    .description("stop the gateway that runs on this home and wait for its end")
    .option("--timeout <seconds>", "how long to wait", wholeSeconds, 30)
    .option("--json", "print JSON")
    .action(async ({ timeout, json }: { readonly timeout: number; readonly json?: boolean }) => {
      const { home } = environmentOf(variables);
      const running = runningGateway(home);
      const stopped = running === undefined ? undefined : await stop(running, timeout);
      if (json) return terminal.write(jsonText({ stopped: stopped ?? null }));
      return terminal.write(stopped === undefined ? `No gateway is running on ${home}.\n` : `Stopped the gateway (process ${stopped}).\n`);
    });

  program
    .command("status")
    .description("where the gateway and its servers are, and whether they work")
    .option("--json", "print JSON")
    .action(async ({ json }: { readonly json?: boolean }) => {
      const environment = environmentOf(variables);
      const url = gatewayUrlOf(environment);
      const readiness = await readinessOf(url);
      // Only what this machine can know: the record of a gateway elsewhere is not here.
      const record = environment.url === undefined ? runningGateway(environment.home) : undefined;
      const status = {
        gateway: { url, pid: record?.pid ?? null, ready: readiness.status === "ok", checks: readiness.checks ?? {} },
        temporal: record?.temporal ?? { address: null, namespace: null, ui: null, cli: null },
        database: record?.database ?? {},
      };
      if (json) return terminal.write(jsonText(status));
      const state = status.gateway.ready ? paint(terminal, "green", "ready") : paint(terminal, "red", "not ready");
      const failing = Object.entries(status.gateway.checks).filter(([, outcome]) => outcome !== "ok");
      const lines = [
        ["gateway", `${url}  ${state}${failing.length === 0 ? "" : ` (${failing.map(([name]) => name).join(", ")})`}`],
        ["temporal", status.temporal.address === null ? "unknown" : `${status.temporal.address}, namespace ${status.temporal.namespace}`],
        ["web ui", status.temporal.ui ?? "unknown"],
        ["database", record?.database === undefined ? "unknown" : `${record.database.kind}, ${record.database.url}`],
      ] as const;
      return terminal.write(lines.map(([name, value]) => `${paint(terminal, "dim", name.padEnd(9))} ${value}\n`).join(""));
    });
}

/** Set-up where this is a checkout, then the gateway in this process's place, so that signals and the exit status are its own. */
async function start({ packageRoot, variables }: CliContext, role: string): Promise<void> {
  const app = join(packageRoot, "app", `main${sourceEnding}`);
  if (!existsSync(app)) throw new CliError(exitCodes.failed, `${app} is missing: this installation is not complete.`);
  if (isCheckout(packageRoot)) {
    const setup = spawnSync(process.execPath, [join(packageRoot, "scripts", "setup.mjs")], { cwd: packageRoot, stdio: "inherit" });
    if (setup.status !== 0) throw new CliError(exitCodes.failed, "Set-up did not finish; what it needs stands above.");
  }
  const words = [app, "start", "--role", role];
  if (process.execve !== undefined && process.platform !== "win32") {
    process.execve(process.execPath, [process.execPath, ...words], definedOnly(variables));
  }
  process.exitCode = await runInFront(words);
}

async function runInFront(words: readonly string[]): Promise<number> {
  const child = spawn(process.execPath, words, { stdio: "inherit" });
  process.on("SIGINT", () => undefined); // the console gives it to the child as well
  process.on("SIGTERM", () => child.kill("SIGTERM"));
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("exit", (code) => resolve(code ?? exitCodes.failed));
  });
}

export const definedOnly = (variables: CliContext["variables"]): NodeJS.ProcessEnv =>
  Object.fromEntries(Object.entries(variables).flatMap(([name, value]) => (value === undefined ? [] : [[name, value]])));

async function stop({ pid }: GatewayRecord, timeoutSeconds: number): Promise<number> {
  try {
    process.kill(pid, "SIGTERM");
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "EPERM") throw new CliError(exitCodes.refused, `The gateway (process ${pid}) belongs to another user.`, { cause: error });
    if (code !== "ESRCH") throw error;
  }
  for (const end = Date.now() + timeoutSeconds * 1000; isGateway(pid); await sleep(50)) {
    if (Date.now() > end)
      throw new CliError(exitCodes.failed, `The gateway (process ${pid}) has not ended within ${timeoutSeconds} s; it is still stopping.`);
  }
  return pid;
}

export async function readinessOf(url: string): Promise<z.infer<typeof readinessSchema>> {
  try {
    const response = await fetch(`${url}/readyz`, { redirect: "error", signal: AbortSignal.timeout(5_000) });
    return readinessSchema.parse(await response.json());
  } catch (error) {
    throw new CliError(exitCodes.unreachable, `The gateway at ${url} does not answer.`, { cause: error });
  }
}

function wholeSeconds(text: string): number {
  if (!/^\d{1,5}$/.test(text)) throw new CliError(exitCodes.usage, "--timeout must be a whole number of seconds.");
  return Number(text);
}
