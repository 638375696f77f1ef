import { AppError } from "../domain/app-error.ts";
import type { TenantId } from "../domain/tenant.ts";
import { poolLaneConcurrency } from "../temporal/tenant-client.ts";
import { createFairShare } from "./fair-share.ts";

export type TurnSlotsOptions = {
  /** Calls of one tenant that run at once: `http.slots_per_tenant`. */
  readonly slotsPerTenant: number;
  /** Calls of all tenants that run at once: `http.slots`. */
  readonly slots: number;
  /** How long a call waits for a slot before it is refused. Default 30 s (contract §3). */
  readonly waitMs?: number;
  /** How long a step waits for its turn in this process, in ms; default: of the event loop. */
  readonly lagMs?: () => number;
};

/** One running call's place; the pool lane is the one that a stateless call runs in. */
export type TurnSlot = { readonly poolLane: number; release(): void };

export interface TurnSlots {
  /** Calls that one tenant may run at once just now. */
  shareNow(): number;
  close(): void;
  /** @throws {AppError} `unavailable` when no slot came free in time */
  acquire(tenantId: TenantId): Promise<TurnSlot>;
}

type Waiter = { grant: (slot: TurnSlot) => void };
type TenantSlots = { readonly laneLoads: number[]; running: number; readonly waiting: Waiter[] };

/** Calls of a tenant that wait: a queue that only grows helps nobody in it. */
const mostWaiting = (slotsPerTenant: number): number => Math.max(100, slotsPerTenant * 4);

/**
 * Bounds what runs at once, less while the process falls behind (`createFairShare`), and spreads a tenant's stateless calls over as few pool lanes as hold them. Where all slots are taken,
 * tenants have their turns one after the other: one with a hundred calls waits for itself.
 */
export function createTurnSlots({ slotsPerTenant, slots: allSlots, waitMs = 30_000, lagMs }: TurnSlotsOptions): TurnSlots {
  /** In the order of their turns. */
  const tenants = new Map<TenantId, TenantSlots>();
  let runningInAll = 0;

  const share = createFairShare({
    most: slotsPerTenant,
    isContended: () => tenants.size > 1,
    onGrow: () => grantAll(),
    ...(lagMs === undefined ? {} : { lagMs }),
  });
  const hasRoom = (slots: TenantSlots): boolean => slots.running < share.current() && runningInAll < allSlots;

  const take = (tenantId: TenantId, slots: TenantSlots): TurnSlot => {
    // A fuller lane is the cheaper one: its turns share workflow tasks.
    const open = slots.laneLoads.findIndex((load) => load < poolLaneConcurrency);
    const poolLane = open === -1 ? slots.laneLoads.length : open;
    slots.laneLoads[poolLane] = (slots.laneLoads[poolLane] ?? 0) + 1;
    slots.running++;
    runningInAll++;
    let isHeld = true;
    const release = (): void => {
      if (!isHeld) return;
      isHeld = false;
      slots.laneLoads[poolLane] = (slots.laneLoads[poolLane] ?? 1) - 1;
      slots.running--;
      runningInAll--;
      grantNext();
      forget(tenantId, slots);
    };
    return { poolLane, release };
  };

  /** @returns whether there was somebody to grant a slot to */
  const grantNext = (): boolean => {
    for (const [tenantId, slots] of tenants) {
      if (slots.waiting.length === 0 || !hasRoom(slots)) continue;
      tenants.delete(tenantId);
      tenants.set(tenantId, slots);
      slots.waiting.shift()?.grant(take(tenantId, slots));
      return true;
    }
    return false;
  };
  const grantAll = (): void => {
    while (grantNext());
  };

  const forget = (tenantId: TenantId, slots: TenantSlots): void => {
    if (slots.running === 0 && slots.waiting.length === 0) tenants.delete(tenantId);
  };

  return {
    shareNow: share.current,
    close: share.stop,
    async acquire(tenantId) {
      const slots = tenants.get(tenantId) ?? { laneLoads: [], running: 0, waiting: [] };
      tenants.set(tenantId, slots);
      if (slots.waiting.length === 0 && hasRoom(slots)) return take(tenantId, slots);
      if (slots.waiting.length >= mostWaiting(slotsPerTenant)) throw noSlot();
      return await new Promise<TurnSlot>((resolve, reject) => {
        const waiter: Waiter = { grant: (slot) => (clearTimeout(timer), resolve(slot)) };
        const timer = setTimeout(() => {
          slots.waiting.splice(slots.waiting.indexOf(waiter), 1);
          forget(tenantId, slots);
          reject(noSlot());
        }, waitMs);
        slots.waiting.push(waiter);
      });
    },
  };
}

const noSlot = (): AppError => new AppError("unavailable", { client: { message: "All slots are in use.", retryAfterSeconds: 5 } });
