import { continueAsNew, proxyActivities, setCurrentDetails, workflowInfo } from "@temporalio/workflow";
import type { ArchiveActivities } from "../activities/archive-activities.ts";
import type { ArchiveReport } from "../domain/history-archive.ts";

// A page can be repeated from its start: what it has stored is known.
const { findArchiveWindow, archiveRuns, finishArchive } = proxyActivities<ArchiveActivities>({
  startToCloseTimeout: "1 hour",
  heartbeatTimeout: "5s",
  retry: { initialInterval: "1s", maximumInterval: "1 minute" },
});

/** What a run goes on with; absent in its first one. */
type ArchiveInput = ArchiveReport & { readonly fromMs: number; readonly toMs: number; readonly page: string };

/** Stores the histories of the tenants' runs that have closed since the last time, a page at a time, before Temporal forgets them. */
export async function archive(input?: ArchiveInput): Promise<ArchiveReport> {
  const { fromMs, toMs } = input ?? (await findArchiveWindow());
  let page: string | undefined = input?.page;
  let { archived, known, gone } = input ?? { archived: 0, known: 0, gone: 0 };
  do {
    const done = await archiveRuns({ fromMs, toMs, page });
    archived += done.archived;
    known += done.known;
    gone += done.gone;
    page = done.next;
    setCurrentDetails(`Histories are archived: **${archived}** stored, ${known} known before, ${gone} gone`);
    if (page !== undefined && workflowInfo().continueAsNewSuggested)
      await continueAsNew<typeof archive>({ fromMs, toMs, page, archived, known, gone, pruned: 0 });
  } while (page !== undefined);
  return { archived, known, gone, pruned: await finishArchive({ toMs }) };
}
