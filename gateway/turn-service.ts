import { createHash } from "node:crypto";
import type { Admission, QuotaLeases } from "../control-plane/quota-leases.ts";
import { AppError } from "../domain/app-error.ts";
import { isServiceKind } from "../domain/service-request.ts";
import type { TenantContext, TenantId } from "../domain/tenant.ts";
import type { TurnId } from "../domain/turn-id.ts";
import type { FinishedTurn, ServiceSubmission, TurnSubmission } from "../domain/turn.ts";
import type { Database, TenantTx } from "../storage/database.ts";
import { holdLease } from "../storage/quota-repository.ts";
import {
  type IdempotencyClaim,
  claimIdempotencyKey,
  insertTurn,
  readFinishedTurn,
  readIdempotencyKey,
  sessionExists,
  voidTurn,
} from "../storage/turn-repository.ts";
import type { TokenBus, TurnEvent } from "../streams/token-bus.ts";
import { type Lane, type TenantClient, laneNameOf } from "../temporal/tenant-client.ts";
import type { TurnSlots } from "./turn-slots.ts";

export type TurnServiceOptions = {
  readonly database: Database;
  readonly bus: TokenBus;
  readonly slots: TurnSlots;
  readonly clientOf: (tenantId: TenantId) => TenantClient;
  /** Makes sure that a worker polls the tenant's queue. */
  readonly wake: (tenantId: TenantId) => Promise<void>;
  readonly quota: Pick<QuotaLeases, "isLimited" | "admit" | "giveBack" | "fenced">;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
};

type Submission = TurnSubmission | ServiceSubmission;

export type Idempotency = { readonly key: string; readonly body: unknown };

/** What is written together with a new turn, in its transaction. */
export type TurnRecord = (tx: TenantTx) => Promise<void>;

/** A turn that is stored and on its way. */
export type RunningTurn = {
  /** The submitted turn's, or an earlier one's that the Idempotency-Key stands for. */
  readonly turnId: TurnId;
  /** Calls `listener` for each of the turn's events from now on. */
  onEvent(listener: (event: TurnEvent) => void): void;
  /** @throws {AppError} `unavailable` when the turn could not be handed over and was taken back */
  readonly finished: Promise<FinishedTurn>;
  /** The turn keeps its slot until its answer has been taken, too: so a tenant's slots bound what it leaves unread. */
  holdSlotUntil(taken: Promise<void>): void;
};

export interface TurnService {
  /** @throws {AppError} when the turn was not stored: nothing will run */
  submit(context: TenantContext, submission: Submission, idempotency?: Idempotency, record?: TurnRecord): Promise<RunningTurn>;
  hasSession(context: TenantContext, sessionId: TurnSubmission["sessionId"]): Promise<boolean>;
}

const pollMs = 250;
/** A row is looked at even when nothing seems wrong: an event lost between processes must not hang a caller. */
const safetyPollMs = 5_000;
/** How long Temporal may be away before a turn that has not begun is taken back and the caller is told to come again. */
const handOverMs = 10_000;
const idempotencyMs = 24 * 60 * 60 * 1_000;
/** A lease that was taken back while a turn was stored is begun anew; more often than this it is no accident. */
const fencedAttempts = 5;

