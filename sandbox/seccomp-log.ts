import { readFileSync } from "node:fs";

const path = "/proc/sys/kernel/seccomp/actions_logged";

/** Why `seccomp: log` would teach nobody anything here, as a clause; undefined where the kernel logs what it lets through. */
export function refuseSeccompLog(): string | undefined {
  try {
    const logged = readFileSync(path, "utf8").split(/\s+/);
    return logged.includes("log") ? undefined : `the kernel does not log what seccomp: log lets through (${path})`;
  } catch {
    return `the kernel does not tell whether it logs what seccomp: log lets through (${path} cannot be read)`;
  }
}
