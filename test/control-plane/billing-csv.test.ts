import fc from "fast-check";
import { expect, test } from "vitest";
import { csvLine, csvLineSql } from "../../control-plane/billing-csv.ts";
import { freshDatabase, runSql } from "../storage/fresh-database.ts";

test.each([
  ["=1+1", "'=1+1"],
  ["+1", "'+1"],
  ["-1", "'-1"],
  ["@sum", "'@sum"],
  ["\tx", "'\tx"],
  ["\rx", `"'\rx"`],
  ["a,b", '"a,b"'],
  ['say "a"', '"say ""a"""'],
  ["two\nlines", '"two\nlines"'],
  ["=a,b", `"'=a,b"`],
  ["plain = text", "plain = text"],
  ["é", "é"],
])("%j is written as %j", (text, cell) => {
  expect(csvLine([text])).toBe(`${cell}\n`);
});

test("numbers and nothing are written as they are", () => {
  expect(csvLine([1, 12_345_678_901_234_567_890n, true, null, "x"])).toBe("1,12345678901234567890,true,,x\n");
});

test("what is read back is what was written, but for the neutral prefix", () => {
  const awkward = fc.string({
    unit: fc.constantFrom('"', ",", "\n", "\r", "\t", "=", "+", "-", "@", "'", "a", "é", "\u0000"),
    maxLength: 8,
  });
  fc.assert(
    fc.property(fc.array(awkward, { minLength: 1, maxLength: 5 }), (cells) => {
      expect(readCsv(csvLine(cells))).toEqual([cells.map((cell) => (/^[=+\-@\t\r]/.test(cell) ? `'${cell}` : cell))]);
    }),
  );
});

test("Postgres writes the same bytes, whatever the text", async () => {
  const awkward = fc.string({
    unit: fc.constantFrom('"', ",", "\n", "\r", "\t", "=", "+", "-", "@", "'", "a", "é", "\\", "\u001f"),
    maxLength: 6,
  });
  const rows = fc.sample(fc.tuple(fc.option(awkward), fc.integer(), awkward), { numRuns: 2_000, seed: 7 });
  const url = await freshDatabase();

  const { rows: written } = await runSql(
    url,
    `select ${csvLineSql(["a", "n", "b"], ["a", "b"])} as line
     from jsonb_array_elements($json$${JSON.stringify(rows)}$json$::jsonb) with ordinality as given (cells, place),
       lateral (select cells ->> 0 as a, (cells ->> 1)::bigint as n, cells ->> 2 as b) as row order by place`,
  );

  expect(written.map(({ line }) => line)).toEqual(rows.map((cells) => csvLine(cells)));
});

/** RFC 4180, written apart from the writer. */
function readCsv(text: string): string[][] {
  const rows: string[][] = [];
  let row: string[] = [];
  let cell = "";
  let quoted = false;
  for (let at = 0; at < text.length; at++) {
    const character = text[at] ?? "";
    if (quoted && character === '"' && text[at + 1] === '"') {
      cell += '"';
      at++;
    } else if (character === '"') quoted = !quoted;
    else if (!quoted && (character === "," || character === "\n")) {
      row.push(cell);
      cell = "";
      if (character === "\n") rows.push(row.splice(0));
    } else cell += character;
  }
  return rows;
}
