import { createHash } from "node:crypto";
import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import type { OsUser } from "./traversable-directory.ts";

export type Log = (message: string, fields?: Record<string, unknown>) => void;

/** What the launcher knows of its place; all paths are real paths. */
export type Place = {
  readonly directory: string;
  readonly data: string;
  readonly logFile: string;
  readonly stateFile: string;
  /** As root: the user that the server runs as. */
  readonly user: OsUser | undefined;
  readonly log: Log;
};

export type State = { readonly port: number; readonly password: string };

/** An abstract socket is held exactly as long as its process lives, so a lock is never stale and needs no cleaning. */
export async function holdPlace({ directory }: Place): Promise<Server> {
  const name = `\0openclaw-postgres-${createHash("sha256").update(directory).digest("hex")}`;
  for (let attempt = 1; ; attempt++) {
    const server = createServer((socket) => void socket.destroy()).unref();
    try {
      await new Promise<void>((resolve, reject) => void server.once("error", reject).listen(name, resolve));
      return server;
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== "EADDRINUSE") throw cause;
      if (attempt === 10) throw new Error(`another process already runs the Postgres of ${directory}`, { cause });
      await sleep(100); // a process that was killed just now takes a moment to be gone
    }
  }
}

export function readState(stateFile: string): State {
  try {
    return JSON.parse(readFileSync(stateFile, "utf8")) as State;
  } catch (cause) {
    throw new Error(`${stateFile}, which holds the password of the database beside it, is missing or damaged`, { cause });
  }
}

export function writeState(stateFile: string, state: State): void {
  writeFileSync(`${stateFile}.draft`, `${JSON.stringify(state)}\n`, { mode: 0o600, flush: true });
  renameSync(`${stateFile}.draft`, stateFile);
}
