import fc from "fast-check";
import { expect, test } from "vitest";
import { type AnswerItem, createAnswerParser } from "../../providers/answer-parser.ts";

const parse = (pieces: readonly string[]): AnswerItem[] => {
  const parser = createAnswerParser();
  return [...pieces.flatMap((piece) => parser.push(piece)), ...parser.end()];
};

test("events are read whatever their line ends and wherever they are cut", () => {
  const lineEnd = fc.constantFrom("\n", "\r\n", "\r");
  const datum = fc.string({ unit: "grapheme", minLength: 1 }).filter((text) => !/[\r\n]/.test(text));
  fc.assert(
    fc.property(
      fc.array(datum, { minLength: 1, maxLength: 6 }),
      lineEnd,
      fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 1 }),
      (data, end, lengths) => {
        const text = data.map((datum) => `: keep-alive${end}event: e${end}data: ${datum}${end}${end}`).join("");
        const pieces: string[] = [];
        for (let at = 0, turn = 0; at < text.length; turn += 1) {
          const length = lengths[turn % lengths.length] ?? 1;
          pieces.push(text.slice(at, at + length));
          at += length;
        }

        expect(parse(pieces)).toEqual(data.map((datum) => ({ type: "event", event: "e", data: datum })));
      },
    ),
  );
});

test("several data lines are one datum, and a last event needs no blank line", () => {
  expect(parse(["data: a\ndata:b\n\ndata: c"])).toEqual([
    { type: "event", event: undefined, data: "a\nb" },
    { type: "event", event: undefined, data: "c" },
  ]);
});

test("a body that begins with a brace is one JSON text", () => {
  expect(parse(["  ", '\n{"a":', "\n\n1}"])).toEqual([{ type: "whole", data: '  \n{"a":\n\n1}' }]);
});
