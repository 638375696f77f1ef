import { setTimeout as delay } from "node:timers/promises";
import { AppError, toStoredError } from "../domain/app-error.ts";
import type { SessionId } from "../domain/session-id.ts";
import type { TenantContext, TenantId } from "../domain/tenant.ts";
import type { TurnId } from "../domain/turn-id.ts";
import type { Database } from "../storage/database.ts";
import {
  type MessageRow,
  type SessionListing,
  type SessionRow,
  clearSession,
  endQueuedTurns,
  firstMessageOfTurn,
  firstMessageSince,
  listSessions,
  readMessages,
  readOpenTurns,
  readSession,
  readTurnState,
  wipeTurns,
} from "../storage/session-repository.ts";
import type { TokenBus } from "../streams/token-bus.ts";
import { type TenantClient, laneOfName } from "../temporal/tenant-client.ts";

export type SessionServiceDeps = {
  readonly database: Database;
  readonly bus: TokenBus;
  readonly clientOf: (tenantId: TenantId) => TenantClient;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
};

/** Before which message a page of history ends: a message's place, the first one of a turn, or an instant. */
export type HistoryPlace = { readonly seq: bigint } | { readonly turnId: TurnId } | { readonly at: Date };

export type HistoryPage = {
  /** Oldest first. */
  readonly messages: readonly MessageRow[];
  readonly hasOlder: boolean;
};

/** What people do with their sessions beside talking in them. Every `not_found` is also for another tenant's. */
export interface SessionService {
  list(context: TenantContext, listing: SessionListing): Promise<readonly SessionRow[]>;
  /** @throws {AppError} `not_found` */
  get(context: TenantContext, sessionId: SessionId): Promise<{ readonly session: SessionRow; readonly openTurns: readonly TurnId[] }>;
  /** @throws {AppError} `not_found`, also for a turn that is no place of this session */
  history(context: TenantContext, sessionId: SessionId, page: { limit: number; before: HistoryPlace | undefined }): Promise<HistoryPage>;
  /** Ends a turn that has not ended. @returns whether there was anything to end @throws {AppError} `not_found`, `unavailable` */
  abort(context: TenantContext, turnId: TurnId): Promise<boolean>;
  /**
   * Begins the conversation anew under the same id: its messages go and its open turns are aborted; what they still come to is
   * billed and answered, and leaves no message. @returns the aborted turns @throws {AppError} `not_found`
   */
  reset(context: TenantContext, sessionId: SessionId): Promise<readonly TurnId[]>;
  /** The same, and the session itself goes with what was said in its turns. */
  delete(context: TenantContext, sessionId: SessionId): Promise<readonly TurnId[]>;
}

/** A page of history carries about so much text; the rest comes with the next one. */
const historyBytes = 4 * 1024 * 1024;
/** How long a deletion waits for aborted turns, so that what they hold can be taken out of their rows, too. */
const abortWaitMs = 5_000;
const abortPollMs = 100;

const aborted = toStoredError(new AppError("turn_aborted"));
const deleted = toStoredError(new AppError("not_found", { client: { message: "The session of this turn was deleted." } }));
const noSession = (): AppError => new AppError("not_found", { client: { message: "There is no such session.", param: "session_id" } });
const noTurn = (param: string): AppError => new AppError("not_found", { client: { message: "There is no such turn.", param } });

