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
const groupsNow = (): string[] => {
  const parents = places === undefined ? [] : places.version === 1 ? [places.memory, places.pids] : [places.parent];
  return parents.flatMap((parent) =>
    readdirSync(parent)
      .filter((name) => name.startsWith(`${ownerName}-`))
      .map((name) => join(parent, name)),
  );
};
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

const startTree = async () => {
  const child = spawn("/bin/sh", ["-c", "echo ready; read -r go; sleep 60 & sleep 60 & echo joined; wait"], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  await once(child.stdout, "data");
  return { child, pid: child.pid as number, go: async () => (child.stdin.write("go\n"), await once(child.stdout, "data")) };
};

test.skipIf(!places)("a run's group takes processes in, holds what they start, kills all of it and is gone afterwards", async () => {
  const before = groupsNow();
  const hold = createCgroupEnforcer(places as NonNullable<typeof places>).hold(limits);
  const { child, pid, go } = await startTree();
  const ended = once(child, "exit");
  await hold.takeIn([pid]);
  await go();
  const [group] = groupsNow().filter((path) => !before.includes(path));
  expect(
    readFileSync(join(group ?? "", "cgroup.procs"), "utf8")
      .trim()
      .split("\n"),
  ).toHaveLength(3);

  expect(await hold.release()).toMatchObject({ memory: false, processes: false });

  expect(groupsNow()).toEqual(before);
  expect((await ended)[1]).toBe("SIGKILL");
});

test.skipIf(!places)("a process that has ended is no error to take in", async () => {
  const hold = createCgroupEnforcer(places as NonNullable<typeof places>).hold(limits);
  const child = spawn("/bin/true");
  await once(child, "exit");

  await hold.takeIn([child.pid as number]);

  await hold.release();
});

test.skipIf(!mayMakeV2)(
  "cgroup v2: taken in, killed through cgroup.kill, removed (on the real v2 tree, controllers set aside)",
  async () => {
    const parent = join(unified as string, `openclaw-test-${process.pid}`);
    mkdirSync(parent);
    onTestFinished(() => rmdirSync(parent));
    const hasControllers = readFileSync(join(parent, "cgroup.controllers"), "utf8").includes("memory");
    if (hasControllers) writeFileSync(join(parent, "cgroup.subtree_control"), "+memory +pids");
    const enforcer = createCgroupEnforcer({ version: 2, cpu: false, parent });
    if (!hasControllers) {
      // Here the controllers are v1's: the group cannot hold, is refused, and nothing is left of the try.
      expect(() => enforcer.hold(limits)).toThrow();
      expect(readdirSync(parent).filter((name) => name.startsWith("openclaw"))).toEqual([]);
      return;
    }
    const hold = enforcer.hold(limits);
    const { pid, go } = await startTree();
    await hold.takeIn([pid]);
    await go();
    await hold.release();
    expect(readdirSync(parent).filter((name) => name.startsWith("openclaw"))).toEqual([]);
  },
);

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

const cpuPlace = places?.version === 1 ? places.cpu : places?.cpu === true ? places.parent : undefined;

test.skipIf(cpuPlace === undefined)(
  "a run that uses up its CPU share stands behind others from then on, and no other run does",
  async () => {
    const cpu = cpuPlace as string;
    const groups = (): string[] => readdirSync(cpu).filter((name) => name.startsWith(`${ownerName}-`));
    const weightOf = (name: string): number =>
      Number(readFileSync(join(cpu, name, places?.version === 1 ? "cpu.shares" : "cpu.weight"), "utf8"));
    const before = groups();
    const run = async (script: string) => {
      const known = groups();
      const hold = createCgroupEnforcer(places as NonNullable<typeof places>).hold({ ...limits, cpus: 0.2 });
      const child = spawn("/bin/sh", ["-c", `read -r go; ${script}`], { stdio: ["pipe", "ignore", "inherit"] });
      await hold.takeIn([child.pid as number]);
      hold.watch(() => undefined);
      child.stdin.write("go\n");
      const name = groups().find((one) => !known.includes(one)) ?? expect.fail("there is no group");
      return { hold, usual: weightOf(name), weight: () => weightOf(name) };
    };
    const idle = await run("sleep 60");
    const hog = await run("while :; do :; done");

    await expect.poll(hog.weight, { timeout: 30_000 }).toBeLessThan(hog.usual / 10);

    expect(idle.weight()).toBe(idle.usual);
    await Promise.all([idle.hold.release(), hog.hold.release()]);
    expect(groups()).toEqual(before);
  },
);

test("a name tells a dead owner from a living one, and strangers are nobody's", () => {
  expect(isOrphaned(`${ownerName}-1`)).toBe(false);
  expect(isOrphaned("openclaw-sandbox-1-999999999-1")).toBe(false);
  expect(isOrphaned("system.slice")).toBe(false);
  expect(isOrphaned(`${ownerName.replace(/\d+$/, "")}999999999-1`)).toBe(true);
});

test("the limits of one process stay below our own hard ones and come in a shell's units", () => {
  const hard = parseHardLimits(
    [
      "Limit                     Soft Limit           Hard Limit           Units     ",
      "Max open files            20                   40                   files     ",
      "Max file size             unlimited            unlimited            bytes     ",
    ].join("\n"),
  );

  expect(limitArguments(limits, hard, { alone: true })).toEqual([
    "40",
    String(limits.fileBytes / 512),
    "10",
    String(limits.memoryBytes / 1024),
    "48",
  ]);
  expect(limitArguments(limits, hard, { alone: false }).slice(3)).toEqual(["-", "-"]);
});
