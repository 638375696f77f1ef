import { once } from "node:events";
import { chown, mkdir, readdir, readFile, rename, rm } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, onTestFinished, test } from "vitest";
import { goScript } from "../../sandbox/bwrap-arguments.ts";
import { createBwrapDriver } from "../../sandbox/bwrap-driver.ts";
import { ownerName } from "../../sandbox/run-owner.ts";
import type { SandboxDriver, SandboxJob, SandboxLimits } from "../../sandbox/sandbox-driver.ts";
import { type WarmLimits, warmDefaults } from "../../sandbox/warm-slots.ts";
import {
  isRoot,
  limits,
  MiB,
  missing,
  processesWith,
  type Stage,
  setStage,
  startDriverProcess,
  type Tenant,
  text,
  uids,
  variants,
} from "./sandbox-stage.ts";

const never = new AbortController().signal;
const generous = { timeout: 40_000, interval: 20 };
/** Long enough for a test, on a slow machine too. */
const warm: WarmLimits = { ...warmDefaults, ttlMs: 600_000, total: 8 };

/** Host pids of the shells that wait in sandboxes of `owner`, the oldest first. */
async function waitingShells(owner = ownerName): Promise<number[]> {
  const pids = (await readdir("/proc")).filter((name) => /^\d+$/.test(name));
  const found = await Promise.all(
    pids.map(async (pid) => {
      const [program, , script, name] = (await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "")).split("\0");
      return program === "/bin/sh" && script === goScript && name?.startsWith(`${owner}-`) ? [Number(pid)] : [];
    }),
  );
  return found.flat().toSorted((a, b) => a - b);
}

const shells = async (count: number, owner?: string): Promise<number[]> => {
  await expect.poll(async () => (await waitingShells(owner)).length, generous).toBe(count);
  return await waitingShells(owner);
};