export function createTurnService({ database, bus, slots, clientOf, wake, quota, log }: TurnServiceOptions): TurnService {
  async function store(
    context: TenantContext,
    submission: Submission,
    lane: Lane,
    claim: IdempotencyClaim | undefined,
    admission: Admission | undefined,
    record: TurnRecord | undefined,
  ): Promise<TurnId | "fenced"> {
    return await database.withTenant(context, async (tx) => {
      if (admission !== undefined && !(await holdLease(tx, admission.holder))) return "fenced";
      if (claim !== undefined) {
        const claimed = await claimIdempotencyKey(tx, submission.turnId, claim);
        if (!claimed.matches) throw new AppError("idempotency_mismatch");
        if (claimed.turnId !== submission.turnId) return claimed.turnId;
      }
      await insertTurn(tx, submission, laneNameOf(lane), admission);
      await record?.(tx);
      return submission.turnId;
    });
  }

  /**
   * Lets a turn in by the tenant's quota and stores it. Not counted as a request: a repeat of an Idempotency-Key, which is no new turn,
   * and what runs in the background, whose tokens and cost count as any.
   */
  async function admit(
    context: TenantContext,
    submission: Submission,
    lane: Lane,
    idempotency: Idempotency | undefined,
    record: TurnRecord | undefined,
  ): Promise<{ readonly turnId: TurnId; readonly admission?: Admission }> {
    const { tenantId } = context;
    const claim = idempotency === undefined ? undefined : claimOf(idempotency);
    const isLimited = await quota.isLimited(tenantId);
    if (!isLimited || !isForeground(submission)) return { turnId: await storeOnce(context, submission, lane, claim, record) };
    if (claim !== undefined) {
      const earlier = await database.withTenant(context, async (tx) => await readIdempotencyKey(tx, claim));
      if (earlier?.matches === false) throw new AppError("idempotency_mismatch");
      if (earlier !== undefined) return { turnId: earlier.turnId };
    }
    for (let attempt = 0; attempt < fencedAttempts; attempt++) {
      const admission = await quota.admit(tenantId);
      try {
        const turnId = await store(context, submission, lane, claim, admission, record);
        if (turnId === "fenced") {
          quota.fenced(tenantId, admission.holder);
          continue;
        }
        if (turnId === submission.turnId) return { turnId, admission };
        quota.giveBack(tenantId, admission);
        return { turnId };
      } catch (error) {
        // A turn that may have been stored counts until its row says otherwise.
        if (!(error instanceof AppError) || error.details["outcome"] !== "unknown") quota.giveBack(tenantId, admission);
        throw error;
      }
    }
    throw new AppError("unavailable", { turnId: submission.turnId, why: "its leases were taken back" });
  }

  async function storeOnce(
    context: TenantContext,
    submission: Submission,
    lane: Lane,
    claim: IdempotencyClaim | undefined,
    record: TurnRecord | undefined,
  ): Promise<TurnId> {
    const turnId = await store(context, submission, lane, claim, undefined, record);
    if (turnId === "fenced") throw new AppError("internal", { reason: "a turn without a lease cannot be fenced" });
    return turnId;
  }

  /** Resolves when the turn has ended, by its event or its row, whichever tells first. */
  async function settle(
    context: TenantContext,
    submission: Submission,
    lane: Lane,
    isRepeat: boolean,
    events: EventTap,
  ): Promise<FinishedTurn> {
    const { turnId } = submission;
    const rest = new AbortController();
    const read = async (): Promise<FinishedTurn | undefined> =>
      await database.withTenant(context, async (tx) => await readFinishedTurn(tx, turnId));

    const poll = async (firstMs: number, thenMs: number): Promise<FinishedTurn> => {
      for (let waitMs = firstMs; ; waitMs = thenMs) {
        await sleep(waitMs, rest.signal);
        if (rest.signal.aborted) return await new Promise(() => {}); // another way has told
        const finished = await read().catch((error: unknown) => {
          if (error instanceof AppError && error.code === "tenant_deleted") throw error; // its row has gone with it
          log("a turn's row could not be read", { turnId, error: String(error) });
          return undefined;
        });
        if (finished !== undefined) return finished;
      }
    };
    const byEvent = events.finished.then(async (finished) => finished ?? (await poll(0, pollMs)));
    // A turn that was handed over at once is in good hands; one that took several tries may have ended meanwhile.
    const byHandOver = isRepeat
      ? poll(0, pollMs)
      : handOver(context, submission, lane, rest.signal).then(
          async (tries) => await (tries > 1 ? poll(0, pollMs) : poll(safetyPollMs, safetyPollMs)),
        );
    try {
      return await Promise.race([byEvent, byHandOver]);
    } finally {
      rest.abort();
      byHandOver.catch(() => {});
    }
  }

  /**
   * Hands the turn to its lane, again with the same id after an error, until the lane has accepted it.
   * @returns how many tries it took
   * @throws {AppError} `unavailable` when nobody accepted it in time and it was taken back
   */
  async function handOver(context: TenantContext, submission: Submission, lane: Lane, over: AbortSignal): Promise<number> {
    const { turnId, sessionId, kind } = submission;
    const client = clientOf(context.tenantId);
    const deadlineMs = performance.now() + handOverMs;
    for (let tries = 1; ; tries++) {
      try {
        await wake(context.tenantId);
        await client.offerTurn(lane, { turnId, sessionId, kind });
        return tries;
      } catch (error) {
        if (over.aborted) return tries;
        log("a turn was not handed over", { turnId, tries, error: String(error) });
        if (performance.now() > deadlineMs) {
          const isTakenBack = await database.withTenant(context, async (tx) => await voidTurn(tx, turnId)).catch(() => false);
          if (isTakenBack) throw new AppError("unavailable", { client: { retryAfterSeconds: 5 } });
          return tries; // it runs: its row will tell
        }
        await sleep(Math.min(1_000, 100 * 2 ** tries), over);
      }
    }
  }

  /** An error answered is final, so a turn whose commit may have happened is voided before anything runs it. */
  async function takeBack(context: TenantContext, turnId: TurnId): Promise<void> {
    for (let attempt = 0; attempt < 10; attempt++) {
      await sleep(200 * 2 ** Math.min(attempt, 5));
      try {
        await database.withTenant(context, async (tx) => await voidTurn(tx, turnId));
        return;
      } catch (error) {
        log("a turn of unknown outcome was not taken back yet", { turnId, error: String(error) });
      }
    }
  }

  return {
    async submit(context, submission, idempotency, record) {
      const slot = await slots.acquire(context.tenantId);
      const events = tapEvents(bus, submission.turnId);
      try {
        const lane: Lane = submission.stateless ? { pool: slot.poolLane } : { sessionId: submission.sessionId };
        const { turnId, admission } = await admit(context, submission, lane, idempotency, record);
        const isRepeat = turnId !== submission.turnId;
        const tap = isRepeat ? (events.close(), tapEvents(bus, turnId)) : events;
        let isTaken = Promise.resolve();
        const finished = settle(context, { ...submission, turnId }, lane, isRepeat, tap).finally(() => {
          tap.close();
          void isTaken.then(() => slot.release());
        });
        if (admission !== undefined)
          finished.then((end) => (isRefusal(end) ? quota.giveBack(context.tenantId, admission) : undefined)).catch(() => {});
        finished.catch(() => {}); // a caller may have gone; whoever still waits sees it
        return {
          turnId,
          onEvent: tap.onEvent,
          finished,
          holdSlotUntil(taken) {
            isTaken = taken;
          },
        };
      } catch (error) {
        events.close();
        slot.release();
        if (error instanceof AppError && error.details["outcome"] === "unknown") void takeBack(context, submission.turnId);
        throw error;
      }
    },
    async hasSession(context, sessionId) {
      return await database.withTenant(context, async (tx) => await sessionExists(tx, sessionId));
    },
  };
}

