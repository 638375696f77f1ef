import { z } from "zod";
import { hadNoProgram } from "../sandbox-result.ts";
import type { SandboxLimits, SandboxResult } from "../sandbox-driver.ts";
import type { Tool, ToolOutcome, ToolPlace } from "../tool.ts";

type ToolParts<Schema extends z.ZodObject> = {
  readonly name: string;
  readonly description: string;
  readonly idempotent: boolean;
  /** Strict: a key that it does not know is an error that the model reads. */
  readonly schema: Schema;
  run(place: ToolPlace, args: z.output<Schema>, signal: AbortSignal): Promise<ToolOutcome>;
};

/** A tool from its argument schema: the model sees the schema as JSON Schema, and only what passes it reaches `run`. */
export function defineTool<Schema extends z.ZodObject>({ name, description, idempotent, schema, run }: ToolParts<Schema>): Tool {
  const { $schema: _, ...parameters } = z.toJSONSchema(schema, { io: "input" });
  return {
    definition: { name, description, parameters },
    idempotent,
    async run(place, argumentsJson, signal) {
      const parsed = parseArguments(schema, argumentsJson);
      return typeof parsed === "string" ? refusal(`The arguments of ${name} are not valid: ${parsed}`) : run(place, parsed.args, signal);
    },
  };
}

function parseArguments<Schema extends z.ZodObject>(schema: Schema, argumentsJson: string): { readonly args: z.output<Schema> } | string {
  let value: unknown;
  try {
    // A call without arguments comes as an empty text from some models.
    value = JSON.parse(argumentsJson.trim() === "" ? "{}" : argumentsJson);
  } catch (error) {
    return `the text is not JSON (${(error as Error).message}).`;
  }
  const parsed = schema.safeParse(value);
  if (parsed.success) return { args: parsed.data };
  return parsed.error.issues.map(({ path, message }) => (path.length === 0 ? message : `${path.join(".")}: ${message}`)).join("; ");
}

/** An outcome that never reached the sandbox. */
const refusal = (content: string): ToolOutcome => ({ content, failed: true, facts: { reason: "refused" } });

/** What a tool run's row keeps of the sandbox's result. */
export function factsOf({
  exitCode,
  signal,
  reason,
  wallMs,
  peakMemoryBytes,
  cpuMs,
  truncated,
  enforcement,
  stderr,
}: SandboxResult): ToolOutcome["facts"] {
  const detail = hadNoProgram({ reason, exitCode }) ? { detail: Buffer.from(stderr).toString("utf8").slice(0, 1000) } : {};
  return {
    exitCode: exitCode ?? null,
    signal: signal ?? null,
    reason,
    wallMs,
    peakMemoryBytes: peakMemoryBytes ?? null,
    cpuMs: cpuMs ?? null,
    truncated,
    enforcement,
    ...detail,
  };
}

/** Why a run was ended by us, as a sentence for the model; undefined when it ended by itself. The host's own troubles stay in the facts. */
export function explainReason(
  reason: SandboxResult["reason"],
  { wallMs, memoryBytes, processes, diskBytes, inodes }: SandboxLimits,
): string | undefined {
  const sentences: Readonly<Record<SandboxResult["reason"], string | undefined>> = {
    ok: undefined,
    wall: `It was ended after ${wallMs / 1000} s, the time it was given.`,
    memory: `It ran out of memory: all of its processes together may use ${Math.floor(memoryBytes / 1024 / 1024)} MiB.`,
    pids: `It tried to run more than ${processes} processes and threads at once, the limit.`,
    output: "It was ended because it wrote far too much output.",
    disk: `It was ended because the work directory may hold ${[
      ...(diskBytes === undefined ? [] : [`${Math.floor(diskBytes / 1024 / 1024)} MiB`]),
      ...(inodes === undefined ? [] : [`${inodes} files and directories`]),
    ].join(" and ")}. Remove what is not needed.`,
    denied: "It was refused: the sandbox does not allow it.",
    cancelled: "It was cancelled.",
    failed_to_start: "The sandbox could not be started. This is not the command's fault.",
  };
  return sentences[reason];
}