describe.skipIf(missing !== undefined).each(variants.filter(({ asUser }) => !asUser))(
  "sandboxes started ahead, $name",
  ({ options, ...variant }) => {
    let stage: Stage;
    let driver: SandboxDriver;
    beforeEach(async () => {
      stage = await setStage({ ...variant, options });
      driver = createBwrapDriver({ ...options, warm });
    });
    afterEach(async () => {
      await driver.dispose();
      expect(await waitingShells()).toEqual([]);
      await stage.tearDown();
    });

    const jobOf = (tenant: Tenant, script: string, own: Partial<SandboxLimits> = {}): SandboxJob => ({
      ...tenant,
      argv: ["/bin/bash", "-c", script],
      stdin: "",
      limits: { ...limits, ...own },
    });
    const run = async (script: string, own: Partial<SandboxLimits> = {}, tenant = stage.acme) => {
      const result = await driver.run(jobOf(tenant, script, own), never);
      return { ...result, out: text(result.stdout) };
    };
    /** A program that holds on until its file `go` is there; gives its host pid. */
    const startHolding = async (marker: string) => {
      const ended = run(`touch began-${marker} /tmp/mine; while [ ! -e go ]; do sleep 0.02; done; ls /tmp`);
      await expect.poll(() => readdir(stage.acme.workDirectory), generous).toContain(`began-${marker}`);
      const [pid] = (await processesWith(`began-${marker}`))
        .map(Number)
        .toSorted((a, b) => a - b)
        .slice(-1);
      return { ended, pid };
    };

    test("a slot serves one call; the next one has another, and nothing of the first", async () => {
      await run("touch /tmp/old");
      const [first] = await shells(1);

      const held = await startHolding("a");
      expect(await waitingShells()).not.toContain(first);
      expect(await processesWith("began-a")).toContain(String(first));
      const beside = await run("ls /tmp; touch go");

      expect(beside).toMatchObject({ reason: "ok", out: "" });
      expect((await held.ended).out).toBe("mine\n");
      expect((await shells(2)).includes(first as number)).toBe(false);
    });

    test("a slot serves its own directory and limits only; the clock and what is kept of the output are the call's", async () => {
      await run("true");
      const [acme] = await shells(1);
      await run("true", {}, stage.globex);
      await run("true", { memoryBytes: limits.memoryBytes / 2 });
      const all = await shells(3);
      expect(all).toContain(acme);

      expect((await run("echo 12345", { wallMs: 5_000, outputBytes: 3 })).out).toBe("123");
      await expect.poll(() => waitingShells(), generous).not.toContain(acme);
    });

    test("limits hold in a slot as in any sandbox, and its time begins with the call", async () => {
      await run("true");
      await shells(1);
      await run("sleep 1", {}, stage.globex); // The slot waits longer than the next call may take.
      const long = await run("sleep 50", { wallMs: 700 });
      expect([long.reason, long.exitCode]).toEqual(["wall", undefined]);

      await shells(2);
      const hog = await run("exec perl -e 'my @x; push @x, \"x\" x 8_000_000 while 1'");
      expect(["memory", "ok"]).toContain(hog.reason);
      expect(hog.exitCode).not.toBe(0);

      await shells(2);
      const { out } = await run("ulimit -n; ulimit -f; ulimit -t; ulimit -c");
      expect(out).toBe(`${limits.openFiles}\n${limits.fileBytes / 1024}\n${limits.cpuSeconds}\n0\n`);
    });

    test("a slot that was killed is replaced, noticed or not", async () => {
      await run("true");
      for (let round = 0; round < 4; round += 1) {
        const [victim] = await shells(1);
        process.kill(victim as number, "SIGKILL");
        if (round % 2 === 0) await expect.poll(() => waitingShells(), generous).not.toContain(victim);
        expect(await run(`echo ${round}`)).toMatchObject({ reason: "ok", exitCode: 0, out: `${round}\n` });
      }
    });

    test("a directory that was replaced meanwhile is the one that the call sees", async () => {
      const { workDirectory, uid } = stage.acme;
      await run("echo old > file");
      await shells(1);
      await rename(workDirectory, `${workDirectory}-old`);
      await mkdir(workDirectory);
      if (uid !== undefined) await chown(workDirectory, uid, uid);

      expect((await run("ls; touch new")).out).toBe("");

      expect(await readdir(workDirectory)).toEqual(["new"]);
      expect(await readdir(`${workDirectory}-old`)).toEqual(["file"]);
    });

    test("a directory that was removed meanwhile refuses the call", async () => {
      await run("true");
      await shells(1);
      await rm(stage.acme.workDirectory, { recursive: true });

      expect((await run("echo there")).reason).toBe("failed_to_start");
      await mkdir(stage.acme.workDirectory);
    });

    test("drop ends what waits for a directory and nothing else", async () => {
      await run("true");
      const [acme] = await shells(1);
      await run("true", {}, stage.globex);
      const globex = (await shells(2)).find((pid) => pid !== acme);

      await driver.drop(stage.acme.workDirectory);

      expect(await waitingShells()).toEqual([globex]);
      expect((await run("echo again")).out).toBe("again\n");
    });

    test("a call that is cancelled takes its slot with it", async () => {
      await run("true");
      const [pid] = await shells(1);
      const stop = new AbortController();
      const ended = driver.run(jobOf(stage.acme, "touch began; sleep 50"), stop.signal);
      await expect.poll(() => readdir(stage.acme.workDirectory), generous).toContain("began");

      stop.abort();

      expect((await ended).reason).toBe("cancelled");
      expect(await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "")).toBe("");
    });

    test("arguments and stdin arrive as they are, whatever a shell would make of them", async () => {
      await run("true");
      await shells(1);
      const everyCharacter = Array.from({ length: 0x500 }, (_, code) => String.fromCharCode(code + 1)).join("");
      const odd = ["", "'", "''\\''", "$(touch pwned)`touch pwned`", "-n", "a\nb\n", "'; exit 3; '", everyCharacter, "x".repeat(100_000)];
      const stdin = Buffer.from(Array.from({ length: MiB }, (_, index) => index % 256));
      for (const round of ["warm", "cold"]) {
        const big = { ...limits, outputBytes: 4 * MiB };
        const perl = 'binmode STDIN; local $/; my $in = <STDIN>; print join("\\0", @ARGV), "\\0", $in';
        const result = await driver.run({ ...stage.acme, argv: ["/usr/bin/perl", "-e", perl, "--", ...odd], stdin, limits: big }, never);
        expect(Buffer.compare(Buffer.from(result.stdout), Buffer.concat([Buffer.from(`${odd.join("\0")}\0`), stdin])), round).toBe(0);
        await driver.drop(stage.acme.workDirectory);
      }
      expect(await readdir(stage.acme.workDirectory)).toEqual([]);
      expect((await run("readlink /proc/self/fd/0; ls /proc/$$/fd; true")).out).toBe("/dev/null\n0\n1\n2\n");
    });

    test.each([
      ["none", []],
      ["a NUL", ["/bin/echo", "a\0b"]],
      ["one longer than the kernel takes", ["/bin/echo", "x".repeat(128 * 1024)]],
      ["too many", ["/bin/echo", ...Array.from({ length: 200_000 }, () => "x")]],
    ])("arguments that are refused before anything starts: %s", async (_, argv) => {
      await run("true");
      const before = await shells(1);

      expect((await driver.run({ ...stage.acme, argv, stdin: "", limits }, never)).reason).toBe("denied");

      expect(await waitingShells()).toEqual(before);
    });
  },
);

