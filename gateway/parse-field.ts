import type { z } from "zod";
import { AppError } from "../domain/app-error.ts";

/** @throws {AppError} `invalid_request` naming the deepest field at fault */
export function parseField<T>(schema: z.ZodType<T>, raw: unknown, prefix: readonly PropertyKey[]): T {
  const parsed = schema.safeParse(raw);
  if (parsed.success) return parsed.data;
  const issue = deepest(parsed.error.issues, prefix);
  throw new AppError("invalid_request", { client: { message: `Invalid value for '${issue.path}': ${issue.message}`, param: issue.path } });
}

/** Of a union's branches the issue that reached deepest: it names what is wrong rather than that no branch fits. */
function deepest(issues: readonly z.core.$ZodIssue[], prefix: readonly PropertyKey[] = []): { path: string; message: string } {
  let found = { path: "", message: "The request is not valid." };
  let depth = -1;
  const visit = (list: readonly z.core.$ZodIssue[], before: readonly PropertyKey[]): void => {
    for (const issue of list) {
      const path = [...before, ...issue.path];
      if (path.length > depth) {
        depth = path.length;
        found = { path: path.map(String).join("."), message: issue.message };
      }
      if (issue.code === "invalid_union") for (const branch of issue.errors) visit(branch, path);
    }
  };
  visit(issues, prefix);
  return found;
}
