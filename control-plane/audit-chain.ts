import { AppError } from "../domain/app-error.ts";
import {
  type AuditEntry,
  type ChangeAnswer,
  type ChangeAttempt,
  type ChangeOutcome,
  type ChangeRequest,
  type Command,
  belongsToChain,
  chainOf,
  commandHashOf,
  credentialSubjectOf,
  genesis,
  hashOfEntry,
  offlineWorkflowId,
  opMemoryMs,
  subjectOf,
} from "../domain/audit.ts";
import type { Owner } from "../domain/tenant.ts";
import { appendEntry, findOperation, lockChainHead, readChain } from "../storage/audit-repository.ts";
import type { ControlTx } from "../storage/database.ts";
import { factsOf } from "./tenants.ts";
import { settleAnswers } from "../storage/sealed-answers.ts";
import { type CommandDeps, applyCommand } from "./commands.ts";

/** Entries that a chain may have got without its workflow between two changes of it. */
const offlineEntriesAtOnce = 200;

/** Making a tenant makes its tables: on a busy disk one statement may take seconds. Below the activity's startToClose. */
const changeOptions = { statementTimeoutMs: 10_000 };

/** Actions that may be recorded without the workflow: what a first start makes, and the break-glass. */
const offlineActions: readonly Command["type"][] = ["token.revoke", "tenant.create", "admin-key.create", "audit-key.create"];

/** Who writes an entry: the chain's workflow in one of its runs, or nobody but the database. */
export type EntryWriter = { readonly workflowId: string; readonly runId: string | null };

/**
 * One attempt to write a change at the place that the chain's workflow gave it: the change, its entry and the chain's new end in
 * one transaction, or nothing. A repeat of an attempt that was committed answers what was answered then.
 * @throws {AppError} `unavailable`: try again
 */
export async function writeChange(deps: CommandDeps, owner: Owner, writer: EntryWriter, attempt: ChangeAttempt): Promise<ChangeAnswer> {
  return await takePlace(deps, owner, attempt, async (tx) => {
    const { command, seq, opId } = attempt;
    const outcome = await attemptCommand(tx, deps, owner, { command, seq, opId });
    return { entry: await append(tx, owner, { ...attempt, ...writer }, outcome), outcome };
  });
}

/**
 * Takes the place of a change that failed for good, as a refusal: an attempt that was given up and lives on would otherwise make the
 * change after its caller was told that it was not made. The operation may be tried again, at another place.
 * @returns as `writeChange`, also what such an attempt has made of it meanwhile. @throws {AppError} `unavailable`: try again
 */
export async function recordFailedChange(
  deps: CommandDeps,
  owner: Owner,
  writer: EntryWriter,
  attempt: ChangeAttempt,
): Promise<ChangeAnswer> {
  const { command, seq } = attempt;
  const { message } = new AppError("internal");
  const outcome = { state: "refused", seq, commandHash: commandHashOf(command), code: "internal", message, param: null } as const;
  return await takePlace(deps, owner, attempt, async (tx) => {
    const entry = await append(tx, owner, { ...attempt, ...writer, opId: failedOpIdOf(attempt) }, outcome);
    return { entry, outcome };
  });
}

/** Under which a failure is kept: it answers for its own attempt, and not for the operation. */
const failedOpIdOf = ({ opId, seq }: ChangeAttempt): string => `failed:${seq}:${opId}`;

type Written = { readonly entry: AuditEntry; readonly outcome: ChangeOutcome };

async function takePlace(
  deps: CommandDeps,
  owner: Owner,
  attempt: ChangeAttempt,
  write: (tx: ControlTx) => Promise<Written>,
): Promise<ChangeAnswer> {
  return await deps.database.withControl(async (tx): Promise<ChangeAnswer> => {
    const chain = chainOf(owner);
    const head = await lockChainHead(tx, chain, genesis);
    const known =
      (await findOperation(tx, chain, attempt.opId, opMemoryMs)) ?? (await findOperation(tx, chain, failedOpIdOf(attempt), opMemoryMs));
    if (known?.entry.seq === attempt.seq && known.entry.prev === attempt.prev)
      return { state: "written", entry: known.entry, outcome: known.answer, ...(await factsOf(tx, owner)) };
    if (known !== undefined) return { state: "repeated", outcome: known.answer };
    if (head.closed) return { state: "closed" };
    if (head.seq >= attempt.seq) return await explainLead(tx, chain, attempt);
    if (head.seq !== attempt.seq - 1)
      return { state: "broken", reason: `the chain ends at ${head.seq}, entry ${attempt.seq} was to follow` };
    if (head.hash !== attempt.prev) return { state: "broken", reason: `entry ${head.seq} has another hash than the workflow knows` };
    return { state: "written", ...(await write(tx)), ...(await factsOf(tx, owner)) };
  }, changeOptions);
}

