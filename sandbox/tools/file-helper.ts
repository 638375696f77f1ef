import { readFileSync } from "node:fs";
import { join, posix } from "node:path";
import { z } from "zod";
import type { SandboxDriver } from "../sandbox-driver.ts";
import type { ToolOutcome, ToolPlace } from "../tool.ts";
import { explainReason, factsOf } from "./define-tool.ts";

export type FileHelperDeps = { readonly driver: SandboxDriver };

/** The script is constant; what a model wrote reaches it as arguments and stdin only. */
const script = readFileSync(join(import.meta.dirname, "file-helper.pl"), "utf8");
const ROOT = "/work";
const MAX_PATH_BYTES = 4000;
const MAX_WALL_MS = 10_000;
/** The exit code by which the helper says that stderr holds a sentence for the model. */
const TOLD = 3;

/** A path inside the work directory, turned into an absolute one as the sandbox sees it. */
export const pathSchema = z
  .string()
  .min(1)
  .refine((path) => !path.includes("\0"), "must not hold a NUL character")
  .refine((path) => Buffer.byteLength(path) <= MAX_PATH_BYTES, `must be at most ${MAX_PATH_BYTES} bytes`)
  .transform((path) => posix.resolve(ROOT, path.replace(/^~(?=\/|$)/, ROOT)))
  .refine((path) => path === ROOT || path.startsWith(`${ROOT}/`), "leads outside the work directory /work");

/** The path as the model best uses it again: relative to the work directory. */
export const showPath = (path: string): string => (path === ROOT ? "." : path.slice(ROOT.length + 1));

export type HelperAnswer = { readonly output: Uint8Array; readonly facts: ToolOutcome["facts"] } | { readonly failure: ToolOutcome };

/** Runs one action of the helper in the sandbox; whatever goes wrong is an outcome that names the path. */
export async function runFileHelper(
  { driver }: FileHelperDeps,
  place: ToolPlace,
  call: { readonly path: string; readonly args: readonly string[]; readonly stdin?: Uint8Array },
  signal: AbortSignal,
): Promise<HelperAnswer> {
  const held = { ...place.limits, wallMs: Math.min(place.limits.wallMs, MAX_WALL_MS) };
  // The helper's script needs no network, so it has none.
  const { egress: _egress, onEgress: _onEgress, ...alone } = place;
  const job = { ...alone, argv: ["/usr/bin/perl", "-e", script, ...call.args], stdin: call.stdin ?? "", limits: held };
  const result = await driver.run(job, signal);
  const facts = factsOf(result);
  if (result.reason === "ok" && result.exitCode === 0) return { output: result.stdout, facts };
  const told = result.exitCode === TOLD ? Buffer.from(result.stderr).toString("utf8").trim() : undefined;
  const why = explainReason(result.reason, held) ?? "the file tool itself failed.";
  const detail = told === undefined ? { detail: Buffer.from(result.stderr).toString("utf8").slice(0, 1000) } : {};
  return {
    failure: { content: `${showPath(call.path)}: ${told === undefined ? why : `${told}.`}`, failed: true, facts: { ...detail, ...facts } },
  };
}
