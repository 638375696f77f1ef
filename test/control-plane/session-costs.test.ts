import { expect, test } from "vitest";
import { SessionCosts, type Stretch } from "../../control-plane/session-costs.ts";
import { parseTenantId } from "../../domain/tenant.ts";

const acme = parseTenantId("acme");
const dayMs = 86_400_000;
const nowMs = 100 * dayMs;
const stretch = (fromDay: number, days: number): Stretch => ({ fromMs: fromDay * dayMs, untilMs: (fromDay + days) * dayMs });

function stage(mostSessions?: number) {
  const asked: Stretch[] = [];
  let calls = 3;
  const costs = new SessionCosts(
    async (_tenant, range) => {
      asked.push(range);
      return ["b", "a", "c"].map((sessionId, n) => ({ sessionId, calls: n === 0 ? calls - 2 : 1, nanoUsd: sessionId === "c" ? 9n : 5n }));
    },
    mostSessions === undefined ? {} : { mostSessions },
  );
  const dearest = async (range: Stretch, closedCalls = calls) => await costs.dearest(acme, range, { nowMs, closedCalls, count: 2 });
  return { asked, dearest, settle: () => void calls++ };
}

test("days that are over are summed once, until a row is added to them", async () => {
  const { asked, dearest, settle } = stage();

  const first = await dearest(stretch(10, 2));
  await dearest(stretch(10, 2));
  expect(asked).toEqual([stretch(10, 2)]);
  settle();
  const later = await dearest(stretch(10, 2));
  await dearest(stretch(10, 2));

  expect(first.map(({ sessionId, calls }) => [sessionId, calls])).toEqual([
    ["c", 1],
    ["a", 1],
  ]);
  expect(later).toHaveLength(2);
  expect(asked).toHaveLength(2);
});

test("today is summed each time, and a period without a row not at all", async () => {
  const { asked, dearest } = stage();

  await dearest(stretch(99, 2));
  await dearest(stretch(99, 2));
  await dearest(stretch(50, 3), 0);

  expect(asked).toEqual([stretch(99, 1), stretch(100, 1), stretch(100, 1)]);
});

test("those who ask together wait for one sum", async () => {
  const { asked, dearest } = stage();

  const answers = await Promise.all(Array.from({ length: 8 }, () => dearest(stretch(10, 2))));

  expect(asked).toHaveLength(1);
  expect(
    new Set(answers.map((answer) => JSON.stringify(answer, (_, value: unknown) => (typeof value === "bigint" ? String(value) : value))))
      .size,
  ).toBe(1);
});

test("what was not asked for the longest is forgotten once there is too much", async () => {
  const { asked, dearest } = stage(6);

  for (const from of [10, 20, 10, 30, 10]) await dearest(stretch(from, 1));
  expect(asked.map(({ fromMs }) => fromMs / dayMs)).toEqual([10, 20, 30]);
  await dearest(stretch(20, 1));

  expect(asked).toHaveLength(4);
});
