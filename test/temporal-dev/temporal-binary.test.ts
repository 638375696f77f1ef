import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { findTemporalBinary, probeTemporalBinary, temporalCacheDir } from "../../temporal-dev/temporal-binary.mjs";

async function directoryWithTemporal(says: string): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "openclaw-binary-"));
  onTestFinished(() => rm(directory, { recursive: true, force: true }));
  const path = join(directory, "temporal");
  await writeFile(path, `#!/bin/sh\necho '${says}'\n`);
  await chmod(path, 0o755);
  return directory;
}

test.each([
  ["temporal version 1.5.1 (Server 1.29.1, UI 2.42.1)", "1.5.1"],
  ["temporal version 0.0.0-DEV (Server 1.29.1, UI 2.42.1)", "with server 1.29.1"],
  ["temporal version 1.6.0 (Server 1.30.0, UI 2.50.0)", "1.6.0"],
])("%s is good enough", async (says, version) => {
  const directory = await directoryWithTemporal(says);

  expect(probeTemporalBinary(join(directory, "temporal"))).toEqual({ usable: true, version });
});

test.each([
  ["temporal version 1.4.1 (Server 1.28.0, UI 2.39.0)", "too old"],
  ["temporal version 0.0.0-DEV (Server 1.28.0, UI 2.39.0)", "too old"],
  ["hello, I am another temporal", "does not tell its version"],
])("%s is not", async (says, reason) => {
  const directory = await directoryWithTemporal(says);

  expect(probeTemporalBinary(join(directory, "temporal"))).toMatchObject({ usable: false, reason: expect.stringContaining(reason) });
});

test("the named one comes before PATH, PATH before the cache, and whatever cannot be used is passed over", async () => {
  const good = "temporal version 1.5.1 (Server 1.29.1, UI 2.42.1)";
  const [named, old, onPath, cached] = [
    await directoryWithTemporal(good),
    await directoryWithTemporal("temporal version 1.0.0 (Server 1.24.0, UI 2.0.0)"),
    await directoryWithTemporal(good),
    await directoryWithTemporal(good),
  ];
  const PATH = `${old}:${onPath}`;

  expect(findTemporalBinary({ env: { PATH, TEMPORAL_CLI_PATH: join(named, "temporal") }, cacheDir: cached })?.source).toBe(
    "TEMPORAL_CLI_PATH",
  );
  expect(findTemporalBinary({ env: { PATH }, cacheDir: cached })?.path).toBe(join(onPath, "temporal"));
  expect(findTemporalBinary({ env: { PATH: old }, cacheDir: cached })?.source).toBe("cache");
  expect(findTemporalBinary({ env: { PATH: old }, cacheDir: old })).toBeUndefined();
});

test("the cache is outside the checkout, under XDG_CACHE_HOME or ~/.cache", () => {
  expect(temporalCacheDir({ HOME: "/home/jo" })).toBe("/home/jo/.cache/openclaw/temporal-cli/1.5.1");
  expect(temporalCacheDir({ HOME: "/home/jo", XDG_CACHE_HOME: "/var/cache/jo" })).toBe("/var/cache/jo/openclaw/temporal-cli/1.5.1");
  expect(temporalCacheDir({ HOME: "/home/jo", XDG_CACHE_HOME: "relative" })).toBe("/home/jo/.cache/openclaw/temporal-cli/1.5.1");
});
