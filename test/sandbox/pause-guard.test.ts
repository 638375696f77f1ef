import { chown, mkdtemp, realpath, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { createBwrapDriver } from "../../sandbox/bwrap-driver.ts";
import { createPauseGuard } from "../../sandbox/pause-guard.ts";
import { isRoot, limits, missing, text, uids } from "./sandbox-stage.ts";

/** A run of this process that says when it has begun. */
async function startRun(script: string) {
  const workDirectory = await mkdtemp(join(await realpath(tmpdir()), "openclaw-guard-"));
  const uid = isRoot ? uids.acme : undefined;
  if (uid !== undefined) await chown(workDirectory, uid, uid);
  const driver = createBwrapDriver();
  onTestFinished(async () => {
    await driver.dispose();
    await rm(workDirectory, { recursive: true, force: true });
  });
  const begun = Promise.withResolvers<void>();
  const result = driver.run(
    { workDirectory, uid, limits, argv: ["/bin/bash", "-c", script], stdin: "", onOutput: () => begun.resolve() },
    new AbortController().signal,
  );
  await begun.promise;
  return { result };
}

test.skipIf(missing !== undefined)("what runs when the time is over is killed, and what begins after a renewal is not", async () => {
  const guard = createPauseGuard();
  onTestFinished(guard.close);
  guard.renew(60_000);
  guard.arm();
  const late = await startRun("echo begun; sleep 600");

  guard.renew(0);
  expect(await late.result).toMatchObject({ exitCode: undefined, signal: "SIGKILL" });

  guard.renew(60_000);
  const next = await startRun("echo begun; sleep 1; echo ended");
  const { exitCode, stdout } = await next.result;
  expect([exitCode, text(stdout)]).toEqual([0, "begun\nended\n"]);
});
