import { z } from "zod";
import type { Tool } from "../tool.ts";
import { defineTool } from "./define-tool.ts";
import { type FileHelperDeps, pathSchema, runFileHelper, showPath } from "./file-helper.ts";
import { cutMiddle, decodeText, MAX_CONTENT_BYTES, showName } from "./tool-text.ts";

const MAX_ENTRIES = 1000;
const endings: Readonly<Record<string, string>> = { d: "/", l: "@", o: " (neither file nor directory)" };

/** `list`: names, kinds and sizes; links are shown and not followed. */
export function createListTool(deps: FileHelperDeps): Tool {
  return defineTool({
    name: "list",
    description: `Lists a directory of your work directory: one entry per line with its size; directories end in /, links in @. At most ${MAX_ENTRIES} entries.`,
    idempotent: true,
    schema: z.strictObject({
      path: pathSchema.optional().describe("The directory, relative to /work; default /work itself"),
      recursive: z.boolean().optional().describe("Lists everything below it as well; default false"),
    }),
    async run(place, { path = "/work", recursive = false }, signal) {
      const answer = await runFileHelper(deps, place, { path, args: ["list", path, recursive ? "1" : "", String(MAX_ENTRIES)] }, signal);
      if ("failure" in answer) return answer.failure;
      const records = decodeText(answer.output)
        .split("\0")
        .filter((record) => record !== "");
      const lines = records.map((record) => describeEntry(record));
      const content = lines.length === 0 ? `${showPath(path)} is empty.` : cutMiddle(lines.join("\n"), MAX_CONTENT_BYTES - 512);
      return { content, failed: false, facts: { ...answer.facts, entries: records.filter((record) => !/^[+!]/.test(record)).length } };
    },
  });
}

function describeEntry(record: string): string {
  const [type = "", size = "", ...rest] = record.split(" ");
  const name = rest.join(" ");
  if (type === "+") return `[There are more than ${MAX_ENTRIES} entries; list a directory below.]`;
  if (type === "!") return `[${showName(name)}/ cannot be read.]`;
  return `${showName(name)}${endings[type] ?? ""}${type === "f" ? `  ${size} bytes` : ""}`;
}
