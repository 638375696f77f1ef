import type { Membership } from "../control-plane/membership.ts";
import { rendezvousWinner } from "../domain/rendezvous.ts";
import { type Owner, systemOwner } from "../domain/tenant.ts";
import type { Database } from "../storage/database.ts";
import { readHomeOf } from "../storage/placement-repository.ts";
import type { LiveProcess } from "../storage/process-repository.ts";

/** Who is to serve whom, as this process sees the live ones. */
export type PlacementPlan = {
  /** The worker that is to serve an owner; undefined where no live worker has the tenant's home. */
  winnerOf(owner: Owner): Promise<LiveProcess | undefined>;
  isOurs(owner: Owner): Promise<boolean>;
  /** Whether one of the owners is to be served by another process. */
  hasHeirs(owners: readonly Owner[]): Promise<boolean>;
  /** Whether there are other workers that take tenants. */
  hasOthers(): boolean;
};

export type PlacementPlanOptions = { readonly database: Pick<Database, "withControl">; readonly membership: Membership };

const homesRemembered = 10_000;
const homeMemoryMs = 60_000;

export function createPlacementPlan({ database, membership }: PlacementPlanOptions): PlacementPlan {
  const { self } = membership;
  const homeOf = rememberHomes(database);
  const workers = (): readonly LiveProcess[] => membership.live().filter(({ role, isDraining }) => role !== "gateway" && !isDraining);

  const winnerOf = async (owner: Owner): Promise<LiveProcess | undefined> => {
    const candidates = workers();
    if (owner === systemOwner || candidates.every(({ homeId }) => homeId === self.homeId)) return rendezvousWinner(owner, candidates);
    const home = await homeOf(owner);
    return rendezvousWinner(
      owner,
      candidates.filter(({ homeId }) => home === undefined || homeId === home),
    );
  };
  return {
    winnerOf,
    isOurs: async (owner) => (await winnerOf(owner))?.id === self.id,
    async hasHeirs(owners) {
      const winners = await Promise.all(owners.map(winnerOf));
      return winners.some((winner) => winner !== undefined && winner.id !== self.id);
    },
    hasOthers: () => workers().some(({ id }) => id !== self.id),
  };
}

/** The homes of tenants; asked for only where the live workers have several. */
function rememberHomes(database: Pick<Database, "withControl">): (owner: Owner) => Promise<string | undefined> {
  const homes = new Map<Owner, { readonly homeId: string; readonly untilMs: number }>();
  return async (owner) => {
    const known = homes.get(owner);
    if (known !== undefined && known.untilMs > performance.now()) return known.homeId;
    const homeId = await database.withControl(async (tx) => await readHomeOf(tx, owner), { readOnly: true });
    if (homes.size >= homesRemembered) homes.clear();
    // Where nobody knows, the worker that has the directory may tell any moment.
    if (homeId !== undefined) homes.set(owner, { homeId, untilMs: performance.now() + homeMemoryMs });
    return homeId;
  };
}
