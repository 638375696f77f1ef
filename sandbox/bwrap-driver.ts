import { chown, mkdtemp, realpath, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { performance } from "node:perf_hooks";
import { type BwrapDriverOptions, type BwrapHost, prepareHost } from "./bwrap-host.ts";
import { runProgram } from "./bwrap-run.ts";
import { type StartedSandbox, startSandbox } from "./bwrap-start.ts";
import type { SandboxDriver, SandboxJob, SandboxLimits, SandboxResult, SandboxSpec } from "./sandbox-driver.ts";
import { refuseOwner, refuseProgram, slotKeyOf, specOf } from "./sandbox-job.ts";
import { denied, enforcementOf, notStarted } from "./sandbox-result.ts";
import { WarmSlots } from "./warm-slots.ts";
import { refuseWorkDirectory } from "./work-directory.ts";

export type { BwrapDriverOptions } from "./bwrap-host.ts";

/** A uid for the trial run of the probe, the host's nobody; it owns nothing. */
const PROBE_UID = 65534;
const probeLimits: SandboxLimits = {
  wallMs: 10_000,
  memoryBytes: 128 * 1024 * 1024,
  processes: 16,
  outputBytes: 64 * 1024,
  fileBytes: 1024 * 1024,
  openFiles: 64,
  tmpBytes: 1024 * 1024,
  cpuSeconds: 5,
};

/** Runs programs in bubblewrap: all namespaces new, our seccomp filter, no network but a way out to what is granted, and nothing writable but /work and /tmp. */
export function createBwrapDriver(options: BwrapDriverOptions = {}): SandboxDriver {
  let host: BwrapHost | string | undefined;
  const prepared = (): BwrapHost | string => (host ??= prepareHost(options));

  const slots = options.warm === undefined ? undefined : new WarmSlots<StartedSandbox>(options.warm);
  const prepare = (spec: SandboxSpec): void => {
    if (slots === undefined || slots.isClosed) return;
    const ready = prepared();
    if (typeof ready === "string" || refuseOwner(spec) !== undefined) return;
    slots.refill({ key: slotKeyOf(spec), workDirectory: spec.workDirectory }, async () => {
      const refusal = refuseWorkDirectory(spec.workDirectory);
      if (refusal !== undefined) throw new Error(refusal);
      return await startSandbox(ready, spec);
    });
  };

  async function run(job: SandboxJob, signal: AbortSignal): Promise<SandboxResult> {
    const ready = prepared();
    if (typeof ready === "string") return notStarted(ready);
    const refusal = refuseOwner(job) ?? refuseProgram(job);
    if (refusal !== undefined) return denied(refusal);
    const obstacle = refuseWorkDirectory(job.workDirectory);
    if (obstacle !== undefined) return notStarted(obstacle);
    if (signal.aborted) return { ...denied(""), reason: "cancelled" };
    const call = { enforcer: ready.enforcer, startedAtMs: performance.now(), signal };
    const spec = specOf(job);
    const warm = await slots?.take(slotKeyOf(spec));
    try {
      const result = warm === undefined ? undefined : await runProgram(warm, job, call);
      if (result !== undefined && (warm?.began() || result.reason === "cancelled" || result.reason === "wall")) return result;
      const sandbox = await startSandbox(ready, spec).catch((error: Error) => error);
      if (sandbox instanceof Error) return notStarted(`The sandbox could not be made: ${sandbox.message}`);
      return await runProgram(sandbox, job, call);
    } finally {
      // Not before the caller has its result.
      setImmediate(prepare, spec);
    }
  }

  return {
    name: "bwrap",
    prepare,
    run,
    drop: async (workDirectory) => await slots?.drop(workDirectory),
    enforcement() {
      const ready = prepared();
      return typeof ready === "string" ? undefined : enforcementOf(ready.enforcer);
    },
    async probe() {
      const ready = prepared();
      if (typeof ready === "string") return ready;
      const workDirectory = await mkdtemp(join(await realpath(tmpdir()), "openclaw-probe-"));
      try {
        const uid = isRoot() ? PROBE_UID : undefined;
        if (uid !== undefined) await chown(workDirectory, uid, uid);
        // Perl, because the file tools are a Perl script: one trial run shows both.
        const job = { workDirectory, uid, argv: ["/usr/bin/perl", "-e", "print while <STDIN>"], stdin: "works", limits: probeLimits };
        const { reason, stdout, stderr } = await run(job, new AbortController().signal);
        if (reason === "ok" && textOf(stdout) === "works") return undefined;
        return `bubblewrap cannot start a sandbox here: ${explainFailure(textOf(stderr).trim())}`;
      } finally {
        await rm(workDirectory, { recursive: true, force: true });
      }
    },
    async dispose() {
      await slots?.close();
      if (host === undefined || typeof host === "string") return;
      await host.leaving.empty();
      for (const kept of [host.seccomp, host.passwd, host.group, host.pipes, host.doors]) kept.dispose();
      host = undefined;
    },
  };
}

const isRoot = (): boolean => process.getuid?.() === 0;
const textOf = (bytes: Uint8Array): string => Buffer.from(bytes).toString("utf8");

function explainFailure(stderr: string): string {
  const namespaces = /uid map|user namespace|No permissions to create/i.test(stderr);
  const hint =
    "unprivileged user namespaces are switched off: sysctl -w kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0";
  return namespaces ? `${stderr} (${hint})` : stderr || "it gave no reason";
}
