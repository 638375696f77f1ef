import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { accessSync, constants, writeFileSync } from "node:fs";
import { mkdtemp, realpath, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import Docker from "dockerode";
import type { SandboxContainer, SandboxDriver } from "../../sandbox/sandbox-driver.ts";
import { isRoot } from "./sandbox-stage.ts";

const has = (path: string): boolean => {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
};
const dockerd = ["/usr/sbin/dockerd", "/usr/bin/dockerd"].find(has);
const runsc = ["/usr/bin/runsc", "/usr/local/bin/runsc"].find(has);

/** Why no daemon can be started here; undefined when one can. */
export const dockerMissing: string | undefined = (() => {
  if (!isRoot) return "a Docker daemon needs root";
  if (dockerd === undefined || !has("/usr/bin/docker")) return "apt-get install -y --no-install-recommends docker.io";
  return has("/usr/bin/mmdebstrap") ? undefined : "the image is built by mmdebstrap: apt-get install -y --no-install-recommends mmdebstrap";
})();
if (dockerMissing !== undefined) console.warn(`SKIPPED tests of Docker's sandboxes: ${dockerMissing}`);
export const runtimeClasses: readonly string[] = runsc === undefined ? ["runc"] : ["runc", "runsc"];
if (runsc === undefined) console.warn("SKIPPED tests of gVisor: apt-get install -y --no-install-recommends runsc");

export type DockerStage = {
  readonly socketPath: string;
  readonly docker: Docker;
  readonly imageId: string;
  containers(): Promise<readonly { readonly Id: string; readonly State: string }[]>;
  tearDown(): Promise<void>;
};

/** A daemon of the test's own, with an image that was built without a hub. */
export async function startDocker(): Promise<DockerStage> {
  const home = await mkdtemp(join(await realpath(tmpdir()), "openclaw-dockerd-"));
  const runtimes =
    runsc === undefined ? {} : { runsc: { path: runsc, runtimeArgs: ["--platform=ptrace", "--network=none", "--oci-seccomp"] } };
  // `plain` is gVisor as most set it up; it filters nothing inside.
  const plain = runsc === undefined ? {} : { plain: { path: runsc, runtimeArgs: ["--platform=ptrace", "--network=none"] } };
  await writeFile(join(home, "daemon.json"), JSON.stringify({ runtimes: { ...runtimes, ...plain } }));
  const socketPath = join(home, "sock");
  const places = ["--data-root", join(home, "data"), "--exec-root", join(home, "exec"), "--pidfile", join(home, "pid")];
  const closed = ["--iptables=false", "--ip6tables=false", "--bridge=none"];
  const daemon = spawn(dockerd ?? "", ["--config-file", join(home, "daemon.json"), ...places, "-H", `unix://${socketPath}`, ...closed], {
    stdio: ["ignore", "ignore", "pipe"],
    detached: true,
  });
  let said = "";
  daemon.stderr.on("data", (chunk) => (said = `${said}${String(chunk)}`.slice(-4_000)));
  const docker = new Docker({ socketPath });
  const tearDown = async (): Promise<void> => {
    if (hasEnded(daemon)) return;
    for (const { Id } of await docker.listContainers({ all: true }).catch(() => [])) await docker.getContainer(Id).remove({ force: true });
    daemon.kill("SIGTERM");
    if (!hasEnded(daemon)) await once(daemon, "exit");
    await rm(home, { recursive: true, force: true });
  };
  while (
    !(await docker.ping().then(
      () => true,
      () => false,
    ))
  ) {
    if (hasEnded(daemon)) throw new Error(`dockerd has ended: ${said}`);
    await sleep(100);
  }
  try {
    const script = join(import.meta.dirname, "../../deploy/sandbox-image/build-without-hub.sh");
    const packages = join(home, "packages");
    writeFileSync(packages, "perl-base\n");
    const { stdout } = await promisify(execFile)("bash", [script, "openclaw/sandbox", packages], {
      env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin", DOCKER_HOST: `unix://${socketPath}` },
    });
    const imageId = stdout.trim();
    return {
      socketPath,
      docker,
      imageId,
      containers: async () => await docker.listContainers({ all: true }),
      tearDown,
    };
  } catch (error) {
    await tearDown();
    throw error;
  }
}

const hasEnded = ({ exitCode, signalCode }: ChildProcess): boolean => exitCode !== null || signalCode !== null;

/** The driver with all of its runs in one kind of container. */
export const inContainer = (driver: SandboxDriver, container: SandboxContainer): SandboxDriver => ({
  ...driver,
  run: async (job, signal) => await driver.run({ ...job, container }, signal),
});
