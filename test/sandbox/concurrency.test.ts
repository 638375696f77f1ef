import { chown, chmod, mkdir, mkdtemp, readdir, readFile, realpath, rm } from "node:fs/promises";
import { spawnSync } from "node:child_process";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { createBwrapDriver } from "../../sandbox/bwrap-driver.ts";
import { gateRuns } from "../../sandbox/fair-gate.ts";
import { ownerName } from "../../sandbox/run-owner.ts";
import type { SandboxDriver, SandboxJob } from "../../sandbox/sandbox-driver.ts";
import { warmDefaults } from "../../sandbox/warm-slots.ts";
import { isRoot, limits, missing, type Tenant, text, variants } from "./sandbox-stage.ts";

const never = new AbortController().signal;
const generous = { timeout: 40_000, interval: 20 };
const MiB = 1024 * 1024;
const tenantCount = 20;

describe.skipIf(missing !== undefined).each(variants.filter(({ asUser }) => !asUser))("many calls at once, $name", ({ options }) => {
  let base: string;
  let tenants: Tenant[];
  let driver: SandboxDriver;
  beforeEach(async () => {
    base = await mkdtemp(join(await realpath(tmpdir()), "openclaw-many-"));
    await chmod(base, 0o755);
    driver = gateRuns(createBwrapDriver({ ...options, warm: warmDefaults }), { perDirectory: 4, total: 8 });
    tenants = await Promise.all(
      Array.from({ length: tenantCount }, async (_, index) => {
        const workDirectory = join(base, `tenant-${index}`);
        await mkdir(workDirectory, { mode: 0o700 });
        const uid = isRoot ? 3_000_000 + (process.pid % 1_000_000) * tenantCount + index : undefined;
        if (uid !== undefined) await chown(workDirectory, uid, uid);
        return { workDirectory, uid };
      }),
    );
  });
  afterEach(async () => {
    await driver.dispose();
    await rm(base, { recursive: true, force: true });
  });

  const jobOf = (tenant: Tenant, script: string, stdin = ""): SandboxJob => ({
    ...tenant,
    argv: ["/bin/bash", "-c", script],
    stdin,
    limits: { ...limits, wallMs: 120_000 },
  });

  test("200 calls of 20 tenants leave nothing: no process, mount, cgroup, descriptor or memory", async () => {
    const all = async (round: string, callsOfEach: number): Promise<void> => {
      const calls = tenants.flatMap((tenant, index) =>
        Array.from({ length: callsOfEach }, async (_, call) => {
          // Every fifth leaves a daemon behind, every seventh is cancelled as soon as it waits or runs.
          const script = call % 5 === 0 ? "setsid sleep 1000 </dev/null >/dev/null 2>&1 & cat" : "cat; echo x > /tmp/file";
          const stop = new AbortController();
          const ended = driver.run(jobOf(tenant, script, `${round} ${index} ${call}`), stop.signal);
          if ((index * callsOfEach + call) % 7 === 0) setImmediate(() => stop.abort());
          const { reason, stdout } = await ended;
          if (reason === "ok") expect(text(stdout)).toBe(`${round} ${index} ${call}`);
          return reason;
        }),
      );
      const reasons = await Promise.all(calls);
      expect(reasons.filter((reason) => reason === "ok").length).toBeGreaterThanOrEqual(tenantCount * callsOfEach * 0.75);
      expect(reasons.filter((reason) => reason !== "ok" && reason !== "cancelled")).toEqual([]);
      await Promise.all(tenants.map(({ workDirectory }) => driver.drop(workDirectory)));
    };
    await all("first", 2); // What is made once is there after it.
    const before = await remains(tenants);
    const memoryBefore = process.memoryUsage.rss();

    await all("second", 10);

    // Slots that were being started while the last ones were dropped end as well.
    await driver.dispose();
    await expect.poll(async () => (await remains(tenants)).processes, generous).toEqual([]);
    const after = await remains(tenants);
    expect(after.groups).toEqual([]);
    expect(after.mounts).toEqual(before.mounts);
    // Some are kept ready for the next runs; a leak would be one a call at least.
    expect(after.descriptors).toBeLessThanOrEqual(before.descriptors + 16);
    expect(process.memoryUsage.rss() - memoryBefore).toBeLessThan(200 * MiB);
  });

  test("a call that is cancelled at any moment of its start ends, and all of its sandbox with it", async () => {
    for (let round = 0; round < 12; round += 1) {
      const calls = tenants.slice(0, 8).map(async (tenant, index) => {
        const stop = new AbortController();
        const ended = driver.run(jobOf(tenant, "sleep 1000"), stop.signal);
        setTimeout(() => stop.abort(), (round * 8 + index) % 48);
        return (await ended).reason;
      });
      expect(new Set(await Promise.all(calls))).toEqual(new Set(["cancelled"]));
    }
    await driver.dispose();
    expect((await remains(tenants)).processes).toEqual([]);
  });

  test("no directory runs more than its share, and each has its turn beside one that asks for everything", async () => {
    const [greedy, modest] = tenants as [Tenant, Tenant];
    // Each call notes how many of its kind run beside it.
    const noting = 'touch "run-$$-$RANDOM$RANDOM"; f=$_; ls | grep -c run-; sleep 0.05; rm "$f"';
    const order: string[] = [];
    const start = async (tenant: Tenant, name: string) => {
      const { stdout, reason } = await driver.run(jobOf(tenant, noting), never);
      order.push(name);
      expect(reason).toBe("ok");
      return Number(text(stdout));
    };
    const greedyCalls = Array.from({ length: 40 }, async () => await start(greedy, "greedy"));
    const modestCalls = Array.from({ length: 2 }, async () => await start(modest, "modest"));

    expect(Math.max(...(await Promise.all(greedyCalls)))).toBeLessThanOrEqual(4);
    await Promise.all(modestCalls);
    expect(order.lastIndexOf("modest")).toBeLessThan(30);
  });

  test("a call that waits for its turn can be cancelled and costs no turn", async () => {
    const [tenant] = tenants as [Tenant];
    const stops = Array.from({ length: 4 }, () => new AbortController());
    const running = stops.map(async (stop) => await driver.run(jobOf(tenant, "touch began-$RANDOM-$RANDOM; sleep 1000"), stop.signal));
    await expect.poll(async () => (await readdir(tenant.workDirectory)).length, generous).toBe(4);
    const waiter = new AbortController();
    const waiting = driver.run(jobOf(tenant, "touch never"), waiter.signal);
    const last = driver.run(jobOf(tenant, "echo last"), never);

    waiter.abort();

    expect((await waiting).reason).toBe("cancelled");
    for (const stop of stops) stop.abort();
    expect((await Promise.all(running)).map(({ reason }) => reason)).toEqual(stops.map(() => "cancelled"));
    expect(text((await last).stdout)).toBe("last\n");
    expect(await readdir(tenant.workDirectory)).not.toContain("never");
  });
});

