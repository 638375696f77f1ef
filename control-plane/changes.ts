import { createHash } from "node:crypto";
import { AppError } from "../domain/app-error.ts";
import { type Actor, type ChangeOutcome, type Command, commandHashOf, credentialSubjectOf, opMemoryMs } from "../domain/audit.ts";
import { canonicalJson } from "../domain/canonical-json.ts";
import { systemOwner, type Owner } from "../domain/tenant.ts";
import { claimAdminKey } from "../storage/audit-repository.ts";
import type { DataKeys } from "../storage/data-keys.ts";
import type { Database } from "../storage/database.ts";
import { discardAnswer, readAnswer, stageAnswer } from "../storage/sealed-answers.ts";
import type { ChainClient } from "../temporal/chain-client.ts";
import { throwRefusal } from "./audit-chain.ts";

export type ChangeOptions = {
  readonly actor: Actor;
  readonly requestId: string;
  /** The caller's Idempotency-Key, with what it must be repeated with. */
  readonly idempotency?: { readonly key: string; readonly request: unknown } | undefined;
};

/** Audited state changes: each goes through its chain's workflow, or does not happen. */
export interface Changes {
  /**
   * @throws {AppError} the refusal; `idempotency_mismatch`; `unavailable` while Temporal, the workers or the audit file are away;
   * `chain_broken`
   */
  make(owner: Owner, command: Command, options: ChangeOptions): Promise<void>;
  /**
   * As `make`, for a change that mints a credential: its answer is kept sealed under the Idempotency-Key, for 24 hours or until
   * the credential is replaced or revoked.
   * @returns `answer`, or for a repeat what the first call was answered
   * @throws {AppError} `conflict` for a repeat whose first answer is no longer kept
   */
  issue<Answer>(owner: Owner, command: Command, options: ChangeOptions, answer: Answer): Promise<Answer>;
}

/** The operation that a call stands for: its Idempotency-Key's within the actor's own, else the request's. */
export const opIdOf = ({ actor, requestId, idempotency }: ChangeOptions): string =>
  idempotency === undefined ? requestId : `idem_${digest([actor.id, idempotency.key])}`;

export type ChangesDeps = {
  readonly database: Pick<Database, "withControl">;
  readonly dataKeys: DataKeys;
  readonly chainOf: (owner: Owner) => ChainClient;
  /** Makes sure that a worker polls the owner's queue. */
  readonly wake: (owner: Owner) => Promise<void>;
  /** Why nothing may be changed now (the audit file cannot be written), or undefined. */
  readonly obstacle: () => string | undefined;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
  /** Default 10 s. */
  readonly deadlineMs?: number;
};

/** The server refuses more than 10 Updates in flight on a workflow; the rest of a burst waits here. */
const atOncePerChain = 4;

export function createChanges({ database, dataKeys, chainOf, wake, obstacle, log, deadlineMs = 10_000 }: ChangesDeps): Changes {
  const lines = createLines(atOncePerChain);

  const send = async (owner: Owner, order: { opId: string; command: Command; actor: Actor; requestId: string }): Promise<ChangeOutcome> => {
    const notAfterMs = Date.now() + deadlineMs;
    const signal = AbortSignal.timeout(deadlineMs);
    for (let attempt = 0; ; attempt++) {
      try {
        await wake(owner);
        const result = await chainOf(owner).change({ ...order, notAfterMs }, signal);
        if (result.state === "done") return result.outcome;
        if (result.state === "closed") throw new AppError("not_found");
        if (result.state === "broken") throw new AppError("chain_broken", { owner, reason: result.reason });
      } catch (error) {
        if (error instanceof AppError) throw error;
        if (isFinal(error)) throw new AppError("internal", { owner, reason: String(error) }, { cause: error });
        log("a state change was not handed over", { owner, action: order.command.type, attempt, error: String(error) });
        if (signal.aborted || Date.now() > notAfterMs - 200) throw unavailable(error);
        await new Promise((resolve) => setTimeout(resolve, Math.min(1_000, 50 * 2 ** attempt)));
      }
      if (signal.aborted) throw unavailable(undefined);
    }
  };

  /** @returns the hash of the command that was made: another call's where this one is a repeat */
  const perform = async (
    owner: Owner,
    command: Command,
    options: ChangeOptions,
    stage = async (): Promise<void> => {},
  ): Promise<string> => {
    const { actor, requestId, idempotency } = options;
    const reason = obstacle();
    if (reason !== undefined) throw new AppError("unavailable", { client: { message: `Nothing can be changed now: ${reason}.` } });
    const opId = opIdOf(options);
    if (idempotency !== undefined) {
      const isSame = await database.withControl(async (tx) => await claimAdminKey(tx, opId, digest(idempotency.request), opMemoryMs));
      if (!isSame) throw new AppError("idempotency_mismatch");
      await stage();
    }
    const outcome = await lines(owner, async () => await send(owner, { opId, command, actor, requestId }));
    throwRefusal(outcome);
    return outcome.commandHash;
  };

  return {
    async make(owner, command, options) {
      if ((await perform(owner, command, options)) !== commandHashOf(command)) throw noLongerKept(owner);
    },
    async issue<Answer>(owner: Owner, command: Command, options: ChangeOptions, answer: Answer): Promise<Answer> {
      const opId = opIdOf(options);
      const commandHash = commandHashOf(command);
      const subject = credentialSubjectOf(owner, command) ?? "";
      const made = await perform(owner, command, options, async () => {
        await stageAnswer({ database, dataKeys }, owner, { opId, commandHash, subject, answer, memoryMs: opMemoryMs });
      });
      if (made === commandHash) return answer;
      await discardAnswer(database, { opId, commandHash });
      const kept = await readAnswer({ database, dataKeys }, owner, { opId, commandHash: made, memoryMs: opMemoryMs });
      if (kept === undefined) throw noLongerKept(owner);
      return kept as Answer; // what an earlier call of the same operation staged
    },
  };
}

/** The command differs only by the credential that each call mints, and the first call's answer is gone. */
const noLongerKept = (owner: Owner): AppError =>
  new AppError("conflict", {
    client: {
      message: `This Idempotency-Key was used: its answer held a credential, which has been replaced or revoked since, or is older than a day. ${owner === systemOwner ? "Make or rotate another one" : "Rotate again"} with a new key.`,
    },
  });

const unavailable = (cause: unknown): AppError =>
  new AppError(
    "unavailable",
    {
      client: {
        message: "The change could not be recorded in time. Repeat it with the same Idempotency-Key, or look at its object first.",
      },
    },
    { cause },
  );

/** The workflow's own answer that the change was not made, other than for being late. */
function isFinal(error: unknown): boolean {
  if (!(error instanceof Error) || error.name !== "WorkflowUpdateFailedError") return false;
  return (error.cause as { type?: string } | undefined)?.type !== "unavailable";
}

const digest = (value: unknown): string => createHash("sha256").update(canonicalJson(value)).digest("hex");

/** Lets `atOnce` of each owner run, the others in order. */
function createLines(atOnce: number) {
  const running = new Map<Owner, { count: number; readonly waiting: (() => void)[] }>();
  return async <T>(owner: Owner, work: () => Promise<T>): Promise<T> => {
    const line = running.get(owner) ?? { count: 0, waiting: [] };
    running.set(owner, line);
    if (line.count >= atOnce) await new Promise<void>((resolve) => line.waiting.push(resolve));
    else line.count++;
    try {
      return await work();
    } finally {
      const next = line.waiting.shift();
      if (next !== undefined) next();
      else if (--line.count === 0) running.delete(owner);
    }
  };
}