type EventTap = {
  readonly finished: Promise<FinishedTurn | undefined>;
  onEvent(listener: (event: TurnEvent) => void): void;
  close(): void;
};

/** Listens from before the turn is stored, so that no event comes too early; events without a listener yet are kept for it. */
function tapEvents(bus: TokenBus, turnId: TurnId): EventTap {
  const early: TurnEvent[] = [];
  let listener: ((event: TurnEvent) => void) | undefined;
  const { promise: finished, resolve } = Promise.withResolvers<FinishedTurn | undefined>();
  const close = bus.subscribe(turnId, (event) => {
    if (listener === undefined) early.push(event);
    else listener(event);
    if (event.type === "finished") resolve(event.finished);
  });
  return {
    finished,
    close,
    onEvent(next) {
      listener = next;
      for (const event of early.splice(0)) next(event);
    },
  };
}

const claimOf = ({ key, body }: Idempotency): IdempotencyClaim => ({
  keyHash: digest(key),
  fingerprint: digest(JSON.stringify(body)),
  expiresAtMs: Date.now() + idempotencyMs,
});

/** Somebody waits for it; what runs in the background has another kind. */
const isForeground = ({ kind }: Submission): boolean => kind === "chat" || isServiceKind(kind);

const isRefusal = (end: FinishedTurn): boolean => end.state === "failed" && end.error.isRefusal === true;

const digest = (text: string): Uint8Array => createHash("sha256").update(text).digest();

async function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  if (ms === 0 || signal?.aborted === true) return;
  await new Promise<void>((resolve) => {
    const timer = setTimeout(done, ms);
    function done(): void {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    }
    signal?.addEventListener("abort", done);
  });
}
