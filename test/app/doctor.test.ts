import { readFileSync, readdirSync } from "node:fs";
import { afterAll, beforeAll, expect, onTestFinished, test } from "vitest";
import { openclaw } from "../control-plane/cli-stage.ts";
import { type RunningProduct, startProduct } from "../product.ts";

let product: RunningProduct;
beforeAll(async () => {
  product = await startProduct();
});
afterAll(async () => await product.stop());

type Finding = { readonly check: string; readonly state: string; readonly says: string; readonly mend?: string };

async function doctor() {
  const variables = { PATH: process.env["PATH"] ?? "", HOME: process.env["HOME"] ?? "", OPENCLAW_HOME: product.home };
  const { code, stdout } = await openclaw(["doctor", "--json"], variables);
  const { findings } = JSON.parse(stdout) as { findings: Finding[] };
  return { code, of: (check: string) => findings.find((finding) => finding.check === check) };
}

/** The product's child whose program has that name. */
function childNamed(name: string): number {
  const found = readdirSync("/proc").find((entry) => {
    try {
      const [, program = "", parent = ""] = /^\d+ \((.*)\) \S (\d+)/.exec(readFileSync(`/proc/${entry}/stat`, "utf8")) ?? [];
      return program === name && Number(parent) === product.pid;
    } catch {
      return false; // not a process, or gone meanwhile
    }
  });
  if (found === undefined) throw new Error(`the product has no child ${name}`);
  return Number(found);
}

/** Holds a server still: its port accepts and nobody answers. */
function freeze(name: string): { thaw(): void } {
  const pid = childNamed(name);
  process.kill(pid, "SIGSTOP");
  let isFrozen = true;
  const thaw = (): void => {
    if (isFrozen) process.kill(pid, "SIGCONT");
    isFrozen = false;
  };
  onTestFinished(thaw);
  return { thaw };
}

test("a running gateway is looked at where it is, with its own servers", async () => {
  const { code, of } = await doctor();

  expect(code).toBe(0);
  expect(of("processes")).toMatchObject({ state: "ok", says: expect.stringMatching(/^1 all; \d+ tenants and system queues served now$/) });
  expect(of("gateway")).toEqual({ check: "gateway", state: "ok", says: `runs at ${product.url} and is ready` });
  expect(of("temporal")?.says).toMatch(/^Temporal \d.* at 127\.0\.0\.1:\d+, namespace default$/);
  expect(of("postgres")?.says).toMatch(/^the built-in server is Postgres 17/);
  expect(of("keys")).toMatchObject({ state: "ok", says: expect.stringContaining("admin-key") });
});

test("a Temporal that hangs is named, and so is the gateway that waits for it", async () => {
  const { thaw } = freeze("temporal");
  const hanging = await doctor();
  thaw();

  expect(hanging.code).toBe(1);
  expect(hanging.of("temporal")).toMatchObject({ state: "failed", mend: "restart the gateway" });
  expect(hanging.of("gateway")).toMatchObject({ state: "failed", says: expect.stringMatching(/is not ready: .*temporal/) });
  expect(hanging.of("postgres")?.state).toBe("ok");
  await expect.poll(async () => (await doctor()).code, { timeout: 60_000, interval: 500 }).toBe(0);
});

test("a Postgres that hangs is named", async () => {
  const { thaw } = freeze("postgres");
  const hanging = await doctor();
  thaw();

  expect(hanging.of("postgres")).toMatchObject({
    state: "failed",
    says: "the built-in server: the server did not answer in time",
    mend: "restart the gateway",
  });
  expect(hanging.of("temporal")?.state).toBe("ok");
});

test("what a killed gateway left behind is not taken for a running one", async () => {
  await product.kill();
  const { of } = await doctor();
  await product.restart();

  expect(of("gateway")).toBeUndefined();
  expect(of("port")?.state).toMatch(/ok|warning/);
  expect(of("temporal")?.says).toMatch(/temporal \(/);
  expect(of("postgres")?.says).toContain("built in");
});
