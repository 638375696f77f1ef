import { execFile } from "node:child_process";
import { createServer } from "node:net";
import { extname, join } from "node:path";
import { promisify } from "node:util";
import type { Command } from "commander";
import { type Finding, type HostReport, hostReportSchema, oneLine } from "../doctor-finding.ts";
import { defaultPort, type Environment } from "../environment.ts";
import { runningGateway } from "../gateway-record.ts";
import type { CliContext } from "./cli-context.ts";
import { CliError, exitCodes } from "./exit-code.ts";
import { environmentOf } from "./gateway-client.ts";
import { definedOnly, readinessOf } from "./process-commands.ts";
import { jsonText, paint, type Terminal } from "./terminal.ts";

/** Longer than the slowest of its checks, which run side by side. */
const hostReportTimeoutMs = 45_000;
const run = promisify(execFile);

export function addDoctorCommand(program: Command, context: CliContext): void {
  const { variables, terminal } = context;
  program
    .command("doctor")
    .description("check what a gateway on this machine needs, and say how to mend what is missing")
    .option("--json", "print JSON")
    .action(async ({ json }: { readonly json?: boolean }) => {
      const environment = environmentOf(variables);
      const home = await import("./home-checks.ts"); // what reads the database: no other command waits for its modules
      const [host, gateway] = await Promise.all([hostReport(context), checkGateway(environment)]);
      const findings = [
        checkNode(),
        ...host.findings,
        gateway,
        home.checkHome(environment),
        home.checkDisk(environment),
        home.checkClock(environment, host.clocks),
        home.checkKeys(environment),
        ...(environment.auditAnchors === undefined ? [] : [home.checkAuditAnchors(environment.auditAnchors)]),
        home.checkConfiguration(environment, variables),
      ];
      await terminal.write(json ? jsonText({ ok: findings.every(isFine), findings }) : textOf(terminal, findings));
      const broken = findings.filter((finding) => !isFine(finding));
      if (broken.length > 0)
        throw new CliError(
          exitCodes.failed,
          `${broken.length} of ${findings.length} checks failed: ${broken.map(({ check }) => check).join(", ")}.`,
        );
    });
}

const isFine = ({ state }: Finding): boolean => state !== "failed";

function textOf(terminal: Terminal, findings: readonly Finding[]): string {
  const colour = { ok: "green", warning: "yellow", failed: "red" } as const;
  const width = Math.max(...findings.map(({ check }) => check.length));
  return findings
    .map(({ check, state, says, mend }) => {
      const line = `${paint(terminal, colour[state], state.padEnd(8))} ${check.padEnd(width)} ${says}\n`;
      return mend === undefined ? line : `${line}${" ".repeat(9 + width)} → ${mend}\n`;
    })
    .join("");
}

function checkNode(): Finding {
  const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
  if (major > 22 || (major === 22 && minor >= 18)) return { check: "node", state: "ok", says: `Node ${process.versions.node}` };
  return { check: "node", state: "failed", says: `Node ${process.versions.node} is too old`, mend: "install Node 24" };
}

/** Temporal, Postgres, the sandbox and the providers, looked at by a process that may import their rooms. */
async function hostReport({ packageRoot, variables }: CliContext): Promise<HostReport> {
  const program = join(packageRoot, "app", `host-report${extname(import.meta.filename)}`);
  try {
    const { stdout } = await run(process.execPath, [program], {
      env: definedOnly(variables),
      timeout: hostReportTimeoutMs,
      maxBuffer: 4 * 1024 * 1024,
    });
    return hostReportSchema.parse(JSON.parse(stdout));
  } catch (error) {
    const { stderr = "", message } = error as Error & { readonly stderr?: string };
    const says = `${program} did not do its work: ${oneLine(stderr.split("\n").find((line) => /error/i.test(line)) ?? message)}`;
    return { findings: [{ check: "install", state: "failed", says, mend: "install openclaw again (in a checkout: npm ci)" }], clocks: [] };
  }
}

async function checkGateway(environment: Environment): Promise<Finding> {
  const running = runningGateway(environment.home);
  if (running === undefined) return await checkPort(environment);
  const check = "gateway";
  if (running.url === undefined)
    return { check, state: "warning", says: `process ${running.pid} is starting`, mend: "ask again in a moment" };
  const mend = `look at ${join(environment.home, "gateway.log")}`;
  try {
    const { status, checks = {} } = await readinessOf(running.url);
    const failing = Object.entries(checks).flatMap(([name, outcome]) => (outcome === "ok" ? [] : [name]));
    if (status === "ok") return { check, state: "ok", says: `runs at ${running.url} and is ready` };
    return { check, state: "failed", says: `runs at ${running.url} and is not ready: ${failing.join(", ")}`, mend };
  } catch {
    return { check, state: "failed", says: `process ${running.pid} runs, and ${running.url} does not answer`, mend };
  }
}

async function checkPort({ host, port }: Environment): Promise<Finding> {
  const check = "port";
  const wanted = port ?? defaultPort;
  const trouble = await bindTrouble(host, wanted);
  if (trouble === undefined) return { check, state: "ok", says: `${host}:${wanted} is free` };
  if (trouble !== "EADDRINUSE")
    return {
      check,
      state: "failed",
      says: `nobody may listen on ${host}:${wanted} here (${trouble})`,
      mend: "correct OPENCLAW_HOST or OPENCLAW_PORT",
    };
  if (port === undefined)
    return {
      check,
      state: "warning",
      says: `${host}:${wanted} is taken`,
      mend: "the gateway will take a free one; set OPENCLAW_PORT for a fixed one",
    };
  return { check, state: "failed", says: `${host}:${wanted} is taken`, mend: "stop what listens there or choose another OPENCLAW_PORT" };
}

/** Undefined: the port is free; else the system's code for why it cannot be had. */
async function bindTrouble(host: string, port: number): Promise<string | undefined> {
  return await new Promise((resolve) => {
    const server = createServer();
    server.once("error", ({ code }: NodeJS.ErrnoException) => resolve(code ?? "unknown"));
    server.listen({ host, port }, () => server.close(() => resolve(undefined)));
  });
}
