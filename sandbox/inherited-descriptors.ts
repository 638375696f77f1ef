import { readdirSync, readFileSync } from "node:fs";

/** O_CLOEXEC as /proc/<pid>/fdinfo prints it, octal. */
const CLOSE_ON_EXEC = 0o2000000;

/**
 * Descriptors above `last` (those up to it are replaced in every program we start) that our own parent left open and that every program we start would inherit: bubblewrap closes none, and
 * a directory among them would be a door to the host. Node opens all of its own with close-on-exec, so one look is enough.
 */
export function inheritedDescriptors(last: number): number[] {
  return readdirSync("/proc/self/fdinfo")
    .map(Number)
    .filter((fd) => fd > last && (flagsOf(fd) & CLOSE_ON_EXEC) === 0);
}

function flagsOf(fd: number): number {
  try {
    return Number.parseInt(/^flags:\s+(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, "utf8"))?.[1] ?? "0", 8);
  } catch {
    // The descriptor of the listing itself, closed again.
    return CLOSE_ON_EXEC;
  }
}
