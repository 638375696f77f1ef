import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { openclaw } from "../control-plane/cli-stage.ts";
import { configWithProvider, type RunningProduct, startProduct } from "../product.ts";
import { type DockerStage, dockerMissing, startDocker } from "../sandbox/docker-stage.ts";

const isSkipped = dockerMissing !== undefined || process.env["OPENCLAW_TEST_FULL"] === undefined;
if (process.env["OPENCLAW_TEST_FULL"] === undefined)
  console.warn("SKIPPED containers through the product: they are part of npm run test:full");

describe.skipIf(isSkipped)("a mode with the runtime docker", () => {
  let daemon: DockerStage;
  let product: RunningProduct;
  beforeAll(async () => {
    daemon = await startDocker();
    const modes = `
sandbox:
  modes:
    box: { runtime: docker, image: "${daemon.imageId}", memory_limit_mb: 256, wall_seconds: 60 }
    short: { runtime: docker, image: "${daemon.imageId}", runtime_class: runc, wall_seconds: 2 }
    tagged: { runtime: docker, image: "openclaw/sandbox:latest" }
    absent: { runtime: docker, image: "sha256:${"0".repeat(64)}" }
    kata: { runtime: docker, image: "${daemon.imageId}", runtime_class: kata }
`;
    product = await startProduct({
      config: configWithProvider("http://127.0.0.1:9", modes),
      env: { DOCKER_HOST: `unix://${daemon.socketPath}` },
    });
    await product.createTenant("acme");
  }, 600_000);
  afterAll(async () => {
    await product?.stop();
    await daemon?.tearDown();
  }, 120_000);

  const variables = () => ({
    OPENCLAW_URL: product.url,
    OPENCLAW_ADMIN_KEY: product.adminKey,
    OPENCLAW_HOME: product.home,
    DOCKER_HOST: `unix://${daemon.socketPath}`,
  });
  const exec = async (mode: string, ...words: string[]) =>
    await openclaw(["sandbox", "exec", "--tenant", "acme", "--mode", mode, "--", ...words], variables());

  test("runs in a container, in the directory that bubblewrap has as well", async () => {
    expect(await exec("box", "sh", "-c", "test -e /.dockerenv && echo out; echo err >&2; echo kept > file; exit 42")).toEqual({
      code: 42,
      stdout: "out\n",
      stderr: "err\n",
    });
    const bare = await openclaw(["sandbox", "exec", "--tenant", "acme", "--", "cat", "file"], variables());
    expect(bare).toMatchObject({ code: 0, stdout: "kept\n" });
    expect(await exec("short", "sleep", "600")).toMatchObject({ code: 137, stderr: expect.stringContaining("wall") });
  });

  test("what cannot be held is refused with the reason, by exec and by doctor", async () => {
    expect(await exec("tagged", "true")).toMatchObject({ code: 4, stderr: expect.stringContaining("neither by its id") });
    expect(await exec("absent", "true")).toMatchObject({ code: 4, stderr: expect.stringContaining("is not on this machine") });
    expect(await exec("kata", "true")).toMatchObject({ code: 4, stderr: expect.stringContaining("knows no runtime kata") });
    const { stdout } = await openclaw(["doctor", "--json"], variables());
    for (const mode of ["tagged", "absent", "kata"]) expect(stdout).toContain(`${mode}: `);
    expect(stdout).not.toContain("box: ");
  });

  test("nothing of it is left after the stop", async () => {
    await product.stop();

    expect(await daemon.containers()).toEqual([]);
  });
});
