import { z } from "zod";
import { CliError, exitCodes } from "./exit-code.ts";
import type { GatewayClient } from "./gateway-client.ts";
import type { Terminal } from "./terminal.ts";

export const startedSchema = z.looseObject({ workflow_id: z.string() });

const operationSchema = z.looseObject({
  workflow_id: z.string(),
  state: z.enum(["running", "done", "failed"]),
  progress: z
    .looseObject({
      steps: z.array(z.looseObject({ name: z.string(), state: z.string() })),
      done: z.number(),
      total: z.number(),
    })
    .nullable(),
});
export type Operation = z.infer<typeof operationSchema>;

const pollMs = 250;
const barWidth = 24;

/** Follows an operation to its end with a progress bar on stderr. @throws {CliError} failed, when it fails */
export async function followOperation(gateway: GatewayClient, workflowId: string, terminal: Terminal): Promise<Operation> {
  const path = `/v1/operations/${encodeURIComponent(workflowId)}`;
  let shown = "";
  for (;;) {
    const operation = await gateway.json(operationSchema, { path });
    const line = barOf(operation);
    if (line !== shown) terminal.progress(line);
    shown = line;
    if (operation.state !== "running") terminal.progress(undefined);
    if (operation.state === "failed") throw new CliError(exitCodes.failed, `${workflowId} failed: its workflow in Temporal says why.`);
    if (operation.state === "done") return operation;
    await new Promise((resolve) => setTimeout(resolve, pollMs));
  }
}

function barOf({ state, progress }: Operation): string {
  const { done, total, steps } = progress ?? { done: 0, total: 0, steps: [] };
  const share = state === "done" ? 1 : total === 0 ? 0 : done / total;
  const filled = Math.round(share * barWidth);
  const step = steps.find(({ state: at }) => at === "running" || at === "failing");
  const name =
    state === "done" ? "done" : step === undefined ? "waiting" : `${step.name}${step.state === "failing" ? ", trying again" : ""}`;
  return `[${"#".repeat(filled)}${"-".repeat(barWidth - filled)}] ${String(Math.round(share * 100)).padStart(3)} %  ${name}`;
}
