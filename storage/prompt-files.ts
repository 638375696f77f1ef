import { join } from "node:path";
import type { TenantId } from "../domain/tenant.ts";
import { NotPlainFile, readPlainFile } from "./plain-file.ts";
import { tenantDirectory } from "./tenant-paths.ts";

/** A file of the tenant's memory as its agent is shown it. */
export type PromptFile = { readonly name: string; readonly text: string };

/** What stands in front of every call in agent mode (contract §3), in this order. */
const promptFiles = ["AGENTS.md", "SOUL.md", "MEMORY.md"] as const;
const maxCharacters = 20_000;

/** Reads what is there. What is no plain file, or cannot be read, is left out and logged. */
export function readPromptFiles(
  home: string,
  tenantId: TenantId,
  log: (message: string, fields?: Record<string, unknown>) => void,
): readonly PromptFile[] {
  const directory = join(tenantDirectory(home, tenantId), "memory");
  return promptFiles.flatMap((name) => {
    try {
      const file = readPlainFile(directory, name, 4 * maxCharacters);
      if (file === undefined) return [];
      const text = new TextDecoder().decode(file.bytes);
      return text.trim() === "" ? [] : [{ name, text: shown(text, file.isCut) }];
    } catch (error) {
      if (!(error instanceof NotPlainFile)) throw error;
      log("a file of a tenant's memory was left out", { tenantId, name, reason: error.message });
      return [];
    }
  });
}

function shown(text: string, isCut: boolean): string {
  if (text.length <= maxCharacters && !isCut) return text;
  return `${text.slice(0, maxCharacters).toWellFormed()}\n[The file is longer; the rest is not shown here.]`;
}
