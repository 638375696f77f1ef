import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { chmod, chown, mkdir, mkdtemp, readdir, readFile, realpath, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { createBwrapDriver } from "../../sandbox/bwrap-driver.ts";
import type { SandboxDriver, SandboxJob, SandboxLimits, SandboxResult } from "../../sandbox/sandbox-driver.ts";
import type { BwrapProcessOptions, DriverProcessOptions, DriverRequest } from "./driver-process.ts";

export const MiB = 1024 * 1024;
export const isRoot = process.getuid?.() === 0;
/** Host uids that no other test file uses: each runs in a process of its own. */
const firstUid = 2_000_000 + (process.pid % 1_000_000) * 3;
export const uids = { acme: firstUid, globex: firstUid + 1, user: firstUid + 2 } as const;

export const limits: SandboxLimits = {
  wallMs: 10_000,
  memoryBytes: 128 * MiB,
  processes: 48,
  outputBytes: 256 * 1024,
  fileBytes: 16 * MiB,
  openFiles: 64,
  tmpBytes: 8 * MiB,
  cpuSeconds: 10,
};

export type Variant = { readonly name: string; readonly options: BwrapProcessOptions; readonly asUser: boolean };

/** The ways that the suite runs in: as root with each enforcer, and as an ordinary user. */
export const variants: readonly Variant[] = isRoot
  ? [
      { name: "root, best enforcer", options: {}, asUser: false },
      { name: "root, rlimits", options: { enforcer: "rlimit" }, asUser: false },
      { name: "ordinary user", options: {}, asUser: true },
    ]
  : [{ name: "ordinary user", options: {}, asUser: false }];

/** Why no sandbox can run here; undefined when it can. */
export const missing: string | undefined = await (async () => {
  const driver = createBwrapDriver();
  const why = await driver.probe();
  await driver.dispose();
  if (why !== undefined) console.warn(`SKIPPED sandbox tests: ${why}`);
  return why;
})();

export type TestDriver = SandboxDriver & { readonly process?: ChildProcess };

/** A driver in another process, as another uid where one is given, with a directory left open for it by its parent. */
export function startDriverProcess(
  options: DriverProcessOptions,
  { uid, inherit }: { readonly uid?: number; readonly inherit?: string } = {},
): TestDriver {
  // Node itself closes an unbroken row of inherited descriptors at its start; a lone high one goes on to whatever it runs.
  const leave = inherit === undefined ? [] : ["bash", "-c", 'exec 77<"$0"; exec "$@"', inherit];
  const argv = [process.execPath, join(import.meta.dirname, "driver-process.ts"), JSON.stringify(options)];
  const drop = uid === undefined ? [] : ["setpriv", "--reuid", String(uid), "--regid", String(uid), "--clear-groups"];
  const [command = "", ...args] = [...drop, ...leave, ...argv];
  const child = spawn(command, args, { stdio: ["pipe", "pipe", "inherit"], cwd: "/" });
  const waiting = new Map<number, (value: unknown) => void>();
  let last = 0;
  createInterface({ input: child.stdout as NonNullable<typeof child.stdout> }).on("line", (line) => {
    const { id, value } = JSON.parse(line) as { id: number; value: unknown };
    waiting.get(id)?.(value);
  });
  child.on("exit", () => {
    for (const settle of waiting.values()) settle("the driver's process has ended");
  });
  const send = (request: DriverRequest): void => void child.stdin?.write(`${JSON.stringify(request)}\n`);
  const ask = (rest: { probe: true } | { job: SandboxJob }, signal?: AbortSignal): Promise<unknown> => {
    const id = (last += 1);
    const answered = new Promise<unknown>((resolve) => waiting.set(id, resolve));
    send({ id, ...rest });
    signal?.addEventListener("abort", () => send({ id, abort: true }));
    return answered;
  };
  return {
    name: "bwrap",
    process: child,
    enforcement: () => undefined,
    probe: async () => ((await ask({ probe: true })) as string | null) ?? undefined,
    async run(job, signal) {
      const value = await ask({ job: { ...job, stdin: Buffer.from(job.stdin as string).toString("base64") } }, signal);
      if (typeof value === "string") throw new Error(value);
      const { stdout, stderr, ...rest } = value as SandboxResult & Record<"stdout" | "stderr", string>;
      return {
        ...rest,
        exitCode: rest.exitCode ?? undefined,
        signal: rest.signal ?? undefined,
        stdout: Buffer.from(stdout, "base64"),
        stderr: Buffer.from(stderr, "base64"),
      };
    },
    prepare: () => undefined,
    drop: async () => undefined,
    dispose: async () => void child.stdin?.end(),
  };
}

export type Tenant = { readonly workDirectory: string; readonly uid: number | undefined };

export type Stage = {
  readonly driver: TestDriver;
  readonly base: string;
  readonly acme: Tenant;
  readonly globex: Tenant;
  tearDown(): Promise<void>;
};

/** Two tenants' directories as the product lays them out, and a driver that runs as the variant says. */
export async function setStage({ options, asUser }: Variant): Promise<Stage> {
  const base = await mkdtemp(join(await realpath(tmpdir()), "openclaw-stage-"));
  await chmod(base, 0o755);
  const tenant = async (name: "acme" | "globex"): Promise<Tenant> => {
    const home = join(base, name);
    const workDirectory = join(home, "sandbox");
    await mkdir(workDirectory, { recursive: true });
    const owner = asUser ? uids.user : uids[name];
    if (isRoot) for (const directory of [home, workDirectory]) await chown(directory, owner, owner);
    await chmod(home, 0o700);
    return { workDirectory, uid: isRoot && !asUser ? owner : undefined };
  };
  const driver: TestDriver = asUser ? startDriverProcess(options, { uid: uids.user }) : createBwrapDriver(options);
  const [acme, globex] = [await tenant("acme"), await tenant("globex")];
  return {
    driver,
    base,
    acme,
    globex,
    async tearDown() {
      await driver.dispose();
      if (driver.process && driver.process.exitCode === null && driver.process.signalCode === null) await once(driver.process, "exit");
      await rm(base, { recursive: true, force: true });
    },
  };
}

export const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString("utf8");

/** The same script on the host, with nothing around it: what the sandbox has to keep from happening does happen here. */
export function runOutside(script: string, cwd: string): string {
  return spawnSync("/bin/bash", ["-c", script], { cwd, encoding: "utf8", timeout: 10_000, input: "" }).stdout;
}

/** Processes of the host that run as one of the tests' tenants. */
export async function tenantProcesses(): Promise<string[]> {
  const wanted = new Set<number>(isRoot ? [uids.acme, uids.globex] : []);
  const pids = (await readdir("/proc")).filter((name) => /^\d+$/.test(name));
  const found = await Promise.all(
    pids.map(async (pid) => {
      const status = await readFile(`/proc/${pid}/status`, "utf8").catch(() => "");
      return wanted.has(Number(/^Uid:\s+(\d+)/m.exec(status)?.[1])) && !/^State:\s+Z/m.test(status)
        ? [`${pid} ${/^Name:\s+(.*)$/m.exec(status)?.[1]}`]
        : [];
    }),
  );
  return found.flat();
}

/** Host pids whose command line holds `marker`. */
export async function processesWith(marker: string): Promise<string[]> {
  const pids = (await readdir("/proc")).filter((name) => /^\d+$/.test(name) && name !== String(process.pid));
  const found = await Promise.all(
    pids.map(async (pid) => ((await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "")).includes(marker) ? [pid] : [])),
  );
  return found.flat();
}
