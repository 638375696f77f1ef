import { chown, mkdtemp, realpath, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { performance } from "node:perf_hooks";
import { type BwrapDriverOptions, type BwrapHost, prepareHost } from "./bwrap-host.ts";
import { enforcementOf, notStarted, runProgram } from "./bwrap-run.ts";
import { startSandbox } from "./bwrap-start.ts";
import type { SandboxDriver, SandboxJob, SandboxLimits, SandboxResult } from "./sandbox-driver.ts";
import { refuseWorkDirectory } from "./work-directory.ts";

export type { BwrapDriverOptions } from "./bwrap-host.ts";

export type BwrapDriver = SandboxDriver & {
  /** Closes the descriptors that are kept ready for the next run. */
  dispose(): void;
};

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

/** Runs programs in bubblewrap: all namespaces new, our seccomp filter, no network, and nothing writable but /work and /tmp. */
export function createBwrapDriver(options: BwrapDriverOptions = {}): BwrapDriver {
  let host: BwrapHost | string | undefined;
  const prepared = (): BwrapHost | string => (host ??= prepareHost(options));

  async function run(job: SandboxJob, signal: AbortSignal): Promise<SandboxResult> {
    const ready = prepared();
    if (typeof ready === "string") return notStarted(ready);
    const refusal = refuseJob(job) ?? (await refuseWorkDirectory(job.workDirectory));
    if (refusal !== undefined) return notStarted(refusal);
    if (signal.aborted) return { ...notStarted(""), reason: "cancelled" };
    const startedAtMs = performance.now();
    const sandbox = await startSandbox(ready, job).catch((error: Error) => error);
    if (sandbox instanceof Error) return notStarted(`The sandbox could not be made: ${sandbox.message}`);
    return await runProgram(sandbox, job, { enforcer: ready.enforcer, startedAtMs, signal });
  }

  return {
    name: "bwrap",
    run,
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
    dispose() {
      if (host === undefined || typeof host === "string") return;
      for (const kept of [host.seccomp, host.passwd, host.group, host.pipes]) kept.dispose();
      host = undefined;
    },
  };
}

const isRoot = (): boolean => process.getuid?.() === 0;
const textOf = (bytes: Uint8Array): string => Buffer.from(bytes).toString("utf8");

function refuseJob({ uid, argv }: SandboxJob): string | undefined {
  if (argv.length === 0 || argv.some((argument) => argument.includes("\0"))) return "The program's arguments are empty or hold a NUL.";
  if (isRoot())
    return Number.isInteger(uid) && Number(uid) > 0
      ? undefined
      : "A sandbox started by root needs the tenant's own uid: it never runs as root.";
  return uid === undefined || uid === process.getuid?.() ? undefined : "Only root can run a sandbox as another uid.";
}

function explainFailure(stderr: string): string {
  const namespaces = /uid map|user namespace|No permissions to create/i.test(stderr);
  const hint =
    "unprivileged user namespaces are switched off: sysctl -w kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0";
  return namespaces ? `${stderr} (${hint})` : stderr || "it gave no reason";
}
