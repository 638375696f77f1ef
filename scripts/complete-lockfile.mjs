/**
 * Completes package-lock.json after `npm install`. npm leaves out platform packages that the registry in use does not have
 * (a mirror that lags, say), and `npm ci` then refuses the very file that npm wrote, on every platform (npm/cli#9846).
 * Adds an entry with version, os and cpu for each; without `integrity`, which only a registry that has them can tell.
 * Usage: node scripts/complete-lockfile.mjs [package-lock.json]
 */
import { readFileSync, writeFileSync } from "node:fs";

const systems = ["darwin", "linux", "win32", "android", "freebsd", "openharmony"];
const processors = ["arm64", "arm", "x64", "ia32", "ppc64", "s390x", "riscv64"];

/** @typedef {{ version?: string, optionalDependencies?: Record<string, string>, dev?: boolean, optional?: boolean, os?: string[], cpu?: string[] }} LockEntry */

const file = process.argv[2] ?? "package-lock.json";
/** @type {{ packages: Record<string, LockEntry> }} */
const lock = JSON.parse(readFileSync(file, "utf8"));
const added = [];

for (const entry of Object.values(lock.packages)) {
  for (const [name, version] of Object.entries(entry.optionalDependencies ?? {})) {
    const path = `node_modules/${name}`;
    const isPresent = Object.keys(lock.packages).some((present) => present.endsWith(path));
    const platform = platformOf(name);
    if (isPresent || platform === undefined || !/^\d+\.\d+\.\d+/.test(version)) continue;
    lock.packages[path] = { version, ...platform, ...(entry.dev ? { dev: true } : {}), optional: true };
    added.push(name);
  }
}

if (added.length > 0) {
  lock.packages = Object.fromEntries(Object.entries(lock.packages).toSorted(([a], [b]) => a.localeCompare(b, "en")));
  writeFileSync(file, `${JSON.stringify(lock, null, 2)}\n`);
}
console.log(`${file}: ${added.length} platform packages added.`);

/**
 * Platform packages are named for their platform: `@swc/core-linux-arm64-gnu`, `@oxfmt/binding-linux-arm-musleabihf`.
 * @param {string} name
 */
function platformOf(name) {
  const words = name.split(/[-/@]/);
  const os = systems.find((system) => words.includes(system));
  const cpu = processors.find((processor) => words.includes(processor));
  if (os === undefined || cpu === undefined) return undefined;
  const libc = words.some((word) => word.startsWith("musl")) ? "musl" : words.some((word) => word.startsWith("gnu")) ? "glibc" : undefined;
  return { cpu: [cpu], os: [os], ...(libc === undefined ? {} : { libc: [libc] }) };
}
