import { AppError } from "../domain/app-error.ts";
import type { TenantId } from "../domain/tenant.ts";
import { poolLaneConcurrency } from "../temporal/tenant-client.ts";

export type TurnSlotsOptions = {
  /** Calls of one tenant that run at once: `http.slots_per_tenant`. */
  readonly slotsPerTenant: number;
  /** How long a call waits for a slot before it is refused. Default 30 s (contract §3). */
  readonly waitMs?: number;
};

/** One running call's place; the pool lane is the one that a stateless call runs in. */
export type TurnSlot = { readonly poolLane: number; release(): void };

export interface TurnSlots {
  /** @throws {AppError} `unavailable` when no slot came free in time */
  acquire(tenantId: TenantId): Promise<TurnSlot>;
}

type Waiter = { grant: (slot: TurnSlot) => void };
type TenantSlots = { readonly laneLoads: number[]; running: number; readonly waiting: Waiter[] };

/** Bounds what one tenant runs at once and spreads its stateless calls over as few pool lanes as hold them. */
export function createTurnSlots({ slotsPerTenant, waitMs = 30_000 }: TurnSlotsOptions): TurnSlots {
  const tenants = new Map<TenantId, TenantSlots>();

  const take = (tenantId: TenantId, slots: TenantSlots): TurnSlot => {
    // A fuller lane is the cheaper one: its turns share workflow tasks.
    const open = slots.laneLoads.findIndex((load) => load < poolLaneConcurrency);
    const poolLane = open === -1 ? slots.laneLoads.length : open;
    slots.laneLoads[poolLane] = (slots.laneLoads[poolLane] ?? 0) + 1;
    slots.running++;
    let isHeld = true;
    const release = (): void => {
      if (!isHeld) return;
      isHeld = false;
      slots.laneLoads[poolLane] = (slots.laneLoads[poolLane] ?? 1) - 1;
      slots.running--;
      slots.waiting.shift()?.grant(take(tenantId, slots));
      if (slots.running === 0) tenants.delete(tenantId);
    };
    return { poolLane, release };
  };

  return {
    async acquire(tenantId) {
      const slots = tenants.get(tenantId) ?? { laneLoads: [], running: 0, waiting: [] };
      tenants.set(tenantId, slots);
      if (slots.running < slotsPerTenant) return take(tenantId, slots);
      return await new Promise<TurnSlot>((resolve, reject) => {
        const waiter: Waiter = { grant: (slot) => (clearTimeout(timer), resolve(slot)) };
        const timer = setTimeout(() => {
          slots.waiting.splice(slots.waiting.indexOf(waiter), 1);
          reject(new AppError("unavailable", { client: { message: "All slots of this tenant are in use.", retryAfterSeconds: 5 } }));
        }, waitMs);
        slots.waiting.push(waiter);
      });
    },
  };
}
