import type { TenantId } from "./tenant.ts";

/** The archive of closed histories (docs/adr/024). */

export const archiveScheduleId = "archive:_system";

/** A workflow run of a tenant that has closed. */
export type ClosedRun = {
  readonly tenantId: TenantId;
  readonly workflowId: string;
  readonly runId: string;
  readonly type: string;
  readonly status: string;
  readonly startedAtMs: number;
  readonly closedAtMs: number;
};

/** Runs that closed in `[fromMs, toMs)`; `page` is the server's mark of the next ones. */
export type ClosedRunsQuery = { readonly fromMs: number; readonly toMs: number; readonly page?: string | undefined };

/** `gone`: deleted in Temporal, or its tenant erased, before they were read. */
export type ArchiveCounts = { readonly archived: number; readonly known: number; readonly gone: number };

export type ArchivedPage = ArchiveCounts & { readonly next: string | undefined };

export type ArchiveReport = ArchiveCounts & { readonly pruned: number };
