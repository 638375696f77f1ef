import { promisify } from "node:util";
import { gunzip } from "node:zlib";
import { AppError } from "../domain/app-error.ts";
import type { ArchiveCounts, ArchivedPage, ClosedRun, ClosedRunsQuery } from "../domain/history-archive.ts";
import type { TenantContext, TenantId } from "../domain/tenant.ts";
import {
  type ArchivedRun,
  type ArchivedRunsQuery,
  findArchivedRun,
  finishArchivedRun,
  knownRuns,
  listArchivedRuns,
  pruneArchivedRuns,
  putHistoryPage,
  readArchiveProgress,
  readHistoryPage,
  storeArchiveProgress,
} from "../storage/archive-repository.ts";
import type { Database } from "../storage/database.ts";
import type { ClosedRuns } from "../temporal/closed-runs.ts";

const decompress = promisify(gunzip);

/** Keeps the histories of closed runs for longer than Temporal does (docs/adr/024). */
export interface HistoryArchive {
  /** The time whose runs are to be looked at now; it begins before the last one ended. */
  due(): Promise<Required<Pick<ClosedRunsQuery, "fromMs" | "toMs">>>;
  /** Stores some runs of that time. Safe to repeat: a run is stored once. */
  archive(query: ClosedRunsQuery, signal: AbortSignal): Promise<ArchivedPage>;
  /** Notes that the time up to there is done, and removes what is older than it is to be kept. @returns how many runs */
  finish(toMs: number, signal: AbortSignal): Promise<number>;
}

export type HistoryArchiveDeps = {
  readonly database: Database;
  readonly runs: ClosedRuns;
  /** Those that are not deleted. */
  readonly tenants: () => Promise<readonly TenantId[]>;
  /** `temporal.archive_days`. */
  readonly keepDays: number;
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
};

/** What closed just now may not be in Temporal's visibility yet. */
const settleMs = 10_000;
/** Looked at again: a run may have come into visibility late. */
const overlapMs = 60 * 60 * 1_000;
const dayMs = 24 * 60 * 60 * 1_000;
const prunedAtOnce = 500;

export function createHistoryArchive({ database, runs, tenants, keepDays, log }: HistoryArchiveDeps): HistoryArchive {
  const contextOf = (tenantId: TenantId): TenantContext => ({ tenantId, requestId: "archive" });

  const store = async (run: ClosedRun): Promise<keyof ArchiveCounts> => {
    const context = contextOf(run.tenantId);
    let [n, events, sizeBytes] = [0, 0, 0];
    for await (const page of runs.pages(run)) {
      const place = n++;
      events += page.events;
      sizeBytes += page.bytes.length;
      await database.withTenant(context, async (tx) => await putHistoryPage(tx, run.runId, place, page.bytes));
    }
    if (n === 0) return "gone";
    const isNew = await database.withTenant(context, async (tx) => await finishArchivedRun(tx, { ...run, events, sizeBytes }, n));
    return isNew ? "archived" : "known";
  };

  const storeOf = async (tenantId: TenantId, found: readonly ClosedRun[], signal: AbortSignal): Promise<ArchiveCounts> => {
    const counts = { archived: 0, known: 0, gone: 0 };
    try {
      const known = await database.withTenant(contextOf(tenantId), async (tx) =>
        knownRuns(
          tx,
          found.map(({ runId }) => runId),
        ),
      );
      counts.known += known.size;
      for (const run of found) {
        signal.throwIfAborted();
        if (!known.has(run.runId)) counts[await store(run)]++;
      }
    } catch (error) {
      if (!(error instanceof AppError) || error.code !== "tenant_deleted") throw error;
      counts.gone = found.length - counts.archived - counts.known;
      log("runs of an erased tenant are not archived", { tenantId, runs: counts.gone });
    }
    return counts;
  };

  const prune = async (tenantId: TenantId): Promise<number> => {
    const beforeMs = Date.now() - keepDays * dayMs;
    for (let pruned = 0; ;) {
      const some = await database.withTenant(contextOf(tenantId), async (tx) => await pruneArchivedRuns(tx, beforeMs, prunedAtOnce));
      pruned += some;
      if (some < prunedAtOnce) return pruned;
    }
  };

  return {
    async due() {
      const done = await database.withControl(async (tx) => await readArchiveProgress(tx), { readOnly: true });
      return { fromMs: Math.max(0, (done ?? 0) - overlapMs), toMs: Date.now() - settleMs };
    },
    async archive(query, signal) {
      const page = await runs.list(query);
      const ours = new Set(await tenants()); // the namespace may hold another installation's
      const byTenant = Map.groupBy(
        page.runs.filter(({ tenantId }) => ours.has(tenantId)),
        ({ tenantId }) => tenantId,
      );
      const counts = { archived: 0, known: 0, gone: 0 };
      for (const [tenantId, found] of byTenant) {
        const { archived, known, gone } = await storeOf(tenantId, found, signal);
        counts.archived += archived;
        counts.known += known;
        counts.gone += gone;
      }
      return { ...counts, next: page.next };
    },
    async finish(toMs, signal) {
      let pruned = 0;
      for (const tenantId of await tenants()) {
        signal.throwIfAborted();
        pruned += await prune(tenantId).catch((error: unknown) => {
          if (error instanceof AppError && error.code === "tenant_deleted") return 0;
          throw error;
        });
      }
      await database.withControl(async (tx) => await storeArchiveProgress(tx, toMs));
      return pruned;
    },
  };
}

/** What was archived, to be read. */
export interface ArchivedHistories {
  /** @throws {AppError} `invalid_request` when the run to go on behind is not, or no longer, archived */
  list(context: TenantContext, query: ArchivedRunsQuery): Promise<readonly ArchivedRun[]>;
  /** The pages of a history, in order, as `temporal.api.history.v1.History`. @throws {AppError} `not_found` */
  open(context: TenantContext, runId: string): Promise<AsyncGenerator<Uint8Array, void, undefined>>;
}

export const createArchivedHistories = ({ database }: { readonly database: Pick<Database, "withTenant"> }): ArchivedHistories => {
  async function* pagesOf(context: TenantContext, runId: string): AsyncGenerator<Uint8Array, void, undefined> {
    for (let n = 0; ; n++) {
      const place = n;
      const bytes = await database.withTenant(context, async (tx) => await readHistoryPage(tx, runId, place), { readOnly: true });
      if (bytes === undefined) return;
      yield await decompress(bytes);
    }
  }
  return {
    list: async (context, query) =>
      await database.withTenant(
        context,
        async (tx) => {
          if (query.after !== undefined && (await findArchivedRun(tx, query.after)) === undefined)
            throw new AppError("invalid_request", { client: { message: "No such run is archived.", param: "after" } });
          return await listArchivedRuns(tx, query);
        },
        { readOnly: true },
      ),
    async open(context, runId) {
      const run = await database.withTenant(context, async (tx) => await findArchivedRun(tx, runId), { readOnly: true });
      if (run === undefined) throw new AppError("not_found", { client: { message: "No such run is archived." } });
      return pagesOf(context, runId);
    },
  };
};
