import { expect, test } from "vitest";
import { fakeGateway, openclaw, sendJson } from "./cli-stage.ts";

const key = `ak_root_${"0".repeat(32)}`;
const steps = (done: number) =>
  ["new key made", "values sealed again"].map((name, at) => ({ name, state: at < done ? "done" : "waiting" }));

async function rotation(end: "done" | "failed") {
  let looks = 0;
  const { url, seen } = await fakeGateway(({ method }, response) => {
    if (method === "POST") return sendJson(response, { workflow_id: "rekey:_system:1" }, 202);
    looks++;
    return sendJson(response, { state: looks < 2 ? "running" : end, progress: { steps: steps(looks) } });
  });
  return { seen, variables: { OPENCLAW_URL: url, OPENCLAW_TOKEN: key } };
}

test("keys rotate shows each step once and ends with the rotation", async () => {
  const { seen, variables } = await rotation("done");

  const { code, stderr } = await openclaw(["keys", "rotate"], variables);

  expect([code, stderr.match(/new key made/g)?.length, stderr.includes("The keys are rotated.")]).toEqual([0, 1, true]);
  expect(seen.map(({ method, path }) => `${method} ${path}`)).toEqual([
    "POST /v1/keys/rotate",
    "GET /v1/operations/rekey%3A_system%3A1",
    "GET /v1/operations/rekey%3A_system%3A1",
  ]);
});

test("keys rotate fails when the rotation does, and does not wait when told so", async () => {
  const failed = await openclaw(["keys", "rotate"], (await rotation("failed")).variables);
  const started = await openclaw(["keys", "rotate", "--no-wait"], (await rotation("done")).variables);

  expect([failed.code, failed.stderr]).toEqual([1, expect.stringContaining("readable as before")]);
  expect([started.code, started.stdout]).toEqual([0, "rekey:_system:1\n"]);
});
