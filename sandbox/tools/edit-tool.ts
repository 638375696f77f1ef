import { z } from "zod";
import type { Tool } from "../tool.ts";
import { defineTool } from "./define-tool.ts";
import { type FileHelperDeps, pathSchema, runFileHelper, showPath } from "./file-helper.ts";
import { MAX_WRITE_BYTES } from "./write-tool.ts";

/** The largest file that is edited; it is held in memory, inside the sandbox. */
const MAX_FILE_BYTES = 8 * 1024 * 1024;

const textSchema = z.string().refine((text) => Buffer.byteLength(text) <= MAX_WRITE_BYTES, `must be at most ${MAX_WRITE_BYTES} bytes`);

/** `edit`: one exact text for another. */
export function createEditTool(deps: FileHelperDeps): Tool {
  return defineTool({
    name: "edit",
    description:
      "Replaces an exact text in a file of your work directory. old_text must be in the file exactly once, blanks and line ends included: " +
      "give enough of the lines around it, or set replace_all to change every place.",
    idempotent: false,
    schema: z.strictObject({
      path: pathSchema.describe("The file, relative to /work"),
      old_text: textSchema.min(1).describe("The text to replace, exactly as it is in the file, without line numbers"),
      new_text: textSchema.describe("The text to put in its place; may be empty"),
      replace_all: z.boolean().optional().describe("Replaces every occurrence; default false"),
    }),
    async run(place, { path, old_text: oldText, new_text: newText, replace_all: all = false }, signal) {
      if (oldText === newText)
        return { content: "old_text and new_text are the same; nothing was changed.", failed: true, facts: { reason: "refused" } };
      const [before, after] = [Buffer.from(oldText), Buffer.from(newText)];
      const args = ["edit", path, String(before.length), String(after.length), all ? "1" : "0", String(MAX_FILE_BYTES)];
      const answer = await runFileHelper(deps, place, { path, args, stdin: Buffer.concat([before, after]) }, signal);
      if ("failure" in answer) return answer.failure;
      const [, found = 0, line = 0] = Buffer.from(answer.output).toString().trim().split(" ").map(Number);
      const facts = { ...answer.facts, found };
      const name = showPath(path);
      if (found === 0)
        return { content: `${name}: old_text is not in the file. Read it again and copy the text exactly.`, failed: true, facts };
      if (found > 1 && !all) {
        return {
          content: `${name}: old_text is in the file ${found} times. Give more of the text around the place, or set replace_all. Nothing was changed.`,
          failed: true,
          facts,
        };
      }
      return {
        content: `${name}: ${found === 1 ? `replaced at line ${line}` : `replaced in ${found} places, the first at line ${line}`}.`,
        failed: false,
        facts,
      };
    },
  });
}
