import { existsSync } from "node:fs";
import { z } from "zod";
import { hadNoProgram } from "../sandbox-result.ts";
import type { SandboxDriver, SandboxJob, SandboxLimits, SandboxResult } from "../sandbox-driver.ts";
import type { Tool } from "../tool.ts";
import { defineTool, explainReason, factsOf } from "./define-tool.ts";
import { cutMiddle, decodeText, MAX_CONTENT_BYTES } from "./tool-text.ts";

/** One argument of a program may have 128 KiB (MAX_ARG_STRLEN). */
const MAX_COMMAND_BYTES = 96 * 1024;
/** Exit codes 128 + n, as bash and bubblewrap give them, for the signals that end programs by accident. */
const signalNames: Readonly<Record<number, string>> = {
  132: "SIGILL",
  134: "SIGABRT",
  135: "SIGBUS",
  136: "SIGFPE",
  137: "SIGKILL",
  139: "SIGSEGV",
  143: "SIGTERM",
  152: "SIGXCPU",
  153: "SIGXFSZ",
};

/** `exec`: a command line in the tenant's work directory. A program that fails is an outcome with `failed`; its exit code is in the text. */
export function createExecTool({ driver }: { readonly driver: SandboxDriver }): Tool {
  const shell = existsSync("/bin/bash") ? "/bin/bash" : "/bin/sh";
  const describe = (network: readonly string[]): string =>
    `Runs a command line with ${shell} in your work directory /work and returns its output and exit code. ` +
    "Files in /work stay for later calls; everything else, /tmp, environment and background processes included, is gone when the command ends. " +
    `${describeNetwork(network)} There is no terminal: pass -y and the like, never wait for input. Time, memory, processes and output are limited.`;
  const tool = defineTool({
    name: "exec",
    description: describe([]),
    idempotent: false,
    schema: z.strictObject({
      command: z
        .string()
        .min(1)
        .refine((text) => !text.includes("\0"), "must not hold a NUL character")
        .refine(
          (text) => Buffer.byteLength(text) <= MAX_COMMAND_BYTES,
          `must be at most ${MAX_COMMAND_BYTES} bytes: write a script with the write tool and run that`,
        )
        .describe("The command line, for example: grep -rn TODO src | head"),
      timeout_seconds: z
        .number()
        .positive()
        .optional()
        .describe("Ends the command after this many seconds; default and maximum are the sandbox's time limit, usually 60."),
    }),
    async run(place, { command, timeout_seconds: seconds = Infinity }, signal) {
      const held = { ...place.limits, wallMs: Math.min(place.limits.wallMs, Math.ceil(seconds * 1000)) };
      const refusals = new Set<string>();
      const onEgress: SandboxJob["onEgress"] = (event) => {
        if (event.kind === "decided" && event.verdict !== "allowed" && refusals.size < MAX_REFUSALS) refusals.add(event.says);
        place.onEgress?.(event);
      };
      const job = { ...place, argv: [shell, "-c", command], stdin: "", limits: held };
      const result = await driver.run(place.egress === undefined ? job : { ...job, onEgress }, signal);
      const told = [...refusals].map((says) => `[The network refused a request: ${says}.]`);
      return {
        content: [describeRun(result, held), ...told].join("\n"),
        failed: result.reason !== "ok" || result.exitCode !== 0,
        facts: factsOf(result),
      };
    },
  });
  return { ...tool, definitionFor: (network) => ({ ...tool.definition, description: describe(network) }) };
}

/** Of a run's refusals and of the allowed destinations, as many as a model needs to understand. */
const MAX_REFUSALS = 5;
const MAX_DESTINATIONS = 30;

function describeNetwork(network: readonly string[]): string {
  if (network.length === 0) return "There is no network.";
  const more = network.length > MAX_DESTINATIONS ? ` and ${network.length - MAX_DESTINATIONS} more, listed in $OPENCLAW_NETWORK` : "";
  return (
    `The network reaches ${network.slice(0, MAX_DESTINATIONS).join(", ")}${more}, and nothing else, through the HTTP proxy in $HTTPS_PROXY, ` +
    "which curl, git, pip, npm and most programs use by themselves; names are not resolved without it."
  );
}

function describeRun(result: SandboxResult, limits: SandboxLimits): string {
  const { exitCode, reason, truncated } = result;
  const stdout = decodeText(result.stdout);
  const stderr = hadNoProgram(result) ? "" : decodeText(result.stderr);
  // Each stream gets what the other leaves of the room, but never less than half of it.
  const room = MAX_CONTENT_BYTES - 1024;
  const errors = cutMiddle(stderr, Math.max(room >> 1, room - Buffer.byteLength(stdout)));
  const output = cutMiddle(stdout, Math.max(room >> 1, room - Buffer.byteLength(errors)));
  const why = explainReason(reason, limits);
  const name = exitCode === undefined ? undefined : signalNames[exitCode];
  return [
    output === "" ? undefined : errors === "" ? output.trimEnd() : `stdout:\n${output.trimEnd()}\n`,
    errors === "" ? undefined : `stderr:\n${errors.trimEnd()}\n`,
    output === "" && errors === "" ? "(no output)" : undefined,
    truncated ? "[The output was longer than what is kept; its end is missing.]" : undefined,
    why,
    exitCode === undefined ? undefined : `exit code ${exitCode}${name === undefined ? "" : ` (${name})`}`,
  ]
    .filter((line) => line !== undefined)
    .join("\n");
}
