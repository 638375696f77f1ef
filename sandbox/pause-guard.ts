import { type ChildProcess, spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";

const script = readFileSync(join(import.meta.dirname, "pause-guard.pl"), "utf8");

/** A process beside this one that ends its sandboxes when it lets its time run out, even while it is paused. */
export interface PauseGuard {
  /** Begins to guard, if it does not yet: nothing may run before. */
  arm(): void;
  /** The sandboxes may run for so long from now on. */
  renew(leftMs: number): void;
  close(): void;
}

export function createPauseGuard(): PauseGuard {
  let child: ChildProcess | undefined;
  let untilMs = 0;

  const tell = (): void => void child?.stdin?.write(`${Math.max(0, Math.floor(untilMs - performance.now()))}\n`);

  const arm = (): void => {
    if (child !== undefined) return;
    const started = spawn("/usr/bin/perl", ["-e", script, String(process.pid)], { stdio: ["pipe", "ignore", "ignore"], cwd: "/", env: {} });
    started.stdin.on("error", () => undefined); // it has ended, and another one is started
    const onGone = (): void => {
      if (child === started) child = undefined;
    };
    started.once("error", onGone);
    started.once("exit", onGone);
    started.unref();
    child = started;
    tell();
  };

  return {
    arm,
    renew(leftMs) {
      untilMs = performance.now() + leftMs;
      tell();
    },
    close() {
      child?.stdin?.end();
      child = undefined;
    },
  };
}
