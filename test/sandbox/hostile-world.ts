import { type ChildProcess, spawn } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { SandboxDriver } from "../../sandbox/sandbox-driver.ts";
import { hostileScript, hostileVerdict, type HostileCase, type HostileVerdict } from "./hostile-cases.ts";
import { isRoot, limits, type Stage, text } from "./sandbox-stage.ts";

/** What a neighbour offers (see `hostile-beacon.pl`); the pid is the one that it has where it runs. */
export type HostileBeacon = {
  readonly pid: number;
  readonly key: number;
  readonly tcpPort: number;
  readonly udpPort: number;
  readonly abstractName: string;
  readonly shmFile: string;
  readonly tmpFile: string;
  readonly marker: string;
};

/** What the cases reach for. */
export type HostileWorld = {
  readonly base: string;
  /** A word in the environment of this process. */
  readonly planted: string;
  readonly hostName: string;
  /** SHA-256 of the host's /etc/hosts: a container has one of its own. */
  readonly hostsDigest: string;
  readonly neighbourDirectory: string;
  /** Offered on the bare host, which the positive control reaches. */
  readonly host: HostileBeacon & { readonly socketPath: string };
  /** Offered by the neighbour from its own sandbox, while the cases run. */
  readonly sandboxed: HostileBeacon;
  tearDown(): Promise<void>;
};

const beaconScript = join(import.meta.dirname, "hostile-beacon.pl");
const PLANTED_NAME = "OPENCLAW_HOSTILE_PLANTED";
/** The neighbour waits for the end of the cases, however slow the machine. */
const BEACON_WALL_MS = 600_000;

/** Plants secrets on the host and has the neighbour run, once outside and once in a sandbox of `stage.driver`. */
export async function setHostileWorld({
  base,
  globex,
  driver,
}: Pick<Stage, "base" | "globex"> & { driver: SandboxDriver }): Promise<HostileWorld> {
  const word = randomBytes(6).toString("hex");
  const planted = `planted-${word}`;
  process.env[PLANTED_NAME] = planted;
  await writeFile(join(base, "host-secret.txt"), "host secret\n", { mode: 0o644 });
  await writeFile(join(base, "master-key"), "a key\n", { mode: 0o600 });
  await writeFile(join(globex.workDirectory, "secret.txt"), "globex secret\n", { mode: 0o644 });
  const hostDirectory = join(base, "host-beacon");
  await mkdir(hostDirectory);
  // Its directory is the neighbour's, for the attempts by way of its process.
  await writeFile(join(hostDirectory, "secret.txt"), "host secret\n");

  const outside = spawn("/usr/bin/perl", [beaconScript, `hostb-${word}`, "beacon.end"], { cwd: hostDirectory, stdio: "ignore" });
  const script = await readFile(beaconScript, "utf8");
  const inside = driver.run(
    {
      ...globex,
      argv: ["/usr/bin/perl", "-", `sandb-${word}`, "beacon.end"],
      stdin: script,
      limits: { ...limits, wallMs: BEACON_WALL_MS, cpuSeconds: 600 },
    },
    new AbortController().signal,
  );
  let endOfInside: string | undefined;
  const insideEnded = inside.then(
    ({ reason, stderr }) => void (endOfInside = `${reason}: ${text(stderr)}`),
    (error: unknown) => void (endOfInside = String(error)),
  );
  const readBeacon = async (directory: string): Promise<HostileBeacon> => {
    for (;;) {
      const report = await readFile(join(directory, "beacon.json"), "utf8").catch(() => undefined);
      if (report !== undefined) return JSON.parse(report) as HostileBeacon;
      if (endOfInside !== undefined) throw new Error(`The neighbour's sandbox ended: ${endOfInside}`);
      if (hasEnded(outside)) throw new Error("The neighbour on the host has ended.");
      await sleep(20);
    }
  };
  const [host, sandboxed] = await Promise.all([readBeacon(hostDirectory), readBeacon(globex.workDirectory)]);
  return {
    base,
    planted,
    hostName: hostname(),
    hostsDigest: createHash("sha256")
      .update(await readFile("/etc/hosts"))
      .digest("hex"),
    neighbourDirectory: globex.workDirectory,
    host: { ...host, socketPath: join(hostDirectory, "beacon.sock") },
    sandboxed,
    async tearDown() {
      for (const directory of [hostDirectory, globex.workDirectory]) await writeFile(join(directory, "beacon.end"), "");
      if (!hasEnded(outside)) await once(outside, "exit");
      await insideEnded;
      delete process.env[PLANTED_NAME];
    },
  };
}

const hasEnded = ({ exitCode, signalCode }: ChildProcess): boolean => exitCode !== null || signalCode !== null;

/** A run that its clock ended before the script began is a slow machine's: it is given more time. */
const WALL_FACTORS = [1, 3, 9];

/** Runs a case as acme, in the sandbox. */
export async function runInside(
  { driver, acme }: Pick<Stage, "acme"> & { driver: SandboxDriver },
  one: HostileCase,
): Promise<HostileVerdict> {
  let verdict: HostileVerdict | undefined;
  const own = { ...limits, ...one.limits };
  for (const factor of WALL_FACTORS) {
    const { mark, command } = hostileScript(one);
    const job = { ...acme, argv: ["/bin/bash", "-c", command], stdin: "", limits: { ...own, wallMs: own.wallMs * factor } };
    const { reason, exitCode, stdout, stderr } = await driver.run(job, new AbortController().signal);
    verdict = hostileVerdict(one, { mark, stdout: text(stdout), reason, exitCode, detail: text(stderr) });
    if (verdict.ran || reason !== "wall") break;
  }
  return verdict as HostileVerdict;
}

/** Runs a case with nothing around it: what the sandbox has to keep from happening does happen here. */
export async function runOutsideOf(stage: Pick<Stage, "base">, one: HostileCase): Promise<HostileVerdict> {
  const { mark, command } = hostileScript(one);
  const cwd = join(stage.base, "acme/sandbox");
  const child: ChildProcess = spawn("/bin/bash", ["-c", command], { cwd, stdio: ["ignore", "pipe", "ignore"] });
  const chunks: Buffer[] = [];
  child.stdout?.on("data", (chunk: Buffer) => void chunks.push(chunk));
  await once(child, "close");
  return hostileVerdict(
    {},
    { mark, stdout: Buffer.concat(chunks).toString("utf8"), reason: "outside", exitCode: child.exitCode ?? undefined, detail: "" },
  );
}

/** Whether the case must get there outside, for this process's user. */
export const breaksOutside = ({ control }: HostileCase): boolean => control === "anyone" || (control === "root" && isRoot);

/** Cases share a directory: what fills it would end its neighbours' runs as well. */
const fillsDisk = ({ limits: own }: HostileCase): boolean => own?.inodes !== undefined || own?.diskBytes !== undefined;

/** All cases through `work`, a few at a time, those that fill the disk one by one after them; in their order. */
export async function inTurns(
  cases: readonly HostileCase[],
  work: (one: HostileCase) => Promise<HostileVerdict>,
  atOnce = 4,
): Promise<HostileVerdict[]> {
  const verdicts: HostileVerdict[] = [];
  const left = [...cases.entries()].filter(([, one]) => !fillsDisk(one)).values();
  const turn = async (): Promise<void> => {
    for (const [index, one] of left) verdicts[index] = await work(one);
  };
  await Promise.all(Array.from({ length: atOnce }, turn));
  for (const [index, one] of cases.entries()) if (fillsDisk(one)) verdicts[index] = await work(one);
  return verdicts;
}
