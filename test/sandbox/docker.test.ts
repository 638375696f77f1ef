import { once } from "node:events";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createDockerDriver } from "../../sandbox/docker-driver.ts";
import type { SandboxDriver, SandboxJob, SandboxResult } from "../../sandbox/sandbox-driver.ts";
import { type DockerStage, dockerMissing, runtimeClasses, startDocker } from "./docker-stage.ts";
import { limits, missing, type Stage, setStage, startDriverProcess, tenantProcesses, text, variants } from "./sandbox-stage.ts";

const never = new AbortController().signal;
const warm = { ttlMs: 600_000, perKey: 1, total: 2 };
const isSkipped = dockerMissing !== undefined || missing !== undefined;

describe.skipIf(isSkipped)("containers of a daemon", () => {
  let daemon: DockerStage;
  let stage: Stage;
  const drivers: SandboxDriver[] = [];
  beforeAll(async () => {
    [daemon, stage] = await Promise.all([startDocker(), setStage(variants[0] as (typeof variants)[number])]);
  }, 600_000);
  afterAll(async () => {
    await Promise.all(drivers.map(async (driver) => await driver.dispose()));
    await stage?.tearDown();
    await daemon?.tearDown();
  }, 120_000);

  const newDriver = (options: object = {}): SandboxDriver => {
    const driver = createDockerDriver({ socketPath: daemon.socketPath, ...options });
    drivers.push(driver);
    return driver;
  };
  const jobOf = (script: string, rest: Partial<SandboxJob> = {}): SandboxJob => ({
    ...stage.acme,
    limits: { ...limits, wallMs: 60_000 },
    container: { image: daemon.imageId, runtimeClass: "runc" },
    argv: ["/bin/bash", "-c", script],
    stdin: "",
    ...rest,
  });
  const said = ({ exitCode, reason, stdout, stderr }: SandboxResult) => ({ exitCode, reason, stdout: text(stdout), stderr: text(stderr) });
  /** Until only so many are left. */
  const untilContainers = async (count: number): Promise<void> => {
    while ((await daemon.containers()).length !== count) await new Promise((resolve) => setTimeout(resolve, 50));
  };

  test.each(runtimeClasses)("%s: input, both outputs, the exit status and what was used come out as they are", async (runtimeClass) => {
    const driver = newDriver();
    const container = { image: daemon.imageId, runtimeClass };

    const result = await driver.run(jobOf("cat; echo err >&2; echo made > file; exit 42", { stdin: "a\0b\n", container }), never);
    expect(said(result)).toEqual({ exitCode: 42, reason: "ok", stdout: "a\0b\n", stderr: "err\n" });
    expect(result).toMatchObject({ truncated: false, enforcement: { memory: "group", processes: "group", cpu: "group" } });
    expect(result.peakMemoryBytes).toBeGreaterThan(100_000);
    expect(result.cpuMs).toBeGreaterThan(0);
    expect(await readFile(join(stage.acme.workDirectory, "file"), "utf8")).toBe("made\n");
    expect(said(await driver.run(jobOf("kill -9 $$", { container }), never))).toMatchObject({ exitCode: 137, reason: "ok" });
    expect(said(await driver.run(jobOf("", { argv: ["none"], container }), never))).toMatchObject({ exitCode: 127, reason: "ok" });
  });

  test("what cannot be held is refused with the reason, and nothing is fetched", async () => {
    const driver = newDriver();
    const other = `sha256:${"0".repeat(64)}`;
    const refusals = await Promise.all(
      [
        { image: "openclaw/sandbox:latest", runtimeClass: "runc" },
        { image: other, runtimeClass: "runc" },
        { image: `debian@${other}`, runtimeClass: "runc" },
        { image: daemon.imageId, runtimeClass: "kata" },
      ].map(async (container) => await driver.probe(container)),
    );

    expect(refusals).toEqual([
      expect.stringContaining("neither by its id"),
      expect.stringContaining("is not on this machine"),
      expect.stringContaining("is not on this machine"),
      expect.stringContaining("knows no runtime kata"),
    ]);
    expect(await driver.probe({ image: daemon.imageId, runtimeClass: "runc" })).toBeUndefined();
    expect(await createDockerDriver({ socketPath: join(stage.base, "none") }).probe()).toContain("does not answer");
    expect(await driver.run(jobOf("true", { uid: 0 }), never)).toMatchObject({ reason: "denied" });
  });

  test.runIf(runtimeClasses.includes("runsc"))("gVisor without the syscall filter is refused", async () => {
    expect(await newDriver().probe({ image: daemon.imageId, runtimeClass: "plain" })).toContain("applies no syscall filter");
  });

  test("limits end a run and are named, and a caller that leaves ends it", async () => {
    const driver = newDriver();
    const ending = async (script: string, held: Partial<typeof limits>, signal = never): Promise<string> =>
      (await driver.run(jobOf(script, { limits: { ...limits, wallMs: 60_000, ...held } }), signal)).reason;
    const leaving = new AbortController();
    const left = ending("echo; sleep 600", {}, leaving.signal);
    setTimeout(() => leaving.abort(), 1_000);

    expect(await left).toBe("cancelled");
    expect(await ending("sleep 600", { wallMs: 1_500 })).toBe("wall");
    expect(await ending("yes", { outputBytes: 1_000 })).toBe("output");
    expect(await ending(`perl -e '$x = "x" x (300 << 20)'`, {})).toBe("memory");
    expect(await ending("for i in $(seq 60); do sleep 5 & done; exit 1", { processes: 20 })).toBe("pids");
    expect(await ending("for i in $(seq 60); do : > f$i; done; sleep 60", { inodes: 20 })).toBe("disk");
  });

  test("a container serves one call: nothing of the one before is there, no process outlives it, none is left", async () => {
    const driver = newDriver({ warm });
    const look = "ls -A /tmp /dev/shm | grep -c mine; cat /proc/sys/kernel/random/boot_id > /dev/null; hostname";

    await driver.run(jobOf("touch /tmp/mine /dev/shm/mine; (setsid sleep 600 &) ; rm -f f*"), never);
    for (let call = 0; call < 3; call += 1) expect(said(await driver.run(jobOf(look), never)).stdout).toBe("0\nsandbox\n");
    await driver.dispose();

    await untilContainers(0);
    await expect.poll(tenantProcesses, { timeout: 20_000 }).toEqual([]);
  });

  test("a program can neither end its call early nor say how it ended", async () => {
    const driver = newDriver({ warm });
    const forging = `for fd in 0 1 2; do : < /proc/1/fd/$fd && echo BROKEN; echo 000 > /proc/1/fd/$fd && echo BROKEN; done
      cat /proc/1/environ /proc/1/maps && echo BROKEN; : > /proc/1/mem && echo BROKEN
      kill -9 1; kill -STOP 1; kill -TERM 1; kill -ALRM 1 2>/dev/null
      printf 'ready\\n%032d000' 0; printf 'ready\\n%032d' 0 >&2; sleep 1; echo; echo end; exit 9`;

    for (const kill of ["", "kill -9 -1; "]) {
      const { exitCode, reason, stdout } = said(
        await driver.run(jobOf(`{ ${forging.replace("kill -ALRM 1 2>/dev/null", kill)}; }`), never),
      );
      expect({ exitCode, reason }).toEqual({ exitCode: 9, reason: "ok" });
      expect(stdout).not.toContain("BROKEN");
      expect(stdout).toContain("\nend\n");
    }
    await driver.dispose();
  });

  test("what a killed gateway leaves ends by itself, and the next start removes it", async () => {
    const gateway = startDriverProcess({ socketPath: daemon.socketPath, warm });
    await gateway.run(jobOf("true", { uid: stage.acme.uid }), never);
    const lost = gateway.run(jobOf("touch begun; sleep 600"), never).catch(() => undefined);
    while (!(await readdir(stage.acme.workDirectory)).includes("begun")) await new Promise((resolve) => setTimeout(resolve, 50));
    gateway.process?.kill("SIGKILL");
    if (gateway.process) await once(gateway.process, "exit");
    await lost;

    while ((await daemon.containers()).some(({ State }) => State === "running")) await new Promise((resolve) => setTimeout(resolve, 50));
    await expect.poll(tenantProcesses, { timeout: 20_000 }).toEqual([]);
    expect((await daemon.containers()).length).toBeGreaterThan(0);
    const next = newDriver();
    expect(await next.probe()).toBeUndefined();
    await untilContainers(0);
  });
});
