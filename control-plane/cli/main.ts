import { readFileSync } from "node:fs";
import { join } from "node:path";
import { packageRoot } from "../environment.ts";
import { runProgram } from "./program.ts";
import { createTerminal } from "./terminal.ts";

const { version } = JSON.parse(readFileSync(join(packageRoot, "package.json"), "utf8")) as { version: string };

process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code === "EPIPE") process.exit(0); // the reader (head, less) has seen enough
  throw error;
});

const terminal = createTerminal({ stdout: process.stdout, stderr: process.stderr, stdin: () => process.stdin, variables: process.env });
process.exitCode = await runProgram({ variables: process.env, terminal, packageRoot }, version, process.argv.slice(2));
