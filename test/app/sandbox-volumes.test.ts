import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, readdirSync, realpathSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { SandboxVolumes } from "../../storage/sandbox-volume.ts";
import { openclaw } from "../control-plane/cli-stage.ts";
import { type RunningProduct, configWithProvider, startProduct } from "../product.ts";
import { missing as sandboxMissing } from "../sandbox/sandbox-stage.ts";

const missing = sandboxMissing ?? (await new SandboxVolumes({ home: tmpdir(), size: undefined }).probe());
if (missing !== undefined) console.warn(`SKIPPED tests of tenants' volumes: ${missing}`);

const settings = `
sandbox:
  disk_quota: image
  default_mode: normal
  modes:
    normal: { disk_mb: 16, inodes: 5000 }
    roomy: { disk_mb: 64, inodes: 5000 }
`;
const nowhere = "http://127.0.0.1:9/v1";

describe.skipIf(missing !== undefined)("sandbox.disk_quota: image", () => {
  let product: RunningProduct;
  beforeAll(async () => {
    product = await startProduct({ config: configWithProvider(nowhere, settings) });
    await product.createTenant("acme");
  });
  afterAll(async () => void (await product?.stop()));

  const variables = () => ({ OPENCLAW_URL: product.url, OPENCLAW_ADMIN_KEY: product.adminKey });
  const exec = async (...words: string[]) => await openclaw(["sandbox", "exec", "--tenant", "acme", ...words], variables());
  const placeOf = (tenant: string): string => join(realpathSync(join(product.home, "tenants")), tenant, "sandbox");
  const isMounted = (tenant: string): boolean => spawnSync("findmnt", ["--mountpoint", placeOf(tenant)]).status === 0;

  test("a tenant's files are bounded by the kernel, outlive kill -9, come out by copy, and go with the tenant", async () => {
    const flood = await exec("--mode", "roomy", "--", "perl", "-e", 'for (1 .. 20000) { open F, ">", "f$_" or die "$!\\n" }');
    expect(flood).toMatchObject({ stderr: expect.stringContaining("No space left on device") });
    expect(flood.code).not.toBe(0);
    const { stdout: counted } = await exec("--", "sh", "-c", "ls | wc -l");
    expect(Number(counted)).toBeLessThanOrEqual(5_032);
    const { stdout: explained } = await openclaw(["sandbox", "explain", "--tenant", "acme", "--tool", "exec", "--json"], variables());
    // The volume is as large as the roomiest mode allows: this mode's bytes are looked at, its files are held by the kernel.
    expect(JSON.parse(explained)).toMatchObject({ enforcement: { disk: "polled", inodes: "group" } });

    expect((await exec("--", "sh", "-c", "rm -f f*; echo kept > kept")).code).toBe(0);
    await product.kill();
    await product.restart();
    expect(await exec("--", "cat", "kept")).toMatchObject({ code: 0, stdout: "kept\n" });
    // As after a reboot, when nothing is mounted yet.
    execFileSync("umount", [placeOf("acme")]);
    await product.kill();
    await product.restart();
    expect(await openclaw(["sandbox", "copy", "--tenant", "acme", "kept"], variables())).toMatchObject({ code: 0, stdout: "kept\n" });

    expect((await openclaw(["tenants", "delete", "acme", "--confirm", "acme"], variables())).code).toBe(0);
    await expect.poll(() => existsSync(join(product.home, "tenants/acme")), { timeout: 60_000 }).toBe(false);
    expect(readdirSync(join(product.home, "volumes")).filter((name) => name.startsWith("acme"))).toEqual([]);
  }, 120_000);

  test("a stop leaves nothing mounted, and what was there is there at the next start", async () => {
    await product.createTenant("globex");
    const run = async (...words: string[]) => await openclaw(["sandbox", "exec", "--tenant", "globex", "--", ...words], variables());
    expect((await run("sh", "-c", "echo mine > kept")).code).toBe(0);
    expect(isMounted("globex")).toBe(true);

    await openclaw(["stop"], { OPENCLAW_HOME: product.home });
    await expect.poll(() => isMounted("globex"), { timeout: 60_000 }).toBe(false);

    await product.restart();
    expect(await run("cat", "kept")).toMatchObject({ code: 0, stdout: "mine\n" });
  }, 120_000);
});
