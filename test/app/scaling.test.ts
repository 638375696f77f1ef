import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { rendezvousWinner } from "../../domain/rendezvous.ts";
import { missing } from "../sandbox/sandbox-stage.ts";
import { type ScalingStage, answerTo, ask, clientOf, startScalingStage } from "./scaling-stage.ts";

let stage: ScalingStage;
beforeAll(async () => {
  stage = await startScalingStage();
});
afterAll(async () => await stage?.close());

test("tenants spread over the workers as their names weigh, whichever gateway they come in by", async () => {
  const { gateways, workers, rows } = stage;
  const tenants = await Promise.all(Array.from({ length: 8 }, stage.createTenant));

  for (const [n, tenant] of tenants.entries())
    expect(await answerTo(gateways[n % 2 === 0 ? 0 : 1], tenant, `from ${tenant.id}`)).toContain(tenant.id);

  const live = (await rows("select id, pid from control.process where role = 'worker'")) as { id: string; pid: number }[];
  const placed = await rows(
    "select owner, pid from control.placement join control.process on process.id = holder where owner like 'many-%' order by owner",
  );
  expect(new Set(live.map(({ pid }) => pid))).toEqual(new Set(workers.map(({ pid }) => pid)));
  expect(placed).toHaveLength(8);
  for (const { owner, pid } of placed) expect(pid).toBe(rendezvousWinner(String(owner), live)?.pid);
});

test.skipIf(missing !== undefined)(
  "kill -9 of a worker in the middle of a model call and of a tool: the other serves its tenants, each turn is answered once and billed by call; its own come back when it does",
  async () => {
    const { model, gateways, workers, billed } = stage;
    const [dying, staying] = workers;
    const [talker, worker] = [await stage.tenantOn(dying), await stage.tenantOn(dying)];
    const held = model.hold("the worker dies meanwhile", 2);
    const stream = await clientOf(gateways[1], talker).chat.completions.create({ ...ask("the worker dies meanwhile"), stream: true });
    const inTool = answerTo(gateways[0], worker, 'CALL exec {"command":"touch begun; sleep 300"}');
    await expect.poll(() => existsSync(join(stage.sandboxOf(worker), "begun")), { timeout: 30_000 }).toBe(true);
    const killedAtMs = performance.now();

    await dying.kill();
    await Promise.all([talker, worker].map(async (tenant) => await stage.servedBy(tenant, staying)));
    const takenMs = performance.now() - killedAtMs;
    held.release();

    let streamed = "";
    for await (const chunk of stream) streamed += chunk.choices[0]?.delta.content ?? "";
    expect(streamed).toBe("echo: the worker dies meanwhile");
    expect(await inTool).toContain("not known whether it took effect");
    console.log(
      `served by the other worker ${Math.round(takenMs)} ms after kill -9; answered after ${Math.round(performance.now() - killedAtMs)} ms`,
    );
    expect(await billed(talker)).toHaveLength(2);
    expect(await billed(worker)).toHaveLength(3);
    expect(model.callsOf("the worker dies meanwhile")).toBe(2);

    await dying.restart();
    const [row] = await stage.rows(`select id from control.process where pid = ${dying.pid}`);
    const candidates = (await stage.rows("select id from control.process where role = 'worker' and expires_at > now()")) as {
      id: string;
    }[];
    const ours = [talker, worker].filter(({ id }) => rendezvousWinner(id, candidates)?.id === row?.["id"]);
    for (const tenant of ours) await stage.servedBy(tenant, dying);
    for (const tenant of [talker, worker]) expect(await answerTo(gateways[0], tenant, "and on")).toBe("echo: and on");
  },
);

test.skipIf(missing !== undefined)(
  "a worker that is paused and goes on later writes nothing into a directory that another has taken, and nothing is billed twice",
  async () => {
    const { model, gateways, workers, billed, rows } = stage;
    const [paused, other] = workers;
    const [talker, writer] = [await stage.tenantOn(paused), await stage.tenantOn(paused)];
    const ticks = join(stage.sandboxOf(writer), "ticks");
    const held = model.hold("paused meanwhile");
    const talking = answerTo(gateways[0], talker, "paused meanwhile");
    const writing = answerTo(gateways[1], writer, 'CALL exec {"command":"while :; do echo tick >> ticks; sleep 0.02; done"}');
    await held.arrived;
    await expect.poll(() => existsSync(ticks), { timeout: 30_000 }).toBe(true);

    process.kill(paused.pid, "SIGSTOP");
    await Promise.all([talker, writer].map(async (tenant) => await stage.servedBy(tenant, other)));
    const written = readFileSync(ticks, "utf8");
    held.release();
    const answers = await Promise.all([talking, writing]);
    expect(await answerTo(gateways[0], writer, 'CALL exec {"command":"echo next >> ticks"}')).toBeDefined();
    process.kill(paused.pid, "SIGCONT");
    await expect
      .poll(async () => await rows(`select from control.process where pid = ${paused.pid} and expires_at > now()`), { timeout: 30_000 })
      .toHaveLength(1);
    expect(await answerTo(gateways[1], writer, 'CALL exec {"command":"echo last >> ticks"}')).toBeDefined();

    expect(answers[0]).toBe("echo: paused meanwhile");
    expect(answers[1]).toContain("not known whether it took effect");
    expect(readFileSync(ticks, "utf8")).toBe(`${written}next\nlast\n`);
    expect(await billed(talker)).toHaveLength(2);
    expect(await billed(writer)).toHaveLength(1 + 2 + 2 + 2);
    const runs = await rows(`select state, attempt from tenant_${writer.id.replaceAll("-", "_")}.tool_run order by id`);
    expect(runs).toEqual([
      { state: "failed", attempt: 2 },
      { state: "done", attempt: 1 },
      { state: "done", attempt: 1 },
    ]);
  },
);
