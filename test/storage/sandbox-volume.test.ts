import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, chownSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync } from "node:fs";
import { realpath } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { TenantId } from "../../domain/tenant.ts";
import { createBwrapDriver } from "../../sandbox/bwrap-driver.ts";
import { removeSandboxVolume, SandboxVolumes, type VolumeSize } from "../../storage/sandbox-volume.ts";
import { limits, missing as sandboxMissing, text } from "../sandbox/sandbox-stage.ts";

const missing = await new SandboxVolumes({ home: tmpdir(), size: undefined }).probe();
if (missing !== undefined) console.warn(`SKIPPED tests of sandbox volumes: ${missing}`);

const MiB = 1024 * 1024;
const small: VolumeSize = { bytes: 16 * MiB, inodes: 5_000 };
const tenantId = "acme" as TenantId;
const uid = 2_900_001;

describe.skipIf(missing !== undefined)("a sandbox directory in a volume of its own", () => {
  let base: string;
  let home: string;
  let directory: string;
  const made: SandboxVolumes[] = [];
  const volumesOf = (size: VolumeSize | undefined): SandboxVolumes => {
    const volumes = new SandboxVolumes({ home, size });
    made.push(volumes);
    return volumes;
  };
  const ensure = async (size: VolumeSize | undefined = small): Promise<string | undefined> =>
    await volumesOf(size).ensure({ tenantId, directory, uid });
  const mounts = (): string => execFileSync("findmnt", ["-rn", "-o", "TARGET"], { encoding: "utf8" });
  const shell = (script: string): string => execFileSync("bash", ["-c", script], { cwd: directory, encoding: "utf8" });
  /** All that makes a tree what it is. */
  const picture = (): string =>
    shell("find . -mindepth 1 -printf '%P %y %m %U %G %s %l\\n' | sort; find . -type f -exec sha256sum {} + | sort");

  beforeEach(async () => {
    base = mkdtempSync(join(await realpath(tmpdir()), "openclaw-volumes-"));
    chmodSync(base, 0o711);
    home = join(base, "home");
    directory = join(home, "tenants/acme/sandbox");
    mkdirSync(directory, { recursive: true });
    chownSync(directory, uid, uid);
  });
  afterEach(async () => {
    for (const volumes of made.splice(0)) await volumes.close();
    await removeSandboxVolume(home, { tenantId, directory });
    expect(mounts()).not.toContain(base);
    rmSync(base, { recursive: true, force: true });
  });

  test.skipIf(sandboxMissing !== undefined)("a flood of 20,000 files ends at 5,000, by the kernel, and is told as disk", async () => {
    expect(await ensure()).toBeUndefined();
    const driver = createBwrapDriver();
    const script = 'for (1 .. 20000) { open F, ">", "f$_" or die "$_ $!\\n" } print "BROKEN"';
    const job = {
      workDirectory: directory,
      uid,
      argv: ["/usr/bin/perl", "-e", script],
      stdin: "",
      heldByVolume: ["diskBytes", "inodes"] as const,
    };
    const own = { ...limits, diskBytes: small.bytes, inodes: small.inodes };

    const flooded = await driver.run({ ...job, limits: own }, new AbortController().signal);
    expect(flooded).toMatchObject({ reason: "disk", enforcement: { disk: "group", inodes: "group" } });
    expect(text(flooded.stderr)).toMatch(/^50\d\d No space left on device/);
    expect(readdirSync(directory).length).toBeLessThanOrEqual(5_032);
    expect(readdirSync(directory).length).toBeGreaterThan(4_900);

    const filled = await driver.run(
      { ...job, limits: { ...own, fileBytes: 64 * MiB }, argv: ["/bin/bash", "-c", "rm f*; head -c 40M /dev/zero > big"] },
      new AbortController().signal,
    );
    expect(filled).toMatchObject({ reason: "disk", exitCode: 1 });
    expect(statSync(join(directory, "big")).size).toBeLessThan(20 * MiB);

    const mended = await driver.run(
      { ...job, limits: own, argv: ["/bin/bash", "-c", "rm big && echo fits > small"] },
      new AbortController().signal,
    );
    expect(mended).toMatchObject({ reason: "ok", exitCode: 0 });
    await driver.dispose();
  });

  const fill = (): void => {
    shell(
      `umask 027; mkdir -p a/b; head -c 3000000 /dev/urandom > a/b/data; ln -s ../nowhere a/link; mkfifo a/pipe; ln a/b/data a/twice; chmod 4755 a/b; for i in $(seq 300); do echo $i > a/f$i; done; chown -hR ${uid}:${uid} a`,
    );
  };

  test("files that were there move into it, and on into one of another size; one that is too small is refused and changes nothing", async () => {
    fill();
    const before = picture();

    expect(await ensure()).toBeUndefined();
    expect(mounts()).toContain(directory);
    expect(picture()).toBe(before);
    expect(statSync(directory)).toMatchObject({ uid, gid: uid, mode: 0o40700 });

    expect(await ensure({ bytes: 32 * MiB, inodes: 6_000 })).toBeUndefined();
    expect(picture()).toBe(before);
    expect(await ensure({ bytes: MiB, inodes: 6_000 })).toMatch(/volume cannot be used: .*No space left/);
    expect(picture()).toBe(before);
    expect(readdirSync(join(home, "volumes")).filter((name) => !name.endsWith(".lock"))).toEqual(["acme.33554432.6000.img"]);

    // The setting is taken away: the tenant keeps its files, and what holds them.
    for (const volumes of made) await volumes.close();
    expect(readdirSync(directory)).toEqual([]);
    expect(await ensure(undefined)).toBeUndefined();
    expect(picture()).toBe(before);
  });

  test("kill -9 at any moment of a move loses nothing", async () => {
    fill();
    const before = picture();
    const sizes = [small, { bytes: 24 * MiB, inodes: 5_500 }];
    for (let ms = 0; ms < 90; ms += 6) {
      const { bytes, inodes } = sizes[(ms / 6) % 2] as VolumeSize;
      const program = `import { SandboxVolumes } from ${JSON.stringify(join(import.meta.dirname, "../../storage/sandbox-volume.ts"))};
        const volumes = new SandboxVolumes(${JSON.stringify({ home, size: { bytes, inodes } })});
        await volumes.probe();
        process.stdout.write("begins");
        await volumes.ensure(${JSON.stringify({ tenantId, directory, uid })});`;
      const child = spawn(process.execPath, ["--input-type=module", "-e", program], {
        detached: true,
        stdio: ["ignore", "pipe", "ignore"],
      });
      await once(child.stdout, "data");
      await sleep(ms);
      process.kill(-(child.pid as number), "SIGKILL");
      if (child.exitCode === null && child.signalCode === null) await once(child, "exit");

      expect(await ensure({ bytes, inodes })).toBeUndefined();
      expect(picture(), `killed after ${ms} ms`).toBe(before);
    }
  });

  test("several processes at once make one, and a tenant's end removes it", async () => {
    fill();
    const before = picture();
    const answers = await Promise.all(Array.from({ length: 4 }, async () => await ensure()));

    expect(answers).toEqual([undefined, undefined, undefined, undefined]);
    expect(picture()).toBe(before);
    expect(
      mounts()
        .split("\n")
        .filter((target) => target === directory),
    ).toHaveLength(1);
    await removeSandboxVolume(home, { tenantId, directory });
    expect(mounts()).not.toContain(directory);
    expect(readdirSync(join(home, "volumes"))).toEqual([]);
    expect(existsSync(directory)).toBe(true);
  });
});
