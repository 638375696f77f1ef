import type { HistoryArchive } from "../control-plane/history-archive.ts";
import { AppError } from "../domain/app-error.ts";
import type { ArchivedPage, ClosedRunsQuery } from "../domain/history-archive.ts";
import { systemOwner } from "../domain/tenant.ts";
import { asOwnActivity } from "./activity-context.ts";

/** The effects of `archive:_system`. Inputs and results are times and counts. */
export const createArchiveActivities = ({ archive }: { readonly archive: HistoryArchive }) => {
  const asSystem = async <T>(body: (signal: AbortSignal) => Promise<T>): Promise<T> =>
    await asOwnActivity(async (owner, signal) => {
      if (owner !== systemOwner) throw new AppError("tenant_violation", { owner });
      return await body(signal);
    });
  return {
    async findArchiveWindow(): Promise<{ readonly fromMs: number; readonly toMs: number }> {
      return await asSystem(async () => await archive.due());
    },
    /** Safe to repeat. */
    async archiveRuns(query: ClosedRunsQuery): Promise<ArchivedPage> {
      return await asSystem(async (signal) => await archive.archive(query, signal));
    },
    /** Safe to repeat. */
    async finishArchive({ toMs }: { readonly toMs: number }): Promise<number> {
      return await asSystem(async (signal) => await archive.finish(toMs, signal));
    },
  };
};

export type ArchiveActivities = ReturnType<typeof createArchiveActivities>;