type Remains = {
  readonly processes: readonly string[];
  readonly mounts: readonly string[];
  readonly groups: readonly string[];
  readonly descriptors: number;
};

/** What runs could leave behind: the tenants' processes and this process's sandboxes, mounts, groups and descriptors. */
async function remains(tenants: readonly Tenant[]): Promise<Remains> {
  const uids = new Set(tenants.map(({ uid }) => uid));
  const pids = (await readdir("/proc")).filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid);
  const processes = await Promise.all(
    pids.map(async (pid) => {
      const status = await readFile(`/proc/${pid}/status`, "utf8").catch(() => "");
      const command = await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "");
      const isTenants = isRoot && uids.has(Number(/^Uid:\s+(\d+)/m.exec(status)?.[1]));
      const isOurs = command.includes(`\0${ownerName}-`);
      return (isTenants || isOurs) && !/^State:\s+Z/m.test(status) ? [`${pid} ${command.slice(0, 80)}`] : [];
    }),
  );
  const mountinfo = (await readFile("/proc/self/mountinfo", "utf8")).split("\n");
  const hierarchies = mountinfo.filter((line) => / - cgroup2? /.test(line)).map((line) => line.split(" ")[4] ?? "");
  const found = spawnSync("find", [...hierarchies, "-type", "d", "-name", `${ownerName}-*`], { encoding: "utf8" }).stdout;
  return {
    processes: processes.flat(),
    mounts: mountinfo.filter((line) => line.includes("openclaw-many-") || line.includes("newroot")),
    groups: hierarchies.length === 0 ? [] : found.split("\n").filter(Boolean),
    descriptors: (await readdir("/proc/self/fd")).length,
  };
}
