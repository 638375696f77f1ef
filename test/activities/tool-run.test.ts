import { afterEach, expect, test } from "vitest";
import type { EnterDirectory } from "../../activities/tool-run.ts";
import { AppError } from "../../domain/app-error.ts";
import type { TenantContext } from "../../domain/tenant.ts";
import type { Tool } from "../../sandbox/tool.ts";
import { insertTurn } from "../../storage/turn-repository.ts";
import { laneNameOf } from "../../temporal/tenant-client.ts";
import { type TurnStack, scriptedProvider, someTurn, startTurnStack } from "../turn-stack.ts";

let stack: TurnStack;
afterEach(async () => await stack.close());

/** Asks for the tool once, and tells then what it said. */
const provider = scriptedProvider(async ({ messages }) => {
  const last = messages.at(-1);
  return last?.role === "tool"
    ? { text: `it said ${JSON.stringify(last.content)}` }
    : { toolCalls: [{ id: "call_1", name: "touch", arguments: "{}" }] };
});

type Entry = ReturnType<EnterDirectory>;

/** Runs one turn with a tool that is not to run twice; `entries` are what its attempts are told about the tenant's directory, in order. */
async function runTurn(entries: readonly ((begun: AbortController) => Partial<Entry> | Error)[]) {
  const runs: number[] = [];
  /** Of each run, whether it was told to end. */
  const told: boolean[] = [];
  const left: number[] = [];
  let attempt = 0;
  let begun = new AbortController();
  const tool: Tool = {
    definition: { name: "touch" },
    idempotent: false,
    async run(_place, _arguments, signal) {
      runs.push(attempt);
      begun.abort();
      told.push(signal.aborted);
      return { content: "done", failed: false, facts: {} };
    },
  };
  const enterDirectory: EnterDirectory = () => {
    begun = new AbortController();
    const entry = entries[attempt++]?.(begun) ?? {};
    if (entry instanceof Error) throw entry;
    const number = attempt;
    return {
      hold: async () => true,
      isOurs: () => true,
      signal: new AbortController().signal,
      leave: () => void left.push(number),
      ...entry,
    };
  };
  stack = await startTurnStack({ provider, tools: [tool], enterDirectory });
  const tenant: TenantContext = await stack.addTenant("acme");
  const turn = someTurn("api:tools:default", "touch it");
  const lane = { sessionId: turn.sessionId };
  await stack.database.withTenant(tenant, async (tx) => await insertTurn(tx, turn, laneNameOf(lane)));
  await stack.pool.wake(tenant.tenantId);
  const verdict = await stack.clientOf(tenant.tenantId).submitTurn(lane, turn);
  const [row] = await stack.database.withTenant(tenant, async (tx) => await tx.query("select state, attempt, result from tool_run"));
  return { verdict, runs, told, left, row };
}

test("a tool does not begin where the tenant is another worker's: not when it is refused, and not when the placement is lost", async () => {
  const { verdict, runs, left, row } = await runTurn([() => new AppError("unavailable"), () => ({ hold: async () => false })]);

  expect(verdict).toMatchObject({ state: "done" });
  expect(runs).toEqual([3]);
  expect(left).toEqual([2, 3]);
  expect(row).toMatchObject({ state: "done", attempt: 1, result: { content: "done" } });
});

test("a process that was paused between its claim and the tool does not run it: the next attempt says that nobody knows", async () => {
  const { verdict, runs, row } = await runTurn([() => ({ isOurs: () => false })]);

  expect(verdict).toMatchObject({ state: "done" });
  expect(runs).toEqual([]);
  expect(row).toMatchObject({ state: "failed", attempt: 2, result: { facts: { reason: "interrupted" } } });
});

test("a tool whose tenant is taken over is told to end, and what it said is not stored", async () => {
  const { verdict, runs, told, row } = await runTurn([(begun) => ({ signal: begun.signal })]);

  expect(verdict).toMatchObject({ state: "done" });
  expect(runs).toEqual([1]);
  expect(told).toEqual([true]);
  expect(row).toMatchObject({ state: "failed", attempt: 2, result: { facts: { reason: "interrupted" } } });
});

test("an outcome is stored by the holder only", async () => {
  let looks = 0;
  const { runs, row } = await runTurn([() => ({ hold: async () => ++looks === 1 })]);

  expect(runs).toEqual([1]);
  expect(row).toMatchObject({ state: "failed", attempt: 2, result: { facts: { reason: "interrupted" } } });
});
