import { z } from "zod";
import type { Tool } from "../tool.ts";
import { defineTool } from "./define-tool.ts";
import { type FileHelperDeps, pathSchema, runFileHelper, showPath } from "./file-helper.ts";
import { decodeText, MAX_CONTENT_BYTES } from "./tool-text.ts";

const DEFAULT_LINES = 2000;
const MAX_LINES = 20_000;
/** Room for the note, and for a line number before each line where those are asked for. */
const MAX_TEXT_BYTES = MAX_CONTENT_BYTES - 512;
const LINE_NUMBER_BYTES = 7;

/** `read`: lines of a text file. */
export function createReadTool(deps: FileHelperDeps): Tool {
  return defineTool({
    name: "read",
    description: `Reads a text file in your work directory, at most ${DEFAULT_LINES} lines or ${MAX_CONTENT_BYTES / 1024} KiB at a time; use offset to read on. Binary files are named as such and not shown.`,
    idempotent: true,
    schema: z.strictObject({
      path: pathSchema.describe("The file, relative to /work"),
      offset: z.number().int().min(1).max(1e9).optional().describe("The first line to read, counted from 1; default 1"),
      limit: z.number().int().min(1).max(MAX_LINES).optional().describe(`How many lines to read; default ${DEFAULT_LINES}`),
      line_numbers: z.boolean().optional().describe("Puts its number and a tab before each line; default false"),
    }),
    async run(place, { path, offset = 1, limit = DEFAULT_LINES, line_numbers: numbered = false }, signal) {
      const answer = await runFileHelper(
        deps,
        place,
        { path, args: ["read", path, String(offset), String(limit), String(MAX_TEXT_BYTES)] },
        signal,
      );
      if ("failure" in answer) return answer.failure;
      const output = Buffer.from(answer.output);
      const headerEnd = output.indexOf("\n");
      const [size = 0, firstLine = 0, more, binary, cut] = output.subarray(0, headerEnd).toString().split(" ").map(Number);
      const facts = { ...answer.facts, sizeBytes: size };
      if (binary === 1) return { content: `${showPath(path)} is a binary file of ${size} bytes; it is not shown.`, failed: false, facts };
      const text = decodeText(output.subarray(headerEnd + 1), { cutAtEnd: cut === 1 });
      if (text === "") {
        const failed = size > 0;
        return { content: failed ? `${showPath(path)} has fewer than ${offset} lines.` : `${showPath(path)} is empty.`, failed, facts };
      }
      const shown = numbered ? numberLines(text, firstLine) : { text, lines: countLines(text), all: true };
      const note =
        cut === 1
          ? `[Line ${firstLine} is longer than what can be shown; it is cut here.]`
          : more === 1 || !shown.all
            ? `[More follows: read on with offset ${firstLine + shown.lines}.]`
            : undefined;
      return { content: note === undefined ? shown.text : `${shown.text.replace(/\n$/, "")}\n${note}`, failed: false, facts };
    },
  });
}

const countLines = (text: string): number => text.split("\n").length - (text.endsWith("\n") ? 1 : 0);

function numberLines(text: string, firstLine: number): { readonly text: string; readonly lines: number; readonly all: boolean } {
  const lines = text.replace(/\n$/, "").split("\n");
  let room = MAX_TEXT_BYTES;
  const fitting = lines.findIndex((line) => (room -= Buffer.byteLength(line) + 1 + LINE_NUMBER_BYTES) < 0);
  // A first line that is too long by itself was cut to size by the helper.
  const kept = fitting === -1 ? lines : lines.slice(0, Math.max(1, fitting));
  return {
    text: kept.map((line, index) => `${String(firstLine + index).padStart(LINE_NUMBER_BYTES - 1)}\t${line}`).join("\n"),
    lines: kept.length,
    all: kept.length === lines.length,
  };
}
