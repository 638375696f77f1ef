import fc from "fast-check";
import { expect, test } from "vitest";
import { rendezvousWinner } from "../../domain/rendezvous.ts";

const ids = fc.uniqueArray(fc.stringMatching(/^[a-z0-9_]{1,12}$/), { minLength: 1, maxLength: 8 });
const keys = fc.uniqueArray(fc.stringMatching(/^[a-z0-9]{1,12}$/), { minLength: 1, maxLength: 40 });
const winnerOf = (key: string, all: readonly string[]): string | undefined =>
  rendezvousWinner(
    key,
    all.map((id) => ({ id })),
  )?.id;

test("nobody wins where nobody is", () => {
  expect(winnerOf("acme", [])).toBeUndefined();
});

test("everybody names the same winner, in whatever order he knows the candidates", () => {
  fc.assert(
    fc.property(ids, fc.stringMatching(/^[a-z0-9]{1,12}$/), (all, key) => {
      expect(all).toContain(winnerOf(key, all));
      expect(winnerOf(key, all.toReversed())).toBe(winnerOf(key, all));
    }),
  );
});

test("a candidate that leaves moves its own keys and no other, and one that comes takes keys for itself only", () => {
  fc.assert(
    fc.property(ids, keys, fc.nat(), (all, owned, place) => {
      const leaver = all[place % all.length];
      const rest = all.filter((id) => id !== leaver);
      for (const key of owned) {
        const before = winnerOf(key, all);
        if (before !== leaver) expect(winnerOf(key, rest)).toBe(before);
      }
    }),
  );
});

test("keys spread evenly: of 3,000 each of three candidates has between 900 and 1,100", () => {
  const counts = new Map<string | undefined, number>();
  for (let n = 0; n < 3_000; n++) {
    const winner = winnerOf(`tenant-${n}`, ["prc_a", "prc_b", "prc_c"]);
    counts.set(winner, (counts.get(winner) ?? 0) + 1);
  }

  expect(new Set(counts.keys())).toEqual(new Set(["prc_a", "prc_b", "prc_c"]));
  for (const count of counts.values()) expect(Math.abs(count - 1_000)).toBeLessThan(100);
});