/** The chain has grown without its workflow: lawful for entries that say so, and for nothing else. */
async function explainLead(tx: ControlTx, chain: string, { seq, prev }: ChangeAttempt): Promise<ChangeAnswer> {
  const entries = await readChain(tx, chain, seq - 1, offlineEntriesAtOnce);
  const fault = offlineFault(entries, { seq: seq - 1, hash: prev });
  return fault === undefined ? { state: "behind", entries } : { state: "broken", reason: fault };
}

/** @returns what is wrong with entries that are said to have been written without the workflow, behind `head` */
export function offlineFault(entries: readonly AuditEntry[], head: { readonly seq: number; readonly hash: string }): string | undefined {
  let { seq, hash } = head;
  for (const entry of entries) {
    const { hash: own, ...fields } = entry;
    seq++;
    if (entry.seq !== seq || entry.prev !== hash || hashOfEntry(fields) !== own) return `entry ${seq} does not follow the one before it`;
    if (entry.workflow_id !== offlineWorkflowId || !(offlineActions as readonly string[]).includes(entry.action)) {
      return `entry ${seq} was not written by the chain's workflow`;
    }
    hash = own;
  }
  return undefined;
}

/**
 * A change that the database alone records, marked `offline` in its entry; the chain's workflow takes it over with its next change.
 * For the first start, which must not wait for a worker, and for the break-glass while Temporal is down.
 * @throws {AppError} the refusal, which is recorded too
 */
export async function changeOffline(deps: CommandDeps, owner: Owner, request: ChangeRequest): Promise<void> {
  if (!offlineActions.includes(request.command.type))
    throw new AppError("internal", { reason: `${request.command.type} needs its workflow` });
  const outcome = await deps.database.withControl(async (tx) => {
    const head = await lockChainHead(tx, chainOf(owner), genesis);
    if (head.closed) throw new AppError("not_found");
    const attempt = {
      ...request,
      seq: head.seq + 1,
      prev: head.hash,
      ts: new Date().toISOString(),
      workflowId: offlineWorkflowId,
      runId: null,
    };
    const made = await attemptCommand(tx, deps, owner, attempt);
    await append(tx, owner, attempt, made);
    return made;
  }, changeOptions);
  throwRefusal(outcome);
}

/** @throws {AppError} when the outcome is a refusal */
export function throwRefusal(outcome: ChangeOutcome): void {
  if (outcome.state === "applied") return;
  const { code, message, param } = outcome;
  throw new AppError(code, { client: { message, ...(param === null ? {} : { param }) } });
}

const isRefusal = (error: unknown): error is AppError =>
  error instanceof AppError && error.code !== "unavailable" && error.code !== "internal";

async function append(
  tx: ControlTx,
  owner: Owner,
  { opId, command, actor, requestId, seq, prev, ts, workflowId, runId }: ChangeAttempt & EntryWriter,
  outcome: ChangeOutcome,
): Promise<AuditEntry> {
  const fields = {
    chain: chainOf(owner),
    seq,
    ts,
    actor,
    action: command.type,
    ...subjectOf(owner, command),
    outcome: outcome.state,
    request_id: requestId,
    workflow_id: workflowId,
    prev,
  };
  const entry = { ...fields, hash: hashOfEntry(fields) };
  await appendEntry(tx, entry, { opId, answer: outcome, runId });
  return entry;
}

/** Applies under a savepoint, so that a refusal leaves its entry and nothing else. */
async function attemptCommand(
  tx: ControlTx,
  deps: CommandDeps,
  owner: Owner,
  { command, seq, opId }: { readonly command: Command; readonly seq: number; readonly opId: string },
): Promise<ChangeOutcome> {
  const commandHash = commandHashOf(command);
  await tx.execute("savepoint change");
  try {
    if (!belongsToChain(owner, command)) throw new AppError("tenant_violation", { owner, command: command.type });
    await applyCommand(tx, owner, command, deps);
    const subject = credentialSubjectOf(owner, command);
    if (subject !== undefined) await settleAnswers(tx, subject, { opId, commandHash });
    return { state: "applied", seq, commandHash };
  } catch (error) {
    if (!isRefusal(error)) throw error;
    await tx.execute("rollback to savepoint change");
    return { state: "refused", seq, commandHash, code: error.code, message: error.message, param: error.client.param ?? null };
  }
}
