import { afterAll, beforeAll, expect, test } from "vitest";
import { type ScalingStage, type StageTenant, startScalingStage } from "./scaling-stage.ts";
import { createRoundRobin } from "./round-robin.ts";

let stage: ScalingStage;
beforeAll(async () => {
  stage = await startScalingStage();
});
afterAll(async () => await stage?.close());

const callers = 6;

/** What a streamed answer says, once it has its end. */
const streamedText = (events: string): string => {
  expect(events).toMatch(/data: \[DONE\]\n\n$/);
  return [...events.matchAll(/^data: (\{.*\})$/gm)]
    .map(([, json]) => (JSON.parse(json ?? "") as { choices: { delta: { content?: string } }[] }).choices[0]?.delta.content ?? "")
    .join("");
};

test("a rolling restart of all gateways and workers under load: every request is answered once, and each is one billing row and one call of the provider", async () => {
  const { model, gateways, workers, rows } = stage;
  const tenants = await Promise.all(Array.from({ length: 4 }, stage.createTenant));
  const send = createRoundRobin(gateways.map(({ url }) => url));
  let isOver = false;
  let refusals = 0;
  const answered: string[] = [];
  const call = async (caller: number): Promise<void> => {
    for (let n = 0; !isOver; n++) {
      const question = `request ${caller}-${n}`;
      const { token } = tenants[(caller + n) % tenants.length] as StageTenant;
      const stream = n % 2 === 0;
      const content = `SLOW 40\n${question}`;
      const answer = await send("/v1/chat/completions", token, { model: "default", stream, messages: [{ role: "user", content }] });
      expect({ question, status: answer.status, text: answer.text }).toMatchObject({ status: 200 });
      const text = stream
        ? streamedText(answer.text)
        : (JSON.parse(answer.text) as { choices: { message: { content: string } }[] }).choices[0]?.message.content;
      expect(text).toBe(`echo: ${question}`);
      refusals += answer.refusals;
      answered.push(question);
    }
  };
  const load = Promise.all(Array.from({ length: callers }, async (_, caller) => await call(caller)));

  const startedAtMs = performance.now();
  const restart = async (): Promise<void> => {
    for (const process of [...workers, ...gateways]) {
      expect(await process.drain()).toBe(0);
      await process.restart();
    }
  };
  await Promise.race([restart(), load]).finally(() => (isOver = true));
  await load;

  console.log(
    `${answered.length} requests in ${Math.round(performance.now() - startedAtMs)} ms over four restarts; the balancer was refused ${refusals} times`,
  );
  expect(new Set(answered).size).toBe(answered.length);
  expect(await rows("select count(*)::int as rows, count(distinct id)::int as calls from control.usage_ledger")).toEqual([
    { rows: answered.length, calls: answered.length },
  ]);
  expect(model.allCalls()).toBe(answered.length);
  expect(await rows("select from control.open_turn")).toEqual([]);
}, 240_000);
