import { readdirSync, readFileSync, readlinkSync } from "node:fs";

/** The state of a listening socket in /proc/net/tcp. */
const listening = "0A";

/** Whether `pid` itself listens on a port of 127.0.0.1, or of all addresses; undefined where the system does not tell (Linux does). */
export function listensOn(pid: number, port: number): boolean | undefined {
  try {
    const suffix = `:${port.toString(16).toUpperCase().padStart(4, "0")}`;
    const inodes = new Set(
      ["/proc/net/tcp", "/proc/net/tcp6"].flatMap((table) =>
        readFileSync(table, "utf8")
          .split("\n")
          .map((line) => line.trim().split(/\s+/))
          .filter(([, local = "", , state]) => state === listening && local.endsWith(suffix))
          .map((fields) => `socket:[${fields[9]}]`),
      ),
    );
    return readdirSync(`/proc/${pid}/fd`).some((fd) => inodes.has(linkOf(`/proc/${pid}/fd/${fd}`)));
  } catch {
    return undefined;
  }
}

function linkOf(path: string): string {
  try {
    return readlinkSync(path);
  } catch {
    return ""; // closed meanwhile
  }
}
