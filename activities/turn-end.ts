import { AppError, type ErrorCode, toStoredError } from "../domain/app-error.ts";
import type { TurnId } from "../domain/turn-id.ts";
import type { FinishedTurn, TurnVerdict } from "../domain/turn.ts";
import type { Database } from "../storage/database.ts";
import { claimTurn, finishTurn, readFinishedTurn, voidOpenCalls } from "../storage/turn-repository.ts";
import type { TokenBus } from "../streams/token-bus.ts";
import { asActivity } from "./activity-context.ts";

export type TurnEndDeps = { readonly database: Database; readonly bus: TokenBus };

export const verdictOf = (finished: FinishedTurn): TurnVerdict =>
  finished.state === "done" ? { state: "done" } : { state: finished.state, code: finished.error.code };

export const createTurnEnd = ({ database, bus }: TurnEndDeps) => ({
  /** Ends a turn without a model's answer, unless it has ended: then its row's verdict stands. Safe to retry. */
  async endTurn({ turnId, code }: { turnId: TurnId; code: ErrorCode }): Promise<TurnVerdict> {
    return await asActivity(async (context) => {
      const finished: FinishedTurn = {
        state: code === "turn_aborted" ? "aborted" : "failed",
        error: toStoredError(new AppError(code)),
      };
      const standing = await database.withTenant(
        context,
        async (tx) => {
          const turn = await claimTurn(tx, turnId);
          if (turn === undefined) return finished; // there is no such turn (any more): nothing to end
          await voidOpenCalls(tx, turnId);
          if (await finishTurn(tx, turn, finished, [])) return finished;
          return await readFinishedTurn(tx, turnId);
        },
        { statementTimeoutMs: 4_000, lockTimeoutMs: 2_000 },
      );
      bus.publish(turnId, { type: "finished", finished: standing ?? finished });
      return verdictOf(standing ?? finished);
    });
  },
});
