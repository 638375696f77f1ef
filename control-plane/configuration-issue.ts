import type { z } from "zod";
import type { KeyPath } from "./configuration-text.ts";

/** What a schema has against a configuration: the key and the words to say it with. */
export type ConfigurationIssue = { readonly path: KeyPath; readonly says: string };

/** The issue to tell first: a misspelt key is also a missing one, and the misspelling is what the reader has to see. */
export function issueToTell(issues: readonly z.core.$ZodIssue[]): ConfigurationIssue {
  const issue = issues.find(({ code }) => code === "unrecognized_keys") ?? issues[0];
  if (issue === undefined) throw new TypeError("a failed parse has an issue");
  return toConfigurationIssue(issue);
}

function toConfigurationIssue(issue: z.core.$ZodIssue): ConfigurationIssue {
  const path = issue.path.map((key) => (typeof key === "symbol" ? String(key) : key));
  switch (issue.code) {
    case "unrecognized_keys":
      return { path: [...path, issue.keys[0] ?? ""], says: "is not a known key" };
    case "invalid_key":
      return { path, says: issue.issues[0]?.message ?? "is not a valid name" };
    case "invalid_type":
      return { path, says: issue.input === undefined && issue.message.includes("undefined") ? "is missing" : missingOr(issue) };
    default:
      return { path, says: issue.message };
  }
}

const missingOr = ({ message }: z.core.$ZodIssue): string =>
  message.startsWith("Invalid input")
    ? message.endsWith("undefined")
      ? "is missing"
      : `has the wrong shape (${message.replace("Invalid input: ", "")})`
    : message;
