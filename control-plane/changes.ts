import { createHash } from "node:crypto";
import { AppError } from "../domain/app-error.ts";
import { type Actor, type ChangeOutcome, type Command, commandHashOf, opMemoryMs } from "../domain/audit.ts";
import { canonicalJson } from "../domain/canonical-json.ts";
import { systemOwner, type Owner } from "../domain/tenant.ts";
import { claimAdminKey } from "../storage/audit-repository.ts";
import type { Database } from "../storage/database.ts";
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
   * @throws {AppError} the refusal; `idempotency_mismatch`; `conflict` when the Idempotency-Key's first call minted a credential,
   * which is not kept; `unavailable` while Temporal, the workers or the audit file are away; `chain_broken`
   */
  make(owner: Owner, command: Command, options: ChangeOptions): Promise<void>;
}

export type ChangesDeps = {
  readonly database: Pick<Database, "withControl">;
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

export function createChanges({ database, chainOf, wake, obstacle, log, deadlineMs = 10_000 }: ChangesDeps): Changes {
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

  return {
    async make(owner, command, { actor, requestId, idempotency }) {
      const reason = obstacle();
      if (reason !== undefined) throw new AppError("unavailable", { client: { message: `Nothing can be changed now: ${reason}.` } });
      const opId = idempotency === undefined ? requestId : `idem_${digest([actor.id, idempotency.key])}`;
      if (idempotency !== undefined) {
        const isSame = await database.withControl(async (tx) => await claimAdminKey(tx, opId, digest(idempotency.request), opMemoryMs));
        if (!isSame) throw new AppError("idempotency_mismatch");
      }
      const outcome = await lines(owner, async () => await send(owner, { opId, command, actor, requestId }));
      throwRefusal(outcome);
      if (outcome.commandHash !== commandHashOf(command)) throw alreadyShown(owner);
    },
  };
}

/** The command differs only by the credential that each call mints: the first call's was shown once and is not kept. */
const alreadyShown = (owner: Owner): AppError =>
  new AppError("conflict", {
    client: {
      message: `This Idempotency-Key was used: its answer held a credential, which was shown once and is not kept. ${owner === systemOwner ? "Make or rotate another one" : "Rotate again"} with a new key if it was lost.`,
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
