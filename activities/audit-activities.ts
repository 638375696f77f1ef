import { ApplicationFailure, Context } from "@temporalio/activity";
import { type CommandDeps } from "../control-plane/commands.ts";
import { writeChange } from "../control-plane/audit-chain.ts";
import { AppError } from "../domain/app-error.ts";
import { type ChainHead, type ChangeAnswer, type ChangeAttempt, chainOf, genesis } from "../domain/audit.ts";
import { readChainHead } from "../storage/audit-repository.ts";
import { asOwnActivity } from "./activity-context.ts";

export type AuditActivityDeps = CommandDeps & { readonly log: (message: string, fields?: Record<string, unknown>) => void };

/** The effects of a chain's workflow. The chain is the task queue's: no input names it. */
export const createAuditActivities = (deps: AuditActivityDeps) => ({
  /** Where the chain ends in the database: for a workflow without a memory of it. */
  async readChainEnd(): Promise<ChainHead> {
    return await asOwnActivity(async (owner) => {
      const end = await deps.database.withControl(async (tx) => await readChainHead(tx, chainOf(owner)), { readOnly: true });
      if (end !== undefined && end.seq > 0)
        deps.log("ALARM: an audit workflow has no memory and takes the chain's end from the database", { chain: chainOf(owner), ...end });
      return end ?? genesis;
    });
  },
  /** Writes a change and its entry, both or none. Safe to repeat. */
  async writeChange(attempt: ChangeAttempt): Promise<ChangeAnswer> {
    return await asOwnActivity(async (owner) => {
      const { workflowId = "", runId = null } = Context.current().info.workflowExecution ?? {};
      const answer = await writeChange(deps, owner, { workflowId, runId }, attempt).catch((error: unknown) => {
        if (error instanceof AppError && error.code === "unavailable") throw error;
        // The transaction was rolled back, so the place in the chain is free again: waiting would only block it.
        deps.log("a state change failed", { chain: chainOf(owner), action: attempt.command.type, error: String(error) });
        throw ApplicationFailure.nonRetryable("the change failed and was not made", "internal");
      });
      if (answer.state === "broken")
        deps.log("ALARM: audit chain broken, its changes are refused", { chain: chainOf(owner), seq: attempt.seq, reason: answer.reason });
      return answer;
    });
  },
});

export type AuditActivities = ReturnType<typeof createAuditActivities>;