export function createSessionService({ database, bus, clientOf, log }: SessionServiceDeps): SessionService {
  /** Those that nothing runs yet end here; the others are told. @throws {AppError} `unavailable` when one could not be told */
  async function abortTurns(context: TenantContext, turnIds: readonly TurnId[]): Promise<void> {
    if (turnIds.length === 0) return;
    const lanes = await database.withTenant(context, async (tx) => {
      const queued = await endQueuedTurns(tx, turnIds, aborted);
      const states = [];
      for (const turnId of turnIds) states.push({ turnId, turn: await readTurnState(tx, turnId) });
      return { queued, states };
    });
    for (const turnId of lanes.queued) bus.publish(turnId, { type: "finished", finished: { state: "aborted", error: aborted } });
    const client = clientOf(context.tenantId);
    try {
      for (const { turnId, turn } of lanes.states) if (turn?.lane != null) await client.abortTurn(laneOfName(turn.lane), turnId);
    } catch (error) {
      log("a turn was not told of its abort", { turnIds, error: String(error) });
      throw new AppError("unavailable", {}, { cause: error });
    }
  }

  const oneByOne = createTurnstile();

  async function clear(context: TenantContext, sessionId: SessionId, isDeleted: boolean): Promise<readonly TurnId[]> {
    const open = await oneByOne(`${context.tenantId}/${sessionId}`, async () => await clearRows(context, sessionId, isDeleted));
    if (open === undefined) throw noSession();
    await abortTurns(context, open).catch((error: unknown) => {
      log("turns of a cleared session run on", { sessionId, error: String(error) }); // they leave nothing behind
    });
    return open;
  }

  async function clearRows(context: TenantContext, sessionId: SessionId, isDeleted: boolean): Promise<readonly TurnId[] | undefined> {
    return await database.withTenant(context, async (tx) => {
      const turnIds = await clearSession(tx, sessionId, { isDeleted });
      if (turnIds !== undefined && isDeleted) await wipeTurns(tx, sessionId, deleted);
      return turnIds;
    });
  }

  async function waitForEnd(context: TenantContext, turnIds: readonly TurnId[]): Promise<void> {
    const deadlineMs = performance.now() + abortWaitMs;
    for (const turnId of turnIds) {
      while (performance.now() < deadlineMs) {
        const turn = await database.withTenant(context, async (tx) => await readTurnState(tx, turnId));
        if (turn?.state !== "queued" && turn?.state !== "running") break;
        await delay(abortPollMs);
      }
    }
  }

  return {
    async list(context, listing) {
      return await database.withTenant(context, async (tx) => await listSessions(tx, listing), { readOnly: true });
    },
    async get(context, sessionId) {
      return await database.withTenant(
        context,
        async (tx) => {
          const session = await readSession(tx, sessionId);
          if (session === undefined) throw noSession();
          return { session, openTurns: (await readOpenTurns(tx, sessionId)).map(({ turnId }) => turnId) };
        },
        { readOnly: true },
      );
    },
    async history(context, sessionId, { limit, before }) {
      return await database.withTenant(
        context,
        async (tx) => {
          if ((await readSession(tx, sessionId)) === undefined) throw noSession();
          let beforeSeq: bigint | undefined;
          if (before !== undefined && "seq" in before) beforeSeq = before.seq;
          else if (before !== undefined && "at" in before) beforeSeq = await firstMessageSince(tx, sessionId, before.at);
          else if (before !== undefined) {
            beforeSeq = await firstMessageOfTurn(tx, sessionId, before.turnId);
            if (beforeSeq === undefined) throw noTurn("before");
          }
          const { messages, hasOlder } = await readMessages(tx, sessionId, { limit, beforeSeq, maxBytes: historyBytes });
          return { messages: messages.toReversed(), hasOlder };
        },
        { readOnly: true },
      );
    },
    async abort(context, turnId) {
      const turn = await database.withTenant(context, async (tx) => await readTurnState(tx, turnId), { readOnly: true });
      if (turn === undefined) throw noTurn("turn_id");
      if (turn.state !== "queued" && turn.state !== "running") return false;
      await abortTurns(context, [turnId]);
      return true;
    },
    reset: async (context, sessionId) => await clear(context, sessionId, false),
    async delete(context, sessionId) {
      const open = await clear(context, sessionId, true);
      if (open.length === 0) return open;
      await waitForEnd(context, open);
      await database.withTenant(context, async (tx) => await wipeTurns(tx, sessionId, deleted));
      return open;
    },
  };
}

/** Lets one at a time of each name through: whoever waits here holds no connection of the database, which others need. */
function createTurnstile() {
  const last = new Map<string, Promise<unknown>>();
  return async <T>(name: string, work: () => Promise<T>): Promise<T> => {
    const mine = (last.get(name) ?? Promise.resolve()).then(work, work);
    last.set(name, mine);
    try {
      return await mine;
    } finally {
      if (last.get(name) === mine) last.delete(name);
    }
  };
}