describe.skipIf(missing !== undefined)("what is kept ready", () => {
  const drive = async (own: Partial<WarmLimits>) => {
    const stage = await setStage({ name: "root", options: {}, asUser: false });
    const driver = createBwrapDriver({ warm: { ...warm, ...own } });
    onTestFinished(async () => {
      await driver.dispose();
      await stage.tearDown();
    });
    const run = async (tenant: Tenant) => await driver.run({ ...tenant, argv: ["/usr/bin/true"], stdin: "", limits }, never);
    return { stage, driver, run };
  };

  test("the directory that was not used for longest gives way", async () => {
    const { stage, run } = await drive({ total: 1 });
    await run(stage.acme);
    const [acme] = await shells(1);
    await run(stage.globex);
    await expect.poll(() => waitingShells(), generous).not.toContain(acme);
    const [globex] = await shells(1);
    await run(stage.globex);

    await expect.poll(() => waitingShells(), generous).not.toContain(globex);
    await shells(1);
  });

  test("one directory keeps no more than its share, however many run at once", async () => {
    const { stage, run } = await drive({ perKey: 2 });
    await Promise.all(Array.from({ length: 6 }, async () => await run(stage.acme)));

    await shells(2);
  });

  test("a slot that nobody used ends after its time", async () => {
    const { stage, run } = await drive({ ttlMs: 4_000 });
    await run(stage.acme);
    await shells(1);
    await expect.poll(() => waitingShells(), generous).toEqual([]);
    expect((await run(stage.acme)).exitCode).toBe(0);
  });

  test("none is started where none is wanted, for a refused owner, or after the end", async () => {
    const { stage, driver, run } = await drive({ total: 0 });
    await run(stage.acme);
    driver.prepare({ ...stage.acme, limits });
    if (isRoot) driver.prepare({ ...stage.acme, uid: 0, limits });
    await driver.dispose();
    driver.prepare({ ...stage.acme, limits });
    await sleep(50);

    expect(await waitingShells()).toEqual([]);
  });
});

describe.skipIf(missing !== undefined).each(variants)("a process that is ended by kill -9, $name", ({ options, asUser, ...variant }) => {
  test("while one program runs in a slot and another slot waits, leaves nothing", async () => {
    const stage = await setStage({ ...variant, options: {}, asUser });
    onTestFinished(() => stage.tearDown());
    const driver = startDriverProcess({ ...options, warm }, asUser ? { uid: uids.user } : {});
    const owner = ownerName.replace(/\d+$/, String(driver.process?.pid));
    const job = (script: string): SandboxJob => ({
      ...stage.acme,
      argv: ["/bin/bash", "-c", script],
      stdin: "",
      limits: { ...limits, wallMs: 600_000 },
    });
    await driver.run(job("true"), never);
    const [pid] = await shells(1, owner);
    const marker = `warm-orphan-${process.pid}`;
    const ended = driver.run(job(`trap '' TERM HUP INT; setsid sleep 600 & exec -a ${marker} sleep 600`), never).catch(() => "ended");
    await expect.poll(() => processesWith(marker), generous).toEqual([String(pid)]);
    await driver.run(job("true"), never);
    await shells(1, owner);

    driver.process?.kill("SIGKILL");
    await once(driver.process as NonNullable<typeof driver.process>, "exit");

    expect(await ended).toBe("ended");
    await expect.poll(() => processesWith(marker), generous).toEqual([]);
    await expect.poll(() => processesWith(`${owner}-`), generous).toEqual([]);
  });
});
