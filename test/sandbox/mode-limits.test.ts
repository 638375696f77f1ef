import { chmod, readdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { inodesIn } from "../../sandbox/disk-watch.ts";
import type { SandboxLimits } from "../../sandbox/sandbox-driver.ts";
import { limits, MiB, missing, type Stage, setStage, text, variants } from "./sandbox-stage.ts";

const never = new AbortController().signal;

describe.skipIf(missing !== undefined).each(variants)("limits of a mode, $name", (variant) => {
  let stage: Stage;
  let work: string;
  beforeAll(async () => {
    stage = await setStage(variant);
    work = stage.acme.workDirectory;
  });
  afterEach(async () => {
    for (const name of await readdir(work)) await rm(join(work, name), { recursive: true, force: true });
  });
  afterAll(() => stage.tearDown());

  const run = async (script: string, own: Partial<SandboxLimits>) => {
    const result = await stage.driver.run(
      { ...stage.acme, argv: ["/bin/bash", "-c", script], stdin: "", limits: { ...limits, ...own } },
      never,
    );
    return { ...result, out: text(result.stdout) };
  };

  test("one large file beyond the work directory's bytes ends the run, and the result says that it was polled", async () => {
    const { reason, enforcement } = await run("head -c 12M /dev/zero > big; sync big; sleep 60", { diskBytes: 4 * MiB });

    expect(reason).toBe("disk");
    expect([enforcement.disk, enforcement.inodes]).toEqual(["polled", "polled"]);
  });

  test("many small files in many directories count as bytes too", async () => {
    const { reason } = await run("for d in $(seq 40); do mkdir -p a/$d; for f in $(seq 40); do echo x > a/$d/$f; done; done; sleep 60", {
      diskBytes: 4 * MiB,
    });

    expect(reason).toBe("disk");
  });

  test("a flood of 20,000 files against 5,000 is ended long before its end", async () => {
    const flood = 'for my $n (1 .. 20000) { open my $f, ">", "f$n" } sleep 60';
    const { reason } = await run(`exec perl -e '${flood}'`, { inodes: 5_000, wallMs: 50_000 });

    expect(reason).toBe("disk");
    // Some hundreds too many come between the look that finds them and the kill.
    expect((await readdir(work)).length).toBeLessThan(12_000);
  });

  test("a program that fills the directory and ends at once is told of it as well", async () => {
    const { reason, exitCode } = await run("head -c 8M /dev/zero > big", { diskBytes: 4 * MiB });

    expect([reason, exitCode === 0 || exitCode === undefined]).toEqual(["disk", true]);
  });

  test("a directory that is too full already may be emptied, but not filled further", async () => {
    for (const name of ["one", "two"]) {
      await writeFile(join(work, name), Buffer.alloc(4 * MiB));
      await chmod(join(work, name), 0o666);
    }

    expect(await run("cat one two | wc -c; rm one", { diskBytes: MiB })).toMatchObject({ reason: "ok", exitCode: 0, out: `${8 * MiB}\n` });
    expect((await run("head -c 8M /dev/zero > three; sleep 60", { diskBytes: MiB })).reason).toBe("disk");
  });

  test("a tree too deep to be named cannot hide what it holds", async () => {
    const dig = 'my $d = "d" x 200; for (1 .. 40) { mkdir $d; chdir $d } open my $f, ">", "hidden"; print $f "x" x 6e6; close $f; sleep 60';
    const { reason } = await run(`exec perl -e '${dig}'`, { diskBytes: 4 * MiB });
    await run("rm -rf d*", {});

    expect(reason).toBe("disk");
  });

  test("a link out of the directory is counted as a link", async () => {
    expect((await run("ln -s / root; ln -s /usr usr; mkfifo pipe; sleep 0.3; echo done", { diskBytes: MiB, inodes: 10 })).out).toBe(
      "done\n",
    );
  });

  test("the CPU share holds for all processes together, where a cgroup can hold it", async () => {
    const busy = "perl -e 'my $end = time + 3; 1 while time < $end'";
    const { enforcement, cpuMs, wallMs, reason } = await run(`${busy} & ${busy} & wait`, { cpus: 0.25, cpuSeconds: 20 });

    expect(reason).toBe("ok");
    if (enforcement.cpu !== "group") return expect(enforcement.cpu).toBe("per-process");
    expect(cpuMs).toBeGreaterThan(0);
    expect(cpuMs).toBeLessThan(wallMs * 0.25 + 250);
  });

  test("a result tells peak memory and CPU time", async () => {
    const { peakMemoryBytes, cpuMs, reason } = await run(
      "perl -e 'my $x = \"x\" x 40_000_000; my $end = (times)[0] + 0.5; 1 while (times)[0] < $end; sleep 1'",
      {},
    );

    expect(reason).toBe("ok");
    expect(peakMemoryBytes).toBeGreaterThan(35_000_000);
    expect(peakMemoryBytes).toBeLessThan(limits.memoryBytes);
    expect(cpuMs).toBeGreaterThanOrEqual(400);
  });

  test("output is told as it comes, in order and no more of it than is kept", async () => {
    if (variant.asUser) return; // its driver is another process, which has no way to tell
    const told: string[] = [];
    const result = await stage.driver.run(
      {
        ...stage.acme,
        argv: ["/bin/bash", "-c", "echo one; echo two >&2; head -c 3000 /dev/zero | tr '\\0' x"],
        stdin: "",
        limits: { ...limits, outputBytes: 1_000 },
        onOutput: (stream, chunk) => void told.push(`${stream}:${text(chunk)}`),
      },
      never,
    );

    const toldOf = (stream: string) =>
      told
        .filter((line) => line.startsWith(`${stream}:`))
        .map((line) => line.slice(7))
        .join("");
    expect(toldOf("stdout")).toBe(text(result.stdout));
    expect(toldOf("stdout")).toHaveLength(1_000);
    expect(toldOf("stderr")).toBe("two\n");
  });
});

test("a directory is counted only until it is enough", async () => {
  const directory = join(import.meta.dirname, "..");
  const whole = await inodesIn(directory, Infinity);

  expect(whole).toBeGreaterThan(100);
  expect(await inodesIn(directory, 10)).toBeLessThan(100);
});
