import { readdirSync, readFileSync, readlinkSync } from "node:fs";

/** The state of a listening socket in /proc/net/tcp. */
const listening = "0A";

/** Whether `pid` itself listens on a TCP port; a process that has ended does not. Undefined where the system does not tell: Linux does. */
export function listensOn(pid: number, port: number): boolean | undefined {
  const table = readTable();
  if (table === undefined) return undefined;
  const suffix = `:${port.toString(16).toUpperCase().padStart(4, "0")}`;
  const sockets = table
    .split("\n")
    .map((line) => line.trim().split(/\s+/))
    .filter(([, local = "", , state]) => state === listening && local.endsWith(suffix))
    .map((fields) => `socket:[${fields[9]}]`);
  return openFilesOf(pid).some((file) => sockets.includes(file));
}

/** The server is started on an address of IPv4. */
function readTable(): string | undefined {
  try {
    return readFileSync("/proc/net/tcp", "utf8");
  } catch {
    return undefined;
  }
}

function openFilesOf(pid: number): readonly string[] {
  const directory = `/proc/${pid}/fd`;
  try {
    return readdirSync(directory).flatMap((fd) => linkOf(`${directory}/${fd}`) ?? []);
  } catch {
    return []; // it has ended
  }
}

function linkOf(path: string): string | undefined {
  try {
    return readlinkSync(path);
  } catch {
    return undefined; // closed meanwhile
  }
}
