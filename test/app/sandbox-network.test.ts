import { spawnSync } from "node:child_process";
import { randomInt } from "node:crypto";
import { once } from "node:events";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import OpenAI from "openai";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { openclaw } from "../control-plane/cli-stage.ts";
import { type RunningProduct, configWithProvider, startProduct } from "../product.ts";
import { missing } from "../sandbox/sandbox-stage.ts";
import { type ModelServer, startModelServer } from "./model-server.ts";

/** For the time of this file this machine has an address of a network for tests; loopback itself is never opened. */
const ownAddress = `198.18.${randomInt(1, 255)}.${randomInt(1, 255)}`;
const withAddress = (verb: "add" | "del") => spawnSync("ip", ["address", verb, `${ownAddress}/32`, "dev", "lo"], { encoding: "utf8" });
const given = withAddress("add");
const unreachable = given.status === 0 ? undefined : `no address can be added: ${given.error?.message ?? given.stderr.trim()}`;
if (unreachable !== undefined) console.warn(`SKIPPED the test of a destination that is open: ${unreachable}`);
afterAll(() => void (unreachable === undefined && withAddress("del")));

const networkWith = (port: number): string => `
sandbox:
  default_mode: normal
  modes:
    normal: { wall_seconds: 60 }
    closed: { network: none }
    strict: { seccomp: strict }
  network: { allow: ["169.254.169.254:80", "*.pypi.test:443", "${ownAddress}:${port}"], allow_private: ["${ownAddress}/32"] }
`;

describe.skipIf(missing !== undefined)("a tenant's network", () => {
  let model: ModelServer;
  let product: RunningProduct;
  let outside: Server;
  beforeAll(async () => {
    model = await startModelServer();
    outside = createServer((request, response) => void response.end(`you asked for ${request.url}`));
    await once(outside.listen(0, "0.0.0.0"), "listening");
    product = await startProduct({ config: configWithProvider(model.url, networkWith((outside.address() as AddressInfo).port)) });
    await product.createTenant("acme");
  });
  afterAll(async () => {
    await product?.stop();
    await model?.close();
    outside?.close();
  });
  const variables = () => ({ OPENCLAW_URL: product.url, OPENCLAW_ADMIN_KEY: product.adminKey });
  const curl = async (url: string, ...mode: string[]) =>
    await openclaw(["sandbox", "exec", "--tenant", "acme", ...mode, "--", "curl", "-sS", url], variables());

  test.skipIf(unreachable !== undefined)(
    "what the administrator allows is reached, by a tool in a turn as well, and audited with what it moved",
    async () => {
      const destination = `${ownAddress}:${(outside.address() as AddressInfo).port}`;
      expect(await curl(`http://${destination}/hello`)).toEqual({ code: 0, stdout: "you asked for /hello", stderr: "" });
      const token = await product.createTenant("globex");
      const client = new OpenAI({ baseURL: `${product.url}/v1`, apiKey: token, maxRetries: 0 });
      const answer = await client.chat.completions.create({
        model: "default",
        messages: [{ role: "user", content: `CALL exec {"command":"curl -sS http://${destination}/turn"}` }],
      });
      expect(answer.choices[0]?.message.content).toContain("you asked for /turn");

      const targets = async () => {
        const { body } = await product.admin("GET", "/v1/audit?action=sandbox.egress&tenant=globex");
        return (body["data"] as { target: string }[]).map(({ target }) => target);
      };
      await expect.poll(targets, { timeout: 60_000, interval: 500 }).not.toEqual([]);
      expect((await targets()).join()).toMatch(new RegExp(`^allowed ${destination.replaceAll(".", "\\.")} at`));
    },
  );

  test("what is refused is told to the program, audited on the tenant's chain and counted; a metadata service is closed though a rule names it", async () => {
    expect((await curl("http://evil.test/")).stdout).toBe("openclaw: evil.test:80 is not on the network allow-list of this sandbox\n");
    expect((await curl("http://169.254.169.254/")).stdout).toContain("metadata service, which nothing opens");

    const targets = async () => {
      const { body } = await product.admin("GET", "/v1/audit?action=sandbox.egress&tenant=acme");
      return (body["data"] as { target: string }[]).map(({ target }) => target);
    };
    await expect
      .poll(async () => (await targets()).filter((target) => !target.startsWith("allowed")), { timeout: 60_000, interval: 500 })
      .toHaveLength(2);
    expect((await targets()).filter((target) => !target.startsWith("allowed")).toSorted()).toEqual([
      "address 169.254.169.254:80 at 169.254.169.254: once",
      "not_listed evil.test:80: once",
    ]);
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
      network: { value: expect.arrayContaining(["169.254.169.254:80", "*.pypi.test:443"]), because: "the administrator's allow" },
      refused: null,
    });
  });
});
