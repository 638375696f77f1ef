import { sha256Hex } from "../domain/sha256.ts";
import type { TenantId } from "../domain/tenant.ts";
import type { UsageDoubt } from "../domain/usage.ts";
import { createOwnEntries, type OwnEntriesDeps } from "./own-entries.ts";

/** A call whose tokens were counted here. */
export type DoubtfulCall = { readonly callId: string; readonly model: string; readonly doubt: UsageDoubt };

export type UsageAlarms = {
  /** Never throws and never keeps its caller waiting: the row that is billed says `estimated` in any case. */
  raise(tenantId: TenantId, call: DoubtfulCall): void;
  /** Waits for the entries that are being written. */
  close(): Promise<void>;
};

export type UsageAlarmsDeps = OwnEntriesDeps & {
  readonly log: (message: string, fields?: Record<string, unknown>) => void;
  readonly count: (doubt: UsageDoubt) => void;
  readonly now?: () => number;
};

const rememberedAlarms = 10_000;

/**
 * Makes a doubtful count heard: a line in the log and a count for every call and, once a day for a tenant, model and doubt, an
 * entry in the tenant's audit. A cut answer has no entry: callers who leave and connections that break are no fault of a count.
 */
export function createUsageAlarms({ chainOf, wake, log, count, now = Date.now }: UsageAlarmsDeps): UsageAlarms {
  const raised = new Set<string>();
  const writing = new Set<Promise<void>>();
  const closing = new AbortController();

  const write = createOwnEntries({ chainOf, wake });

  return {
    raise(tenantId, { callId, model, doubt }) {
      count(doubt);
      log("ALARM: the tokens of a model call were counted here", { tenantId, callId, model, doubt });
      if (doubt === "cut") return;
      const day = new Date(now()).toISOString().slice(0, 10);
      // Processes that raise it at once make one entry: the chain knows the id.
      const opId = `usage_${sha256Hex(`${tenantId}/${model}/${doubt}/${day}`).slice(0, 32)}`;
      if (raised.has(opId)) return;
      if (raised.size >= rememberedAlarms) raised.clear();
      raised.add(opId);
      const written = write(
        tenantId,
        { opId, by: "billing", command: { type: "usage.alarm", callId, model, doubt } },
        closing.signal,
      ).catch((error: unknown) => {
        raised.delete(opId); // the next call of the kind tries again
        log("an alarm has no audit entry yet", { tenantId, callId, error: String(error) });
      });
      writing.add(written);
      void written.then(() => writing.delete(written));
    },
    async close() {
      const patience = setTimeout(() => closing.abort(), 1_000);
      await Promise.all(writing);
      clearTimeout(patience);
    },
  };
}
