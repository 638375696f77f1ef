import { readFileSync, renameSync, unlinkSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { commandLineOf } from "../storage/linux-process.ts";
import { createPrivateFile, replacePrivateFile } from "./private-file.ts";

/** `<home>/gateway.json`: the gateway that runs on this home (contract §2), and where its servers are. */
const gatewayRecordSchema = z.object({
  /** Undefined while it starts. */
  url: z.string().optional(),
  pid: z.int().positive(),
  temporal: z.object({ address: z.string(), namespace: z.string(), ui: z.string().nullable(), cli: z.string().nullable() }).optional(),
  /** Never with a password: `url` is shown by `status`. */
  database: z.object({ kind: z.enum(["embedded", "external"]), url: z.string() }).optional(),
});
export type GatewayRecord = z.infer<typeof gatewayRecordSchema>;

export const gatewayRecordPath = (home: string): string => join(home, "gateway.json");

/** What the file says, whether or not that gateway still lives; undefined where there is none or it cannot be understood. */
export function readGatewayRecord(home: string): GatewayRecord | undefined {
  return readRecord(gatewayRecordPath(home));
}

function readRecord(path: string): GatewayRecord | undefined {
  try {
    return gatewayRecordSchema.safeParse(JSON.parse(readFileSync(path, "utf8"))).data;
  } catch (error) {
    if (error instanceof SyntaxError || (error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}

/** The gateway that runs on this home now. A pid alone proves nothing: it may have been given to another program since. */
export function runningGateway(home: string): GatewayRecord | undefined {
  const record = readGatewayRecord(home);
  return record !== undefined && isGateway(record.pid) ? record : undefined;
}

export function isGateway(pid: number): boolean {
  if (process.platform !== "linux") return isAlive(pid);
  return commandLineOf(pid)?.some((word) => /(^|[/\\])app[/\\]main\.[mc]?[jt]s$/.test(word)) ?? false;
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

/**
 * Takes the home for this process; what a dead gateway left behind is cleared away.
 * @returns the gateway that has it, or undefined when it is ours now.
 */
export function claimGateway(home: string, record: GatewayRecord): GatewayRecord | undefined {
  const path = gatewayRecordPath(home);
  for (let attempt = 0; attempt < 10; attempt++) {
    if (createPrivateFile(path, textOf(record))) return undefined;
    const running = runningGateway(home);
    if (running !== undefined) return running.pid === record.pid ? undefined : running;
    const stale = `${path}.${process.pid}.stale`;
    try {
      renameSync(path, stale); // of two that clear at once, one renames and the other finds nothing
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") continue;
      throw error;
    }
    const taken = readRecord(stale);
    if (taken !== undefined && isGateway(taken.pid)) createPrivateFile(path, textOf(taken)); // it was claimed in between: put it back
    unlinkSync(stale);
  }
  throw new Error(`${path} cannot be claimed: other starts keep taking it`);
}

/** Completes the record of a home that is ours. */
export const writeGatewayRecord = (home: string, record: GatewayRecord): void =>
  replacePrivateFile(gatewayRecordPath(home), textOf(record));

/** Gives the home back, if it is still `pid`'s. */
export function removeGatewayRecord(home: string, pid: number): void {
  if (readGatewayRecord(home)?.pid === pid) unlinkSync(gatewayRecordPath(home));
}

const textOf = (record: GatewayRecord): string => `${JSON.stringify(record, undefined, 2)}\n`;
