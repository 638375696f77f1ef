import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { openclaw } from "../control-plane/cli-stage.ts";
import { type RunningProduct, configWithProvider, startProduct } from "../product.ts";
import { missing } from "../sandbox/sandbox-stage.ts";
import { type ModelServer, startModelServer } from "./model-server.ts";

const network = `
sandbox:
  default_mode: normal
  modes:
    normal: { wall_seconds: 60 }
    closed: { network: none }
    strict: { seccomp: strict }
  network: { allow: ["169.254.169.254:80", "*.pypi.test:443"] }
`;

describe.skipIf(missing !== undefined)("a tenant's network", () => {
  let model: ModelServer;
  let product: RunningProduct;
  beforeAll(async () => {
    model = await startModelServer();
    product = await startProduct({ config: configWithProvider(model.url, network) });
    await product.createTenant("acme");
  });
  afterAll(async () => {
    await product?.stop();
    await model?.close();
  });
  const variables = () => ({ OPENCLAW_URL: product.url, OPENCLAW_ADMIN_KEY: product.adminKey });
  const curl = async (url: string, ...mode: string[]) =>
    await openclaw(["sandbox", "exec", "--tenant", "acme", ...mode, "--", "curl", "-sS", url], variables());

  test("what is refused is told to the program, audited on the tenant's chain and counted; a metadata service is closed though a rule names it", async () => {
    expect((await curl("http://evil.test/")).stdout).toBe("openclaw: evil.test:80 is not on the network allow-list of this sandbox\n");
    expect((await curl("http://169.254.169.254/")).stdout).toContain("metadata service, which nothing opens");

    const targets = async () => {
      const { body } = await product.admin("GET", "/v1/audit?action=sandbox.egress&tenant=acme");
      return (body["data"] as { target: string }[]).map(({ target }) => target);
    };
    await expect.poll(targets, { timeout: 60_000, interval: 500 }).toHaveLength(2);
    expect((await targets()).toSorted()).toEqual(["address 169.254.169.254:80 at 169.254.169.254: once", "not_listed evil.test:80: once"]);
    const metrics = await (await fetch(`${product.url}/metrics`)).text();
    expect(metrics).toMatch(/^openclaw_sandbox_egress_total\{verdict="not_listed"\} 1$/m);
    expect(metrics).toMatch(/^openclaw_sandbox_egress_total\{verdict="address"\} 1$/m);
  });

  test("a mode without a network has none, nor has one whose filter allows no sockets", async () => {
    for (const mode of ["closed", "strict"]) expect(await curl("http://evil.test/", "--mode", mode)).toMatchObject({ code: 6 });
  });

  test("explain tells what may be reached", async () => {
    const { stdout } = await openclaw(["sandbox", "explain", "--tenant", "acme", "--tool", "exec", "--json"], variables());

    expect(JSON.parse(stdout)).toMatchObject({
      network: { value: ["169.254.169.254:80", "*.pypi.test:443"], because: "the administrator's allow" },
      refused: null,
    });
  });
});
