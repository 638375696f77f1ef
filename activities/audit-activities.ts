import { Context } from "@temporalio/activity";
import { type CommandDeps } from "../control-plane/commands.ts";
import { recordFailedChange, writeChange } from "../control-plane/audit-chain.ts";
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
      const writer = { workflowId, runId };
      const answer = await writeChange(deps, owner, writer, attempt).catch(async (error: unknown) => {
        if (error instanceof AppError && error.code === "unavailable") throw error;
        deps.log("a state change failed", { chain: chainOf(owner), action: attempt.command.type, error: String(error) });
        return await recordFailedChange(deps, owner, writer, attempt).catch((cause: unknown) => {
          throw new AppError("unavailable", { reason: "a failed change was not recorded" }, { cause });
        });
      });
      if (answer.state === "broken")
        deps.log("ALARM: audit chain broken, its changes are refused", { chain: chainOf(owner), seq: attempt.seq, reason: answer.reason });
      return answer;
    });
  },
});

export type AuditActivities = ReturnType<typeof createAuditActivities>;
