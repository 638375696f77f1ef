import type { Membership } from "../control-plane/membership.ts";
import { type Owner, type TenantId, systemOwner } from "../domain/tenant.ts";
import type { Database } from "../storage/database.ts";
import { type TakeOutcome, takePlacement } from "../storage/placement-repository.ts";
import type { PlacementPlan } from "./placement-plan.ts";
import type { Refusal } from "./wanted-owners.ts";

export type TakeOverOptions = {
  readonly database: Pick<Database, "withControl">;
  readonly membership: Pick<Membership, "self">;
  readonly plan: Pick<PlacementPlan, "winnerOf">;
  /** Whether the tenant's directory is in this process's home. */
  readonly hasDirectory: (tenantId: TenantId) => boolean;
  /** Whether the tenant's directory is a file system of its own, which one machine mounts at a time. */
  readonly isVolume: (tenantId: TenantId) => boolean;
};

type NotTaken = Exclude<TakeOutcome, { state: "taken" }>;

const reasons: Readonly<Record<NotTaken["state"], string>> = {
  held: "another worker has it still",
  elsewhere: "its directory is not in this home",
  mounted_elsewhere: "its volume may still be mounted on the machine of a worker that died",
  refused: "there is no such tenant, or this process gives its tenants up",
};

/** Takes an owner that is this process's to serve. @returns under which epoch, or why not */
export const createTakeOver =
  ({ database, membership: { self }, plan, hasDirectory, isVolume }: TakeOverOptions) =>
  async (owner: Owner): Promise<{ readonly epoch: bigint } | Refusal> => {
    const winner = await plan.winnerOf(owner);
    if (winner === undefined) return { isAnothers: false, why: "no live worker has the tenant's home: its turns wait" };
    if (winner.id !== self.id) return { isAnothers: true };
    const place =
      owner === systemOwner
        ? { hasDirectory: false, onlyAfterMachine: undefined }
        : { hasDirectory: hasDirectory(owner), onlyAfterMachine: isVolume(owner) ? self.machine : undefined };
    const outcome = await database.withControl(
      async (tx) => await takePlacement(tx, { owner, holder: self.id, homeId: self.homeId, ...place }),
    );
    return outcome.state === "taken" ? outcome : { isAnothers: false, why: reasons[outcome.state] };
  };
