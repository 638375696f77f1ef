import { accessSync, constants, existsSync, lstatSync, readFileSync, statfsSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { configurationWarnings, loadAdminConfig } from "../admin-config.ts";
import { leastFreeBytes } from "../audit-relay.ts";
import { adminKeyPath, parseAdminKey, parseCredential } from "../credentials.ts";
import type { ClockReading, Finding } from "../doctor-finding.ts";
import type { Environment } from "../environment.ts";
import type { Variables } from "./gateway-client.ts";

const MiB = 1024 * 1024;
const GiB = 1024 * MiB;
/** A day of turns and histories should fit. */
const comfortableBytes = GiB;
const comfortableInodes = 10_000;
const leastInodes = 500;

/** The folder itself, or what would hold it. */
function nearestFolder(path: string): string {
  let folder = path;
  while (!existsSync(folder)) folder = dirname(folder);
  return folder;
}

export function checkHome({ home }: Environment): Finding {
  const check = "home";
  if (existsSync(join(home, "openclaw.json")))
    return { check, state: "failed", says: `${home} belongs to upstream OpenClaw`, mend: "choose another OPENCLAW_HOME" };
  const folder = nearestFolder(home);
  try {
    accessSync(folder, constants.W_OK | constants.X_OK);
    return { check, state: "ok", says: home };
  } catch {
    return { check, state: "failed", says: `${folder} cannot be written`, mend: "choose another OPENCLAW_HOME or change its owner" };
  }
}

/** The home's disk, and the database's where that is another one. */
export function checkDisk({ home }: Environment): Finding {
  const folders = [nearestFolder(home), nearestFolder(join(home, "postgres"))];
  const disks = new Map(folders.map((folder) => [statSync(folder).dev, folder]));
  const findings = [...disks.values()].map(judgeDisk);
  return findings.find(({ state }) => state === "failed") ?? findings.find(({ state }) => state === "warning") ?? (findings[0] as Finding);
}

function judgeDisk(folder: string): Finding {
  const check = "disk";
  const { bavail, bsize, files, ffree } = statfsSync(folder);
  const free = bavail * bsize;
  const mend = `make room on the disk of ${folder}, or move the home`;
  const left = `${free < GiB ? `${Math.floor(free / MiB)} MiB` : `${(free / GiB).toFixed(1)} GiB`} are free on the disk of ${folder}`;
  if (free < leastFreeBytes) return { check, state: "failed", says: `only ${left}: the gateway refuses every change`, mend };
  if (files > 0 && ffree < leastInodes)
    return { check, state: "failed", says: `only ${ffree} more files fit on the disk of ${folder}`, mend };
  if (free < comfortableBytes) return { check, state: "warning", says: `only ${left}`, mend };
  if (files > 0 && ffree < comfortableInodes)
    return { check, state: "warning", says: `only ${ffree} more files fit on the disk of ${folder}`, mend };
  return { check, state: "ok", says: left };
}

/** Whether anchors can be written where `OPENCLAW_AUDIT_ANCHORS` says; without them nothing is refused, so nobody would notice. */
export function checkAuditAnchors(path: string): Finding {
  const check = "audit anchors";
  const folder = nearestFolder(path);
  try {
    if (!statSync(folder).isDirectory()) throw new Error(`${folder} is a file`);
    accessSync(folder, constants.W_OK | constants.X_OK);
    return { check, state: "ok", says: path };
  } catch {
    return {
      check,
      state: "failed",
      says: `${path} cannot be written`,
      mend: "mount it, change its owner, or correct OPENCLAW_AUDIT_ANCHORS",
    };
  }
}

export function checkConfiguration({ home }: Environment, variables: Variables): Finding {
  const check = "config";
  const path = join(home, "config.yaml");
  if (!existsSync(path)) return { check, state: "ok", says: "none yet: the first start writes one" };
  try {
    const warnings = configurationWarnings(loadAdminConfig(home), variables);
    return warnings.length === 0
      ? { check, state: "ok", says: path }
      : { check, state: "warning", says: warnings.join(" "), mend: `edit ${path}, or set the variables that it names` };
  } catch (error) {
    return { check, state: "failed", says: (error as Error).message, mend: "correct that line; a gateway does not start with it" };
  }
}

const isSeed = (line: string): boolean => /^[A-Za-z0-9+/]{43}=$/.test(line);
/** What the home's files with secrets hold, a line each, and the bits of their mode that a start does not accept. */
const keyFiles = {
  "admin-key": { isKey: (line: string) => parseAdminKey(line) !== undefined, refused: 0o077 },
  "demo-token": { isKey: (line: string) => parseCredential(line) !== undefined, refused: 0o077 },
  kek: { isKey: isSeed, refused: 0o7377 },
  "audit-signing-key": { isKey: isSeed, refused: 0o077 },
} as const;
type KeyFile = (typeof keyFiles)[keyof typeof keyFiles];

export function checkKeys({ home }: Environment): Finding {
  const check = "keys";
  const there = Object.keys(keyFiles).filter((name) => lstatSync(join(home, name), { throwIfNoEntry: false }) !== undefined);
  for (const name of there as (keyof typeof keyFiles)[]) {
    const trouble = troubleOf(join(home, name), keyFiles[name]);
    if (trouble !== undefined) return { check, state: "failed", ...trouble };
  }
  return existsSync(adminKeyPath(home))
    ? { check, state: "ok", says: `${there.join(", ")} of the home can be read by their owner only` }
    : { check, state: "ok", says: "no admin-key in the home: a first start makes it" };
}

function troubleOf(path: string, { isKey, refused }: KeyFile): { readonly says: string; readonly mend: string } | undefined {
  const file = lstatSync(path);
  if (!file.isFile()) return { says: `${path} is not a regular file`, mend: "put the file itself there, not a link to it" };
  if ((file.mode & 0o077) !== 0) return { says: `${path} can be read or written by others`, mend: `chmod go= ${path}` };
  if ((file.mode & refused) !== 0)
    return { says: `${path} has the mode 0${(file.mode & 0o7777).toString(8)}, and a start takes 0400 only`, mend: `chmod 400 ${path}` };
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch {
    return { says: `${path} cannot be read by this user`, mend: "run this as the user that runs the gateway" };
  }
  const lines = text.trim().split("\n");
  return lines.every(isKey) ? undefined : { says: `${path} does not hold what it is for`, mend: "put the key back from your safe copy" };
}

const tolerableMs = 2_000;
const harmfulMs = 30_000;
const datedFiles = ["audit.jsonl", "gateway.log", "gateway.json"];

/** The machine's clock against those of others, and against the files that this machine wrote. */
export function checkClock({ home }: Environment, readings: readonly ClockReading[]): Finding {
  const check = "clock";
  const mend = "let the machine keep its time by NTP (timedatectl set-ntp true)";
  const off = readings
    .map(({ of, aheadMs, uncertainMs }) => ({ of, aheadMs, offMs: Math.abs(aheadMs) - uncertainMs }))
    .toSorted((a, b) => b.offMs - a.offMs)
    .find(({ offMs }) => offMs > tolerableMs);
  if (off !== undefined) {
    const says = `this clock is ${Math.round(Math.abs(off.aheadMs) / 1_000)} s ${off.aheadMs > 0 ? "behind" : "ahead of"} ${off.of}`;
    const harm = "days of quota, webhook signatures and certificates are judged wrongly";
    return off.offMs > harmfulMs ? { check, state: "failed", says: `${says}: ${harm}`, mend } : { check, state: "warning", says, mend };
  }
  const later = datedFiles.find((name) => (statSync(join(home, name), { throwIfNoEntry: false })?.mtimeMs ?? 0) > Date.now() + tolerableMs);
  if (later !== undefined)
    return { check, state: "warning", says: `${join(home, later)} is dated later than now: the clock was set back`, mend };
  return readings.length === 0
    ? { check, state: "ok", says: "there was no other clock to compare with" }
    : { check, state: "ok", says: `agrees with ${readings.map(({ of }) => of).join(", ")}` };
}
