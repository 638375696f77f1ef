import fc from "fast-check";
import { expect, test } from "vitest";
import { jsonShapeFault } from "../../gateway/json-shape.ts";

/** The same by what the parser makes of the text. */
function depthOf(value: unknown): number {
  return value === null || typeof value !== "object" ? 0 : 1 + Math.max(0, ...Object.values(value).map(depthOf));
}

test("depth is what the parser would build, whatever strings say", () => {
  const tricky = fc.constantFrom('"', "\\", '\\"', "[", "{", "]", "}", ",", "\\\\", "\u2028");
  const text = fc.array(tricky, { maxLength: 8 }).map((parts) => parts.join(""));
  const value = fc.letrec((tie) => ({
    any: fc.oneof({ depthSize: "small" }, text, fc.integer(), tie("list"), tie("object")),
    list: fc.array(tie("any"), { maxLength: 4 }),
    object: fc.dictionary(text, tie("any"), { maxKeys: 4 }),
  })).any;

  fc.assert(
    fc.property(value, fc.integer({ min: 0, max: 70 }), (inner, around) => {
      const json = "[".repeat(around) + JSON.stringify(inner) + "]".repeat(around);
      expect(jsonShapeFault(json) === undefined).toBe(around + depthOf(inner) <= 64);
    }),
    { numRuns: 500 },
  );
});

test("an array or object has ten thousand entries at most, and a text half a million", () => {
  const list = (count: number, entry: string): string => `[${Array.from({ length: count }, () => entry).join(",")}]`;

  expect(jsonShapeFault(list(10_000, '"a,b,[{"'))).toBeUndefined();
  expect(jsonShapeFault(list(10_001, "0"))).toMatch(/more than 10000 entries/);
  expect(jsonShapeFault(`{${Array.from({ length: 10_001 }, (_, n) => `"${n}":0`).join(",")}}`)).toMatch(/more than 10000 entries/);
  expect(jsonShapeFault(list(490, list(1_000, "0")))).toBeUndefined();
  expect(jsonShapeFault(list(600, list(1_000, "0")))).toMatch(/more than 500000 entries/);
  expect(jsonShapeFault(list(9_000, list(550, "[]")))).toMatch(/more than 500000 entries/);
});

test("what is no JSON is left to the parser", () => {
  for (const text of ["", "]]]", '"', '"\\', "{,}", "[1,", "}{", "\ufeff[]"]) expect(jsonShapeFault(text)).toBeUndefined();
});
