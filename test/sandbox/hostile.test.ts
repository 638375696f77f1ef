import { spawnSync } from "node:child_process";
import { readdir, readFile, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import type { SandboxLimits } from "../../sandbox/sandbox-driver.ts";
import { machineOf, syscallTables } from "../../sandbox/seccomp-filter.ts";
import {
  isRoot,
  limits,
  missing,
  processesWith,
  runOutside,
  type Stage,
  setStage,
  startDriverProcess,
  tenantProcesses,
  text,
  uids,
  variants,
} from "./sandbox-stage.ts";

const syscalls = syscallTables[machineOf(process.arch) ?? "x86_64"];
const never = new AbortController().signal;

/** Prints HELD where the probe was kept from its aim and BROKEN where it got there. */
const probe = (command: string): string => `if ${command}; then echo BROKEN; else echo HELD; fi`;

let marks = 0;
const newMark = (): string => `ran-${process.pid}-${(marks += 1)}`;

describe.skipIf(missing !== undefined).each(variants)("hostile programs, $name", (variant) => {
  let stage: Stage;
  let mountsBefore: string;

  beforeAll(async () => {
    mountsBefore = await mountsOfHost();
    stage = await setStage(variant);
    await writeFile(join(stage.base, "host-secret.txt"), "host secret", { mode: 0o644 });
    await writeFile(join(stage.globex.workDirectory, "secret.txt"), "globex secret");
  });
  afterAll(async () => {
    await stage.tearDown();
  });

  /** Runs a bash script as acme and makes sure that it began. */
  async function run(
    script: string,
    { signal = never, stdin = "", ...overrides }: Partial<SandboxLimits> & { signal?: AbortSignal; stdin?: string } = {},
  ) {
    const mark = newMark();
    const job = { ...stage.acme, argv: ["/bin/bash", "-c", `echo ${mark}\n${script}`], stdin, limits: { ...limits, ...overrides } };
    const result = await stage.driver.run(job, signal);
    const stdout = text(result.stdout);
    expect(stdout.startsWith(`${mark}\n`), `the script did not run: ${result.reason} ${text(result.stderr)}`).toBe(true);
    return { ...result, out: stdout.slice(mark.length + 1), err: text(result.stderr) };
  }

  describe("files", () => {
    test("writing anywhere but /work and /tmp", async () => {
      const { out } =
        await run(`for d in / /usr /usr/bin /usr/local /etc /etc/ssl /bin /dev /proc /proc/sys/kernel /home /root /var /run /sys; do touch $d/probe 2>/dev/null && echo BROKEN $d; done
        for f in /etc/passwd /usr/bin/env /proc/sys/kernel/hostname /proc/sysrq-trigger; do (echo x >> $f) 2>/dev/null && echo BROKEN $f; done
        touch /work/mine /tmp/mine /dev/shm/mine && echo ok; rm /work/mine`);
      expect(out.trim()).toBe("ok");
    });
    test("a link to the host leads nowhere", async () => {
      await run(`ln -sfn ${stage.base} out; ln -sf ${stage.base}/host-secret.txt secret; ln -sf /etc/shadow shadow`);
      expect(
        (await run("cat out/host-secret.txt secret shadow 2>/dev/null; echo x > out/made 2>/dev/null; rm out secret shadow; echo done"))
          .out,
      ).toBe("done\n");
      expect(await readdir(stage.base)).not.toContain("made");
    });
    test("setuid and device files mean nothing", async () => {
      const { out } = await run(`cp /usr/bin/id own; chmod 6755 own; ./own -u; rm own
        for d in "mknod c c 1 3" "mknod b b 8 0"; do ${probe("$d 2>/dev/null")}; done
        grep -E ' /(usr|work) ' /proc/self/mountinfo | grep -vc nosuid; mkfifo f && test -p f && rm f && echo fifo`);
      expect(out.split("\n").slice(0, 5)).toEqual(["1000", "HELD", "HELD", "0", "fifo"]);
      if (isRoot) expect(runOutside(`${probe("mknod c c 1 3")}; rm c`, stage.base).trim()).toBe("BROKEN");
    });
    test("what it makes on the host belongs to the tenant, never to root", async () => {
      await run("echo x > made");
      const { uid, gid } = await stat(join(stage.acme.workDirectory, "made"));
      const expected = variant.asUser ? uids.user : (stage.acme.uid ?? process.getuid?.());
      expect([uid, gid]).toEqual([expected, isRoot ? expected : process.getgid?.()]);
    });
  });

  describe("secrets and processes", () => {
    test("its environment is ours to name", async () => {
      const { out } = await run("env | cut -d= -f1 | sort | tr '\\n' ' '");
      expect(out.trim()).toBe("HOME LANG LOGNAME PATH PWD SHELL SHLVL TERM TMPDIR USER _");
    });
    test("host paths in the command line of the first process, and other groups in the names of cgroups", async () => {
      const { out } = await run("tr '\\0' ' ' < /proc/1/cmdline; cat /proc/self/cgroup; hostname");
      expect(out).not.toContain(stage.base);
      // Its own group's name may show, where it was taken in after its cgroup namespace was made; nothing above it does.
      for (const [line] of out.matchAll(/^\d+:[^\n]*$/gm)) expect(line).toMatch(/^\d+:[^:]*:\/(openclaw-sandbox-[\d-]+)?$/);
      expect(out.trim().endsWith("sandbox")).toBe(true);
    });
    test("descriptors", async () => {
      expect((await run("ls /proc/self/fd | tr '\\n' ' '")).out.trim()).toBe("0 1 2 3");
      expect((await run("ls -l /proc/1/fd")).out).not.toMatch(/\/work|acme|socket|memfd|constant/);
    });
    test("descriptors that our own parent left open", async () => {
      const driver = startDriverProcess(variant.options, { ...(variant.asUser ? { uid: uids.user } : {}), inherit: stage.base });
      onTestFinished(() => driver.dispose());
      expect(await driver.probe()).toBeUndefined();
      expect(await readdir(`/proc/${driver.process?.pid}/fd`)).toContain("77");

      const job = { ...stage.acme, argv: ["/bin/bash", "-c", "ls /proc/self/fd /proc/1/fd; ls -l /proc/*/fd"], stdin: "", limits };
      const { stdout, reason } = await driver.run(job, never);

      expect(reason).toBe("ok");
      expect(text(stdout)).toContain("/proc/self/fd:\n0\n1\n2\n3\n");
      expect(text(stdout)).not.toContain(stage.base);
    });
    test("capabilities, privileges and the filter", async () => {
      const { out } = await run(
        "grep -hE '^(CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status /proc/1/status | sort | uniq -c | tr -s ' \\t' ' '; id -G",
      );
      expect(out.match(/Cap\w+: 0{16}/g)).toHaveLength(5);
      expect(out).toContain("2 NoNewPrivs: 1");
      expect(out).toContain("2 Seccomp: 2");
      expect(out.trim().split("\n").at(-1)).toBe("1000");
    });
  });

  describe("network", () => {
    test("no way out: one interface, no route", async () => {
      const { out } = await run(
        "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' \\n'; tail -n +2 /proc/net/route | wc -l; (exec 3<>/dev/tcp/1.1.1.1/80) 2>/dev/null || echo HELD",
      );
      expect(out).toBe("lo0\nHELD\n");
    });
  });

  describe("the kernel", () => {
    test("lets nobody type into a terminal", async () => {
      const typing = `perl -e 'for $c (map { $_ + 0 } 0x5412, 0x100005412) { $n = $c; $! = 0; syscall(${syscalls["ioctl"]}, 0, $n, $x = "x"); print $!+0, " " }'`;
      const result = await run(typing);
      expect(result.out.trim(), JSON.stringify(result)).toBe("1 1");
      expect(runOutside(typing, stage.base).trim()).toBe("25 25");
    });
    test("gives no terminal and a session of its own", async () => {
      expect((await run(probe("(exec 3</dev/tty) 2>/dev/null"))).out.trim()).toBe("HELD");
    });
  });

  describe("resources", () => {
    test("a loop is ended by the clock", async () => {
      const result = await run("while :; do :; done", { wallMs: 500 });
      expect(result).toMatchObject({ reason: "wall", exitCode: undefined, signal: "SIGKILL" });
      expect(result.wallMs).toBeLessThan(1500);
    });
    test("a program that ignores every signal, or stops itself, is ended by the clock", async () => {
      const ignoring = await run("trap '' TERM INT HUP QUIT XCPU; while :; do sleep 0.1; done", { wallMs: 400 });
      const stopped = await run("kill -STOP $$; sleep 60", { wallMs: 400 });
      expect([ignoring.reason, stopped.reason]).toEqual(["wall", "wall"]);
      expect(Math.max(ignoring.wallMs, stopped.wallMs)).toBeLessThan(1400);
    });
    test("processor time is bounded for one process", async () => {
      const result = await run("while :; do :; done", { cpuSeconds: 1, wallMs: 8000 });
      expect(result).toMatchObject({ reason: "ok", exitCode: 137 });
    });
    test("a fork bomb", async () => {
      const result = await run("perl -e 'fork while 1'", { wallMs: 1200, processes: 32 });
      expect(result.reason).toBe("pids");
      expect(result.wallMs).toBeLessThan(4000);
    });
    test("processes are bounded", async () => {
      const { out, reason, exitCode, enforcement } = await run(
        `perl -e 'while (1) { $p = fork; if (!defined $p) { print $n + 0; exit 9 } if (!$p) { sleep 30; exit } $n++ }'`,
        { processes: 20 },
      );
      expect(Number(out)).toBeGreaterThan(10);
      expect(Number(out)).toBeLessThanOrEqual(20);
      expect(exitCode).toBe(9);
      // An rlimit does not tell that it was met; the poll sees it only while it lasts.
      if (enforcement.processes === "group") expect(reason).toBe("pids");
    });
    test("memory in /dev/shm and /tmp ends where the mode says", async () => {
      const full = await run(
        "for f in /tmp/a /dev/shm/a; do dd if=/dev/zero of=$f bs=1M count=100 2>&1 | grep -c 'No space'; done; du -m /tmp/a /dev/shm/a | cut -f1",
      );
      expect(full.out.split("\n").slice(0, 4)).toEqual(["1", "1", "8", "8"]);
    });
    test("output", async () => {
      const result = await run("yes", { outputBytes: 64 * 1024 });
      expect(result).toMatchObject({ reason: "output", truncated: true });
      expect(result.stdout.length).toBe(64 * 1024);
      const errors = await run("yes >&2", { outputBytes: 64 * 1024 });
      expect([errors.reason, errors.stderr.length]).toEqual(["output", 64 * 1024]);
    });
    test("output within four times the limit is cut, not killed", async () => {
      const result = await run("head -c 100000 /dev/zero", { outputBytes: 50_000 });
      expect(result).toMatchObject({ reason: "ok", exitCode: 0, truncated: true });
      expect(result.stdout.length).toBe(50_000);
    });
    test("files and descriptors", async () => {
      const { out } =
        await run(`truncate -s 1T huge 2>/dev/null || echo HELD; dd if=/dev/zero of=big bs=1M count=64 2>/dev/null; stat -c %s big; rm -f big huge
        perl -e '1 while open $f[$n++], "<", "/dev/null"; print $n'`);
      const [sparse, size, open] = out.split("\n");
      expect([sparse, Number(size)]).toEqual(["HELD", limits.fileBytes]);
      expect(Number(open)).toBeLessThanOrEqual(limits.openFiles);
    });
    test("a daemon dies with the call", async () => {
      const daemon = `perl -e 'use POSIX; exit if fork; POSIX::setsid(); exit if fork; close $_ for *STDIN, *STDOUT, *STDERR; while (1) { open $f, ">>", "/work/beat"; print $f "."; close $f; select undef, undef, undef, 0.01 }'`;
      const result = await run(`rm -f beat; ${daemon}; until [ -s beat ]; do sleep 0.02; done; echo beating`);
      expect(result).toMatchObject({ reason: "ok", exitCode: 0, out: "beating\n" });
      const beats = async (): Promise<number> => (await stat(join(stage.acme.workDirectory, "beat"))).size;
      const atEnd = await beats();
      await sleep(150);
      expect(await beats()).toBe(atEnd);
    });
    test("a whole tree of them dies at the clock", async () => {
      const marker = `sleepers-${newMark()}`;
      const result = await run(
        `for i in 1 2 3; do (setsid bash -c 'trap "" TERM HUP; exec -a ${marker} sleep 60' &); (exec -a ${marker} sleep 60 &) ; done; sleep 60`,
        { wallMs: 500 },
      );
      expect(result.reason).toBe("wall");
      expect(await processesWith(marker)).toEqual([]);
    });
    test("a caller that gives up kills at once", async () => {
      const controller = new AbortController();
      setTimeout(() => controller.abort(), 200);
      const result = await run("sleep 60", { signal: controller.signal });
      expect(result.reason).toBe("cancelled");
      expect(result.wallMs).toBeLessThan(1500);
    });
  });

  test("says how each limit was held", async () => {
    const { enforcement } = await run("true");
    expect(enforcement).toMatchObject({ wall: "group", output: "group" });
    expect(["group/group", "per-process/per-uid"]).toContain(`${enforcement.memory}/${enforcement.processes}`);
    if (variant.options.enforcer === "rlimit") expect(enforcement.memory).toBe("per-process");
  });

  test("passes exit codes, signal deaths and stdin on", async () => {
    expect((await run("exit 0")).exitCode).toBe(0);
    expect((await run("exit 255")).exitCode).toBe(255);
    expect((await run("kill -SEGV $$")).exitCode).toBe(139);
    expect((await run("cat", { stdin: "hello ".repeat(20_000) })).out).toBe("hello ".repeat(20_000));
    expect((await run("true", { stdin: "unread ".repeat(200_000) })).reason).toBe("ok");
    expect(await run("echo out > /dev/stdout; echo err > /dev/stderr; cat /dev/stdin", { stdin: "in" })).toMatchObject({
      out: "out\nin",
      err: "err\n",
    });
  });

  test("a stdin with text does not make bash run a planted .bashrc", async () => {
    await run("echo 'echo BROKEN' > ~/.bashrc");
    expect((await run("cat; rm ~/.bashrc", { stdin: "text" })).out).toBe("text");
  });

  test("tells a program that is missing from a sandbox that did not start", async () => {
    const start = (workDirectory: string, argv: readonly string[]) =>
      stage.driver.run({ ...stage.acme, workDirectory, argv, stdin: "", limits }, never);
    const closed = join(stage.base, "closed");
    await symlink(stage.acme.workDirectory, closed);
    await writeFile(join(stage.base, "file"), "");

    expect(text((await start(stage.acme.workDirectory, ["/usr/bin/no-such-program"])).stderr)).toContain("no-such-program");
    for (const [workDirectory, why] of [
      [closed, "symbolic link"],
      [join(closed, "deeper"), "symbolic link"],
      [join(stage.base, "absent"), "ENOENT"],
      [join(stage.base, "file"), "not a directory"],
      ["relative", "plain absolute path"],
      [`${stage.acme.workDirectory}/../sandbox`, "plain absolute path"],
      ["/usr/share", "below /usr"],
    ] as const) {
      const result = await start(workDirectory, ["/usr/bin/touch", "x"]);
      expect(["denied", "failed_to_start"].includes(result.reason) ? text(result.stderr) : result).toEqual(expect.stringContaining(why));
    }
    const noUid = await stage.driver.run(
      { ...stage.acme, uid: variant.asUser ? uids.acme : isRoot ? 0 : 1, argv: ["/usr/bin/id"], stdin: "", limits },
      never,
    );
    expect(noUid.reason).toBe("denied");
  });

  test.runIf(isRoot && !variant.asUser)("tells bubblewrap's own failure from the program's", async () => {
    const result = await stage.driver.run({ ...stage.globex, uid: uids.acme, argv: ["/usr/bin/true"], stdin: "", limits }, never);
    expect([result.reason, result.exitCode]).toEqual(["failed_to_start", undefined]);
    expect(text(result.stderr)).toContain("Permission denied");
  });

  test("two tenants at once see nothing of each other", async () => {
    const script = (mine: string): string => `echo ${mine} > /tmp/here; echo ${mine} > /dev/shm/here; echo ${mine} > /work/here; sleep 0.4
      cat /tmp/* /dev/shm/* /work/here; ls /proc | grep -c '^[0-9]'; find / -xdev -name 'secret.txt' 2>/dev/null; pgrep -f other-marker; kill -9 -1 2>/dev/null; true`;
    const start = (who: "acme" | "globex") =>
      stage.driver.run({ ...stage[who], argv: ["/bin/sh", "-c", script(who)], stdin: "", limits }, never);

    const [acme, globex] = await Promise.all([start("acme"), start("globex")]);

    expect(text(acme.stdout).split("\n").slice(0, 3)).toEqual(["acme", "acme", "acme"]);
    expect(text(globex.stdout).split("\n").slice(0, 3)).toEqual(["globex", "globex", "globex"]);
    expect(text(acme.stdout)).not.toContain("globex");
  });

  test("many at once, each with its own answer", async () => {
    const results = await Promise.all(
      Array.from({ length: 24 }, (_, index) =>
        stage.driver.run({ ...(index % 2 ? stage.acme : stage.globex), argv: ["/usr/bin/cat"], stdin: `call ${index}`, limits }, never),
      ),
    );
    expect(results.map(({ stdout }) => text(stdout))).toEqual(results.map((_, index) => `call ${index}`));
  });

  test("kill -9 of our process takes the sandbox with it", async () => {
    const marker = `orphan-${newMark()}`;
    const driver = startDriverProcess(variant.options, variant.asUser ? { uid: uids.user } : {});
    const run = driver
      .run(
        {
          ...stage.acme,
          argv: ["/bin/bash", "-c", `trap '' TERM HUP; exec -a ${marker} sleep 60`],
          stdin: "",
          limits: { ...limits, wallMs: 60_000 },
        },
        never,
      )
      .catch(() => "ended");
    await expect.poll(() => processesWith(marker), { timeout: 5000 }).not.toEqual([]);

    driver.process?.kill("SIGKILL");

    expect(await run).toBe("ended");
    await expect.poll(() => processesWith(marker), { timeout: 3000 }).toEqual([]);
  });

  test("kill -9 at any moment of the start leaves nothing running", async () => {
    const marker = `early-${newMark()}`;
    for (let delayMs = 0; delayMs < 24; delayMs += 4) {
      const driver = startDriverProcess(variant.options, variant.asUser ? { uid: uids.user } : {});
      expect(await driver.probe()).toBeUndefined();
      const run = driver
        .run(
          {
            ...stage.acme,
            argv: ["/bin/bash", "-c", `touch started-${delayMs}; exec -a ${marker} sleep 60`],
            stdin: "",
            limits: { ...limits, wallMs: 60_000 },
          },
          never,
        )
        .catch(() => "ended");
      await sleep(delayMs);
      driver.process?.kill("SIGKILL");
      expect(await run).toBe("ended");
    }
    // Nothing of the tenant's runs on; of bubblewrap itself something may, until the next gateway starts.
    const next = startDriverProcess(variant.options, variant.asUser ? { uid: uids.user } : {});
    expect(await next.probe()).toBeUndefined();
    await next.dispose();
    await expect.poll(() => processesWith(marker), { timeout: 5000 }).toEqual([]);
  });

  test("nothing is left: processes, mounts, cgroups, descriptors", async () => {
    await expect.poll(tenantProcesses, { timeout: 20_000 }).toEqual([]);
    expect(await mountsOfHost()).toBe(mountsBefore);
    // A killed gateway's group is removed by the next driver; other tests kill theirs meanwhile.
    const leftBehind = async (): Promise<string[]> => {
      const next = startDriverProcess({});
      expect(await next.probe()).toBeUndefined();
      await next.dispose();
      return await leftGroups();
    };
    await expect.poll(leftBehind, { timeout: 40_000, interval: 1_000 }).toEqual([]);
    if (!variant.asUser) {
      const before = (await readdir("/proc/self/fd")).length;
      for (let index = 0; index < 20; index += 1) await run("true", { stdin: "x" });
      expect((await readdir("/proc/self/fd")).length).toBeLessThan(before + 20);
    }
  });
});

const mountsOfHost = async (): Promise<string> =>
  (await readFile("/proc/self/mountinfo", "utf8"))
    .split("\n")
    .filter((line) => /openclaw-stage|\/newroot|\/oldroot/.test(line))
    .join("\n");

/** Groups of this process and of dead ones; those of other processes that run right now are theirs. */
async function leftGroups(): Promise<string[]> {
  const lines = (await readFile("/proc/self/mountinfo", "utf8")).split("\n").filter((line) => / - cgroup2? /.test(line));
  const roots = lines.map((line) => line.split(" ")[4] ?? "").filter((path) => /memory|pids|unified|cgroup$/.test(path));
  const { stdout } = spawnSync("find", [...roots, "-maxdepth", "4", "-type", "d", "-name", "openclaw-sandbox-*"], { encoding: "utf8" });
  const ours = stdout
    .split("\n")
    .filter(Boolean)
    .map((path) => ({ path, pid: Number(path.split("-").at(-2)) }));
  const alive = await Promise.all(
    ours.map(({ pid }) =>
      stat(`/proc/${pid}`).then(
        () => true,
        () => false,
      ),
    ),
  );
  return ours.filter(({ pid }, index) => pid === process.pid || !alive[index]).map(({ path }) => path);
}
