import { AppError } from "../domain/app-error.ts";
import { parseOwner } from "../domain/tenant.ts";
import type { KeyRotationReport, ResealCursor } from "../domain/key-rotation.ts";
import { type DataKeys, renewDataKey, tellForget } from "./data-keys.ts";
import type { ControlTx, Database } from "./database.ts";
import { type KeyRing, keyOfRing } from "./key-encryption.ts";
import { type SealedColumn, sealedColumns } from "./sealed-columns.ts";
import { openValue, sealValue, sealedVersionOf } from "./tenant-field-encryption.ts";

/** The channel that tells the workers that a rotation was asked for; the payload is its id. */
export const rotationChannel = "openclaw_key_rotation";

export type KeyRotationDeps = { readonly database: Pick<Database, "withControl">; readonly dataKeys: DataKeys; readonly ring: KeyRing };

/** In the change's own transaction. @throws {AppError} `conflict` while another rotation is under way */
export async function requestRotation(tx: ControlTx, rotationId: string): Promise<void> {
  if (!/^[a-z0-9]{1,32}$/.test(rotationId)) throw new AppError("invalid_request", { rotationId });
  const [running] = await tx.query<{ id: string }>("select id from control.key_rotation where state = 'requested' or id = $1", [
    rotationId,
  ]);
  if (running !== undefined)
    throw new AppError("conflict", { client: { message: `The key rotation rekey:_system:${running.id} is under way: wait for its end.` } });
  await tx.execute("insert into control.key_rotation (id) values ($1)", [rotationId]);
  await tx.query("select pg_notify($1, $2)", [rotationChannel, rotationId]);
}

export async function openRotations({ database }: Pick<KeyRotationDeps, "database">): Promise<readonly string[]> {
  const rows = await database.withControl(
    async (tx) => await tx.query<{ id: string }>("select id from control.key_rotation where state = 'requested'"),
    { readOnly: true },
  );
  return rows.map(({ id }) => id);
}

/** Decides once which key is rotated to, making one where the ring is ours to change, and tells every process to read its ring. */
export async function prepareRotation({ database, ring }: KeyRotationDeps, rotationId: string): Promise<string> {
  const [row] = await database.withControl(
    async (tx) =>
      await tx.query<{ kek_id: string | null; current: string }>(
        "select rotation.kek_id, encryption.kek_id as current from control.key_rotation rotation, control.key_encryption encryption where rotation.id = $1",
        [rotationId],
      ),
    { readOnly: true },
  );
  if (row === undefined) throw new AppError("not_found", { rotationId });
  const next = row.kek_id ?? ring.prepareNext(row.current);
  return await database.withControl(async (tx) => {
    const [decided] = await tx.query<{ kek_id: string }>(
      "update control.key_rotation set kek_id = coalesce(kek_id, $2) where id = $1 returning kek_id",
      [rotationId, next],
    );
    await tellForget(tx);
    return decided?.kek_id ?? next;
  });
}

/** A process that has not been seen for so long has ended, or will read its ring when it goes on. */
const livesSeconds = 12;

/** Live processes that do not hold the key: it must not wrap anything yet. */
export async function processesWithout({ database }: Pick<KeyRotationDeps, "database">, kekId: string): Promise<readonly string[]> {
  const rows = await database.withControl(
    async (tx) =>
      await tx.query<{ place: string }>(
        "select place from control.key_holder where seen_at > now() - $2::float8 * interval '1 s' and not $1 = any (kek_ids)",
        [kekId, livesSeconds],
      ),
    { readOnly: true },
  );
  return rows.map(({ place }) => place);
}

/** From its commit on nothing is wrapped by another key: makers of keys hold this row while they insert theirs. */
export async function switchKeyEncryption({ database }: KeyRotationDeps, kekId: string): Promise<void> {
  await database.withControl(
    async (tx) => await tx.execute("update control.key_encryption set kek_id = $1, changed_at = now() where kek_id <> $1", [kekId]),
  );
}

/** Gives the owners behind `after` new key versions. @returns the last owner looked at; undefined behind the last one */
export async function renewDataKeys(
  { database, ring }: KeyRotationDeps,
  { rotationId, after, limit }: { readonly rotationId: string; readonly after: string; readonly limit: number },
): Promise<{ readonly last: string | undefined; readonly renewed: number }> {
  const owners = await database.withControl(
    async (tx) =>
      await tx.query<{ owner: string }>(
        `select owner from control.data_key where state = 'current' and owner collate "C" > $1 order by owner collate "C" limit $2`,
        [after, limit],
      ),
    { readOnly: true },
  );
  let renewed = 0;
  for (const { owner } of owners)
    if (await database.withControl(async (tx) => await renewDataKey(tx, ring, parseOwner(owner), rotationId))) renewed++;
  return { last: owners.at(-1)?.owner, renewed };
}

