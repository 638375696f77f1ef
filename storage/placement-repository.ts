import type { Owner } from "../domain/tenant.ts";
import type { ControlTx, TenantTx } from "./database.ts";

/** The channel on which whoever is to serve an owner is asked to do so; the payload is the owner. */
export const wakeChannel = "openclaw_wake";

/** Who serves which owner. A placement is a lease of the holder's process: it ends with it, or when it is released. */

/** The epoch is of one taking; a lease that was lost and taken again has another. */
export type Placement = { readonly holder: string; readonly epoch: bigint };

/** The channel that tells of owners that were taken; the payload is `<holder> <owner>`. */
export const placementChannel = "openclaw_placed";

export type TakeRequest = {
  readonly owner: Owner;
  /** Process id. */
  readonly holder: string;
  readonly homeId: string;
  /** Whether the holder's home has the tenant's directory: one that no home is known for is bound to this home then. */
  readonly hasDirectory: boolean;
  /** Where given, only a predecessor that died on this machine is taken over: what it mounted may still be mounted elsewhere. */
  readonly onlyAfterMachine: string | undefined;
};

export type TakeOutcome =
  | { readonly state: "taken"; readonly epoch: bigint }
  /** Another live process has it. */
  | { readonly state: "held"; readonly holder: string }
  /** The directory is in another home (null: nobody knows where). */
  | { readonly state: "elsewhere"; readonly homeId: string | null }
  /** Its volume may still be mounted on the machine of a holder that died. */
  | { readonly state: "mounted_elsewhere"; readonly holder: string }
  /** There is no such tenant, or the holder itself has expired or drains. */
  | { readonly state: "refused" };

const isLive = (holder: string): string =>
  `EXISTS (SELECT FROM control.process WHERE process.id = ${holder} AND process.expires_at > clock_timestamp())`;

/** Takes an owner that nobody live holds. */
export async function takePlacement(
  tx: ControlTx,
  { owner, holder, homeId, hasDirectory, onlyAfterMachine }: TakeRequest,
): Promise<TakeOutcome> {
  const [tenant] = await tx.query<{ home_id: string | null; deleted: boolean }>(
    "SELECT home_id, state = 'deleted' AS deleted FROM control.tenant WHERE id = $1",
    [owner],
  );
  const isSystem = owner === "_system";
  if (!isSystem && tenant === undefined) return { state: "refused" };
  const isHere = isSystem || tenant?.deleted === true || tenant?.home_id === homeId || (tenant?.home_id === null && hasDirectory);
  if (!isHere) return { state: "elsewhere", homeId: tenant?.home_id ?? null };
  const [taken] = await tx.query<{ epoch: bigint }>(
    `INSERT INTO control.placement AS existing (owner, holder, epoch)
     SELECT $1, $2, nextval('control.placement_epoch')
     WHERE EXISTS (SELECT FROM control.process WHERE id = $2 AND expires_at > clock_timestamp() AND NOT draining)
     ON CONFLICT (owner) DO UPDATE SET holder = excluded.holder, epoch = excluded.epoch, taken_at = now()
     WHERE existing.holder = excluded.holder OR (NOT ${isLive("existing.holder")} AND
       ($3::text IS NULL OR EXISTS (SELECT FROM control.process WHERE process.id = existing.holder AND process.machine = $3)))
     RETURNING epoch`,
    [owner, holder, onlyAfterMachine ?? null],
  );
  if (taken === undefined) return await whyNotTaken(tx, owner, onlyAfterMachine);
  if (tenant?.home_id === null && hasDirectory)
    await tx.execute("UPDATE control.tenant SET home_id = $2 WHERE id = $1 AND home_id IS NULL", [owner, homeId]);
  await tx.query("SELECT pg_notify($1, $2)", [placementChannel, `${holder} ${owner}`]);
  return { state: "taken", epoch: taken.epoch };
}

async function whyNotTaken(tx: ControlTx, owner: Owner, onlyAfterMachine: string | undefined): Promise<TakeOutcome> {
  const [standing] = await tx.query<{ holder: string; live: boolean }>(
    `SELECT holder, ${isLive("placement.holder")} AS live FROM control.placement WHERE owner = $1`,
    [owner],
  );
  if (standing === undefined) return { state: "refused" };
  const mayBeMounted = !standing.live && onlyAfterMachine !== undefined;
  return { state: mayBeMounted ? "mounted_elsewhere" : "held", holder: standing.holder };
}

/** Gives an owner up, if it is still held under this epoch; `thenWake` asks whoever is to serve it next, where there is work. */
export async function releasePlacement(
  tx: ControlTx,
  owner: Owner,
  { holder, epoch }: Placement,
  { thenWake }: { readonly thenWake: boolean },
): Promise<void> {
  await tx.execute("DELETE FROM control.placement WHERE owner = $1 AND holder = $2 AND epoch = $3", [owner, holder, epoch]);
  if (thenWake) await tx.query("SELECT pg_notify($1, $2)", [wakeChannel, owner]);
}

/** Gives up what a process holds of these, and asks the others to serve it. */
export async function releaseAll(tx: ControlTx, holder: string, owners: readonly Owner[]): Promise<void> {
  await tx.query(
    `WITH released AS (DELETE FROM control.placement WHERE holder = $1 AND owner = any ($3) RETURNING owner)
     SELECT pg_notify($2, owner) FROM released`,
    [holder, wakeChannel, owners],
  );
}

/** What a process holds, by owner. */
export async function readPlacementsOf(tx: ControlTx, holder: string): Promise<ReadonlyMap<string, bigint>> {
  const rows = await tx.query<{ owner: string; epoch: bigint }>("SELECT owner, epoch FROM control.placement WHERE holder = $1", [holder]);
  return new Map(rows.map(({ owner, epoch }) => [owner, epoch]));
}

/** Owners whose holder has expired. */
export async function readOrphans(tx: ControlTx): Promise<readonly string[]> {
  const rows = await tx.query<{ owner: string }>(`SELECT owner FROM control.placement WHERE NOT ${isLive("placement.holder")}`);
  return rows.map(({ owner }) => owner);
}

/** The home that has a tenant's directory; undefined where it is not known. */
export async function readHomeOf(tx: ControlTx, owner: Owner): Promise<string | undefined> {
  const [row] = await tx.query<{ home_id: string | null }>("SELECT home_id FROM control.tenant WHERE id = $1", [owner]);
  return row?.home_id ?? undefined;
}

/** Binds tenants that no home is known for to this one, which has their directories. @returns how many */
export async function adoptTenants(tx: ControlTx, homeId: string, names: readonly string[]): Promise<number> {
  return await tx.execute("UPDATE control.tenant SET home_id = $1 WHERE home_id IS NULL AND state <> 'deleted' AND id = any ($2)", [
    homeId,
    names,
  ]);
}

/**
 * Locks the placement of the transaction's tenant, so that nobody takes it before the end of the transaction.
 * @returns false when it is not held under this epoch any more
 */
export async function holdPlacement(tx: TenantTx, { holder, epoch }: Placement): Promise<boolean> {
  const rows = await tx.query("SELECT FROM control.placement WHERE owner = $1 AND holder = $2 AND epoch = $3 FOR SHARE", [
    tx.tenantId,
    holder,
    epoch,
  ]);
  return rows.length === 1;
}
