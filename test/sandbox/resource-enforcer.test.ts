import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { limitArguments, parseHardLimits } from "../../sandbox/bwrap-arguments.ts";
import { createCgroupEnforcer } from "../../sandbox/cgroup-enforcer.ts";
import { findCgroupPlaces, reapOrphanedGroups } from "../../sandbox/cgroup-place.ts";
import { isOrphaned, ownerName } from "../../sandbox/run-owner.ts";
import { limits } from "./sandbox-stage.ts";

const places = findCgroupPlaces();
const unified = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].find((directory) => existsSync(join(directory, "cgroup.controllers")));
const mayMakeV2 = ((): boolean => {
  const trial = join(unified ?? "/nowhere", `openclaw-trial-${process.pid}`);
  try {
    mkdirSync(trial);
    rmdirSync(trial);
    return true;
  } catch {
    return false;
  }
})();

test.skipIf(!places)("a run's group has its limits, takes what joins, kills all of it and is gone afterwards", async () => {
  const hold = createCgroupEnforcer(places as NonNullable<typeof places>).hold({ memoryBytes: 64 * 1024 * 1024, processes: 8 });
  const child = spawn("/bin/sh", ["-c", 'for f; do echo 0 > "$f"; done; sleep 60 & sleep 60 & echo joined; wait', "sh", ...hold.joinFiles], { stdio: ["ignore", "pipe", "inherit"] });
  await once(child.stdout as NonNullable<typeof child.stdout>, "data");
  const directories = hold.joinFiles.map((file) => join(file, ".."));
  expect(readFileSync(hold.joinFiles[0] ?? "", "utf8").trim().split("\n")).toHaveLength(3);

  expect(await hold.release()).toEqual({ memory: false, processes: false });

  expect(directories.filter((directory) => existsSync(directory))).toEqual([]);
  expect(child.exitCode ?? child.signalCode ?? (await once(child, "exit"))[1]).toBe("SIGKILL");
});

test.skipIf(!mayMakeV2)("cgroup v2: joined before exec, killed through cgroup.kill, removed (on the real v2 tree, controllers set aside)", async () => {
  const parent = join(unified as string, `openclaw-test-${process.pid}`);
  mkdirSync(parent);
  onTestFinished(() => rmdirSync(parent));
  const hasControllers = readFileSync(join(parent, "cgroup.controllers"), "utf8").includes("memory");
  if (hasControllers) writeFileSync(join(parent, "cgroup.subtree_control"), "+memory +pids");
  const enforcer = createCgroupEnforcer({ version: 2, parent });
  if (!hasControllers) {
    // Here the controllers are v1's: the group cannot hold, is refused, and nothing is left of the try.
    expect(() => enforcer.hold(limits)).toThrow();
    expect(readdirSync(parent).filter((name) => name.startsWith("openclaw"))).toEqual([]);
    return;
  }
  const hold = enforcer.hold(limits);
  const child = spawn("/bin/sh", ["-c", 'echo 0 > "$1"; sleep 60 & echo joined; wait', "sh", ...hold.joinFiles], { stdio: ["ignore", "pipe", "inherit"] });
  await once(child.stdout as NonNullable<typeof child.stdout>, "data");
  await hold.release();
  expect(readdirSync(parent).filter((name) => name.startsWith("openclaw"))).toEqual([]);
});

test.skipIf(!places)("a group of a process that is gone is killed and removed, one of a living process is not", async () => {
  const [directory] = places?.version === 1 ? [places.pids] : [places?.parent];
  const child = spawn("/bin/true");
  await once(child, "exit");
  const dead = join(directory ?? "", `${ownerName.replace(/\d+$/, "")}${child.pid}-1`);
  const living = join(directory ?? "", `${ownerName}-999999`);
  for (const group of [dead, living]) mkdirSync(group);

  reapOrphanedGroups(places as NonNullable<typeof places>);

  expect([existsSync(dead), existsSync(living)]).toEqual([false, true]);
  rmdirSync(living);
});

test("a name tells a dead owner from a living one, and strangers are nobody's", () => {
  expect(isOrphaned(`${ownerName}-1`)).toBe(false);
  expect(isOrphaned("openclaw-sandbox-1-999999999-1")).toBe(false);
  expect(isOrphaned("system.slice")).toBe(false);
  expect(isOrphaned(`${ownerName.replace(/\d+$/, "")}999999999-1`)).toBe(true);
});

test("the limits of one process stay below our own hard ones and come in a shell's units", () => {
  const hard = parseHardLimits(
    ["Limit                     Soft Limit           Hard Limit           Units     ", "Max open files            20                   40                   files     ", "Max file size             unlimited            unlimited            bytes     "].join("\n"),
  );

  expect(limitArguments(limits, hard, { alone: true })).toEqual(["40", String(limits.fileBytes / 512), "10", String(limits.memoryBytes / 1024), "48"]);
  expect(limitArguments(limits, hard, { alone: false }).slice(3)).toEqual(["-", "-"]);
});
