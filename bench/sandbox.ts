// P50 and P95 of a cold sandbox run beside a plain spawn of the same program, in turns, so that both see the same machine.
// node bench/sandbox.ts [runs, default 100]
import { spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, chown, mkdtemp, realpath, rm } from "node:fs/promises";
import { loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { performance } from "node:perf_hooks";
import { createBuiltinTools } from "../sandbox/builtin-tools.ts";
import { type BwrapDriverOptions, createBwrapDriver } from "../sandbox/bwrap-driver.ts";
import type { SandboxLimits } from "../sandbox/sandbox-driver.ts";

const runs = Number(process.argv[2] ?? 100);
const WARM_UP = 5;
const MiB = 1024 * 1024;
const uid = process.getuid?.() === 0 ? 220_099 : undefined;
const limits: SandboxLimits = {
  wallMs: 10_000,
  memoryBytes: 256 * MiB,
  processes: 64,
  outputBytes: MiB,
  fileBytes: 64 * MiB,
  openFiles: 256,
  tmpBytes: 64 * MiB,
  cpuSeconds: 10,
};
const never = new AbortController().signal;

const workDirectory = await mkdtemp(join(await realpath(tmpdir()), "openclaw-bench-"));
await chmod(workDirectory, 0o700);
if (uid !== undefined) await chown(workDirectory, uid, uid);

const timed = async (action: () => Promise<unknown>): Promise<number> => {
  const startedAt = performance.now();
  await action();
  return performance.now() - startedAt;
};

async function plain(argv: readonly string[]): Promise<void> {
  const [command = "", ...args] = argv;
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"], env: {} });
  child.stdout.resume();
  child.stderr.resume();
  await once(child, "close");
}

const quantile = (sorted: readonly number[], share: number): number =>
  sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;

/** Both actions by turns; prints one line. */
async function compare(name: string, sandboxed: () => Promise<unknown>, bare: () => Promise<unknown>): Promise<void> {
  const [inside, outside]: [number[], number[]] = [[], []];
  for (let index = 0; index < runs + WARM_UP; index += 1) {
    const [one, other] = [await timed(sandboxed), await timed(bare)];
    if (index >= WARM_UP) {
      inside.push(one);
      outside.push(other);
    }
  }
  for (const list of [inside, outside]) list.sort((a, b) => a - b);
  const show = (list: readonly number[]): string =>
    `P50 ${quantile(list, 0.5).toFixed(1)} ms  P95 ${quantile(list, 0.95).toFixed(1)} ms  min ${quantile(list, 0).toFixed(1)} ms`;
  console.log(
    `${name.padEnd(34)} ${show(inside)}   plain spawn: ${show(outside)}   ratio at P50 ${(quantile(inside, 0.5) / quantile(outside, 0.5)).toFixed(1)}`,
  );
}

console.log(
  `load ${loadavg()[0]?.toFixed(1)}, ${runs} runs each, by turns; node ${process.version}${uid === undefined ? "" : ", root with dropped uid"}`,
);
for (const options of [{ enforcer: "any" }, { enforcer: "rlimit" }] as const satisfies readonly BwrapDriverOptions[]) {
  const driver = createBwrapDriver(options);
  const missing = await driver.probe();
  if (missing !== undefined) {
    console.log(`SKIPPED: ${missing}`);
    continue;
  }
  const job = { workDirectory, uid, stdin: "", limits };
  const { enforcement } = await driver.run({ ...job, argv: ["/usr/bin/true"] }, never);
  const held = enforcement.memory === "group" ? "cgroup" : "rlimits";
  for (const argv of [["/usr/bin/true"], ["/bin/bash", "-c", "true"]])
    await compare(
      `bwrap, ${held}: ${argv.join(" ")}`,
      () => driver.run({ ...job, argv }, never),
      () => plain(argv),
    );
  const tools = createBuiltinTools({ driver });
  const call = (tool: string, args: object) => () =>
    tools.get(tool)?.run({ workDirectory, uid, limits }, JSON.stringify(args), never) ?? Promise.reject(new Error(tool));
  await call("write", { path: "file", content: "text\n" })();
  await compare(`tool read, ${held}`, call("read", { path: "file" }), () => plain(["/usr/bin/cat", join(workDirectory, "file")]));
  await compare(`tool write, ${held}`, call("write", { path: "file", content: "text\n" }), () =>
    plain(["/usr/bin/cat", join(workDirectory, "file")]),
  );
  await driver.dispose();
}
await rm(workDirectory, { recursive: true });
