// What CI runs before the tests: types, lint with the import arrows, casts, format, dead code. All of them run; any failure fails the check.
import { spawnSync } from "node:child_process";

const steps = [
  ["types", "tsc", "--noEmit"],
  ["lint", "oxlint", "--deny-warnings"],
  ["casts", "node", "scripts/check-casts.mjs"],
  ["format", "oxfmt", "--check", "."],
  ["dead code", "knip", "--no-progress"],
];

let failed = 0;
for (const [name = "", command = "", ...args] of steps) {
  const { status, stdout, stderr } = spawnSync(command, args, { encoding: "utf8", shell: process.platform === "win32" });
  process.stdout.write(`${status === 0 ? "✓" : "✗"} ${name}\n`);
  if (status !== 0) {
    failed++;
    process.stdout.write(`${stdout ?? ""}${stderr ?? ""}\n`);
  }
}
process.exit(failed === 0 ? 0 : 1);
