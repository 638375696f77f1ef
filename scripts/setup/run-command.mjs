import { spawn } from "node:child_process";

/**
 * Runs a command to its end without a shell. Its output is kept, the last line is told to `onLine` as it comes.
 * @param {string} command
 * @param {readonly string[]} args
 * @param {{ env?: NodeJS.ProcessEnv, cwd?: string, onLine?: (line: string) => void }} [options]
 * @returns {Promise<{ ok: boolean, output: string }>} `output` is both streams together; the reason when it could not be started
 */
export function runCommand(command, args, { env = process.env, cwd, onLine } = {}) {
  return new Promise((resolve) => {
    const child = spawn(command, args, { env, stdio: ["ignore", "pipe", "pipe"], ...(cwd === undefined ? {} : { cwd }) });
    let output = "";
    const take = (/** @type {Buffer} */ chunk) => {
      const text = chunk.toString();
      output = (output + text).slice(-20_000);
      const line = text.trimEnd().split("\n").at(-1);
      if (line) onLine?.(line);
    };
    child.stdout.on("data", take);
    child.stderr.on("data", take);
    child.on("error", (error) => resolve({ ok: false, output: error.message }));
    child.on("close", (code) => resolve({ ok: code === 0, output }));
  });
}

/**
 * The line of a tool's output that says most: the last one that speaks of an error, else the last.
 * @param {string} output
 */
export function tellingLine(output) {
  const lines = output
    .split("\n")
    .map((line) => line.trim())
    .filter((line) => line !== "");
  return lines.findLast((line) => /error|fail|denied|unable|refused/i.test(line)) ?? lines.at(-1) ?? "no output";
}
