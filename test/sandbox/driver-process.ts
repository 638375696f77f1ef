// The driver in a process of its own, for tests of an ordinary user and of a gateway that is killed: JSON lines in, JSON lines out.
import { createInterface } from "node:readline";
import { type BwrapDriverOptions, createBwrapDriver } from "../../sandbox/bwrap-driver.ts";
import { createDockerDriver, type DockerDriverOptions } from "../../sandbox/docker-driver.ts";
import { testOutside } from "./egress-outside.ts";
import type { SandboxDriver, SandboxJob } from "../../sandbox/sandbox-driver.ts";

export type DriverRequest = { readonly id: number } & ({ readonly probe: true } | { readonly abort: true } | { readonly job: SandboxJob });

/** `egressNames`: the names that sandboxes may resolve, with their addresses, in place of the host's own. */
export type BwrapProcessOptions = BwrapDriverOptions & { readonly egressNames?: Readonly<Record<string, readonly string[]>> };
export type DriverProcessOptions = BwrapProcessOptions | DockerDriverOptions;

function createBwrap({ egressNames, ...options }: BwrapProcessOptions): SandboxDriver {
  return createBwrapDriver(egressNames === undefined ? options : { ...options, egress: { outside: testOutside(egressNames) } });
}

const driverOf = (asked: DriverProcessOptions): SandboxDriver =>
  "socketPath" in asked ? createDockerDriver(asked) : createBwrap(asked as BwrapProcessOptions);

const driver = driverOf(JSON.parse(process.argv[2] ?? "{}") as DriverProcessOptions);
const running = new Map<number, AbortController>();
const answer = (id: number, value: unknown): void => void process.stdout.write(`${JSON.stringify({ id, value })}\n`);

async function serve(request: DriverRequest): Promise<void> {
  const { id } = request;
  if ("probe" in request) return answer(id, (await driver.probe()) ?? null);
  if ("abort" in request) return running.get(id)?.abort();
  const controller = new AbortController();
  running.set(id, controller);
  const stdin = Buffer.from(String(request.job.stdin), "base64");
  const result = await driver.run({ ...request.job, uid: request.job.uid ?? undefined, stdin }, controller.signal);
  running.delete(id);
  const base64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString("base64");
  answer(id, { ...result, stdout: base64(result.stdout), stderr: base64(result.stderr) });
}

createInterface({ input: process.stdin })
  .on("line", (line) => void serve(JSON.parse(line) as DriverRequest))
  .on("close", () => void driver.dispose().finally(() => process.exit(0)));
