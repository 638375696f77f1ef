import { chmodSync, mkdtempSync, realpathSync, rmSync } from "node:fs";
import { cpus, loadavg, tmpdir } from "node:os";
import { join } from "node:path";

/** @param share 0.5 for the median; NaN of no values */
export const quantile = (values: readonly number[], share: number): number => {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
};

const load = (): string =>
  loadavg()
    .map((value) => value.toFixed(2))
    .join(" ");

/** Measures on a home that is removed afterwards, between two lines that say on what machine and how busy it was. */
export async function onFreshHome(name: string, measure: (home: string) => Promise<void>): Promise<void> {
  const home = mkdtempSync(join(realpathSync(tmpdir()), `openclaw-bench-${name}-`));
  chmodSync(home, 0o711); // Postgres runs as another user and has to reach its directory
  try {
    console.log(`${cpus().length} cores ${cpus()[0]?.model ?? "unknown"}; node ${process.version}; load ${load()}`);
    await measure(home);
    console.log(`load at the end ${load()}`);
  } finally {
    rmSync(home, { recursive: true, force: true });
  }
}
