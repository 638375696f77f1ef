// P50 and P95 of a run in a container, cold and warm, beside a plain spawn of the same program, in turns.
// DOCKER_HOST=unix://… node bench/sandbox-docker.ts IMAGE-ID [runs, default 30] [runtime …, default runc runsc]
import { spawn } from "node:child_process";
import { once } from "node:events";
import { chown, mkdtemp, realpath, rm } from "node:fs/promises";
import { loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { performance } from "node:perf_hooks";
import { setTimeout as sleep } from "node:timers/promises";
import Docker from "dockerode";
import { createDockerDriver } from "../sandbox/docker-driver.ts";
import type { SandboxDriver, SandboxJob } from "../sandbox/sandbox-driver.ts";
import { quantile } from "./bench-run.ts";

const [image = "", count = "30", ...named] = process.argv.slice(2);
const runs = Number(count);
const WARM_UP = 2;
const MiB = 1024 * 1024;
const never = new AbortController().signal;
const argv = ["/usr/bin/bash", "-c", "echo"];

const show = (list: readonly number[]): string =>
  `P50 ${quantile(list, 0.5).toFixed(1)} ms  P95 ${quantile(list, 0.95).toFixed(1)} ms  min ${quantile(list, 0).toFixed(1)} ms`;

async function timed(action: () => Promise<unknown>): Promise<number> {
  const startedAt = performance.now();
  await action();
  return performance.now() - startedAt;
}

async function plain(): Promise<void> {
  const [command = "", ...args] = argv;
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"], env: {} });
  child.stdout.resume();
  child.stderr.resume();
  await once(child, "close");
}

const workDirectory = await mkdtemp(join(await realpath(tmpdir()), "openclaw-bench-"));
const uid = process.getuid?.() === 0 ? 220_098 : undefined;
if (uid !== undefined) await chown(workDirectory, uid, uid);
const docker = new Docker();
console.log(
  `load ${loadavg()[0]?.toFixed(1)}, ${runs} runs each, by turns; node ${process.version}, Docker ${(await docker.version()).Version}`,
);

for (const runtimeClass of named.length > 0 ? named : ["runc", "runsc"]) {
  const limits = { wallMs: 60_000, memoryBytes: 256 * MiB, processes: 64, outputBytes: MiB, fileBytes: 64 * MiB };
  const job: SandboxJob = {
    ...{ workDirectory, uid, argv, stdin: "", container: { image, runtimeClass } },
    limits: { ...limits, openFiles: 256, tmpBytes: 64 * MiB, cpuSeconds: 60, cpus: 1 },
  };
  const run = async (driver: SandboxDriver): Promise<void> => {
    const { reason, stderr } = await driver.run(job, never);
    if (reason !== "ok") throw new Error(`${reason}: ${Buffer.from(stderr).toString("utf8")}`);
  };
  const drivers = { cold: createDockerDriver(), warm: createDockerDriver({ warm: { ttlMs: 3_600_000, perKey: 1, total: 1 } }) };
  for (const [name, driver] of Object.entries(drivers)) {
    const [inside, outside]: [number[], number[]] = [[], []];
    let last: string | undefined;
    for (let index = 0; index < runs + WARM_UP; index += 1) {
      // Until what ended is cleared away and, if there is to be one, another container waits.
      const wanted = name === "warm" && index > 0 ? 1 : 0;
      let waiting = await docker.listContainers({ all: true });
      for (; waiting.length !== wanted || waiting.some(({ Id, State }) => Id === last || State !== "running"); await sleep(20))
        waiting = await docker.listContainers({ all: true });
      last = waiting[0]?.Id;
      await sleep(300);
      const [bare, contained] = [await timed(plain), await timed(() => run(driver))];
      if (index < WARM_UP) continue;
      outside.push(bare);
      inside.push(contained);
    }
    console.log(`${runtimeClass} ${name}: ${show(inside)}   plain spawn: ${show(outside)}`);
    await driver.dispose();
  }
}
await rm(workDirectory, { recursive: true });
