import type { HistoryArchive } from "../control-plane/history-archive.ts";
import type { ArchivedPage, ClosedRunsQuery } from "../domain/history-archive.ts";
import { asSystemActivity } from "./activity-context.ts";

/** The effects of `archive:_system`. Inputs and results are times and counts. */
export const createArchiveActivities = ({ archive }: { readonly archive: HistoryArchive }) => {
  return {
    async findArchiveWindow(): Promise<{ readonly fromMs: number; readonly toMs: number }> {
      return await asSystemActivity(async () => await archive.due());
    },
    /** Safe to repeat. */
    async archiveRuns(query: ClosedRunsQuery): Promise<ArchivedPage> {
      return await asSystemActivity(async (signal) => await archive.archive(query, signal));
    },
    /** Safe to repeat. */
    async finishArchive({ toMs }: { readonly toMs: number }): Promise<number> {
      return await asSystemActivity(async (signal) => await archive.finish(toMs, signal));
    },
  };
};

export type ArchiveActivities = ReturnType<typeof createArchiveActivities>;
