import { afterAll, beforeAll, expect, test } from "vitest";
import type { TenantContext } from "../../domain/tenant.ts";
import type { FinishedTurn, TurnSubmission } from "../../domain/turn.ts";
import { insertTurn, readFinishedTurn, readTranscript } from "../../storage/turn-repository.ts";
import { laneNameOf } from "../../temporal/tenant-client.ts";
import { type TurnStack, scriptedProvider, someTurn, startTurnStack } from "../turn-stack.ts";

const provider = scriptedProvider(async ({ messages }) => ({ text: `you said ${JSON.stringify(messages.at(-1)?.content)}` }));
let stack: TurnStack;
let acme: TenantContext;

beforeAll(async () => {
  stack = await startTurnStack({ provider });
  acme = await stack.addTenant("acme");
});
afterAll(async () => await stack.close());

const laneOf = ({ sessionId }: TurnSubmission) => ({ sessionId });

async function submit(turn: TurnSubmission) {
  await stack.database.withTenant(acme, async (tx) => await insertTurn(tx, turn, laneNameOf(laneOf(turn))));
  await stack.pool.wake(acme.tenantId);
  return await stack.clientOf(acme.tenantId).submitTurn(laneOf(turn), turn);
}

const rowOf = async ({ turnId }: TurnSubmission): Promise<FinishedTurn | undefined> =>
  await stack.database.withTenant(acme, async (tx) => await readFinishedTurn(tx, turnId));

test("a turn is answered, stored, billed and remembered by its session", async () => {
  const turn = someTurn("api:jane:default", "hello");

  const verdict = await submit(turn);

  expect(verdict).toEqual({ state: "done" });
  expect(await rowOf(turn)).toMatchObject({ state: "done", reply: { content: 'you said "hello"', finishReason: "stop", modelCalls: 1 } });
  const transcript = await stack.database.withTenant(acme, async (tx) => await readTranscript(tx, turn.sessionId, 10));
  expect(transcript).toEqual([
    { role: "user", content: "hello" },
    { role: "assistant", content: 'you said "hello"' },
  ]);
  const ledger = await stack.database.withTenant(acme, async (tx) => await tx.query("select id, input_tokens, output_tokens, cost_nano_usd from control.usage_ledger"));
  expect(ledger).toEqual([{ id: `${turn.turnId}.0`, input_tokens: 10n, output_tokens: 5n, cost_nano_usd: 20_000n }]);
});