/** Wraps data keys again that another key than `kekId` has wrapped. @returns how many it found; 0: there are none left */
export async function rewrapDataKeys({ database, ring }: KeyRotationDeps, kekId: string, limit: number): Promise<number> {
  type Row = { owner: string; version: number; wrapped: Buffer; kek_id: string };
  const rows = await database.withControl(
    async (tx) =>
      await tx.query<Row>(
        "select owner, version, wrapped, kek_id from control.data_key where wrapped is not null and kek_id <> $1 limit $2",
        [kekId, limit],
      ),
    { readOnly: true },
  );
  for (const { owner, version, wrapped, kek_id } of rows) {
    const context = { owner: parseOwner(owner), version };
    const dataKey = await keyOfRing(ring, kek_id).unwrap(context, wrapped);
    const again = await keyOfRing(ring, kekId).wrap(context, dataKey);
    dataKey.fill(0);
    // Not where it was erased meanwhile.
    await database.withControl(
      async (tx) =>
        await tx.execute("update control.data_key set wrapped = $4, kek_id = $5 where owner = $1 and version = $2 and wrapped = $3", [
          owner,
          version,
          wrapped,
          again,
          kekId,
        ]),
    );
  }
  return rows.length;
}

/** Seals the next values again that an older key version sealed; each stays readable, before and after. @returns undefined behind the last */
export async function resealValues(
  { database, dataKeys }: KeyRotationDeps,
  { column: index, owner: afterOwner, row: afterRow }: ResealCursor,
  limit: number,
  columns: readonly SealedColumn[] = sealedColumns,
): Promise<{ readonly next: ResealCursor | undefined; readonly resealed: number }> {
  const sealedColumn = columns[index];
  if (sealedColumn === undefined) return { next: undefined, resealed: 0 };
  const { table, column, place } = sealedColumn;
  type Row = { owner: string; row: string; sealed: Buffer; version: number | null };
  const rows = await database.withControl(
    async (tx) =>
      await tx.query<Row>(
        `select place.owner, place.row, value.${column} as sealed, key.version from control.${table} value
         cross join lateral (select (${place.owner})::text collate "C" as owner, (${place.row})::text collate "C" as row) place
         left join control.data_key key on key.owner = place.owner and key.state = 'current'
         where value.${column} is not null and (place.owner, place.row) > ($1, $2) order by place.owner, place.row limit $3`,
        [afterOwner, afterRow, limit],
      ),
    { readOnly: true },
  );
  let resealed = 0;
  for (const { owner, row, sealed, version } of rows) {
    if (version === null || sealedVersionOf(sealed) === version) continue; // the owner's keys were erased, or it is up to date
    const at = { owner: parseOwner(owner), table: place.table, field: place.field, row };
    const again = await sealValue(dataKeys, at, await openValue(dataKeys, at, sealed));
    resealed += await database.withControl(
      async (tx) =>
        await tx.execute(
          `update control.${table} set ${column} = $3 where (${place.owner})::text = $1 and (${place.row})::text = $2 and ${column} = $4`,
          [owner, row, again, sealed], // a value that was written meanwhile is newer
        ),
    );
  }
  const last = rows.at(-1);
  const next = last === undefined ? { column: index + 1, owner: "", row: "" } : { column: index, owner: last.owner, row: last.row };
  return { next: next.column < columns.length ? next : undefined, resealed };
}

/** Ends a rotation: earlier key-encryption keys are forgotten where that is ours to do, and the report is kept. Safe to repeat. */
export async function finishRotation(
  { database, ring }: KeyRotationDeps,
  {
    rotationId,
    kekId,
    renewed,
    resealed,
  }: { readonly rotationId: string; readonly kekId: string; readonly renewed: number; readonly resealed: number },
): Promise<KeyRotationReport> {
  const [count] = await database.withControl(
    async (tx) =>
      await tx.query<{ readable: number; behind: number }>(
        `select count(*) filter (where state = 'readable')::int as readable,
                count(*) filter (where wrapped is not null and kek_id <> $1)::int as behind from control.data_key`,
        [kekId],
      ),
    { readOnly: true },
  );
  if (count === undefined || count.behind > 0)
    throw new AppError("unavailable", { reason: "data keys are still wrapped by an earlier key" });
  ring.keepOnly(kekId);
  const report = { keyId: kekId, dataKeysRenewed: renewed, valuesResealed: resealed, readableVersionsKept: count.readable };
  await endRotation(database, rotationId, "done", report);
  return report;
}

export async function endRotation(
  database: Pick<Database, "withControl">,
  rotationId: string,
  state: "done" | "failed",
  report: KeyRotationReport | { readonly reason: string },
): Promise<void> {
  await database.withControl(async (tx) => {
    await tx.execute("update control.key_rotation set state = $2, report = $3, ended_at = now() where id = $1 and state = 'requested'", [
      rotationId,
      state,
      JSON.stringify(report),
    ]);
    await tellForget(tx);
  });
}
