import { z } from "zod";
import type { Tool } from "../tool.ts";
import { defineTool } from "./define-tool.ts";
import { type FileHelperDeps, pathSchema, runFileHelper, showPath } from "./file-helper.ts";

export const MAX_WRITE_BYTES = 1024 * 1024;

/** `write`: a whole file, old text replaced at once; a reader never sees half of it. */
export function createWriteTool(deps: FileHelperDeps): Tool {
  return defineTool({
    name: "write",
    description:
      "Writes a text file in your work directory, whole: what it held before is replaced. Missing directories are made. Use edit to change a part of a file.",
    idempotent: false,
    schema: z.strictObject({
      path: pathSchema.describe("The file, relative to /work"),
      content: z
        .string()
        .refine(
          (text) => Buffer.byteLength(text) <= MAX_WRITE_BYTES,
          `must be at most ${MAX_WRITE_BYTES} bytes; write the file in parts with exec`,
        ),
    }),
    async run(place, { path, content }, signal) {
      const stdin = Buffer.from(content);
      const answer = await runFileHelper(deps, place, { path, args: ["write", path, String(stdin.length)], stdin }, signal);
      if ("failure" in answer) return answer.failure;
      const created = Buffer.from(answer.output).toString() === "created\n";
      return {
        content: `${showPath(path)}: ${created ? "created" : "replaced"}, ${stdin.length} bytes.`,
        failed: false,
        facts: { ...answer.facts, sizeBytes: stdin.length },
      };
    },
  });
}
