import { utcDayOf } from "../domain/quota-ledger.ts";
import type { TenantId } from "../domain/tenant.ts";

/** What the calls of one session came to. */
export type SessionCost = { readonly sessionId: string; readonly calls: number; readonly nanoUsd: bigint };

/** Admission times, the last exclusive. */
export type Stretch = { readonly fromMs: number; readonly untilMs: number };

/** Sums the ledger's rows of a stretch by session. */
export type SumSessions = (tenantId: TenantId, stretch: Stretch) => Promise<readonly SessionCost[]>;

type Summed = { readonly calls: number; readonly sessions: readonly SessionCost[] };

/** Sessions that are remembered in all; each takes some 150 bytes. */
const mostRemembered = 100_000;

/**
 * The dearest sessions of a period. To sum a million rows takes Postgres 0.4 s, and nearly all of them never change: so what days that
 * are over came to is remembered here. The ledger is only added to, so as long as those days hold as many rows as were summed, they hold
 * the same ones. A late settlement makes it one more, which the daily sums tell at once, and then they are summed again.
 */
export class SessionCosts {
  readonly #sum: SumSessions;
  readonly #mostRemembered: number;
  /** Least recently used first. */
  readonly #summed = new Map<string, Summed>();
  readonly #summing = new Map<string, Promise<Summed>>();
  #remembered = 0;

  constructor(sum: SumSessions, { mostSessions = mostRemembered }: { readonly mostSessions?: number } = {}) {
    this.#sum = sum;
    this.#mostRemembered = mostSessions;
  }

  /**
   * @param closedCalls rows of the period's days before today, as the daily sums have them now
   * @returns at most `count`, the dearest first
   */
  async dearest(
    tenantId: TenantId,
    { fromMs, untilMs }: Stretch,
    { nowMs, closedCalls, count }: { readonly nowMs: number; readonly closedCalls: number; readonly count: number },
  ): Promise<readonly SessionCost[]> {
    const todayMs = Math.min(Math.max(Date.parse(utcDayOf(nowMs)), fromMs), untilMs);
    const [closed, open] = await Promise.all([
      closedCalls === 0 ? [] : this.#closed(tenantId, { fromMs, untilMs: todayMs }, closedCalls),
      todayMs === untilMs ? [] : this.#sum(tenantId, { fromMs: todayMs, untilMs }),
    ]);
    const ofToday = new Map(open.map((session) => [session.sessionId, session]));
    const candidates: SessionCost[] = [];
    for (const { sessionId, calls, nanoUsd } of closed) {
      const more = ofToday.get(sessionId);
      // Behind the first `count` that spent nothing today no other such one can be among the dearest.
      if (more === undefined && candidates.length >= count + ofToday.size) continue;
      candidates.push(
        more === undefined ? { sessionId, calls, nanoUsd } : { sessionId, calls: calls + more.calls, nanoUsd: nanoUsd + more.nanoUsd },
      );
      ofToday.delete(sessionId);
    }
    return [...candidates, ...ofToday.values()].toSorted(byCost).slice(0, count);
  }

  async #closed(tenantId: TenantId, stretch: Stretch, calls: number): Promise<readonly SessionCost[]> {
    const key = `${tenantId} ${stretch.fromMs} ${stretch.untilMs}`;
    const known = this.#forget(key);
    if (known?.calls === calls) {
      this.#remember(key, known);
      return known.sessions;
    }
    const summing =
      this.#summing.get(key) ??
      this.#sumClosed(tenantId, stretch).finally(() => {
        this.#summing.delete(key);
      });
    this.#summing.set(key, summing);
    const summed = await summing;
    this.#forget(key);
    this.#remember(key, summed);
    return summed.sessions;
  }

  async #sumClosed(tenantId: TenantId, stretch: Stretch): Promise<Summed> {
    const sessions = (await this.#sum(tenantId, stretch)).toSorted(byCost);
    return { sessions, calls: sessions.reduce((total, session) => total + session.calls, 0) };
  }

  #remember(key: string, summed: Summed): void {
    this.#summed.set(key, summed);
    this.#remembered += summed.sessions.length;
    for (const oldest of this.#summed.keys()) {
      if (this.#remembered <= this.#mostRemembered) return;
      this.#forget(oldest);
    }
  }

  #forget(key: string): Summed | undefined {
    const known = this.#summed.get(key);
    this.#summed.delete(key);
    this.#remembered -= known?.sessions.length ?? 0;
    return known;
  }
}

/** Of two that cost the same the one with the smaller id is first, as `collate "C"` has them: ids are ASCII. */
const byCost = (a: SessionCost, b: SessionCost): number =>
  a.nanoUsd === b.nanoUsd ? (a.sessionId < b.sessionId ? -1 : 1) : a.nanoUsd > b.nanoUsd ? -1 : 1;
